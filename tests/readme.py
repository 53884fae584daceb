"""Write the generated parts of the README: `python tests/readme.py`."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

from test_house import ROOT, chain

README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
TRACED = ["python", "-m", "llava_min.generate", "Where is the star?", "--image",
          "weights/tiny/samples/shapes.png", "--trace", "--quiet"]  # fmt: skip


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments, docstrings, or closing brackets on their own."""
    source = path.read_text()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in ignored and token.string.strip(")]},:"):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def reading() -> str:
    """The files of the walk, their lines of code, and the first sentence of each."""
    rows = ["| file | lines | what it is |", "|---|---:|---|"]
    for name in chain():
        path = ROOT / "llava_min" / f"{name}.py"
        first = ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].replace("\n", " ")
        sentence = re.split(r"(?<=\.)\s", first)[0]
        rows.append(f"| [`{name}.py`](llava_min/{name}.py) | {code_lines(path)} | {sentence} |")
    return "\n".join(rows)


def trace() -> str:
    """The command and what it prints, as a console block."""
    run = subprocess.run([sys.executable, *TRACED[1:]], cwd=ROOT, capture_output=True, text=True)
    command = " ".join(f'"{word}"' if " " in word else word for word in TRACED)
    return f"```console\n$ {command} 2>&1\n{run.stderr}{run.stdout}```"


def results(file: str, **wanted) -> list[dict]:
    """The rows of a file of results that hold these values."""
    lines = (RESULTS / f"{file}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if wanted.items() <= row.items()]


def table(heads: list[str], rows: list[list]) -> str:
    """A table, its first column to the left, the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def exam() -> str:
    """The committed exam of the embedded checkpoint."""
    heads, *rows = results("tiny_exam")
    table = [heads["columns"], heads["rule"], *(row["row"] for row in rows)]
    return "\n".join(table) + f"\n\n{heads['note']}"


def families() -> str:
    """The committed agreement of each family with its reference (tests/agreement.py)."""
    rows = [
        "| family | layouts | rows of 640 x 480 | rows a frame | context | against | cases | "
        "largest difference of a logit |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for row in results("agreement"):
        rows.append(
            f"| {row['family']} | {row['layouts']} | {row['picture']:,} | {row['frame']} | "
            f"{row['context']:,} | {row['against']} | {row['cases']} | {row['worst']:.1e} |"
        )
    return "\n".join(rows)


def cache() -> str:
    """What a cache of 8 bits costs the embedded checkpoint."""
    rows = [[row["format"], f"{row['token_bytes']:,} of {row['token_bytes_bf16']:,}",
             f"{100 * row['same']:.2f}% of {row['n']:,}", f"{row['kl']:.1e}"]
            for row in results("quality", section="cache", name="all")]  # fmt: skip
    heads = ["cache", "bytes a token, of bfloat16's", "same greedy answer", "KL of a token"]
    return table(heads, rows)


def machine(row: dict) -> str:
    return f"{row['cpu']}, {row['threads']} threads, torch {row['torch']}, {row['date']}"


def speed() -> str:
    """Rates of the 0.5B shape on a CPU, and how many times those of transformers in bfloat16."""
    parts, what = [], {"vision": "vision, tiles/s", "prefill": "prompt of {:,}, tokens/s",
                       "decode": "answer behind {:,}, tokens/s"}  # fmt: skip
    every = [row for row in results("generate-cpu", shape="0.5B") if row["section"] in what]
    every.sort(key=lambda row: (list(what).index(row["section"]), row["context"] or 0))
    order = ["transformers float32", "transformers bf16", "llava_min float32", "llava_min bf16",
             "llava_min int8", "llava_min int4", "llama.cpp bf16", "llama.cpp int4"]  # fmt: skip
    for capability in sorted({row["capability"] for row in every}, reverse=True):
        rows = [row for row in every if row["capability"] == capability]
        lines = {}
        for row in rows:
            cells = lines.setdefault(what[row["section"]].format(row["context"] or 0), {})
            rate = f"{row['per_second']:#.3g}".rstrip(".")
            cells[f"{row['name']} {row['format']}"] = f"{rate} ({row['ratio']:.2f}x)"
        names = [name for name in order if any(name in cells for cells in lines.values())]
        cells = [[line, *(found.get(name, "") for name in names)] for line, found in lines.items()]
        parts.append(f"{capability}, {machine(rows[0])}:\n\n{table(['', *names], cells)}")
    return "\n\n".join(parts)


def profile() -> str:
    """Where the time of a tile, a prompt and a token goes."""
    rows = []
    for what in ("vision", "prefill", "decode"):
        for row in results("generate-cpu", section=f"profile {what}"):
            times = [f"{1e3 * row[part]:,.1f}" for part in ("linears", "attention", "rest")]
            rows.append([f"{what}, {row['name']} {row['format']}", *times])
    return table(["milliseconds of", "linears", "attention", "the rest"], rows)


def loading() -> str:
    """Seconds and memory of loading, and of the whole command to its first token."""
    rows = []
    for row in results("load-cpu", section="load"):
        over = f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['over_file']:.2f}"
        rows.append([f"{row['name']} {row['format']}", f"{row['seconds']:.1f} s", *over])
    heads = ["0.5B shape loaded by", "whole process", "most memory", "beyond torch's, per file"]
    ours, theirs = (results("load-cpu", section="cold", name=name)[0]
                    for name in ("llava_min", "transformers"))  # fmt: skip
    written, answer = (results("load-cpu", section="quantise", shape="7B", name=name)[0]
                       for name in ("quantise", "answer"))  # fmt: skip
    return (
        f"{table(heads, rows)}\n\nThe whole command on the embedded checkpoint to its first token: "
        f"{ours['seconds']:.2f} s; the same work with transformers: {theirs['seconds']:.2f} s, "
        f"{ours['ratio']:.2f}x by the median of the turns.\n\n"
        f"The 7B shape, {written['file_bytes'] / 1e9:.1f} GB of random weights: written in int4 "
        f"(`quantize --method mse`) in {written['seconds']:.0f} s within "
        f"{written['peak_bytes'] / 1e9:.1f} GB of memory. The {answer['file_bytes'] / 1e9:.1f} GB "
        f"are loaded, and a question about a picture is answered, within "
        f"{answer['peak_bytes'] / 1e9:.1f} GB: loaded in {answer['timings']['load_s']:.0f} s, "
        f"first token after another {answer['timings']['ttft_s']:.0f} s, then "
        f"{answer['timings']['tokens_per_s']:.1f} tokens/s."
    )


def quality() -> str:
    """What int4 costs the embedded checkpoint, all tasks together, and the error of weights."""
    rows = []
    q4_0 = {row["name"]: row["relative"] for row in results("quality", format="q4_0 32")}
    for row in results("quality", section="answers", name="all"):
        same = {"format": row["format"]}
        lost = [each["lost_points"] for each in results("quality", section="answers", **same)]
        errors = [each["relative"] / q4_0[each["name"]]
                  for each in results("quality", section="errors", **same)]  # fmt: skip
        rows.append([row["format"], f"{row['lost_points']:.2f}", f"{max(lost):.2f}",
                     f"{row['kl']:.5f}", f"{max(errors):.2f}"])  # fmt: skip
    heads = ["method, group", "points lost", "by the worst task", "KL of a token",
             "error of a weight over that of Q4_0"]  # fmt: skip
    return table(heads, rows)


def frames() -> str:
    """The memory of a clip's prompt, and the speed of its prefill."""
    rows = []
    for row in results("frames-cpu", section="memory", name="chunked"):
        ways = [{"context": row["context"], "name": name} for name in ("chunked", "naive")]
        memory = [results("frames-cpu", section="memory", **way)[0] for way in ways]
        speed = [results("frames-cpu", section="prefill", **way)[0] for way in ways]
        rows.append([row["context"], f"{row['tokens']:,}",
                     *(f"{way['above_bytes'] / 2**20:,.0f} MiB" for way in memory),
                     *(f"{way['per_second']:.0f}" for way in speed)])  # fmt: skip
    heads = ["frames", "tokens", "memory, chunked", "all at once", "prefill, chunked, tokens/s",
             "all at once"]  # fmt: skip
    return table(heads, rows)


def clips() -> str:
    """Sampling an hour of video: seeking to the frames, and decoding everything."""
    rows = results("video")
    middle = lambda row: row["seconds"][len(row["seconds"]) // 2]
    floor = {row["clip"]: middle(row) for row in rows if row["name"] == "the spans alone"}
    lines = [[f"{row['clip']}, {row['name']}", f"{middle(row):.1f} s",
              f"{middle(row) / floor[row['clip']]:.2f}x", f"{row['decoded']:,}",
              f"{row['peak_mb']:.0f} MB"] for row in rows]  # fmt: skip
    heads = ["64 frames of", "time", "of the spans alone", "frames decoded", "memory"]
    return table(heads, lines)


def again() -> str:
    """How soon second questions are answered; the first row, a first question, is no second one."""
    rows = [[row["case"], f"{row['p50_s']:.2f} s", f"{row['times_sooner']:.1f}x"]
            for row in results("ask-0.5B")[1:]]  # fmt: skip
    return table(["first token of the", "after", "sooner than afresh"], rows)


def long() -> str:
    """A prompt of hundreds of thousands of tokens, in one sentence."""
    row = results("long-embedded")[-1]
    return (
        f"A prompt of {row['tokens']:,} tokens on the embedded checkpoint's shape in float32, its "
        f"context raised: {row['planned_bytes'] / 1e6:,.0f} MB were planned for cache and "
        f"activations, {row['measured_bytes'] / 1e6:,.0f} MB were measured "
        f"({row['measured_over_planned']:.3f} of that)."
    )


def needle() -> str:
    """What the heat map of a needle in a haystack of frames says, in two sentences."""
    found = lambda **wanted: [row["found"] for row in results("niah-embedded", **wanted)]
    share = lambda **wanted: f"{sum(found(**wanted)) / len(found(**wanted)):.0%}"
    rows = results("niah-embedded")
    needles = len({row["needle"] for row in rows})
    return (
        f"Of {needles} needles at six depths it finds {share(frames=16)} in clips of 16 frames, "
        f"the longest of its training, {share(frames=160)} in 160 frames and "
        f"{share(frames=256)} in 256. What is lost stood at the beginning of a long clip: in front "
        f"of 256 frames {share(frames=256, depth=0.0)} are found, behind them "
        f"{share(frames=256, depth=1.0)}."
    )


PARTS = {
    "reading": reading,
    "exam": exam,
    "families": families,
    "speed": speed,
    "profile": profile,
    "loading": loading,
    "quality": quality,
    "cache": cache,
    "needle": needle,
    "frames": frames,
    "clips": clips,
    "again": again,
    "long": long,
    "trace": trace,
}


def replaced(text: str, part: str) -> str:
    """The README with one generated part written anew."""
    fresh = f"<!-- {part} -->\n{PARTS[part]()}\n<!-- end -->"
    return re.sub(
        rf"<!-- {part} -->\n.*?<!-- end -->", lambda match: fresh, text, count=1, flags=re.S
    )


if __name__ == "__main__":
    text = README.read_text()
    for part in PARTS:
        text = replaced(text, part)
    README.write_text(text)
