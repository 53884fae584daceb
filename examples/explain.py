"""See where an answer looked, and whether it needed that: attention, then patches knocked out.

python examples/explain.py [PICTURE] [QUESTION] [-m MODEL] [--save PAGE.html]
"""

import argparse
from pathlib import Path

import llava_min

PICTURE = Path(__file__).parents[1] / "weights" / "tiny" / "samples" / "shapes.png"
parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", default=PICTURE)
parser.add_argument("question", nargs="?", default="Where is the star?")
parser.add_argument("-m", "--model")
parser.add_argument("--save", help="a page that shows the maps of all words")
given = parser.parse_args()

model, pictures = llava_min.load(given.model, dtype="float32"), [given.picture]
found = model.explain(given.question, images=pictures)
weights = sum(found.weights(word, *found.suggested) for word in range(len(found.tokens)))
order = [row for row in weights.argsort() if found.rows.patches[row]]
print(f"{found.answer} Most looked at: the patch at {found.rows.boxes[order[-1]].astype(int)}")
for name, rows in (("most", order[-20:]), ("least", order[:20])):
    before, after = model.knock_out(given.question, found.answer, images=pictures, patches=rows)
    lost = sum(before.log_probabilities) - sum(after.log_probabilities)
    print(f"without the 20 patches that it looked at {name}: {lost:.2f} nats less likely")
if given.save:
    found.save(given.save)
