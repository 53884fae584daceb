"""Exercise 13, an evening: guess the next tokens by looking them up, and keep the answer the same.

To run one token through the decoder takes nearly as long as to run eight: the weights are read once
either way. So guess. Where the last two ids have occurred before, what followed them then may
follow again. Run the newest id and the guess through the decoder together; its logits say, for each
place, which id it would have chosen. The guess counts up to the first id that differs. Forget the
rest with cache.rewind. The answer is exactly the greedy one, in fewer passes.

Write `lookup`, then `write`. This project does not have it: if it pays, you have something to send.

Read: llava_min/cache.py, `advance` and `rewind`; llava_min/decoder.py, DECODE_QUERIES.
Check yourself: python examples/exercises/13_prompt_lookup.py
"""

from pathlib import Path

import torch
from torch import Tensor

import llava_min
from llava_min.cache import Cache
from llava_min.decoder import Decoder
from llava_min.trace import watch

PICTURE = Path(__file__).parents[2] / "weights" / "tiny" / "samples" / "shapes.png"
MOST = 7  # ids of a guess: with the newest one, eight run together


def lookup(ids: list[int], most: int = MOST) -> list[int]:
    """What followed the last two ids when they occurred before, up to `most` ids; or nothing.

    Of several such places, the latest counts.
    """
    raise NotImplementedError


def write(decoder: Decoder, cache: Cache, logits: Tensor, ids: list[int], count: int) -> list[int]:
    """The next `count` ids of the greedy answer.

    cache: the prompt was read into it. logits [V]: those after the prompt. ids: of its text. In the
    end the cache has seen the prompt and the answer without its newest id.
    """
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def greedy(decoder: Decoder, cache: Cache, logits: Tensor, count: int) -> list[int]:
    """The same ids, one pass for each."""
    found = [int(logits.argmax())]
    while len(found) < count:
        hidden = decoder(decoder.embed(torch.tensor([found[-1:]])), cache)
        cache.advance(1)
        found.append(int(decoder.logits(hidden)[0, -1].argmax()))
    return found


@torch.inference_mode()
def test():
    for ids, expected in (
        ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),
        ([5, 5, 5], [5]),
        ([1, 2, 3], []),
        ([7], []),
    ):
        found = lookup(ids)
        assert found == expected, f"after {ids} the guess is {expected}, not {found}"
    assert len(lookup([1, 2, *range(20), 1, 2], 3)) == 3, "a guess is longer than it may be"
    # the answer ends after 34 ids; what the toy goes on with repeats itself
    model, question, count = llava_min.load(dtype="float32"), "Describe the picture.", 100
    decoder, prepared = model.network.decoder, model.prepare(question, images=[PICTURE])
    logits, cache = model.prefilled(prepared, (1 + MOST) * count)
    expected = greedy(decoder, cache, logits[0], count)
    cache.rewind(count - 1)
    before = int(cache.lengths[0])
    with watch("hidden") as passed:
        found = write(decoder, cache, logits[0], prepared.ids, count)
    assert found == expected, f"the greedy answer is {expected}, not {found}"
    seen = int(cache.lengths[0]) - before
    assert seen == count - 1, f"the cache has seen {seen} ids of the answer, not {count - 1}"
    longest = max(hidden.shape[1] for hidden in passed)
    assert longest <= MOST + 1, f"{longest} ids run together, where {MOST + 1} are the most"
    assert len(passed) <= 70, f"{len(passed)} passes for {count} ids, where 58 would do"


if __name__ == "__main__":
    from judge import judge

    judge(test)
