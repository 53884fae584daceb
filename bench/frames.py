"""The memory of a clip's prompt in the shape of 0.5B: chunk by chunk, and all at once.

    python -m bench frames [--frames 8 32 64] [--only prefill memory]

in:  the name of a shape, counts of frames
out: a row of frames-cpu.jsonl for each count, chunked and naive

chunked   as this project reads: a few frames through the tower and into the cache, then the next
naive     all frames through the tower at once, then the whole prompt in one forward
Peak memory is the most resident while reading, above the loaded model after a short clip, less the
cache; each in a process of its own. Speed is that of the prefill alone, of rows that are there
already, the two in turns.
Read long.py first.
"""

import json
import time
from pathlib import Path

import torch

import llava_min
from llava_min.image import FrameTiles
from llava_min.model import finished
from llava_min.planning import memory as needs
from llava_min.request.visuals import Encodable
from llava_min.segments import CHUNK, Clip, Plan, Text

from . import checkpoints, ledger, load, long, measure

SECTIONS = ("prefill", "memory")
NAMES = {True: "chunked", False: "naive"}
QUESTION = 40  # tokens of text after the clip
CHILD = "from bench import frames; done(**frames.memory(sys.argv[1], *json.loads(sys.argv[2])))"


def prompt(count: int, config) -> tuple[Plan, Clip, FrameTiles]:
    """The plan of a clip of `count` frames and a question, the clip's segment and its tiles."""
    clip, tiles = long.clip_of(count, config)
    return Plan((clip, Text((1,) * QUESTION)), config.text.context), clip, tiles


def memory(folder: str, count: int, chunked: bool) -> dict:
    """Read one clip in this process: bytes at the most, of the cache, and as planned."""
    model = llava_min.load(folder, device="cpu")

    def read(count: int) -> Plan:
        plan, clip, tiles = prompt(count, model.config)
        cache = model.empty_cache(plan.tokens)
        for part in (cache.keys, cache.values):
            part.zero_()  # resident from the start: the peak may come before it is full
        if chunked:
            finished(model.reading(plan, [Encodable(clip, tiles)], cache))
        else:
            visual = model.network.encode(clip, tiles, count)
            model.network.prefill(plan, [visual], cache, plan.tokens)
        return plan

    read(1)
    before = measure.resident("VmRSS")
    measure.forget_peak()
    plan = read(count)
    need = needs.alone(model.config, plan, 0, model.storage)
    return {
        "tokens": plan.tokens,
        "cache_bytes": need.cache,
        "planned_bytes": need.activations,
        "above_bytes": measure.resident("VmHWM") - before - need.cache,
    }


@torch.inference_mode()
def speeds(model, count: int, pairs: int) -> dict[bool, list[float]]:
    """Seconds of prefilling a clip's rows, {chunked: each turn}."""
    plan = prompt(count, model.config)[0]
    weight = model.network.decoder.embedding.weight
    rows = torch.randn(plan.segments[0].tokens, weight.shape[1], dtype=weight.dtype)
    times = {True: [], False: []}
    for turn in range(pairs + 1):
        for chunked, seconds in times.items():
            chunk = CHUNK if chunked else plan.tokens
            start = time.perf_counter()
            cache = model.empty_cache(plan.tokens)
            model.network.prefill(plan, [iter(rows.split(196))], cache, chunk)
            if turn:  # the first one warms up
                seconds.append(time.perf_counter() - start)
    return times


def run(shape: str, counts: list[int], sections: list[str], pairs: int, out: Path) -> Path:
    """Everything asked for, printed and written as it comes."""
    folder, path = checkpoints.folder_of(shape), out / "frames-cpu.jsonl"
    model = llava_min.load(folder, device="cpu") if "prefill" in sections else None
    for count in counts if model else ():
        tokens, times = prompt(count, model.config)[0].tokens, speeds(model, count, pairs)
        for chunked, name in NAMES.items():
            p20, p50, p80 = ledger.spread(times[chunked])
            ratios = [a / b for a, b in zip(times[False], times[chunked])]
            row = {"section": "prefill", "shape": shape, "context": count, "name": name,
                   "tokens": tokens, "per_second": tokens / p50, "p20": p20, "p50": p50,
                   "p80": p80, "ratio": ledger.spread(ratios)[1], "pairs": pairs}  # fmt: skip
            ledger.keep(path, [row])
            print(f"{count:4} frames {tokens:6,} tokens {name:8} {row['per_second']:7.1f} tokens/s "
                  f"{row['ratio']:5.2f}x", flush=True)  # fmt: skip
    del model
    for count in counts if "memory" in sections else ():
        for chunked, name in NAMES.items():
            row = {"section": "memory", "shape": shape, "context": count, "name": name}
            row |= load.child(CHILD, folder, json.dumps([count, chunked]))
            ledger.keep(path, [row])
            print(f"{count:4} frames {row['tokens']:6,} tokens {name:8} "
                  f"{row['above_bytes'] / 2**20:7.0f} MiB above weights and cache "
                  f"({row['planned_bytes'] / 2**20:.0f} planned)", flush=True)  # fmt: skip
    return path
