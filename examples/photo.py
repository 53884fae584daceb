"""Ask about a photo, and print the answer while it is written.

python examples/photo.py [PICTURE] [QUESTION] [-m MODEL]

Without a model the embedded toy answers, which knows drawn shapes only.
"""

import argparse
from pathlib import Path

import llava_min

SAMPLES = Path(__file__).parents[1] / "weights" / "tiny" / "samples"

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", default=SAMPLES / "shapes.png")
parser.add_argument("question", nargs="?", default="Describe the picture.")
parser.add_argument("-m", "--model", help="a folder, an alias such as onevision-0.5b, or org/name")
given = parser.parse_args()

model = llava_min.load(given.model)
for piece in model.stream(given.question, images=[given.picture], max_tokens=256):
    print(piece, end="", flush=True)
print()
