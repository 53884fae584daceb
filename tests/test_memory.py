"""A long prompt needs no more memory than a short one, but for its cache: tiles and tokens are
worked on a few at a time, as many as fit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import llava_min
from llava_min import segments as plans
from llava_min.families import layouts
from llava_min.model import Portion
from llava_min.planning import memory as needs

CHILD = """
import json, re, sys, torch, small
from llava_min import segments as plans
from llava_min.cache import Cache
torch.set_num_threads(1)
k, chunk, *counts = map(int, sys.argv[1:])
model = small.random_model(json.loads(sys.stdin.read()))

class Blank:  # frames that are made when they are asked for
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, index): return torch.zeros(112, 112, 3, dtype=torch.uint8).numpy()

def clip(count): return plans.clip([0.0] * count, (9, 9), model.config)

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

cache = Cache.empty(model.config.text, 1, clip(max(counts)).tokens)
cache.keys.zero_(), cache.values.zero_()
before, peaks = status("VmRSS"), []
for count in counts:
    plan = plans.Plan((clip(count),), 10**6)
    model.prefill(plan, [model.encode(clip(count), Blank(count), k)], cache, chunk)
    cache.rewind(plan.tokens)
    peaks.append(status("VmHWM") - before)
print(json.dumps(peaks))
"""

SUPPORT = Path(small.__file__).parent
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)])}


def peaks(k: int, chunk: int, *counts: int) -> list[int]:
    """The most bytes above weights and cache, so far, after each of these clips in one process."""
    values = small.hf_config()
    values["vision_config"] |= {"image_size": 112, "hidden_size": 256, "intermediate_size": 1024}
    values["image_grid_pinpoints"] = [[112, 112]]
    values["text_config"] |= {"hidden_size": 256, "intermediate_size": 1024}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, (k, chunk, *counts))],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_many_frames_take_no_more_memory_than_few():
    """24 frames and then 240, 2 tiles and 256 tokens at a time: within 10%. All at once they need
    more than twice as much.
    """
    few, many = peaks(2, 256, 24, 240)
    assert many <= 1.1 * few, (few, many)
    (naive,) = peaks(240, 10**6, 240)
    assert naive > 2 * many, (many, naive)


CONFIG = layouts.parse_config(small.hf_config())


KINDS = st.sampled_from(["float32", "bfloat16"]), st.sampled_from(["cpu", "cuda"])


@given(st.integers(1, 2**36), *KINDS)
def test_portions_fit_and_grow(free, dtype, device):
    """What is worked on at a time takes an eighth of the memory, and grows with it."""
    storage = needs.Storage(dtype, device=device)
    tiles, tokens = needs.portions(CONFIG, storage, free)
    assert tiles == 1 or 8 * needs.vision_bytes(CONFIG, tiles, storage, tiles) <= free
    assert tokens == 64 or 8 * needs.prefill_bytes(CONFIG.text, tokens, storage, tokens) <= free
    more = needs.portions(CONFIG, storage, 2 * free)
    assert tiles <= more[0] <= plans.TILES and tokens <= more[1] <= plans.CHUNK
    most = {"cpu": (2, 1024), "cuda": (plans.TILES, plans.CHUNK)}
    assert needs.portions(CONFIG, storage, None) == most[device]


def test_little_memory_gives_the_same_answer(monkeypatch):
    """Told of hardly any free memory, it goes on tile by tile, 64 tokens at a time, and says so."""
    model, frames = llava_min.load(device="cpu"), small.frames(6)
    whole = model.generate("Describe the video.", videos=[frames], max_tokens=8)
    few = needs.portions(model.config, model.storage, 1)
    monkeypatch.setattr("llava_min.engine.handle.portions", lambda *given: few)
    *events, parts = model.events("Describe the video.", videos=[frames], max_tokens=8)
    portions = [event for event in events if isinstance(event, Portion) and event.done]
    done = list(dict.fromkeys((portion.done, portion.total) for portion in portions))
    tokens = parts.usage["prompt_tokens"]
    assert parts.token_ids == whole.token_ids
    assert done == [(n, tokens) for n in (*range(64, tokens, 64), tokens)]
