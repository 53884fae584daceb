"""Exercise 8, three quarters of an hour: read a prompt chunk by chunk.

A prompt of 100,000 rows does not run through the decoder at once: what the layers make in between
would not fit into memory. Each chunk writes its keys and values into the cache, and the next chunk
looks at these. Write `prefill`. You need three things:

    decoder(rows [1 T W], cache) -> hidden [1 T W]     it writes into the cache, and does not count
    cache.advance(T)                                   counts the rows that were written
    decoder.logits(hidden [1 T W]) -> [1 T V]

Read: llava_min/decoder.py, `Decoder`; llava_min/cache.py; llava_min/model.py, `reading`.
Check yourself: python examples/exercises/08_chunked_prefill.py
"""

from pathlib import Path

import torch
from torch import Tensor

import llava_min
from llava_min.cache import Cache
from llava_min.decoder import Decoder
from llava_min.trace import watch

PICTURE = Path(__file__).parents[2] / "weights" / "tiny" / "samples" / "shapes.png"


def prefill(decoder: Decoder, rows: Tensor, cache: Cache, chunk: int) -> Tensor:
    """Run rows [T W] through the decoder, `chunk` at a time: logits [V] of the last row."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


@torch.inference_mode()
def test():
    model = llava_min.load(dtype="float32")
    decoder, question = model.network.decoder, "Where is the star?"
    rows = model.embed(question, images=[PICTURE])
    expected = model.logits(question, images=[PICTURE])[-1]
    for chunk in (len(rows), len(rows) - 1, 100, 13):
        cache = model.empty_cache(len(rows))
        with watch("hidden") as passed, watch("logits") as logits:
            found = prefill(decoder, rows, cache, chunk)
        about = f"with {len(rows)} rows and chunks of {chunk}"
        sizes = [hidden.shape[1] for hidden in passed]
        assert sum(sizes) == len(rows), f"{about} the decoder has read {sum(sizes)} rows"
        assert max(sizes) <= chunk, f"{about} it has read {max(sizes)} rows at once"
        counted = int(cache.lengths[0])
        assert counted == len(rows), f"{about} the cache has counted {counted} rows"
        made = sum(one.shape[:-1].numel() for one in logits)
        assert made == 1, f"{about} the head has run on {made} rows, where one is needed"
        assert found.shape == expected.shape, f"{about} the logits are {tuple(found.shape)}"
        gap = float((found - expected).abs().max())
        assert gap < 1e-3, f"{about} the logits are off by {gap:.2g}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
