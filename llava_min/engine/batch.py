"""Requests become prompts that are ready, and all of them are answered together.

in:  requests, each {"question", "images", "videos", options...}
out: an Answer each, in order

Read engine/slots.py first. Read next: command/batch_file.py.
"""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..base.habits import ours
from ..cache import Cache
from ..errors import LlavaMinError, ParameterError, PromptError
from ..options import Options
from ..request.prepare import Prepared, prepare
from ..segments import Plan
from .answers import Answer
from .slots import Slots

if TYPE_CHECKING:
    from .handle import Model

log = logging.getLogger("llava_min")
Request = dict[str, Any]
Ready = tuple[Prepared, Options]
Key = tuple[str, str | int]  # what a request is called: ("line", 7)
Size = tuple[Key, tuple[Plan, int]]  # a request, its plan and the most tokens of its answer


def generate_batch(model: "Model", requests: list[Request]) -> list[Answer]:
    """Answer all requests together, each with the arguments of `generate`.

    LlavaMinError if any is wrong, or if they do not fit into memory together.
    """
    ready = []
    for number, request in enumerate(requests):
        try:
            ready.append(ready_for(model, f"request {number}", request))
        except LlavaMinError as error:
            raise type(error)(f"request {number}: {error}") from None
    model.admission.admit_together(
        [(prepared.plan, options.max_tokens) for prepared, options in ready]
    )
    return answers(model, ready)


def ready_for(
    model: "Model",
    name: str,
    request: Request,
    headers: bool = False,
    held: Cache | None = None,
) -> Ready:
    """A request as a prompt that fits the model, and how to answer it.

    LlavaMinError if it is wrong, or does not fit alone. headers: see prepare. held: the cache, if
    it is there already.
    """
    if not isinstance(request, dict):
        raise PromptError("cannot read the batch", name, "an object", repr(request))
    given: Request = ours((), (), request)
    media = given.pop("question", None), given.pop("images", ()), given.pop("videos", ())
    options = Options.of(**given)
    if options.lookup:
        raise ParameterError("lookup drafts for one answer alone; these are written together.")
    prepared = prepare(*media, options, model.config, model.tokenizer, headers=headers)
    model.admission.admit(prepared, options.max_tokens, held)
    return prepared, options


def answers(model: "Model", ready: list[Ready]) -> list[Answer]:
    """Answer prompts that are ready and fit together."""
    if not ready:
        return []
    capacity = max(prepared.plan.tokens + options.max_tokens for prepared, options in ready)
    slots = Slots(model, len(ready), capacity, watched=False)
    asked = [slots.submit(*one, time.perf_counter()) for one in ready]
    while slots.busy:
        slots.round()
    for one in asked:
        if one.error is not None:
            raise one.error
    return [one.answer for one in asked if one.answer is not None]


def answer_each(
    model: "Model", requests: dict[Key, Request], rows: int
) -> Iterator[tuple[Key, Answer | LlavaMinError]]:
    """Answers and errors of any number of requests as they come, up to `rows` at a time.

    The media's headers say how long each prompt is, before any is opened. As many rows are made as
    fit into memory; the longest prompts come last, in fewer rows, where they would take the others'
    room. An error ends its own request alone.
    """
    sizes: list[Size] = []
    for key, request in requests.items():
        try:
            prepared, options = ready_for(model, f"{key[0]} {key[1]}", request, headers=True)
        except LlavaMinError as error:
            yield key, error
        else:
            sizes.append((key, (prepared.plan, options.max_tokens)))
    for group in grouped(model, sizes, rows):
        prompts = [prompt for _, prompt in group]
        count = model.admission.rows_that_fit(prompts[:rows])
        if count < min(rows, len(group)):
            log.info(f"{count} of {rows} requests at a time fit into memory")
        chosen = {key for key, _ in group}
        its_requests = {k: r for k, r in requests.items() if k in chosen}
        slots = Slots(model, count, sum_of(prompts[0]), watched=False)
        yield from rolled(model, slots, its_requests)
        del slots  # the cache, before the next group's is made


def sum_of(prompt: tuple[Plan, int]) -> int:
    """Tokens of a prompt and its answer at most."""
    plan, answer = prompt
    return plan.tokens + answer


def grouped(model: "Model", sizes: list[Size], rows: int) -> list[list[Size]]:
    """Requests that share a cache, the longest first in each group.

    The longest of all come last and apart, if without them there is room for all `rows`.
    """
    ordered = sorted(sizes, key=lambda size: -sum_of(size[1]))
    for cut in range(len(ordered)):
        longest = [prompt for _, prompt in ordered[cut : cut + rows]]
        if model.admission.rows_that_fit(longest) >= rows:
            return [group for group in (ordered[cut:], ordered[:cut]) if group]
    return [ordered] if ordered else []


def rolled(
    model: "Model", slots: Slots, requests: dict[Key, Request]
) -> Iterator[tuple[Key, Answer | LlavaMinError]]:
    """Answers and errors of requests, each of which begins when a row is free."""
    pending, keys = list(reversed(requests.items())), {}
    while pending or slots.busy:
        while pending and slots.free:
            key, request = pending.pop()
            try:
                ready = ready_for(model, f"{key[0]} {key[1]}", request, held=slots.cache)
                keys[slots.submit(*ready, time.perf_counter())] = key
            except LlavaMinError as error:
                yield key, error
        for asked in slots.round():
            if asked.error is not None and not isinstance(asked.error, LlavaMinError):
                raise asked.error
            outcome = asked.answer or asked.error
            assert outcome is not None
            yield keys.pop(asked), outcome
