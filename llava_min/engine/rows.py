"""What the rows of a cache hold, so that a new prompt goes on from the row that begins alike.

in:  prompts that are ready, the rows that are free
out: the row for each, and the part of the prompt that is still to compute

The tokens of an answer that ended stay in its row. A new prompt shares the beginning of some row's
tokens: the same system turn, the same picture, the conversation so far. It takes that row if it is
free and holds little else; otherwise what they share is copied into the row that has not been used
for the longest time. A free row has length 0, so that it costs a step one token only, and a step
may write into its first place; the first token of what it holds is therefore kept next to it.
Read engine/prefix.py first. Read next: engine/slots.py.
"""

import secrets
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..cache import Cache
from ..request.prepare import Prepared
from ..request.visuals import Encodable
from ..segments import Plan
from .prefix import common, numbers_of, rest

Move = tuple[int, ...]  # (row,) is left; or (source, row, count): so many tokens are copied
WORTH = 32  # fewer tokens in common are computed again, not copied


class Contents:
    """The tokens of each row by number (engine/prefix.py), and when the row was last used.

    The numbers of visuals are keyed: nobody can prepare a picture that passes for another's.
    """

    def __init__(self, cache: Cache, told: Callable[[Move], None] | None = None) -> None:
        """told: is called with each move, for those who have a part of the cache elsewhere."""
        count, self.told = len(cache.host_lengths), told
        self.cache, self.key = cache, secrets.token_bytes(16)
        self.numbers = [np.empty(0, np.int64)] * count
        self.places = Places(cache)
        self.used, self.uses = [0] * count, 0

    def take(self, prepared: Prepared, free: list[int]) -> tuple[int, Plan, list[Encodable]]:
        """A free row for a prompt, with all that is known of the prompt in it.

        Gives the row, and the plan and the visuals of the rest.
        """
        numbers = numbers_of(prepared, self.key)
        shared = [common(self.in_row(row, free), numbers) for row in range(len(self.numbers))]
        row, source = self.choose(shared, free)
        plan, visuals = prepared.plan, prepared.visuals
        if source is not None:
            plan, visuals = rest(prepared, shared[source])
        count = prepared.plan.tokens - plan.tokens
        self.move((row if source is None else source, row, count))
        self.cache.row(row).advance(count)
        self.numbers[row] = numbers
        self.uses += 1
        self.used[row] = self.uses
        return row, plan, visuals

    def in_row(self, row: int, free: list[int]) -> np.ndarray:
        """The numbers of the tokens whose keys and values are in a row."""
        if row in free:
            return self.numbers[row]
        return self.numbers[row][: int(self.cache.host_lengths[row])]

    def choose(self, shared: list[int], free: list[int]) -> tuple[int, int | None]:
        """(the row for a prompt, the row whose tokens it begins with or None).

        shared: for each row, how many tokens of the prompt it begins with.
        """
        oldest = min(free, key=lambda row: self.used[row])
        source = max(range(len(shared)), key=lambda row: (shared[row], row in free))
        if shared[source] < WORTH:
            return oldest, None
        most_of_it = 2 * shared[source] >= len(self.numbers[source])
        return (source if source in free and most_of_it else oldest), source

    def move(self, move: Move) -> None:
        """Do a move here, and tell of it."""
        self.places.do(move)
        if self.told is not None:
            self.told(move)

    def leave(self, row: int, answer: list[int] | None) -> None:
        """Free a row, whose tokens stay: those of its prompt and `answer`; None: forget them."""
        used = self.cache.row(row)
        seen = int(used.host_lengths[0])
        numbers = np.append(self.numbers[row], np.array(answer or [], np.int64))[:seen]
        self.numbers[row] = numbers if answer is not None else numbers[:0]
        self.move((row,))
        used.rewind(seen)


class Places:
    """The tokens in the rows of a cache, and of each row that is free its first one."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.first: list[list[Tensor] | None] = [None] * len(cache.lengths)

    def do(self, move: Move) -> None:
        """A move of one number frees that row, one of three copies."""
        if len(move) == 1:
            used = tensors(self.cache.row(move[0]))
            self.first[move[0]] = [tensor[:, :, :, :1].clone() for tensor in used]
        else:
            self.copy(*move)

    def copy(self, source: int, row: int, count: int) -> None:
        """Let a free row hold the first `count` tokens of another row, or of its own."""
        have, give, first = self.cache.row(row), self.cache.row(source), self.first[source]
        for into, out, kept in zip(tensors(have), tensors(give), first or tensors(give)):
            out[:, :, :, :1] = kept[:, :, :, :1]
            if row != source:
                into[:, :, :, :count] = out[:, :, :, :count]
        self.first[row] = None


def tensors(cache: Cache) -> list[Tensor]:
    """The keys and values of a cache, and with 8 bits their scales: [L B K S ...] each."""
    return [one for one in cache.stored(lambda tensor: tensor) if one is not None]
