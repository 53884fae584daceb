"""A SentencePiece model, the file tokenizer.model of LLaMA's kin: pieces -> words and merges.

in:  tokenizer.model, a protocol buffer: numbered fields, each a number or some bytes
out: Pieces by id, which merge, whether a text begins with a mark

Only what such a file holds for LLaMA, Mistral and Yi is read: byte-pair encoding over characters,
with a piece for each byte, without a change of the text. Another file is refused by name.
Read next: families/vocabulary.py.
Agrees with: sentencepiece_model.proto of SentencePiece, version 0.2; SpmConverter of transformers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces; 5 is unused, 6 a byte
# fields of the file; of the trainer, of the normalizer
PIECES, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK = 3, 35
CHARACTERS, DUMMY_PREFIX, EXTRA_BLANKS, MARKS = 2, 3, 4, 5
BPE = 2  # a MODEL_TYPE


@dataclass(frozen=True)
class Pieces:
    """The pieces of a model in the order of their ids.

    prefix: whether a text begins with a mark, as if a blank was before its first word.
    """

    pieces: tuple[tuple[str, float, int], ...]  # text, score, kind
    prefix: bool

    @property
    def ids(self) -> dict[str, int]:
        return {piece: number for number, (piece, _, _) in enumerate(self.pieces)}

    @property
    def unknown(self) -> str | None:
        return next((piece for piece, _, kind in self.pieces if kind == UNKNOWN), None)

    def added(self) -> list[tuple[str, int, bool]]:
        """(text, id, whether it is special) of the pieces that no merge makes."""
        return [
            (piece, number, kind != USER_DEFINED)
            for number, (piece, _, kind) in enumerate(self.pieces)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def merges(self) -> list[tuple[str, str]]:
        """Which two pieces become one, the best score first.

        The file has scores of pieces alone: a piece is made of any two that it can be cut into.
        """
        ids = {piece: number for piece, number in self.ids.items() if self.kind(number) == NORMAL}
        found = []
        for piece, number in ids.items():
            cuts = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
            for left, right in cuts:
                if left in ids and right in ids:
                    order = -self.pieces[number][1], -len(left), ids[left], ids[right]
                    found.append((order, (left, right)))
        return [pair for _, pair in sorted(found)]

    def kind(self, number: int) -> int:
        return self.pieces[number][2]


def read(path: Path) -> Pieces:
    """The model in a file; CheckpointError where it is damaged, or of another kind."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in fields(path.read_bytes()):
            if field == PIECES:
                pieces.append(piece_of(dict(fields(sized(value)))))
            elif field == TRAINER:
                trainer |= dict(fields(sized(value)))
            elif field == NORMALIZER:
                normalizer |= dict(fields(sized(value)))
    except (OSError, ValueError, LookupError, struct.error):
        found = f"{path.stat().st_size} bytes that are none"
        raise refused("a whole SentencePiece model", found) from None
    if trainer.get(MODEL_TYPE, 1) != BPE:
        raise refused("byte-pair encoding", "another kind of model")
    if trainer.get(BYTE_FALLBACK, 0) != 1:
        raise refused("a piece for each byte", "none")
    # no table of characters to replace, no blank that is dropped, and a mark for each blank
    changes = [normalizer.get(CHARACTERS, b""), normalizer.get(EXTRA_BLANKS, 1)]
    if [*changes, normalizer.get(MARKS, 1)] != [b"", 0, 1]:
        raise refused("text that stays as it is", "a normalizer that changes it")
    if not pieces or len({piece for piece, _, _ in pieces}) != len(pieces):
        raise refused("pieces, each of them once", f"{len(pieces)} of them")
    return Pieces(tuple(pieces), bool(normalizer.get(DUMMY_PREFIX, 1)))


def piece_of(found: dict[int, int | bytes]) -> tuple[str, float, int]:
    """(text, score, kind) of a piece's fields."""
    (score,) = struct.unpack("<f", sized(found.get(2, bytes(4))))
    kind = found.get(3, NORMAL)
    if not isinstance(kind, int):
        raise ValueError("a piece of no kind")
    return sized(found[1]).decode(), score, kind


def sized(value: int | bytes) -> bytes:
    """The bytes of a field; ValueError where it is a number."""
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a message.

    A value is a whole number, the 4 or 8 bytes of a fixed one, or bytes with their length before
    them. ValueError where the message ends too early.

    >>> list(fields(bytes([8, 150, 1, 18, 2, 104, 105])))
    [(1, 150), (2, b'hi')]
    """
    place = 0
    while place < len(data):
        tag, place = varint(data, place)
        value: int | bytes
        if tag & 7 == 0:
            value, place = varint(data, place)
        else:
            size = {1: 8, 5: 4}.get(tag & 7)
            if tag & 7 == 2:
                size, place = varint(data, place)
            if size is None or place + size > len(data):
                raise ValueError(f"its end, or no field, at byte {place}")
            value, place = data[place : place + size], place + size
        yield tag >> 3, value


def varint(data: bytes, place: int) -> tuple[int, int]:
    """(a whole number, where it ends): seven bits a byte, the lowest first."""
    number = shift = 0
    while shift < 64:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
    raise ValueError(f"a number without an end at byte {place}")


def refused(expected: str, found: str) -> CheckpointError:
    return CheckpointError("cannot read the tokenizer", "tokenizer.model", expected, found)
