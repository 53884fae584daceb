"""From what a lease measured: tables of block sizes, results, plots, and the tables of docs/gpu.md.

in:  the folder of a lease      out: blocks.patch there; with --write the patch is applied, too
A row of a table changes where another block is right and gains 2%; what was measured stands after
it. Rows of a dry run change nothing in the project.
Read sweep.py first.
"""

import difflib
import json
import re
import sys
from pathlib import Path

from bench import plots

from . import place, sweep
from .candidates import CONSTANTS, PART, Candidate
from .table import wrong as wrong_of

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- gpu -->", "<!-- end -->"
WIDTH = 100  # of a line of code
SHOWN = ("-decode-7B.svg", "-prefill-7B.svg", "-int4-7B-gate_up.svg", "-roofline.svg")


def measured(found: place.Found) -> dict[tuple, tuple[Candidate, str]]:
    """{(kernel, case): (winner, what was measured)}."""
    rows = [row for row in found.rows if row["stage"] == "sweep"]
    header = found.headers[-1]
    card = re.sub(r"NVIDIA |\s*\d*GB.*", "", str(header.get("device"))).strip()
    winners = {}
    for (kernel, case), winner in sweep.best(rows).items():
        mine = next(
            row
            for row in rows
            if row.get("ok")
            and row["kernel"] == kernel
            and (row["case"], tuple(row["block"]), row["variant"]) == (list(case), winner.block, "")
        )
        words = (
            f"{mine['ms']:.3g} ms, was {mine['present_ms']:.3g}: {card}, "
            f"{header.get('commit') or 'no commit'}"
        )
        winners[kernel, case] = winner, words
    return winners


def replaced(text: str, kernel: str, case: tuple, winner: Candidate, words: str) -> str:
    """A kernel's source with one row of its table, or its constant, set to the winner.

    >>> text = 'B = {\\n    ("227 KB", 16): (64, 4, 4, 2),  # old\\n}\\n'
    >>> print(replaced(text, "int4", (16,), Candidate((32, 4, 4, 2)), "1 ms"), end="")
    B = {
        ("227 KB", 16): (32, 4, 4, 2),  # 1 ms
    }
    """
    if kernel in CONSTANTS:
        before = r"(?:# [\d.e-]+ ms, was .*\n)?"  # what an earlier lease measured
        line = re.compile(rf"^{before}({CONSTANTS[kernel]} = )\d+(.*)$", re.M)
        fresh = rf"# {words}\n\g<1>{winner.block[0]}\g<2>"
    else:
        key = re.escape(str((PART, *case)).replace("'", '"'))
        line = re.compile(rf"^( +{key}: )\(.*\),.*$", re.M)
        fresh = rf"\g<1>{winner.block},  # {words}"
    changed, count = line.subn(fresh, text)
    if count != 1:
        raise ValueError(f"kernels/{kernel}.py: expected one row {case}, found {count}")
    return changed


def patched(root: Path, winners: dict) -> dict[Path, tuple[str, str]]:
    """{file, from the root: (its text, its text with the winners)}."""
    texts: dict[Path, tuple[str, str]] = {}
    for (kernel, case), (winner, words) in winners.items():
        path = Path("kernels", f"{kernel}.py")
        old, now = texts.get(path) or ((root / path).read_text(),) * 2
        texts[path] = old, replaced(now, kernel, case, winner, words)
    return texts


def patch_of(texts: dict[Path, tuple[str, str]]) -> str:
    """A unified diff, as `git apply` takes it."""
    lines = []
    for path, (old, new) in sorted(texts.items()):
        lines += difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}"
        )
    return "".join(lines)


def limits(found: place.Found) -> dict[str, float]:
    """The machine's limits as measured, in the units of bench/results/."""
    rows = {row["limit"]: row["per_second"] for row in found.rows if "limit" in row}
    return {"copy_gb_per_s": rows["copy"] / 1e9, "matmul_tflop_per_s": rows["matmul"] / 1e12}


def condensed(rows: list[dict]) -> list[dict]:
    """The rows, of the checks that passed one for each kernel, dtype and question.

    It has their number, and the largest error as a share of what was allowed.

    >>> row = dict(stage="right", kernel="gelu", dtype="float16", check="2x", ok=True)
    >>> condensed([row | dict(error=1.0, allowed=4.0), row | dict(error=1.0, allowed=2.0)])
    [{'stage': 'right', 'kernel': 'gelu', 'dtype': 'float16', 'check': '2x', 'ok': True,
      'passed': 2, 'largest_share': 0.5}]
    """
    kept: list[dict] = []
    passed: dict[tuple, dict] = {}
    for row in rows:
        if row.get("stage") != "right" or row.get("ok") is not True:
            kept.append(row)
            continue
        names = ("stage", "kernel", "dtype", "check")
        key = tuple(row.get(name) for name in names)
        if key not in passed:
            passed[key] = dict(zip(names, key)) | {"ok": True, "passed": 0, "largest_share": 0.0}
            kept.append(passed[key])
        one = passed[key]
        one["passed"] += 1
        if row.get("allowed"):
            one["largest_share"] = max(one["largest_share"], row["error"] / row["allowed"])
    return kept


def save(found: place.Found, results: Path) -> list[Path]:
    """The rows into results/lease-<card>.jsonl, those beside peers with plots: all files."""
    header = {name: value for name, value in found.headers[-1].items() if name != "line"}
    card = str(header["device"]).replace(" ", "-")
    every = results / f"lease-{card}.jsonl"
    every.write_text("".join(json.dumps(row) + "\n" for row in [header, *condensed(found.rows)]))
    peers = [row for row in found.rows if row["stage"] == "peers" and "p50_ms" in row]
    if not peers:
        return [every]
    path = results / f"kernels-{card}.jsonl"
    path.write_text("".join(json.dumps(row | limits(found)) + "\n" for row in peers))
    return [every, path, *plots.draw(path)]


def table(names: list[str], lines: list[list[str]]) -> str:
    """A table of Markdown."""
    rows = [names, ["---"] * len(names), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(found: place.Found, plots: list[str]) -> str:
    """What stands between the marks of docs/gpu.md.

    Where, what was not right, whole models, plots by their addresses, kernels beside their peers.
    """
    header = found.headers[-1]
    words = [
        f"{name} {header[name]}"
        for name in ("torch", "triton", "driver_version", "commit")
        if header.get(name)
    ]
    parts = [f"Measured on one {header['device']}, {header['date'][:10]}, {', '.join(words)}.\n"]
    wrong = [f"- {row['stage']}: {wrong_of(row)}\n" for row in found.rows if row.get("ok") is False]
    parts += ["What was not right:\n\n" + "".join(wrong)] if wrong else []
    whole = [row for row in found.rows if row["stage"] == "whole" and "what" in row]
    if whole:
        heads = ["what", "model", "format", "size", "ms", "tokens/s", "a peer's ms", "faster"]
        parts.append(table(heads, [whole_line(row) for row in whole]))
    images = [f"![{name.removesuffix('.svg')}](../bench/results/{name})\n" for name in plots]
    parts += ["".join(images)] if images else []
    peers = [row for row in found.rows if row["stage"] == "peers" and "p50_ms" in row]
    if peers:
        heads = ["kernel", "shape", "of", "ms", "of the limit", "best peer", "its ms", "faster"]
        parts.append(table(heads, [peer_line(row, peers) for row in peers if row["ours"]]))
    return "\n".join(parts)


def whole_line(row: dict) -> list[str]:
    """A line of the table of whole models."""
    line = [str(row.get(name) or "") for name in ("what", "model", "format", "size")]
    line.append(f"{row['ms']:.3f}" if row.get("ms") else "")
    line.append(f"{row['tokens_per_s']:,.0f}" if row.get("tokens_per_s") else "")
    beside = row.get("ms") and row.get("peer_ms")
    peer = [f"{row['peer_ms']:.3f}", f"{row['peer_ms'] / row['ms']:.2f}x"] if beside else ["", ""]
    return line + peer


def peer_line(row: dict, peers: list[dict]) -> list[str]:
    """A line of the table of kernels: ours, and the fastest peer of its shape."""
    where = ("section", "shape", "size")
    others = [
        other
        for other in peers
        if not other["ours"] and all(other[name] == row[name] for name in where)
    ]
    best = min(others, key=lambda other: other["p50_ms"], default=None)
    line = [row["section"], row["shape"], row["name"], f"{row['p50_ms']:.4f}"]
    line.append(f"{row['of_ceiling']:.0%}")
    if best is None:
        return [*line, "", "", ""]
    return [*line, best["name"], f"{best['p50_ms']:.4f}", f"{best['p50_ms'] / row['p50_ms']:.2f}x"]


def between(text: str, inside: str) -> str:
    """A page with new text between its marks.

    >>> between("a <!-- gpu -->old<!-- end --> b", "new")
    'a <!-- gpu -->\\nnew<!-- end --> b'
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"expected {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{inside}{END}{after}"


def main(folder: Path, write: bool = False, root: Path = ROOT) -> int:
    """Print the patch and leave it in the folder; 2 where the folder holds no results.

    write: apply the patch, and write results, plots and docs/gpu.md; 2 after a dry run, too.
    """
    found = place.read(folder)
    if not found.headers:
        print(f"bench: {folder} holds no results of a lease", file=sys.stderr)
        return 2
    texts = patched(root, measured(found))
    patch = patch_of(texts)
    print(patch or "no row of a table changes", end="" if patch else "\n")
    (folder / "blocks.patch").write_text(patch)
    for key, winner in sweep.best(found.rows, variants=True).items():
        if winner.variant:
            print(f"faster as a variant: {key[0]} {key[1]}: {winner.variant} {winner.block}")
    if not write:
        return 0
    if any(header.get("dry") for header in found.headers):
        print(f"bench: {folder} holds results of a dry run: nothing is written", file=sys.stderr)
        return 2
    for path, (_, new) in texts.items():
        (root / path).write_text(new)
    saved = save(found, root / "bench" / "results")
    print(*saved, sep="\n")
    drawn = [path.name for path in saved if path.name.endswith(SHOWN)]
    guide = root / "docs" / "gpu.md"
    if guide.exists():
        guide.write_text(between(guide.read_text(), page(found, drawn)))
        print(guide)
    return 0
