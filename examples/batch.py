"""Answer a file of questions together: each decoding step writes one token of every answer.

python examples/batch.py [FILE.jsonl] [-m MODEL]

The command does the same a few lines at a time, and can resume after an interruption:
    python -m llava_min --batch examples/batch.jsonl -o answers.jsonl --resume
Paths in the file are relative to where it is started: start this in the root of the clone.
"""

import argparse
import json
from pathlib import Path

import llava_min

parser = argparse.ArgumentParser()
parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("batch.jsonl"))
parser.add_argument("-m", "--model")
given = parser.parse_args()

lines = [json.loads(line) for line in given.file.read_text(encoding="utf-8").splitlines()]
names = [line.pop("id", number) for number, line in enumerate(lines, start=1)]
answers = llava_min.load(given.model).generate_batch(lines)
for name, answer in zip(names, answers):
    print(f"{name}: {answer.text}")
