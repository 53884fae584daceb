"""Four prompts together beside one: tokens per second of the decoder of 0.5B, random weights.

A decode step reads all weights once whatever the batch is, so four rows should cost little more
than one. What generate_batch does is timed as it does it: rows of different lengths in one cache,
ids chosen on the host. It runs on a CPU too, in bfloat16 laid out for it where that is faster.
Read next: plots.py.
"""

import torch
from torch import nn

from llava_min.cache import Cache
from llava_min.config import TextConfig
from llava_min.engine.load import pick_dtype
from llava_min.weights import packed

from . import generate, measure

BATCHES = (1, 2, 4, 8)
SEEN = 1024  # tokens of the longest row; each further one has 37 fewer


def step_of(decoder, batch: int, seen: int, device: str, dtype: torch.dtype):
    """One decode step of `batch` rows, and the bytes and FLOPs that it takes."""
    config: TextConfig = decoder.config
    cache = Cache.empty(config, batch, seen + 8, dtype, device=device)
    cache.keys.normal_()
    cache.values.normal_()
    lengths = [max(1, seen - 37 * row) for row in range(batch)]
    for row, length in enumerate(lengths):
        cache.row(row).advance(length)
    ids = torch.zeros(batch, 1, dtype=torch.long, device=device)

    def step():
        logits = decoder.logits(decoder(decoder.embed(ids), cache))[:, 0]
        return [int(row.argmax()) for row in logits]

    costs = [generate.cost(config, 1, length) for length in lengths]
    moved = generate.size_of(decoder) + sum(moved for moved, _ in costs)
    return step, moved, sum(flops for _, flops in costs)


@torch.inference_mode()
def run(model: str, dry: bool) -> tuple[list[measure.Row], dict[str, float]]:
    """A row for each batch; its size is the batch, its peer one row alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = pick_dtype("auto", device, large=True)
    config, seen = (generate.TOY, 300) if dry else (generate.MODELS[model], SEEN)
    whole = nn.Module()
    whole.decoder = decoder = generate.decoder_of(config, False, device, dtype)
    packed.ready(whole)
    limits, rows, calls = measure.ceilings(), [], 2 if dry else 10
    for batch in BATCHES:
        if batch > 1:
            packed.order(decoder)
        step, moved, flops = step_of(decoder, batch, seen, device, dtype)
        step()
        times = generate.timed(step, calls)
        row = generate.row(f"batch {model}", f"{batch} rows, {seen} seen", batch, "llava_min",
                           times, moved, flops, limits)  # fmt: skip
        row.of_best_peer = batch * rows[0].p50_ms / row.p50_ms if rows else 1.0
        if device == "cpu":
            row.of_ceiling = float("nan")  # the ceilings are measured on a GPU only
        rows.append(row)
    print(measure.table(rows))
    print(f"tokens/s of {BATCHES[2]} rows over one: {rows[2].of_best_peer:.2f}")
    return rows, limits
