"""Look into a checkpoint or pack it: python -m llava_min.weights inspect | quantize.

in:  a checkpoint, as -m names it
out: a table of its tensors, or a new folder; an exit code

inspect shows every tensor with its shape and dtype, our name for it, and what is dropped, missing
or unexpected, without loading any.
Read weights/checkpoint.py, weights/quantize.py first.
"""

import argparse
import math
import sys

from ..base.progress import Progress
from ..config import LlavaConfig, Quantization
from ..errors import CheckpointError, LlavaMinError
from ..families import layouts
from . import header, hub, load, names, quantize, tied
from .checkpoint import Checkpoint

Row = tuple[str, list[int], str, str]  # a tensor: its name, shape, dtype, and what becomes of it


def rows(checkpoint: Checkpoint, config: LlavaConfig) -> tuple[list[Row], list[str]]:
    """A Row for each tensor, and the names of those that are missing."""
    wanted = load.pieces(load.on_meta(config), config)
    found: set[tuple[str, str | None]] = set()
    table: list[Row] = []
    for name, shape, dtype in checkpoint.headers():
        own, piece = names.ours(name)
        if why := load.unused(name, config):
            becomes = f"dropped: {why}"
        elif (own, piece) not in wanted:
            becomes = "UNEXPECTED"
        elif wanted[own, piece] != shape:
            becomes = f"WRONG SHAPE: expected {list(wanted[own, piece])}"
        else:
            becomes = own if piece is None else f"{own} [{piece}]"
            found.add((own, piece))
        table.append((name, list(shape), dtype, becomes))
    missing = [
        name
        for own, piece in wanted
        if (own, piece) not in found
        for name, stored in names.theirs(own, "hf")
        if stored == piece
    ]
    return table, missing


def inspect(folder: str) -> int:
    """Print the table; the exit code is 3 where the checkpoint would be refused."""
    checkpoint = Checkpoint.open(hub.find(folder))
    config = tied.with_own_head(layouts.read_config(checkpoint.folder), checkpoint.folder)
    table, missing = rows(checkpoint, config)
    width = max(len(row[0]) for row in table)
    for name, shape, dtype, becomes in table:
        print(f"{name:{width}}  {dtype:4}  {str(shape):18}  {becomes}")
    for name in missing:
        print(f"{name:{width}}  MISSING")
    total = sum(header.DTYPES.get(dtype, 0) * math.prod(shape) for _, shape, dtype, _ in table)
    wrong = len(missing) + sum(row[3].startswith(("UNEXPECTED", "WRONG")) for row in table)
    verdict = f"{wrong} would be refused" if wrong else "exact both ways"
    print(f"{config.family}: {len(table)} tensors, {total:,} bytes: {verdict}")
    for key in config.ignored:
        print(f"not read: {key}")
    return CheckpointError.exit_code if wrong else 0


def parser() -> argparse.ArgumentParser:
    """The options of both commands."""
    root = argparse.ArgumentParser(
        prog="python -m llava_min.weights", description=__doc__.partition(":")[0]
    )
    commands = root.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inspect", help="what a checkpoint holds, without loading it")
    command.add_argument("folder", metavar="FOLDER", help="a checkpoint, as -m names it")
    command = commands.add_parser(
        "quantize", help="write a copy of a checkpoint in codes of four or eight bits"
    )
    command.add_argument("folder", metavar="IN", help="a checkpoint, as -m names it")
    command.add_argument("target", metavar="OUT", help="a folder that does not exist yet")
    command.add_argument(
        "--bits",
        type=int,
        choices=(4, 8),
        default=4,
        help="4: of the decoder; 8: of vision tower and projector too (%(default)s)",
    )
    command.add_argument(
        "--group",
        type=int,
        choices=(128, 64, 32),
        default=128,
        help="weights of four bits that share a scale (%(default)s)",
    )
    command.add_argument(
        "--method",
        choices=("rtn", "mse"),
        default="mse",
        help="how codes are found: rtn rounds each weight to the nearest code; mse also tries "
        "smaller scales, which clip the largest weights, and keeps for each group the one with the "
        "least squared error (%(default)s)",
    )
    command.add_argument(
        "--head",
        type=int,
        choices=(4, 8, 16),
        default=8,
        help="bits of the output head (%(default)s)",
    )
    return root


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; the exit code says how it ended."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "inspect":
            return inspect(given.folder)
        wanted = Quantization(given.bits, given.group, given.head, given.method)
        progress = Progress("quantising", quiet=False)
        written = quantize.quantize(given.folder, given.target, wanted, progress)
        print(f"{written}: {sum(path.stat().st_size for path in written.iterdir()):,} bytes")
        return 0
    except LlavaMinError as error:
        print(f"llava_min: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
