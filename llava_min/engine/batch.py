"""Many prompts at once: each prefilled alone, all decoded together, one forward a step.

in:  requests, each {"question", "images", "videos", options...}
out: an Answer each, in order

Rows of different lengths share one cache. There is no padding on the left, and each row attends to
its own tokens only. So every answer is the one that the request gets alone.
Read generate.py first. Read next: command/batch_file.py.

B requests.
"""

import time

from ..errors import PromptError
from ..generate import Continuation, known_ids
from ..options import Options
from ..request.prepare import Prepared, prepare
from ..weights import packed
from .answers import Answer, Clock, peak_bytes
from .step import decoding


def generate_batch(model, requests: list[dict]) -> list[Answer]:
    """Answer all requests together, each with the arguments of `generate`.

    LlavaMinError if any is wrong.
    """
    ready = [ready_for(model, f"request {i}", request) for i, request in enumerate(requests)]
    return answers(model, ready)


def ready_for(model, name: str, request: dict) -> tuple[Prepared, Options]:
    """A request as a prompt that fits the model, and how to answer it.

    LlavaMinError if it is wrong.
    """
    if not isinstance(request, dict):
        raise PromptError("cannot read the batch", name, "an object", repr(request))
    given = dict(request)
    media = given.pop("question", None), given.pop("images", ()), given.pop("videos", ())
    options = Options.of(**given)
    prepared = prepare(*media, options, model.config, model.tokenizer)
    prepared.plan.check_fits(options.max_tokens)
    return prepared, options


class Row:
    """One prompt of the batch in its row of the cache: prefilled when made, then one token a step.

    Times are in seconds. `ttft_s` counts from `began`, and so includes the rows before this one.
    """

    def __init__(self, model, ready: tuple[Prepared, Options], cache, began: float):
        (self.prepared, options), self.cache = ready, cache
        vision, start = Clock(), time.perf_counter()
        logits = model.read(self.prepared.plan, self.prepared.visuals, cache, vision)
        self.first = self.last = time.perf_counter()
        self.sequence = Continuation(model.network, model.tokenizer, self.prepared.ids, options)
        self.text, self.timings = "", {
            "load_s": model.load_seconds,
            "preprocess_s": self.prepared.seconds,
            "vision_s": vision.seconds,
            "prefill_s": self.first - start - vision.seconds,
            "ttft_s": self.first - began,
        }  # fmt: skip
        self.take(logits[-1], int(cache.host_lengths[0]))

    def take(self, logits, position: int, likely: int | None = None) -> None:
        """Choose one more token, unless the answer has ended; likely: see sampling.next_id."""
        if not self.sequence.reason:
            self.text += self.sequence.take(logits, position, likely).text
            self.last = time.perf_counter()

    def answer(self, memory: dict) -> Answer:
        count, decode = len(self.sequence.new), self.last - self.first
        usage = {
            "prompt_tokens": self.prepared.plan.tokens,
            "completion_tokens": count,
            "image_tokens": self.prepared.visual_tokens,
        }
        speed = (count - 1) / decode if count > 1 else 0.0
        timings = {**self.timings, "decode_s": decode, "tokens_per_s": speed}
        timings = {name: round(value, 4) for name, value in timings.items()}
        text = self.text + self.sequence.finish()
        return Answer(
            text,
            self.sequence.new,
            self.sequence.reason,
            usage,
            timings,
            memory,
            self.prepared.media,
        )


def answers(model, ready: list[tuple[Prepared, Options]]) -> list[Answer]:
    """Answer prompts that are ready, all together."""
    if not ready:
        return []
    began, network = time.perf_counter(), model.network
    if len(ready) > 1:
        packed.order(network.decoder)
    capacity = max(p.plan.tokens for p, _ in ready) + max(o.max_tokens for _, o in ready)
    cache = model.empty_cache(capacity, len(ready))
    rows = [Row(model, one, cache.row(index), began) for index, one in enumerate(ready)]
    step = decoding(network, cache, known_ids(network, model.tokenizer))
    while any(not row.sequence.reason for row in rows):  # ended ones go along and are ignored
        logits, likely = step([row.sequence.new[-1] for row in rows])
        for index, row in enumerate(rows):
            row.take(logits[index], int(cache.host_lengths[index]), likely and likely[index])
    memory = {"peak_bytes": peak_bytes(network.device)}
    return [row.answer(memory) for row in rows]
