"""Parts of stored tensors: exactly the bytes that are wanted are read.

in:  a safetensors file, the name of a tensor, a range along one of its axes
out: that part as a tensor

The library's slices read whole tensors with its pread backend. Here rows are one read, and columns
one read a row.
Read weights/header.py first. Read next: weights/share.py.
"""

from functools import cached_property
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from . import header

STORED = {
    # what a header calls a dtype -> torch's
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
Range = tuple[int, int, int]  # axis 0 or 1, begin, stop


class Slices:
    """A file of tensors, whose header is read with the first part: a whole model needs no part."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def places(self) -> dict[str, int]:
        """Where in the file each tensor begins."""
        ranges, data = header.read_header(self.path), header.first_byte(self.path)
        return {name: data + begin for name, (begin, _) in ranges.items()}

    def read(self, name: str, dtype: str, shape: tuple[int, ...], part: Range) -> Tensor:
        """A part of a tensor of one or two axes; CheckpointError where the file ends before it."""
        axis, begin, stop = part
        kept = [stop - begin if place == axis else size for place, size in enumerate(shape)]
        found = torch.empty(kept, dtype=STORED[dtype])
        size, data = found.element_size(), self.places[name]
        into = memoryview(found.flatten().view(torch.uint8).numpy().data)
        row = size * (shape[1] if len(shape) > 1 else 1)  # bytes in the file
        with open(self.path, "rb", buffering=0) as file:  # so that nothing is read ahead
            if axis == 0:
                self.fill(file, into, data + begin * row, name)
                return found
            width = size * (stop - begin)
            for index in range(shape[0]):
                place = data + index * row + begin * size
                self.fill(file, into[index * width : (index + 1) * width], place, name)
        return found

    def fill(self, file: FileIO, into: memoryview, place: int, name: str) -> None:
        """Read the bytes from a place of the file on."""
        file.seek(place)
        while len(into):
            count = file.readinto(into)
            if not count:
                raise header.damaged(self.path, f"the whole of {name!r}", "the file cut short")
            into = into[count:]
