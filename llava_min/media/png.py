"""What Pillow reads of a PNG only while it decodes: notes that stand after the pixels.

in:  the bytes of a PNG
out: the bytes of a PNG without pixels, whose notes stand first

An orientation may stand anywhere in the file. A picture's size must be known before its pixels are
decoded, so the notes are brought to the front.
Read media/sources.py first.
Agrees with: the PNG specification (W3C, third edition), 5.3 and 5.6.
"""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, the whole chunk) of each whole chunk in order."""
    position = len(SIGNATURE)
    while True:
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return
        yield data[position + 4 : position + 8], data[position:end]
        position = end


def checked(data: bytes) -> bytes:
    """The PNG as it may be decoded; ValueError where its pixels are not those that were stored.

    Pillow ignores checksums. A file whose end was lost may be filled with zeros, which unpack to
    something: those of a last chunk that is cut are taken off.
    """
    sound, end = True, len(SIGNATURE)
    for kind, chunk in chunks(data):
        end += len(chunk)
        sound &= kind != b"IDAT" or is_sound(chunk)
    if not (sound or unpacks(data)):
        raise ValueError("pixels are damaged")
    return data if end == len(data) else data[: max(end, len(data.rstrip(b"\0")))]


def is_sound(chunk: bytes) -> bool:
    """Whether a chunk is what its checksum says."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def unpacks(data: bytes) -> bool:
    """Whether all pixels have the checksum that they had when they were packed."""
    unpacking = zlib.decompressobj()
    try:
        for kind, chunk in chunks(data):
            packed = chunk[8:-4] if kind == b"IDAT" else b""
            while packed and not unpacking.eof:
                unpacking.decompress(packed, 1 << 20)
                packed = unpacking.unconsumed_tail
    except zlib.error:
        return False
    return unpacking.eof


def notes_first(data: bytes) -> bytes:
    """The same PNG without its pixels, the undamaged notes after them in front of them."""
    front, late, pixels = [SIGNATURE], [], False
    for kind, chunk in chunks(data):
        pixels |= kind in (b"IDAT", b"fdAT")
        if not pixels:
            front.append(chunk)
        elif kind in NOTES and is_sound(chunk):
            late.append(chunk)
    return b"".join([*front, *late, NO_PIXELS])
