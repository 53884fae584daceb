"""Prompt lookup: what followed the newest words before is drafted, and verified in one forward.

in:  the step of an answer, its cache of one row, the ids of the prompt's text
out: a step that gives the same logits, with fewer forwards

Answers repeat what stands in the prompt and in themselves. So the newest ids are looked up among
the earlier ones, and those that followed them are a draft. One forward takes the newest token and
its draft: it reads every weight once, which is most of what a token costs. Its rows are the logits
after each of these tokens. They are handed out one by one, as long as the token that is chosen from
them is the one that was drafted.
Nothing is chosen here. Sampling, rules and stop texts see the logits of one token after another, as
they do without a draft, and a random number belongs to its position. So the answer is the same, but
for the rounding of a product of several rows.
What the cache holds of drafted tokens lies after its length until they are chosen; the next forward
writes over the rest.
Read generate.py, engine/step.py first. Read next: engine/handle.py.
Agrees with: prompt_lookup_num_tokens of transformers; arXiv 2304.04487.

R tokens of a forward, V vocabulary.
"""

from collections import deque

import torch

from .. import trace
from ..base.memory import memory_guard
from ..cache import Cache
from ..generate import Logits, Step
from ..model import Network
from ..sampling import greedy

SIZES = (3, 2)  # newest ids that are looked up, the longest first: after one, nearly anything comes


class History:
    """The ids of a text, and where each few of them occurred last.

    >>> history = History([5, 6, 7, 8, 5, 6])
    >>> history.following(3), history.following(6)
    ([7, 8, 5], [7, 8, 5, 6, 7, 8])
    """

    def __init__(self, ids: list[int]):
        self.ids: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # some ids -> the place after their newest ones
        for one in ids:
            self.add(one)

    def add(self, newest: int) -> None:
        """One more id at the end of the text."""
        place = len(self.ids)
        for size in SIZES:
            if size <= place:
                self.after[tuple(self.ids[-size:])] = place
        self.ids.append(newest)

    def following(self, most: int) -> list[int]:
        """At most so many ids, as they followed the newest ones before; none where these are new.

        Past the end of the text they follow themselves.
        """
        places = (self.after.get(tuple(self.ids[-size:])) for size in SIZES)
        place = next((place for place in places if place is not None), None)
        if place is None:
            return []
        text = self.ids[place:]
        while len(text) < most:
            text += text[: most - len(text)]
        return text[:most]


class Lookup:
    """A step of one answer that drafts up to `most` tokens; `step` makes those without a draft.

    ids: those of the prompt's text. `drafted` tokens were verified, of which `accepted` were
    chosen.
    """

    def __init__(
        self, network: Network, cache: Cache, known: int, step: Step, ids: list[int], most: int
    ):
        self.network, self.cache, self.known, self.step = network, cache, known, step
        self.history, self.most = History(ids), most
        self.waiting: deque[tuple[int, Logits]] = deque()  # drafted ids, and what follows them
        self.drafted = self.accepted = 0

    @property
    def usage(self) -> dict[str, int]:
        """The counts, by their names in an Answer."""
        return {"drafted_tokens": self.drafted, "accepted_tokens": self.accepted}

    def __call__(self, ids: list[int]) -> Logits:
        """The newest id -> logits [1 V] and `greedy` of them.

        The cache has then seen one token more. While somebody watches, nothing is drafted.
        """
        (newest,) = ids
        self.history.add(newest)
        if self.waiting and self.waiting[0][0] == newest:
            self.cache.advance(1)
            self.accepted += 1
            return self.waiting.popleft()[1]
        self.waiting.clear()
        room = self.cache.capacity - int(self.cache.host_lengths[0]) - 1
        draft = self.history.following(min(self.most, room))
        return self.step(ids) if not draft or trace.observed() else self.verified(newest, draft)

    @memory_guard("continue the answer")
    @torch.inference_mode()
    def verified(self, newest: int, draft: list[int]) -> Logits:
        """What follows the newest id; what follows each of the draft waits for it to be chosen."""
        decoder = self.network.decoder
        ids = torch.tensor([[newest, *draft]], device=self.network.device)
        rows = decoder.logits(decoder(decoder.embed(ids), self.cache))[0]  # R V
        self.cache.advance(1)
        self.drafted += len(draft)
        likely = greedy(rows, self.known).tolist()
        first, *others = ((one, [best]) for one, best in zip(rows.split(1), likely))
        self.waiting.extend(zip(draft, others))
        return first
