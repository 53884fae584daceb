"""A JPEG without its last marker: whole, or cut in its pixels?

in:  the bytes of a JPEG
out: the same with the marker, or ValueError where pixels are missing

Some writers leave the end-of-image marker out, or fill the file with zeros. The decoder cannot say
whether it had all pixels by then: it makes up what is missing. So each file is decoded with three
different endings. Where all pixels are there, no ending is read, and all give the same picture.
Read media/sources.py first.
Agrees with: ITU-T T.81 (the JPEG standard), B.1 and G.1.
"""

import io
import random
import re

from PIL import Image, ImageChops

START, SCAN, END = 0xD8, 0xDA, 0xD9
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers that name the components
BARE = {0x01, START}  # markers without a length
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # neither a stuffed 255 nor a restart


def completed(data: bytes) -> bytes:
    """The JPEG, with the end-of-image marker if it had none; ValueError where pixels miss."""
    scan, whole = last_scan(data)
    if scan is None or not data.startswith(b"\xff\xd8"):
        return data
    pixels = data.rstrip(b"\0")
    # a zero after 255 means that the 255 is a pixel's; one zero alone may be a pixel's too
    data = pixels + b"\0" * (pixels.endswith(b"\xff") or len(data) == len(pixels) + 1)
    plain, restarts = data + b"\xff\xd9", len(RESTART.findall(data, scan))
    filled = (data + noise(restarts, mask) + b"\xff\xd9" for mask in (0, 255))
    if not (whole and all(same(plain, other) for other in filled)):
        raise ValueError("pixels are missing")
    return plain


def last_scan(data: bytes) -> tuple[int | None, bool]:
    """(where the last scan of a JPEG starts, whether the scans hold all bits of all coefficients).

    The first is None where the JPEG has its last marker.
    """
    missing: dict[int, list[bool]] = {}  # of each component: which coefficients have not all bits
    scan = position = 0
    while found := MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == END:
            return None, True
        if marker in BARE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        body = data[position + 2 : position + length]
        position += max(length, 2)
        if marker in FRAMES:
            missing = {name: [True] * 64 for name in body[6::3]}
        if marker == SCAN and body and len(body) >= 4 + 2 * body[0]:
            scan = position
            first, last, bits = body[1 + 2 * body[0] :][:3]
            band = range(first, last + 1)
            for name in missing.keys() & body[1 : 1 + 2 * body[0] : 2]:
                missing[name][first : last + 1] = [bool(bits & 15)] * len(band)
    return scan, bool(missing) and not any(map(any, missing.values()))


def noise(restarts: int, mask: int) -> bytes:
    """An ending that shows wherever it is read: random bits between all restart markers.

    They go on after so many restarts. mask: 255 for the opposite of each bit.
    """
    bits, ending = random.Random(0), b""
    for number in range(restarts, restarts + 16):
        ending += bytes(bits.randrange(1, 255) ^ mask for _ in range(512))
        ending += bytes((255, 0xD0 + number % 8))
    return ending


def same(one: bytes, other: bytes) -> bool:
    """Whether two files show the same picture."""
    pictures = [Image.open(io.BytesIO(data), formats=["JPEG"]) for data in (one, other)]
    return ImageChops.difference(*pictures).getbbox() is None
