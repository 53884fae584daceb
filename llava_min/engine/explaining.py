"""A question is answered, or was, and the answer is explained.

in:  a Model, a question with its media, an answer or none
out: Explanation

Read explain/explaining.py, engine/prefix.py first. Read next: command/main.py.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ParameterError, wrong_value
from ..explain.explaining import explained, last_row
from ..explain.explanation import Explanation, Stage
from ..explain.knockout import without_heads, without_looking, without_patches
from ..explain.occlusion import Occluder
from ..explain.rows import Rows
from ..model import finished
from ..options import Options
from ..planning.forecast import estimate, free_bytes
from ..planning.memory import logit_bytes, portions
from ..request.prepare import Pictures, Prepared, Question, Videos, prepare, require_tokenizer
from .answers import Answer, Score
from .prefix import Prefix

if TYPE_CHECKING:
    from .handle import Model

BYTES = 64 * 2**20  # that an explanation may take, at any length


def explain(
    model: "Model",
    question: Question,
    images: Pictures,
    videos: Videos,
    answer: "Answer | str | list[int] | None",
    words: int,
    alternatives: int,
    occlusion: bool,
    prefix: Prefix | None,
    options: dict[str, object],
) -> Explanation:
    """See Model.explain."""
    for name, count in (("words", words), ("alternatives", alternatives)):
        if type(count) is not int or count < 1:
            raise wrong_value(name, "a whole number of at least 1", count)
    prefix = prefix or Prefix(model.empty_cache(0))
    if answer is None:
        answer = model.generate(question, images=images, videos=videos, prefix=prefix, **options)
    ids = ids_of(model, answer)
    given = Options.of(**options)
    prepared = prepare(
        question, images, videos, given, model.config, model.tokenizer, prefix.opened
    )
    results = BYTES + logit_bytes(model.config, min(words, len(ids)))
    model.admission.admit(prepared, len(ids), prefix.cache, results)
    plan, visuals = prefix.turn_to(prepared, prepared.plan.tokens + len(ids))
    with last_row() as last:
        finished(model.reading(plan, visuals, prefix.cache))
    found = explained(
        model.network, prefix.cache, last[0], prepared, ids, words, alternatives, model.name
    )
    if isinstance(answer, Answer):
        found = replace(found, stages=stages(model, prepared, answer))
    if occlusion:
        k, chunk = portions(model.config, model.storage, free_bytes(model.network.device.type))
        occluder = Occluder(model.network, prefix.cache, prepared, (k, chunk))
        found = replace(found, occlusion=occluder.all(found.token_ids))
    return found


def knock_out(
    model: "Model",
    question: Question,
    answer: "Answer | str | list[int]",
    images: Pictures,
    videos: Videos,
    patches: Sequence[int],
    heads: Sequence[tuple[int, int]],
    looking: bool,
    options: dict[str, object],
) -> tuple[Score, Score]:
    """See Model.knock_out."""
    ids, prepared = ids_of(model, answer), model.prepare(question, images, videos, **options)
    text, tokens = model.config.text, prepared.plan.tokens + len(ids)
    if any(not 0 <= row < prepared.visual_tokens for row in patches):
        raise ParameterError(f"patches must be numbers from 0 to {prepared.visual_tokens - 1}.")
    if any(not (0 <= at < text.num_layers and 0 <= one < text.num_heads) for at, one in heads):
        raise ParameterError(
            f"heads must be pairs (layer, head) below ({text.num_layers}, {text.num_heads})."
        )
    model.admission.admit(prepared, len(ids), results=BYTES + logit_bytes(model.config, len(ids)))
    before = model.forced(*model.prefilled(prepared, len(ids)), ids)
    cache = model.empty_cache(tokens)
    with ExitStack() as stack:
        if patches:
            stack.enter_context(without_patches(patches))
        if heads:
            stack.enter_context(without_heads(heads))
        if looking:
            visual = np.zeros(tokens, bool)
            visual[Rows.of(prepared.plan, model.config).tokens] = True
            stack.enter_context(without_looking(cache, visual))
        logits = finished(model.reading(prepared.plan, prepared.visuals, cache))
        return before, model.forced(logits, cache, ids)


def ids_of(model: "Model", answer: "Answer | str | list[int]") -> list[int]:
    """The token ids of an answer; ParameterError where it has none."""
    if isinstance(answer, Answer):
        ids = answer.token_ids
    elif isinstance(answer, str):
        ids = require_tokenizer(model.tokenizer).encode_text(answer)
    else:
        ids = list(answer)
    if not ids:
        raise ParameterError("An answer needs at least one token.")
    return ids


def stages(model: "Model", prepared: Prepared, answer: Answer) -> list[Stage]:
    """The stages of an answer with their seconds, next to what the plan's arithmetic allows."""
    took, count = answer.timings, len(answer.token_ids)
    best: dict[str, float] = {}
    if model.network.device.type == "cpu":
        best = estimate(model.admission.forecast(prepared, count))
    written = best["a token"] * (count - 1) if best else None
    return [
        Stage("opening the media", took["preprocess_s"], None),
        Stage("looking: tower and projector", took["vision_s"], best.get("looking")),
        Stage("reading the prompt", took["prefill_s"], best.get("reading")),
        Stage("writing the answer", took["decode_s"], written),
    ]
