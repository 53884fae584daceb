"""A prompt of hundreds of thousands of tokens on a CPU: does it take the memory that was planned?

in:  the embedded checkpoint with its context raised, a clip long enough to fill it
out: a row: tokens, bytes planned and measured, seconds
Measured is the most resident memory while reading the prompt, above what there was before: after
loading and after a short prompt, so that what is made once is made. 224,000 tokens are about
10^14 operations of attention: half an hour on two quiet cores.
Read next: niah.py.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

import llava_min
from llava_min import image
from llava_min import segments as plans
from llava_min.config import LlavaConfig
from llava_min.engine.handle import Model
from llava_min.planning import memory as needs
from llava_min.segments import Plan, Text

from . import measure


class Repeated(Sequence):
    """A clip of `count` frames made of a few."""

    def __init__(self, frames: np.ndarray, count: int):
        self.frames, self.count = frames, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        return self.frames[index % len(self.frames)]


def clip_of(count: int, config: LlavaConfig) -> tuple[plans.Clip, image.FrameTiles]:
    """A clip of `count` frames of noise."""
    side = config.tile
    frames = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), np.uint8)
    tiles = image.FrameTiles(Repeated(frames, count), config, range(count))
    times = [float(number) for number in range(count)]
    return plans.clip(times, (side, side), config), tiles


def read(model: Model, tokens: int) -> Plan:
    """Prefill a prompt of so many tokens: a clip, then text that fills it up."""
    each = plans.clip([0.0], (1, 1), model.config).frame_tokens
    clip, tiles = clip_of((tokens - 2) // each, model.config)
    plan = Plan((clip, Text((1,) * (tokens - clip.tokens))), model.config.text.context)
    cache = model.empty_cache(plan.tokens)
    visual = model.network.encode(clip, tiles)
    assert torch.isfinite(model.network.prefill(plan, [visual], cache)).all()
    return plan


def run(tokens: int, kv_dtype: str = "auto") -> dict:
    """One row; the model in float32."""
    model = llava_min.load(dtype="float32", kv_dtype=kv_dtype, device="cpu", context=tokens)
    read(model, 2 * plans.CHUNK)
    before, start = measure.resident("VmRSS"), time.perf_counter()
    measure.forget_peak()
    plan = read(model, tokens)
    seconds, measured = time.perf_counter() - start, measure.resident("VmHWM") - before
    need = needs.alone(model.config, plan, 0, needs.Storage(kv_dtype=kv_dtype))
    planned = need.cache + need.activations
    return {
        "tokens": plan.tokens,
        "kv_dtype": kv_dtype,
        "planned_bytes": planned,
        "cache_bytes": need.cache,
        "measured_bytes": measured,
        "measured_over_planned": round(measured / planned, 4),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        **measure.machine(),
    }
