"""Which TIFF it is: what messages say of one that Pillow does not read.

in:  the bytes of a file
out: a few words

Read media/sources.py first.
Agrees with: TIFF 6.0, section 8; libtiff's SampleFormat.
"""

import io

from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

WIDTH, BITS, COMPRESSION, COLORS, BANDS, NUMBERS = 256, 258, 259, 262, 277, 339  # tags
KINDS = {1: "integers", 2: "signed integers", 3: "floats"}
READ = "a TIFF of up to 4 bands of 8 or 16 bits, or of one band of floats"


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as a TIFF does."""
    return data.startswith(tuple(PREFIXES))


def described(data: bytes) -> str:
    """What a TIFF holds, from its tags; ValueError where they cannot be read."""
    file = io.BytesIO(data)
    tags = ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
    file.seek(tags.next)
    tags.load(file)
    if WIDTH not in tags:
        raise ValueError("no tags")
    bits, compression = first(tags.get(BITS, 1)), first(tags.get(COMPRESSION, 1))
    bands = first(tags.get(BANDS, 1))
    numbers = KINDS.get(first(tags.get(NUMBERS, 1)), "numbers of another kind")
    packed = COMPRESSION_INFO.get(compression, f"kind {compression}")
    return (
        f"a TIFF of {bands} band{'s' * (bands != 1)} of {bits}-bit {numbers}"
        f" (colors of kind {first(tags.get(COLORS, 0))}, compression {packed})"
    )


def first(value: object) -> int:
    """The number that a tag holds, or the first of several."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0
