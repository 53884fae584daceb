"""Many prompts at once: each prefilled alone, all decoded together, one forward a step.

in:  requests, each {"question", "images", "videos", options...}      out: an Answer each, in order
Rows of different lengths share one cache: no padding on the left, and each row attends to its own
tokens only, so that every answer is the one of its own single run.
Read before: generate.py.

B requests.
"""

import time

import torch

from .cache import Cache
from .errors import PromptError
from .generate import Continuation, Options
from .loaded import Answer, LoadedModel, peak_bytes
from .prepare import prepare


def generate_batch(model: LoadedModel, requests: list[dict]) -> list[Answer]:
    """Answer all requests together. Each has the arguments of `generate`; LlavaMinError if any is
    wrong.
    """
    began, network, config = time.perf_counter(), model.network, model.config
    prompts = []
    for number, request in enumerate(requests):
        if not isinstance(request, dict):
            raise PromptError(
                "cannot read the batch", f"request {number}", "an object", repr(request)
            )
        given = dict(request)
        media = given.pop("question", None), given.pop("images", ()), given.pop("videos", ())
        options = Options.of(**given)
        prepared = prepare(*media, options, config, model.tokenizer)
        prepared.plan.check_fits(options.max_tokens)
        prompts.append((prepared, options))
    if not prompts:
        return []
    weight = network.decoder.embedding.weight
    capacity = max(p.plan.tokens for p, _ in prompts) + max(o.max_tokens for _, o in prompts)
    cache = Cache.empty(config.text, len(prompts), capacity, weight.dtype, device=weight.device)
    rows, tokens = [], []
    for index, (prepared, options) in enumerate(prompts):
        visuals = [network.encode(visual.tiles, visual.is_clip) for visual in prepared.visuals]
        logits = network.prefill(prepared.plan, visuals, cache.row(index))
        rows.append(Continuation(network, model.tokenizer, prepared.ids, options))
        tokens.append([rows[-1].take(logits[-1], int(cache.seen[index]))])
    first = time.perf_counter()
    while any(not row.reason for row in rows):  # a row that has ended goes along, unheeded
        newest = torch.tensor([said[-1].id for said in tokens], device=network.device)
        logits = network.decode(newest, cache)
        for index, row in enumerate(rows):
            if not row.reason:
                tokens[index].append(row.take(logits[index], int(cache.seen[index])))
    timings = {
        "load_s": model.load_seconds,
        "ttft_s": first - began,
        "decode_s": time.perf_counter() - first,
    }
    memory = {"peak_bytes": peak_bytes(network.device)}
    return [
        Answer(
            "".join(token.text for token in said) + row.finish(),
            row.new,
            row.reason,
            {
                "prompt_tokens": prepared.plan.tokens,
                "completion_tokens": len(row.new),
                "image_tokens": prepared.visual_tokens,
            },
            timings,
            memory,
            prepared.media,
        )
        for (prepared, _), row, said in zip(prompts, rows, tokens)
    ]
