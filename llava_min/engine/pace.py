"""How much of a prompt to read at a time while other answers wait for their next token.

in:  seconds that earlier chunks took
out: tokens of the next chunk

Where nobody waits, a chunk is as large as memory allows, which is fastest. Where somebody does, it
is what fits into a budget of seconds at the speed of the last chunks: a long prompt then never
stops a running answer for longer than about that.
Read model.py first. Read next: engine/slots.py.
"""

import math
from collections.abc import Callable

SECONDS = {"cuda": 0.1}  # of a chunk for which somebody waits
SECONDS_ELSEWHERE = 0.25
FIRST = 16  # tokens of such a chunk at least, and before a speed is known
NEWEST = 0.5  # the weight of the newest chunk in the speed


class Pace:
    """The speed of reading, and the `seconds` of a chunk for which somebody waits.

    hurried: somebody waits now.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.speed = 0.0  # tokens a second
        self.hurried = False

    @classmethod
    def of(cls, device: str) -> "Pace":
        """That of a device which many questions share."""
        return cls(SECONDS.get(device, SECONDS_ELSEWHERE))

    def tiles(self, most: int) -> int:
        """Tiles at a time, at most `most`. One takes a CPU seconds, and more are no faster."""
        return 1 if self.seconds == SECONDS_ELSEWHERE else most

    def tokens(self, most: int) -> Callable[[], int]:
        """How many tokens the next chunk has, at most `most`, asked again before each chunk.

        >>> pace = Pace.of("cpu")
        >>> size = pace.tokens(1024)
        >>> pace.hurried, pace.speed = True, 400.0
        >>> size(), pace.tokens(64)()
        (100, 64)
        """

        def size() -> int:
            if not self.hurried:
                return most
            fits = int(self.speed * self.seconds)
            return min(most, max(FIRST, fits))

        return size

    def measured(self, tokens: int, seconds: float) -> None:
        """A chunk of `tokens` took `seconds`."""
        newest = tokens / max(seconds, 1e-6)
        self.speed += (newest - self.speed) * (NEWEST if self.speed else 1)
