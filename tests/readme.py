"""Write the generated parts of the README: `python tests/readme.py`."""

import ast
import json
import re
import subprocess
import sys

from test_house import ROOT, chain, code_lines

README, RESULTS = ROOT / "README.md", ROOT / "bench" / "results"
TRACED = ["python", "-m", "llava_min.generate", "Where is the star?", "--image",
          "weights/tiny/samples/shapes.png", "--trace", "--quiet"]  # fmt: skip


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


PARTS = {"reading": reading, "exam": exam, "families": families, "cache": cache, "trace": trace}


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
