"""Exercise 3, twenty minutes: cut off the border ("unpad").

A picture is scaled until it fits into a grid of tiles, and lies in its middle. Above and below it,
or on its left and right, there is a black border. Patches of that border say nothing, so they are
dropped. Write `unpadded`: which rows and columns of the grid's patches show the picture?

The picture fills the grid in one direction. In the other one it is as many patches long as its
ratio says, rounded down; of what is left, half (rounded down) is border on either side.

Read: llava_min/anyres.py. The picture docs/walk/anyres.png shows the border.
Check yourself: python examples/exercises/03_unpad.py
"""

import random

from llava_min import anyres

Range = tuple[int, int]  # the first, and the one after the last


def unpadded(size: tuple[int, int], patches: tuple[int, int]) -> tuple[Range, Range]:
    """(rows, columns) that show a picture of size (width, height) in a grid of patches (R, C)."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def ranges(size: tuple[int, int], patches: tuple[int, int], rounded: bool) -> tuple[Range, Range]:
    """The project's answer, by the rule of transformers (rounded) or of the original code."""
    rows, columns = anyres.unpadded(size, patches, rounded)
    return (rows.start, rows.stop), (columns.start, columns.stop)


def test():
    draw = random.Random(0)
    cases = [((300, 200), (12, 12)), ((200, 300), (12, 12)), ((100, 100), (6, 12))]
    for _ in range(500):
        size = draw.randint(30, 900), draw.randint(30, 900)
        cases.append((size, (6 * draw.randint(1, 6), 6 * draw.randint(1, 6))))
    for size, patches in cases:
        expected = [ranges(size, patches, rounded) for rounded in (True, False)]
        found = unpadded(size, patches)
        about = f"a picture of {size[0]} x {size[1]} pixels in {patches[0]} x {patches[1]} patches"
        assert found in expected, f"of {about} rows and columns {expected[0]} stay, not {found}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
