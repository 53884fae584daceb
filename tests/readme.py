"""Write the generated parts of the README: `python tests/readme.py`."""

import ast
import json
import re
import subprocess
import sys

from test_house import ROOT, chain, code_lines

README = ROOT / "README.md"
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


def exam() -> str:
    """The committed exam of the embedded checkpoint."""
    lines = (ROOT / "bench" / "results" / "tiny_exam.jsonl").read_text().splitlines()
    heads, *rows = [json.loads(line) for line in lines]
    table = [heads["columns"], heads["rule"], *(row["row"] for row in rows)]
    return "\n".join(table) + f"\n\n{heads['note']}"


def families() -> str:
    """The committed agreement of each family with its reference (tests/agreement.py)."""
    lines = (ROOT / "bench" / "results" / "agreement.jsonl").read_text().splitlines()
    rows = [
        "| family | layouts | rows of 640 x 480 | rows a frame | context | against | cases | "
        "largest difference of a logit |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for row in map(json.loads, lines):
        rows.append(
            f"| {row['family']} | {row['layouts']} | {row['picture']:,} | {row['frame']} | "
            f"{row['context']:,} | {row['against']} | {row['cases']} | {row['worst']:.1e} |"
        )
    return "\n".join(rows)


PARTS = {"reading": reading, "exam": exam, "families": families, "trace": trace}


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
