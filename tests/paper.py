"""Parts of a drawing, each a picture of its own, and how they are put together."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, LINE, PAPER = (30, 30, 34), (95, 100, 108), (11, 98, 196), (255, 255, 255)
Colour = tuple[int, int, int]


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def words(text: str, size: int = 13, colour: Colour = INK) -> Image.Image:
    """Lines of text."""
    font = ImageFont.load_default(size)
    lines = text.split("\n")
    width = max(round(font.getlength(line)) for line in lines)
    picture = blank(width + 2, len(lines) * (size + 5))
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((0, number * (size + 5)), line, colour, font)
    return picture


def beside(*pictures: Image.Image, gap: int = 14) -> Image.Image:
    """Pictures from left to right, at their upper edge."""
    whole = blank(
        sum(p.width for p in pictures) + gap * (len(pictures) - 1), max(p.height for p in pictures)
    )
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def above(*pictures: Image.Image, gap: int = 5) -> Image.Image:
    """Pictures from top to bottom, at their left edge."""
    whole = blank(
        max(p.width for p in pictures), sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    )
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + gap
    return whole


def sheet(title: str, *parts: Image.Image) -> Image.Image:
    """A whole drawing: what it says in one line, and below it its parts."""
    inner = above(words(title, 15), *parts, gap=12)
    whole = blank(inner.width + 28, inner.height + 26)
    whole.paste(inner, (14, 12))
    return whole


def noted(note: str, picture: Image.Image) -> Image.Image:
    """A picture with a note above it."""
    return above(words(note, 12, SOFT), picture)


def arrow(height: int, note: str = "") -> Image.Image:
    """To the right, in the middle of a picture of such a height."""
    said = words(note, 12, SOFT) if note else blank(0, 0)
    picture = blank(max(34, said.width), height)
    draw, middle = ImageDraw.Draw(picture), height // 2
    end = picture.width - 4
    draw.line((2, middle, end, middle), LINE, 2)
    draw.polygon([(end + 2, middle), (end - 6, middle - 5), (end - 6, middle + 5)], LINE)
    picture.paste(said, (0, middle - 22))
    return picture


def cells(values: np.ndarray, size: int) -> Image.Image:
    """Colours [R C 3] as squares of `size` pixels."""
    picture = Image.fromarray(values.astype(np.uint8))
    return picture.resize(
        (size * values.shape[1], size * values.shape[0]), Image.Resampling.NEAREST
    )


def tint(colour: Colour, strength: float = 0.25) -> Colour:
    """A colour mixed with paper."""
    red, green, blue = (round(255 + strength * (part - 255)) for part in colour)
    return red, green, blue


def box(text: str, colour: Colour, width: int = 0, strength: float = 0.25) -> Image.Image:
    """Text in a box, as wide as it or as given."""
    inner = words(text)
    picture = Image.new("RGB", (max(inner.width + 12, width), inner.height + 8), colour)
    fill = tint(colour, strength)
    ImageDraw.Draw(picture).rectangle((1, 1, picture.width - 2, picture.height - 2), fill)
    font = ImageFont.load_default(13)
    ImageDraw.Draw(picture).multiline_text((6, 4), text, INK, font, spacing=5)
    return picture


def flow(pictures: list[Image.Image], width: int = 700) -> Image.Image:
    """Pictures like words in lines of at most so many pixels."""
    lines, line = [], [pictures[0]]
    for picture in pictures[1:]:
        if sum(p.width + 4 for p in line) + picture.width > width:
            lines.append(line)
            line = []
        line.append(picture)
    return above(*(beside(*line, gap=4) for line in [*lines, line]), gap=6)


def key(colours: dict[str, Colour]) -> Image.Image:
    """What colours mean."""
    squares = [
        beside(Image.new("RGB", (12, 12), colour), words(name, 12), gap=5)
        for name, colour in colours.items()
    ]
    return beside(*squares)


def bar(share: float, text: str, colour: Colour, width: int = 150) -> Image.Image:
    """A share of one as a bar with a text after it."""
    picture = blank(width + 50, 18)
    ImageDraw.Draw(picture).rectangle((0, 2, round(share * width), 14), colour)
    picture.paste(words(text, 12), (round(share * width) + 5, 1))
    return picture
