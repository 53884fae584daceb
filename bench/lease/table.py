"""What a lease found, as one table: what is wrong first, at most LINES lines.

in:  the journal      out: text; whether everything ran and was right

Each part has a share of the lines; what one part leaves over goes to the first that needs more.
Read next: marks.py.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable

from .marks import MARKS, rows_of, seconds
from .place import BETWEEN, Found

LINES, WIDTH = 110, 98  # 110 lines of 99 characters are less than 11,000
ENOUGH = 1.02  # a gain below it is noise
SHARES = {
    "WRONG, OR NOT THERE": 22,
    "THE MACHINE": 10,
    "CHECKS THAT PASSED": 15,
    "BLOCK SIZES": 14,
    "MARKS": 7,
    "PEERS": 18,
    "WHOLE MODELS": 13,
    "TRACES": 5,
    "NOT REACHED": 5,
}


def wrong(row: dict) -> str:
    """A check that failed, or an error, in one line, which may be cut at its end."""
    words = lambda names: " ".join(str(row[name]) for name in names if row.get(name) is not None)
    error, allowed = row.get("error"), row.get("allowed")
    if isinstance(error, int | float):
        most = f"{allowed:.3g}" if isinstance(allowed, int | float) else allowed
        error = f"error {error:.3g}" + (f", allowed {most}" if most is not None else "")
    what = words(("kernel", "dtype", "case", "what")) or row.get("key") or "between tasks"
    why = error or row.get("problem") or "not ok"
    return f"{what}: {why}: {words(('shape', 'size'))}".removesuffix(": ")


def faults(found: Found, stages: list[str]) -> list[str]:
    """Stages that did not run to their end, what the machine lacks, and every row that is not ok.

    Rows: the first of each kernel, then the second of each, so that many of one do not hide
    another.
    """
    header = found.headers[-1] if found.headers else {}
    lines = [f"{stage}: {how}" for stage, how in unfinished(found, stages)]
    for fact in ("compiler", "python_header", "ptxas"):
        if found.headers and not header.get("dry") and not header.get(fact):
            lines.append(f"machine: no {fact}: Triton compiles no kernel without it")
    counts, ranked = Counter(), []
    for row in found.rows:
        if row.get("ok") is False:
            kind = row["stage"], row.get("kernel")
            ranked.append((counts[kind], f"{row['stage']}: {wrong(row)}"))
            counts[kind] += 1
    return lines + [line for _, line in sorted(ranked, key=lambda pair: pair[0])]


ENDS = {"time": "its time was up", "full": "it wrote too many rows"}


def unfinished(found: Found, stages: list[str]) -> list[tuple[str, str]]:
    """The stages that did not end by themselves, and how they ended."""
    lines = []
    for stage in stages:
        end = found.ends.get(stage)
        if end != "complete":
            short = "not finished" if stage in found.begun else "not begun"
            lines.append((stage, ENDS.get(end, short)))
    return lines


def good(found: Found, stages: list[str]) -> bool:
    """Whether everything ran and was right."""
    return not faults(found, stages) and not found.missed


def limits(found: Found) -> list[str]:
    """The machine and its limits as they were found."""
    header = found.headers[-1] if found.headers else {}
    names = ("torch", "triton", "numpy", "transformers", "python", "driver_version", "commit")
    lines = [" ".join(f"{name} {header[name]}" for name in names if header.get(name))]
    for row in rows_of(found, "ceilings"):
        if "per_second" in row:
            unit = "GB/s" if row["unit"] == "bytes" else "TFLOP/s"
            value = row["per_second"] / (1e9 if row["unit"] == "bytes" else 1e12)
            lines.append(f"{row['what']}: {value:,.4g} {unit}")
        elif "us" in row:
            lines.append(f"{row['what']}: {row['us']:.2f} microseconds")
        elif "clocks_sm" in row:
            lines.append(
                f"{row['what']}: SM {row['clocks_sm']}, memory {row['clocks_mem']}, "
                f"{row['temperature_gpu']} C, {row['power_draw']}"
            )
    return [line for line in lines if line]


def late(found: Found) -> list[str]:
    """Kernels that were compiled after the stage compile, by stage."""
    seconds = defaultdict(list)
    for row in found.rows:
        if "late" in row:
            seconds[row["stage"]].append(row["seconds"])
    return [
        f"compiled late in {stage}: {len(some)} kernels, {sum(some):.1f} s"
        for stage, some in seconds.items()
    ]


def right(found: Found) -> list[str]:
    """Checks that passed, by kernel and type, and the largest error as a share of the allowed."""
    counts, passed, worst, dtypes = Counter(), Counter(), {}, []
    for row in rows_of(found, "right"):
        if "kernel" not in row or "ok" not in row:
            continue
        cell = row["kernel"], str(row.get("dtype", "")).removeprefix("torch.")
        counts[cell] += 1
        passed[cell] += bool(row["ok"])
        if cell[1] not in dtypes:
            dtypes.append(cell[1])
        if isinstance(row.get("error"), int | float) and row.get("allowed"):
            share = row["error"] / row["allowed"]
            worst[row["kernel"]] = max(worst.get(row["kernel"], 0.0), share)
    lines = []
    for kernel in dict.fromkeys(kernel for kernel, _ in counts):
        cells = [
            f"{dtype} {passed[kernel, dtype]}/{counts[kernel, dtype]}".strip()
            for dtype in dtypes
            if counts[kernel, dtype]
        ]
        largest = f"  largest error {worst[kernel]:.2f} of allowed" if kernel in worst else ""
        lines.append(f"{kernel:30} {'  '.join(cells)}{largest}")
    return lines


def gains(rows: list[dict]) -> dict[tuple[str, str], dict[tuple[str, str], dict[str, float]]]:
    """How many times faster than the table's present row each candidate is, at each shape.

    {(kernel, case): {(block, variant): {shape: gain}}}. Both took turns, where the rows say so.
    """
    present, found = {}, {}
    for row in rows:
        if row.get("current") and row.get("ms"):
            present[row["kernel"], str(row["case"]), row["shape"]] = row["ms"]
    for row in rows:
        place = row.get("kernel"), str(row.get("case")), row.get("shape")
        if row.get("ms") and row.get("block") and row.get("ok", True) and place in present:
            candidate = str(row["block"]), row.get("variant") or ""
            if row.get("current"):
                candidate = "present", str(row["block"])
            ratio = (row.get("present_ms") or present[place]) / row["ms"]
            found.setdefault(place[:2], {}).setdefault(candidate, {})[place[2]] = ratio
    return found


def sweep(found: Found) -> list[str]:
    """The fastest candidate of each row of a table of block sizes, where it gains.

    It is the one with the largest geometric mean over the shapes of the row. Then come times that
    belong to no table, and how many candidates were not right.
    """
    rows, lines, level = rows_of(found, "sweep"), [], 0
    for (kernel, case), table in gains(rows).items():
        shapes = max(len(ratios) for ratios in table.values())
        means = {
            candidate: math.prod(ratios.values()) ** (1 / shapes)
            for candidate, ratios in table.items()
            if len(ratios) == shapes
        }
        best = max(means, key=means.get)
        present = next((block for name, block in table if name == "present"), "?")
        if best[0] == "present" or means[best] < ENOUGH:
            level += 1
            continue
        each = ", ".join(f"{shape} {ratio:.2f}x" for shape, ratio in table[best].items())
        block = " ".join(word for word in best if word)
        gain = f"{means[best]:5.2f}x {kernel} {case}: {block} in place of {present}: {each}"
        lines.append((-means[best], gain))
    lines = [line for _, line in sorted(lines)]
    if level:
        lines.append(f"{level} rows of the tables: nothing is faster by {ENOUGH - 1:.0%}")
    for row in rows:
        if row.get("ms") and not row.get("block"):
            words = (str(row[name]) for name in ("kernel", "case", "variant") if row.get(name))
            lines.append(f"{' '.join(words)}: {row['shape']}: {row['ms']:.4f} ms")
    unfit = sum("problem" in row for row in rows)
    return lines + ([f"{unfit} candidates were not right, or could not run"] if unfit else [])


def peers(found: Found) -> list[str]:
    """Each of our rows beside the fastest peer of its shape; the worst ratio first."""
    rows = [row for row in rows_of(found, "peers") if "p50_ms" in row]
    place = lambda row: (row["section"], row["shape"], row["size"])
    theirs: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: -row["p50_ms"]):
        if not row["ours"]:
            theirs[place(row)] = row
    lines = []
    for row in (row for row in rows if row["ours"]):
        peer, kind = theirs.get(place(row)), row["section"].split()[0]
        ratio = peer["p50_ms"] / row["p50_ms"] if peer else float("inf")
        beside = f"{ratio:.2f}x {peer['name']}" if peer else "no peer"
        shape = f"{kind} {row['shape'].removeprefix(kind).strip()}"
        of_ceiling = f"{row['of_ceiling']:.0%}" if row.get("of_ceiling") else "-"
        name = row["name"].removeprefix("llava_min").strip()
        line = f"{shape[:40]:40} {name:10} {row['p50_ms']:9.4f} ms {of_ceiling:>5} {beside}"
        lines.append((ratio, line))
    return [line for _, line in sorted(lines)]


def whole(found: Found) -> list[str]:
    """Whole models: time, rate, memory beside the plan, and a peer."""
    lines = []
    for row in rows_of(found, "whole"):
        took = seconds(row)
        if "what" not in row or took is None and "peak_bytes" not in row:
            continue
        words = [
            f"{row.get('what', '')} {row.get('model', '')} {row.get('format', '')} "
            f"{row.get('size', '')}".ljust(30)
        ]
        if took is not None:
            words.append(f"{took:9.3f} s" if took >= 0.1 else f"{1e3 * took:9.3f} ms")
        if row.get("tokens_per_s"):
            words.append(f"{row['tokens_per_s']:,.0f} tokens/s")
        if row.get("peak_bytes") and row.get("planned_bytes"):
            words.append(
                f"peak {row['peak_bytes'] / 1e9:.2f} of {row['planned_bytes'] / 1e9:.2f} GB"
            )
        if row.get("peer_ms") and took:
            words.append(f"{row['peer_ms'] / 1e3 / took:.2f}x {row.get('peer', 'transformers')}")
        lines.append(" ".join(words))
    return lines


def traces(found: Found) -> list[str]:
    """Each trace, and its parts by the time that they take."""
    parts: dict[str, list[str]] = {}
    for row in rows_of(found, "trace"):
        if "share" in row and "kernel" not in row:
            start = f"{row['trace']}: {row['us_together']:,.0f}"
            parts.setdefault(start, []).append(f"{row['part']} {row['share']:.0%}")
    return [f"{start}: {', '.join(shares)}" for start, shares in parts.items()]


def missing(found: Found) -> list[str]:
    """Tasks that were not reached, whose time was up, or that could not be made here."""
    lines = []
    for name, tasks in (
        ("not reached", found.missed),
        ("cut short", [task for task in found.cut if task not in found.done]),
    ):
        for stage in dict.fromkeys(stage for stage, _ in tasks):
            keys = [key for where, key in tasks if where == stage and key != BETWEEN]
            if keys:
                lines.append(f"{name}: {stage}: {len(keys)}: {', '.join(keys)}")
    for row in found.rows:
        if row.get("skipped"):
            lines.append(f"skipped: {row['stage']}: {row['key']}: {row['skipped']}")
    return list(dict.fromkeys(lines))


def fitted(parts: dict[str, list[str]], room: int) -> list[str]:
    """The lines of all parts under their titles, each part cut to its share of `room` lines.

    What one leaves over goes to the first that needs more.
    """
    kept = {
        title: min(SHARES[title.split(":")[0]], len(lines) + 1) for title, lines in parts.items()
    }
    rest = room - sum(kept.values())
    for title, lines in parts.items():
        more = min(rest, len(lines) + 1 - kept[title])
        kept[title] += more
        rest -= more
    found = []
    for title, lines in parts.items():
        keep = kept[title] - 1
        cut = [*lines[: keep - 1], f"... and {len(lines) - keep + 1} more"]
        found += [title, *(lines if keep >= len(lines) else cut)]
    return found


PARTS = {
    "THE MACHINE": lambda found: limits(found) + late(found),
    "CHECKS THAT PASSED": right,
    "BLOCK SIZES": sweep,
    "MARKS": lambda found: [mark.line(found) for mark in MARKS],
    "PEERS: time, of the limit, the peer's time over ours": peers,
    "WHOLE MODELS: time, rate, peak of planned memory, the peer's time over ours": whole,
    "TRACES: microseconds, and the parts with the largest share": traces,
    "NOT REACHED": missing,
}


def lines_of(build: Callable[[Found], list[str]], found: Found) -> list[str]:
    """One part of the table. A row that is not as expected costs its part, never the others."""
    try:
        return build(found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return [f"this part cannot be written: {type(error).__name__}: {error}"]


def text(found: Found, stages: list[str]) -> str:
    """The table, from the journal alone."""
    header = found.headers[-1] if found.headers else {}
    dry = " A dry run: the figures mean nothing." if header.get("dry") else ""
    wrongs = faults(found, stages)
    parts = {f"WRONG, OR NOT THERE: {len(wrongs)}": wrongs} | {
        title: lines_of(build, found) for title, build in PARTS.items()
    }
    parts = {title: lines for title, lines in parts.items() if lines}
    state = "all ran and was right" if good(found, stages) else "NOT ALL RAN AND WAS RIGHT"
    first = f"bench lease: {state}. {header.get('device')}, {header.get('date')}.{dry}"
    return "".join(f"{line[:WIDTH]}\n" for line in (first, *fitted(parts, LINES - 1)))
