"""Four prompts together beside one: tokens per second of the decoder of 0.5B, random weights.

in:  the name of a shape
out: a measure.Row for each batch

A decode step reads all weights once whatever the batch is, so four rows should cost little more
than one. The step is the product's: rows of different lengths in one cache, and the choice of each
row's token. It runs on a CPU too, in bfloat16 laid out for it where that is faster.
Read models.py first. Read next: plots.py.
"""

import torch

from llava_min.engine.load import pick_dtype

from . import generate, measure, models, shapes

BATCHES = (1, 2, 4, 8)
SEEN = 1024  # tokens of the longest row; each further one has 37 fewer
ROOM = 128  # tokens that a batch may decode


@torch.inference_mode()
def run(model: str, dry: bool) -> tuple[list[measure.Row], dict[str, float]]:
    """A row for each batch; its size is the batch, its peer one row alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = pick_dtype("auto", device, large=True)
    config, seen = (shapes.TOY, 300) if dry else (shapes.TEXTS[model], SEEN)
    decoder = models.decoder_of(config, False, device, dtype)
    limits, rows, calls = measure.ceilings(), [], 2 if dry else 10
    for batch in BATCHES:
        lengths = [max(1, seen - 37 * row) for row in range(batch)]
        cache = models.full_cache(config, lengths, ROOM, dtype, device=device)
        step = models.token_after_token(models.network_of(decoder), cache)
        step()
        moved, flops = map(sum, zip(*(models.cost(config, 1, length) for length in lengths)))
        row = measure.row_of(
            f"batch {model}",
            f"{batch} rows, {seen} seen",
            batch,
            "llava_min",
            generate.timed(step, calls),
            moved + models.size_of(decoder),
            flops,
            limits,
        )
        row.of_best_peer = batch * rows[0].p50_ms / row.p50_ms if rows else 1.0
        if device == "cpu":
            row.of_ceiling = float("nan")  # the ceilings are measured on a GPU only
        rows.append(row)
    print(measure.table(rows))
    print(f"tokens/s of {BATCHES[2]} rows over one: {rows[2].of_best_peer:.2f}")
    return rows, limits
