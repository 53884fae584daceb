"""The header of a safetensors file: read strictly, before the library reads any tensor by it.

in:  a file
out: {tensor name: where its data lies}

The library refuses most of what is wrong here without a name, and takes a tensor that is listed
twice. Here the file, the tensor and the range are named.
Read next: weights/index.py.
Agrees with: the safetensors library, except for names that are listed twice.
"""

import math
from pathlib import Path
from typing import TypeGuard

from ..base.files import LFS, parse_json, refuse_pointer
from ..errors import CheckpointError, shown

HEADER_BYTES = 100_000_000  # the limit of the reference implementation
# what a weight may be stored as, and its bytes; U8 holds codes
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}
CODES = ("U8", "I8")  # of them: codes of four bits, and of eight
FOREIGN = {"I64": 8, "I32": 4, "I16": 2, "F8_E4M3": 1, "BOOL": 1}  # by other programs


def read_header(path: Path) -> dict[str, tuple[int, int]]:
    """{tensor: (begin, end) of its bytes after the header}; CheckpointError says what is wrong."""
    length = 0
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(LFS))
            refuse_pointer(start, CheckpointError, "cannot read the weights", path.name)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            if size < 8 or not 2 <= length <= min(size - 8, HEADER_BYTES):
                found = f"a header of {length} bytes in a file of {size} bytes"
                raise damaged(path, "a whole safetensors file", found)
            entries = parse_json(file.read(length))
    except (ValueError, OSError) as error:
        raise damaged(path, f"a header of {length} bytes in JSON", str(error)) from None
    if not isinstance(entries, dict):
        raise damaged(path, "a header that is a JSON object", shown(entries))
    entries.pop("__metadata__", None)
    ranges = {name: range_of(path, name, entry) for name, entry in entries.items()}
    end = 0
    for name in sorted(ranges, key=lambda name: ranges[name]):
        if ranges[name][0] != end:
            raise damaged(path, f"the data of {shown(name)} from byte {end} on", ranges[name][0])
        end = ranges[name][1]
    if end != size - 8 - length:
        raise damaged(path, f"{8 + length + end} bytes, as its header says", f"{size} bytes")
    return ranges


def stored_bytes(path: Path, name: str) -> tuple[int, int]:
    """(begin, end) in the file of the bytes of a tensor."""
    first, (begin, end) = first_byte(path), read_header(path)[name]
    return first + begin, first + end


def first_byte(path: Path) -> int:
    """Where in the file the data after the header begins."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def range_of(path: Path, name: str, entry: object) -> tuple[int, int]:
    """Where a tensor's data lies; CheckpointError unless it is as long as shape and dtype say."""
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (counts(shape) and counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise damaged(
            path, f"a shape and a range for {shown(name)}", f"{shown(shape)} and {shown(offsets)}"
        )
    dtype, held = entry.get("dtype"), offsets[1] - offsets[0]
    size = (DTYPES | FOREIGN).get(dtype) if isinstance(dtype, str) else None
    if size is not None and held != size * math.prod(shape):
        raise damaged(path, f"{shape} {dtype} of {shown(name)}", f"{held} bytes")
    return offsets[0], offsets[1]


def counts(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def damaged(path: Path, expected: str, found: object) -> CheckpointError:
    return CheckpointError("cannot read the weights", path.name, expected, found, "Fetch it again.")
