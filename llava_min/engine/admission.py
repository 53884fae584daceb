"""The questions that every way of asking asks first: does it fit the context, and into memory?

in:  prompts that are ready, how long their answers may be
out: nothing, or PromptError or MemoryBudgetError with the numbers and what would fit

Nothing is allocated before. The arithmetic is that of --plan (planning/forecast.py).
Read planning/forecast.py first. Read next: engine/handle.py.
"""

from dataclasses import dataclass, replace

from ..cache import Cache
from ..config import LlavaConfig
from ..planning.forecast import Forecast, does_not_fit, free_bytes
from ..planning.memory import Memory, Storage, row_bytes, together, tower_bytes, weight_bytes
from ..request.prepare import Prepared
from ..segments import Plan


@dataclass(frozen=True)
class Admission:
    """What is loaded: its name, its configuration, how and where its numbers are stored."""

    name: str
    config: LlavaConfig
    storage: Storage

    def room(self) -> int | None:
        """Bytes for weights, which are there already, cache and activations; None: not known."""
        free = free_bytes(self.storage.device)
        return None if free is None else free + weight_bytes(self.config, self.storage)

    def forecast(self, prepared: Prepared, answer: int, results: int = 0) -> Forecast:
        """What a prompt and an answer of up to `answer` tokens need, compared with what is free.

        results: bytes of what is asked for, besides an answer's text.
        """
        return Forecast(
            name=self.name,
            config=self.config,
            plan=prepared.plan,
            media=prepared.media,
            answer=answer,
            storage=self.storage,
            room=self.room(),
            results=results,
        )

    def admit(
        self, prepared: Prepared, answer: int, held: Cache | None = None, results: int = 0
    ) -> None:
        """Let a prompt and an answer of up to `answer` tokens in, or say with numbers why not.

        held: a cache that is there already and will be used. results: see forecast.
        """
        prepared.plan.check_fits(answer)
        found = self.forecast(prepared, answer, results)
        enough = held is not None and held.capacity >= prepared.plan.tokens + answer
        if enough and found.room is not None:
            found = replace(found, room=found.room + found.memory().cache)
        found.check_room()

    def admit_rows(self, plan: Plan) -> None:
        """Let a prompt in of which only the rows are wanted: no cache, and no decoder."""
        plan.check_fits(0)
        rows = 2 * row_bytes(self.config, plan.tokens, self.storage)  # in pieces, and as one
        activations = tower_bytes(self.config, plan, self.storage) + rows
        need = Memory(weight_bytes(self.config, self.storage), 0, activations)
        self.check(need, ["fewer frames or tiles"])

    def admit_together(self, prompts: list[tuple[Plan, int]]) -> None:
        """Let prompts and their answers in all at once, or say how many of them would fit."""
        fitting = self.rows_that_fit(prompts)
        if fitting < len(prompts):
            need = together(self.config, prompts, self.storage)
            self.check(need, [f"{fitting} of these {len(prompts)} at a time"])

    def rows_that_fit(self, prompts: list[tuple[Plan, int]]) -> int:
        """How many of these prompts and answers, from the first on, fit into memory together.

        At least 1: each of them was admitted alone.
        """
        room = self.room()
        for count in range(len(prompts), 1, -1):
            need = together(self.config, prompts[:count], self.storage)
            if room is None or need.total <= room:
                return count
        return min(1, len(prompts))

    def check(self, need: Memory, remedies: list[str]) -> None:
        """MemoryBudgetError where there is no room for what is needed."""
        room = self.room()
        if room is not None and need.total > room:
            raise does_not_fit(need, room, remedies)
