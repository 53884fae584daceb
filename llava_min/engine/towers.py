"""The vision tower of every part: tiles are shared, and their features come back to the leader.

in:  tiles, a team of parts (engine/leader.py) each of which has the whole tower
out: the features of all tiles, in order

Each part looks at some tiles by itself, so a single one is no faster. The leader opens pictures and
projects the features, which is a small part of the work. All visuals are encoded before the first
chunk of a prompt is read: a chunk that is on its way through a pipeline would keep the parts from
looking, and the next chunk would wait for their tiles.
Read engine/leader.py, planning/split.py first. Read next: engine/ranks.py.

B tiles, S tile side in pixels, N patches, D vision width, W decoder width.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .. import trace
from ..model import Portion
from ..planning.split import tiles_of_parts
from .leader import Team, uninterrupted


@dataclass(frozen=True)
class Tiles:
    """What every part does next: it looks at some tiles [S S 3].

    counts: how many, by part. side: S.
    """

    counts: list[int]
    side: int


class SharedTower(nn.Module):
    """The leader's vision tower, which lets the other parts look at some of the tiles."""

    def __init__(self, tower: nn.Module, team: Team):
        super().__init__()
        self.tower, self.team = tower, team

    def forward(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        counts = tiles_of_parts(len(tiles), self.team.parts)
        if trace.observed() or not any(counts[1:]):  # who watches sees all of them here
            return self.tower(tiles)
        with uninterrupted():
            return self.team.look(Tiles(counts, tiles.shape[1]), tiles, self.tower)


def looked_first(
    visuals: Iterable[Iterator[Tensor]], total: int
) -> Generator[Portion, None, list[Iterator[Tensor]]]:
    """Visuals as Network.encode gives them -> the same rows [.. W], all of them made.

    After each portion of tiles it yields a Portion of a prompt of `total` tokens, so that other
    work can come between.
    """
    made = []
    for visual in visuals:
        rows = []
        for piece in visual:
            if len(piece):
                rows.append(piece)
            else:
                yield Portion(0, total)
        made.append(iter(rows))
    return made
