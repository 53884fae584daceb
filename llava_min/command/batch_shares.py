"""The lines of --batch shared among processes, and the parts that they write made one file.

in:  the rank and the number of processes, as torchrun or SLURM tell them; an output's name
out: Share: which lines are one's own, the name of its part; the output, once all parts are whole

Line i belongs to rank i mod n. Each rank writes a part of its own next to the output, and whoever
finds every line answered joins them. No process talks to another, so one that dies costs its own
lines only, and --resume with any number of ranks goes on with the others.
Read command/batch_answers.py first. Read next: command/batch_file.py.
Agrees with: the variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK) and of srun.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ParameterError, wrong_value
from .batch_answers import Answers, answered, encoded, entries_of, key_of
from .batch_lines import Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .batch_answers import Entry

LAUNCHERS = (
    # rank, number of processes, rank on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Share:
    """One process of `count`, `rank` in all and `local` on its machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Share:
        """What torchrun or else SLURM says; without either, one process. ParameterError: nonsense.

        >>> Share.of({"RANK": "1", "WORLD_SIZE": "4"}), Share.of({})
        (Share(rank=1, count=4, local=0), Share(rank=0, count=1, local=0))
        """
        for names in LAUNCHERS:
            if names[0] in environment and names[1] in environment:
                rank, count, local = (whole(name, environment.get(name, "0")) for name in names)
                if rank >= count:
                    raise wrong_value(names[0], f"below {names[1]}, {count}", rank)
                return cls(rank, count, local)
        return cls()

    def owns(self, index: int) -> bool:
        """Whether the line of this index, from 0, is its own."""
        return index % self.count == self.rank

    def part(self, target: Path, rank: int | None = None) -> Path:
        """The file that a rank, by default this one, writes: the output itself where it is alone.

        >>> Share(1, 4).part(Path("out.jsonl")).name
        'out.jsonl.1-of-4.part'
        """
        if self.count == 1:
            return target
        number = self.rank if rank is None else rank
        return target.with_name(f"{target.name}.{number}-of-{self.count}.part")

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.count}"


def whole(name: str, text: str) -> int:
    """The number in a variable of a launcher; ParameterError where there is none."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise ParameterError(f"The variable {name} must be a whole number, not {text!r}.")
    return int(text)


def parts_of(target: Path) -> list[Path]:
    """The parts of an output that are there, by any number of ranks."""
    name = re.compile(re.escape(target.name) + r"\.\d+-of-\d+\.part")
    return sorted(path for path in target.parent.glob("*.part") if name.fullmatch(path.name))


def left_before(target: Path) -> list[Entry]:
    """The answers in an output and in all its parts. The output comes last: it may be joined."""
    found = []
    for path in [*parts_of(target), target]:
        with contextlib.suppress(FileNotFoundError):
            found += answered(path)
    return found


def join(share: Share, keys: list[Key], target: Path) -> list[int]:
    """Make the output of its parts if every line has its entry, and remove them.

    keys: of all lines. Gives the ranks that are missing, of which there are none where it was made.
    An error in the output of an earlier run counts only where its rank has no part.
    """
    parts: dict[int, dict[Key, Entry]] = {}
    for rank in range(share.count):
        with contextlib.suppress(FileNotFoundError):
            part = entries_of(share.part(target, rank))
            parts[rank] = {key_of(entry): entry for entry in part}
    before: dict[Key, Entry] = {}
    with contextlib.suppress(FileNotFoundError):
        before = {key_of(entry): entry for entry in entries_of(target)}
    found, missing = [], set()
    for index, key in enumerate(keys):
        rank = index % share.count
        entry, earlier = parts.get(rank, {}).get(key), before.get(key)
        if entry is None and earlier and ("error" not in earlier or rank not in parts):
            entry = earlier
        found.append(entry)
        if entry is None:
            missing.add(rank)
    if not missing:
        Answers(keys, target, f"{share.rank}.").write(encoded(e) for e in found if e is not None)
        for path in parts_of(target):
            path.unlink(missing_ok=True)
    return sorted(missing)
