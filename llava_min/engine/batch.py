"""Many prompts at once: each read alone, all written together, one forward a step.

in:  requests, each {"question", "images", "videos", options...}
out: an Answer each, in order

Rows of different lengths share one cache. There is no padding on the left, and each row attends to
its own tokens only. So every answer is the one that the request gets alone.
Read generate.py first. Read next: command/batch_file.py.

B requests.
"""

import time
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PromptError
from ..generate import generate
from ..model import finished
from ..options import Options
from ..request.prepare import Prepared, prepare
from .answers import Answer
from .step import decoding

if TYPE_CHECKING:
    from .handle import Model

Request = dict[str, Any]
Ready = tuple[Prepared, Options]


def generate_batch(model: "Model", requests: list[Request]) -> list[Answer]:
    """Answer all requests together, each with the arguments of `generate`.

    LlavaMinError if any is wrong, or if they do not fit into memory together.
    """
    ready = [ready_for(model, f"request {i}", request) for i, request in enumerate(requests)]
    model.admit_together([(prepared.plan, options.max_tokens) for prepared, options in ready])
    return answers(model, ready)


def ready_for(model: "Model", name: str, request: Request) -> Ready:
    """A request as a prompt that fits the model, and how to answer it.

    LlavaMinError if it is wrong, or does not fit alone.
    """
    if not isinstance(request, dict):
        raise PromptError("cannot read the batch", name, "an object", repr(request))
    given = dict(request)
    media = given.pop("question", None), given.pop("images", ()), given.pop("videos", ())
    options = Options.of(**given)
    prepared = prepare(*media, options, model.config, model.tokenizer)
    model.admit(prepared, options.max_tokens)
    return prepared, options


def answers(model: "Model", ready: list[Ready]) -> list[Answer]:
    """Answer prompts that are ready and fit together."""
    if not ready:
        return []
    replies = [model.reply(*one, time.perf_counter()) for one in ready]
    capacity = max(prepared.plan.tokens + options.max_tokens for prepared, options in ready)
    cache, logits = model.empty_cache(capacity, len(ready)), []
    for index, reply in enumerate(replies):
        plan, visuals = reply.prepared.plan, reply.prepared.visuals
        reading = model.reading(plan, visuals, cache.row(index), reply.looking)
        logits.append(finished(reply.reading.around(reading)))
    step = decoding(model.network, cache, model.known_ids)
    for _ in generate(list(replies), torch.cat(logits), step):
        pass
    for reply in replies:
        reply.finish()
    return [model.answer(reply) for reply in replies]
