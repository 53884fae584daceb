"""A model of this project as lmms-eval asks it: `lmms-eval --model llava_min --model_args ...`.

in:  lmms-eval's requests: a document as messages, and how to generate
out: texts with their tokens; how likely a given answer is

All requests go through the slots, `batch_size` at a time: pictures and beginnings that they share
are looked at once. A request that fails is answered by its error, as lmms-eval's own models do, so
that one broken picture does not end a run of hours.
Read engine/batch.py, evals/manifest.py first.
Agrees with: lmms-eval 0.7 (its chat models).
"""

import logging
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from ..engine.answers import Answer
from ..engine.batch import Key, Request, answer_each
from ..engine.load import load

log = logging.getLogger("llava_min")
ANSWER_TOKENS = 1024  # where a task does not say
GIVEN = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p"}


class LlavaMin(lmms):
    """`pretrained`: a folder or hub name, by default the toy; the rest are arguments of `load`.

    batch_size: requests at a time. options: those of `generate` for every request, such as frames.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "auto",
        bits: int | None = None,
        kv_dtype: str = "auto",
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        where = (device or "auto").partition(":")[0]
        self.model = load(pretrained, device=where, dtype=dtype, bits=bits, kv_dtype=kv_dtype)
        self.rows, self.options = int(batch_size), options

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """The answers, in order."""
        asked: dict[Key, Request] = {
            ("request", index): self.request(*request.args)
            for index, request in enumerate(requests)
        }
        found: dict[Key, GenerationResult] = {}
        for key, outcome in answer_each(self.model, asked, self.rows):
            if isinstance(outcome, Answer):
                usage = outcome.usage
                counts = TokenCounts(
                    input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]
                )
                found[key] = GenerationResult(text=outcome.text, token_counts=counts)
            else:
                log.error(f"{key[0]} {key[1]}: {outcome}")
                found[key] = GenerationResult(text=f"[error] {outcome}", token_counts=TokenCounts())
        return [found[key] for key in asked]

    def request(
        self,
        context: str,
        doc_to_messages: Any,
        how: dict[str, Any],
        doc: int,
        task: str,
        split: str,
    ) -> Request:
        """A document as the arguments of `generate`."""
        messages = doc_to_messages(self.task_dict[task][split][doc])
        options = {"max_tokens": ANSWER_TOKENS, **self.options}
        options |= {ours: how[name] for name, ours in GIVEN.items() if how.get(name) is not None}
        if not how.get("do_sample", True):
            options["temperature"] = 0
        if how.get("num_beams", 1) not in (None, 1):
            raise ValueError("llava_min has no beam search: num_beams must be 1.")
        stops = how.get("until") or ()
        options["stop"] = (stops,) if isinstance(stops, str) else tuple(filter(None, stops))
        question = [
            {"role": one["role"], "content": [part(given, options) for given in one["content"]]}
            for one in messages
        ]
        return {"question": question, **options}

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(minus the log-probability of the answer, whether it is the greedy one) of each.

        lmms-eval takes the smallest as its choice.
        """
        found = []
        for request in requests:
            context, target, visual, doc, task, split = request.args
            document = self.task_dict[task][split][doc]
            answer = target if isinstance(target, str) else target(document)
            pictures = visual(document) if visual else []
            score = self.model.score(context, str(answer), images=pictures, **self.options)
            found.append((-sum(score.log_probabilities), all(score.matches)))
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Rounds that depend on earlier answers are not supported."""
        raise NotImplementedError("llava_min answers tasks of one round.")


def part(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A part of a message in our words; the part of a video that counts goes into the options."""
    kind = given["type"]
    if kind == "text":
        return {"type": "text", "text": given["text"]}
    if kind not in ("image", "video"):
        raise ValueError(f"llava_min takes pictures and videos, and no {kind}.")
    for name, ours in (("start_time", "start"), ("end_time", "end")):
        if given.get(name) is not None:
            options[ours] = given[name]
    return {"type": kind, kind: given["url"]}
