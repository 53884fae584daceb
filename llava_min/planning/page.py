"""A forecast as text for a terminal, or as wide as people like to read.

in:  a Forecast, the width of the terminal in characters
out: lines: tokens of each medium, a bar of the context, bytes of each way of storing, seconds

A long name keeps its end, after three dots. In a narrow terminal each medium has two lines, and of
the bytes there is only their sum.
Read planning/memory.py first. Read next: planning/forecast.py.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..request.visuals import Entry
from .memory import GB, Memory

if TYPE_CHECKING:
    from .forecast import Forecast

WIDTH, NARROWEST = 79, 40  # characters of a line
BAR = 50


def page(found: Forecast, width: int) -> str:
    """Everything, in lines of at most `width` characters, or 40; more than 79 are not used."""
    width = max(NARROWEST, min(width, WIDTH))
    lines = [*token_lines(found, width), *memory_lines(found, width), *rank_lines(found, width)]
    return "\n".join(lines)


def token_lines(found: Forecast, width: int) -> list[str]:
    """Tokens of each medium, and a bar of the context."""
    count, narrow = found.json()["tokens"], width < WIDTH
    rows = [(entry["source"], becomes(entry), entry["tokens"]) for entry in found.media]
    rows.append(("text", "a guess without tokenizer" * found.guessed, count["text"]))
    rows.append(("answer", "at most", found.answer))
    total, context = count["all"], count["context"]
    ends = [count["text"], found.plan.tokens, total, max(total, context)]
    bar = min(BAR, width - 2)
    ends = [round(bar * end / ends[-1]) for end in ends]
    bars = "".join(sign * (end - start) for sign, start, end in zip("=#+.", [0, *ends], ends))
    left = f"{context - total:,} free" if total <= context else f"{total - context:,} TOO MANY"
    family, column = f" ({found.config.family})", width - 12 if narrow else width - 40
    lines = [cut(found.name, width - len(family)) + family]
    for name, kind, tokens in rows:
        beside = "" if narrow else f" {kind:27}"
        lines.append(f"  {cut(name, column):{column}}{beside} {tokens:>9,}")
        lines += [f"    {kind}"] if narrow and kind else []
    legend = "= text # visual + answer"
    lines += [f"[{bars}]", legend] if narrow else [f"[{bars}] {legend}"]
    return [*lines, f"{total:,} of {context:,} tokens, {left}"]


def memory_lines(found: Forecast, width: int) -> list[str]:
    """The arithmetic of the cache, a table over ways of storing, the verdict, the seconds."""
    text, chosen, whole = found.config.text, found.storage, found.json()
    vector, columns = f"{text.head_dim} x {chosen.size}", [*Memory.__annotations__, "total"]
    columns = columns if width == WIDTH else columns[-1:]
    if chosen.kv_dtype != "auto":
        vector = f"({text.head_dim} and a scale of 4)"
    sizes = {name: max(7 if width < WIDTH else 10, len(name) + 1) for name in columns}
    arithmetic = (
        f"cache: 2 x {text.num_layers} layers x {text.num_kv_heads} heads x {vector} bytes"
        f" = {whole['cache_bytes_a_token']:,} bytes a token"
    )
    lines = [f"  {'GB':31}" + "".join(f"{name:>{size}}" for name, size in sizes.items())]
    for row in whole["memory"]:
        name = (f"int{row['bits']}, else " if row["bits"] else "") + row["dtype"]
        name += f", {row['kv_dtype']} cache" * (row["kv_dtype"] != "auto")
        numbers = "".join(f"{row[column] / GB:{size}.3f}" for column, size in sizes.items())
        lines.append(f"{'>' if row['chosen'] else ' '} {name:31}{numbers}")
    others = ", or ".join(whole["what_would_fit"])
    verdicts = {
        None: "whether it fits is not known: see --memory",
        True: "it fits",
        False: f"it does not fit; {others} would",
    }
    room = "" if found.room is None else f"{found.room / GB:.2f} GB at hand: "
    seconds = ", ".join(f"{s:.2g} s {name}" for name, s in (found.seconds or {}).items())
    times = f"at best: {seconds}" if seconds else ""
    way = "kernels: {}: {}".format(*found.kernels) if found.kernels else ""
    above, *below = (
        textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)
        for line in (arithmetic, room + verdicts[found.fits], way, times)
    )
    return [*above, *lines, *(line for part in below for line in part)]


def rank_lines(found: Forecast, width: int) -> list[str]:
    """Of a split or streamed model: what each rank holds, what is sent, what that should take."""
    whole, sizes = found.json(), [*Memory.__annotations__, "total"]
    if "predicted" not in whole:
        return []
    sizes = sizes if width == WIDTH else sizes[-1:]
    head = f"  rank  layers   heads    MLP  {''.join(f'{name:>12}' for name in sizes)}"
    lines = [head] if "ranks" in whole else []
    for rank in whole.get("ranks", []):
        first, stop = rank["layers"]
        numbers = "".join(f"{rank[name] / GB:12.3f}" for name in sizes)
        held = f"{rank['heads']:>5} {rank['mlp']:>6}"
        lines.append(f"  {rank['rank']:<5} {f'{first}-{stop - 1}':8}{held}  {numbers}")
    sent = next(iter(whole["predicted"].values()))
    prompt, token = sent["prompt_bytes"] / 1e6, sent["token_bytes"] / 1e3
    what = "sent by rank 0" if "ranks" in whole else "layers that come to the device"
    below = [f"{what}: {prompt:,.1f} MB for the prompt, {token:,.1f} kB a token"]
    if found.media and "sent" in whole:
        away, back = (whole["sent"][name] / 1e6 for name in ("tiles", "features"))
        below.append(f"{away:,.1f} MB of tiles to the other ranks, {back:,.1f} MB of features back")
    for name, guess in whole["predicted"].items():
        times = f"{guess['prompt']:.2g} s for the prompt, {guess['token'] * 1e3:.2g} ms a token"
        below.append(f"predicted for {name}, not measured: {times}")
    return [*lines, *(line for text in below for line in textwrap.wrap(text, width))]


def cut(text: str, most: int) -> str:
    """The end of a text, of `most` characters at most.

    >>> cut("pictures/shapes.png", 13), cut("shapes.png", 13)
    ('...shapes.png', 'shapes.png')
    """
    return text if len(text) <= most else "..." + text[3 - most :]


def counted(entry: Entry, unit: str) -> int:
    """How many frames or tiles a medium has; 1 where it has none of that unit."""
    return entry.get("frames", 1) if unit == "frames" else entry.get("tiles", 1)


def becomes(entry: Entry) -> str:
    """What a medium becomes, in a few words."""
    unit = "frames" if "frames" in entry else "tiles"
    return f"{' x '.join(map(str, entry['size']))}, {unit}: {counted(entry, unit)}"
