"""Seeded mutations of every kind of file that is read: an answer or a LlavaMinError, nothing else.

Mutants run one after another in a forked child that notes which one it is at, so that a crash of
native code is noticed and has a number. `python tests/test_fuzz.py KIND NUMBER` writes that mutant
to a file.
"""

import io
import json
import mmap
import shutil
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from bad_input import forked
from PIL import Image

import llava_min
from llava_min.errors import LlavaMinError
from llava_min.media import sources as media

SECONDS = 60  # for one mutant, on the clock; a quiet machine needs milliseconds
ORDINARY, SLOW = 200, 2000  # mutants of each kind
ODD_NUMBERS = [0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300]
ODD_TEXTS = ["", "x", "\ud800", "1"]
ODD_VALUES = [None, True, False, *ODD_NUMBERS, *ODD_TEXTS, [], [[]], {}, {"a": 1}, [0] * 50]
ODD_BYTES = [b"\0", b"\xff", b"\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\0\0\0"]
ODD_BYTES += [b"{", b"]", b'"', b"9" * 30, b"-", b"NaN", b"\xed\xa0\x80", b"\n"]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped, put in, taken out, repeated, or the end cut off."""
    held = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = int(rng.integers(len(held) + 1) if rng.random() < 0.5 else rng.integers(200))
        at = min(at, max(0, len(held) - 1))
        size = int(rng.integers(1, 9))
        odd = ODD_BYTES[rng.integers(len(ODD_BYTES))]
        match int(rng.integers(6)):
            case 0 if held:
                held[at] ^= 1 << int(rng.integers(8))
            case 1:
                held[at : at + len(odd)] = odd
            case 2:
                held[at:at] = odd
            case 3:
                del held[at : at + size]
            case 4:
                held[at:at] = held[at : at + 8 * size]
            case 5 if rng.random() < 0.3:
                del held[at:]
    return bytes(held)


def mutated_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Half of the time as bytes; otherwise a value somewhere in the tree becomes an odd one."""
    if rng.random() < 0.5:
        return mutated(data, rng)
    tree = json.loads(data)
    for _ in range(rng.choice([1, 1, 2])):
        if not tree:
            break
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(min(len(node), 8)))
            key = keys[rng.integers(len(keys))]
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            break
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return json.dumps(tree).encode()


def mutated_header(data: bytes, rng: np.random.Generator) -> bytes:
    """The header of a safetensors file, mostly with a length that fits what became of it."""
    (length,) = struct.unpack("<Q", data[:8])
    header = mutated_json(data[8 : 8 + length], rng)
    if rng.random() < 0.1:
        return mutated(data[: 8 + length], rng) + data[8 + length :]
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def film(format: str) -> bytes:
    """A short clip."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for picture in small.frames(8, 32, 24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def still(format: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [small.picture(24, 16, seed) for seed in range(2)]
    more = {"save_all": True, "append_images": pictures[1:]} if format in ("GIF", "WEBP") else {}
    pictures[0].save(buffer, format, **({} if format == "GIF" else {"exif": exif}), **more)
    return buffer.getvalue()


IN_FOLDER = {
    # kind: (the file of a checkpoint folder that is mutated, how, shards)
    "header": ("model.safetensors", mutated_header, 1),
    "config": ("config.json", mutated_json, 1),
    "index": ("model.safetensors.index.json", mutated_json, 2),
    "tokenizer": ("tokenizer.json", mutated_json, 1),
}
STILLS, FILMS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF"), {"MP4": "mp4", "MKV": "matroska"}
KINDS = (*IN_FOLDER, *STILLS, *FILMS)


class Target:
    """One kind of file: its whole form, its mutants by number, and what reads it."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder, self.mutate = kind, folder, mutated
        if kind in IN_FOLDER:
            name, self.mutate, shards = IN_FOLDER[kind]
            self.path = small.small(folder / kind, tied=False, shards=shards) / name
            self.whole = self.path.read_bytes()
        else:
            self.whole = still(kind) if kind in STILLS else film(FILMS[kind])
            self.path = folder / kind
            self.model = llava_min.load(small.small(folder / "model"), device="cpu")

    def mutant(self, number: int) -> bytes:
        return self.mutate(self.whole, np.random.default_rng([KINDS.index(self.kind), number]))

    def read(self, data: bytes) -> None:
        """What a user would do with the file."""
        self.path.write_bytes(data)
        if self.kind in STILLS:
            media.open_picture(data)
        elif self.kind in FILMS:
            self.model.generate("What?", videos=[self.path], frames=3, max_tokens=1)
        else:
            model = llava_min.load(self.path.parent, device="cpu")
            model.generate("What?", images=[small.picture(20, 20)], max_tokens=2)


def survives(target: Target, number: int) -> bool:
    """Whether a mutant is answered; False where it is refused."""
    try:
        target.read(target.mutant(number))
        return True
    except LlavaMinError as error:
        assert str(error).isprintable() and " at 0x" not in str(error)
        return False


def hunt(kind: str, numbers: range, folder: Path) -> tuple[list[str], int]:
    """(what went wrong, with the mutant's number; how many mutants were answered)."""
    target, note, wrong = Target(kind, folder), mmap.mmap(-1, 16), []

    def work() -> int:
        target.read(target.whole)
        for number in range(int.from_bytes(note[:8], "little"), numbers.stop):
            note[:8] = number.to_bytes(8, "little")
            signal.alarm(SECONDS)
            answered = int.from_bytes(note[8:], "little") + survives(target, number)
            note[8:] = answered.to_bytes(8, "little")
        note[:8] = numbers.stop.to_bytes(8, "little")
        return 0

    note[:8] = numbers.start.to_bytes(8, "little")
    while (number := int.from_bytes(note[:8], "little")) < numbers.stop:
        ended = forked(work)
        number = int.from_bytes(note[:8], "little")
        if ended.code:
            wrong.append(f"{kind} {number}: exit {ended.code}: {ended.err[-600:]}")
            note[:8] = (number + 1).to_bytes(8, "little")
    return wrong, int.from_bytes(note[8:], "little")


@pytest.mark.catalogue("IM-FLIP", "seeded mutants of pictures are pictures or refused")
@pytest.mark.catalogue("FUZZ", f"{ORDINARY} mutants of each of {', '.join(KINDS)}")
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_answered_or_refused(kind, tmp_path):
    wrong, answered = hunt(kind, range(ORDINARY), tmp_path)
    assert not wrong, "\n".join(wrong[:3]) + f"\n{len(wrong)} in all"
    assert 0 < answered < ORDINARY  # some harmless, some refused: the mutations reach something


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutants_are_answered_or_refused(kind, tmp_path):
    wrong, _ = hunt(kind, range(ORDINARY, ORDINARY + SLOW), tmp_path)
    assert not wrong, "\n".join(wrong[:3]) + f"\n{len(wrong)} in all"


if __name__ == "__main__":
    folder = Path("mutant")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mutant = Target(sys.argv[1], folder).mutant(int(sys.argv[2]))
    (folder / "file").write_bytes(mutant)
