"""Compare two photos: each <image> in the question is the place of one of them, in order.

python examples/two_photos.py [FIRST SECOND] [-q QUESTION] [-m MODEL]
"""

import argparse
from pathlib import Path

import llava_min

SAMPLES = Path(__file__).parents[1] / "weights" / "tiny" / "samples"

parser = argparse.ArgumentParser()
parser.add_argument("pictures", nargs="*", default=[SAMPLES / "before.png", SAMPLES / "after.png"])
parser.add_argument("-q", "--question", default="What is different?")
parser.add_argument("-m", "--model")
given = parser.parse_args()

model = llava_min.load(given.model)
places = "<image>\n" * len(given.pictures)
answer = model.generate(places + given.question, images=given.pictures)
print(answer.text)
print(f"{answer.usage['image_tokens']} of {answer.usage['prompt_tokens']} tokens are pictures")
