"""How much of a prompt to read at a time while other answers wait for their next token.

in:  seconds that earlier chunks took
out: tokens of the next chunk

A chunk is what fits into a budget of seconds at the speed of the last chunks, the slower of two: a
long prompt then never stops a running answer for longer than about that. The step of the other
answers comes on top, so the budget on a CPU is a fifth of a second where a quarter is meant. Where
nobody waits the budget is ten times as long, for somebody may come, or the client go.
Read model.py first. Read next: engine/slots.py.
"""

import math
from collections.abc import Callable

SECONDS_CUDA, SECONDS_ELSEWHERE = 0.1, 0.2  # of a chunk for which somebody waits
CALM = 10  # times the budget where nobody waits
FIRST = 16  # tokens of a hurried chunk before a speed is known, and of every chunk at least
NEWEST = 0.5  # the weight of the newest chunk in the speed


class Pace:
    """The speed of reading, and the `seconds` of a chunk for which somebody waits.

    most_tiles: that the tower sees at a time; None: as many as memory allows. hurried: somebody
    waits now.
    """

    def __init__(self, seconds: float = math.inf, most_tiles: int | None = None) -> None:
        self.seconds, self.most_tiles = seconds, most_tiles
        self.speed = self.newest = 0.0  # tokens a second: on average, and of the last chunk
        self.hurried = False

    @classmethod
    def of(cls, device: str) -> "Pace":
        """That of a device which many questions share.

        One tile takes a CPU seconds, and several at a time are no faster there.
        """
        if device == "cuda":
            return cls(SECONDS_CUDA)
        return cls(SECONDS_ELSEWHERE, most_tiles=1)

    def tiles(self, most: int) -> int:
        """Tiles at a time, at most `most`."""
        return min(most, self.most_tiles or most)

    def tokens(self, most: int) -> Callable[[], int]:
        """How many tokens the next chunk has, at most `most`, asked again before each chunk.

        Whole multiples of FIRST, so that few sizes are met: a library prepares for each new one.

        >>> pace = Pace.of("cpu")
        >>> size = pace.tokens(1024)
        >>> pace.measured(400, 1.0)
        >>> pace.hurried = True
        >>> size(), pace.tokens(64)()
        (80, 64)
        """

        def size() -> int:
            if not self.speed:
                return min(most, FIRST) if self.hurried else most
            seconds = self.seconds if self.hurried else CALM * self.seconds
            fits = min(self.speed, self.newest) * seconds
            return most if fits >= most else min(most, max(FIRST, int(fits) // FIRST * FIRST))

        return size

    def measured(self, tokens: int, seconds: float) -> None:
        """A chunk of `tokens` took `seconds`."""
        self.newest = tokens / max(seconds, 1e-6)
        self.speed += (self.newest - self.speed) * (NEWEST if self.speed else 1)
