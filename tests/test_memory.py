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
from llava_min.planning import memory as needs

CHILD = """
import json, re, sys, torch, small
from llava_min import segments as plans
from llava_min.cache import Cache
from llava_min.image import Tiles
torch.set_num_threads(1)
frames, k, chunk = map(int, sys.argv[1:])
model = small.random_model(json.loads(sys.stdin.read()))

class Blank:  # frames that are made when they are asked for
    def __len__(self): return frames
    def __getitem__(self, index): return torch.zeros(112, 112, 3, dtype=torch.uint8).numpy()

plan = plans.Plan((plans.clip([0.0] * frames, model.config), plans.Text((1, 2))), 10**6)
cache = Cache.empty(model.config.text, 1, plan.tokens)
cache.keys.zero_(), cache.values.zero_()
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before = status("VmRSS")
visuals = [model.encode(Tiles(Blank(), (9, 9), None), True, k)]
model.prefill(plan, visuals, cache, chunk)
print(json.dumps([status("VmHWM") - before, plan.tokens]))
"""

SUPPORT = Path(small.__file__).parent
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)]),
    "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back, so that holes do not count
}


def grown(frames: int, k: int, chunk: int) -> int:
    """Bytes above weights and cache that a clip takes at the worst moment, in its own process."""
    values = small.hf_config()
    values["vision_config"] |= {"image_size": 112, "hidden_size": 256, "intermediate_size": 1024}
    values["image_grid_pinpoints"] = [[112, 112]]
    values["text_config"] |= {"hidden_size": 256, "intermediate_size": 1024}
    run = subprocess.run([sys.executable, "-c", CHILD, *map(str, (frames, k, chunk))],
                         input=json.dumps(values), capture_output=True, text=True,
                         env=os.environ | ENVIRONMENT)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)[0]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_many_frames_take_no_more_memory_than_few():
    """24 frames or 240, 8 tiles and 256 tokens at a time: within 30%, as one run differs from the
    next by 20%; all at once they more than double.
    """
    few, many, naive = grown(24, 8, 256), grown(240, 8, 256), grown(240, 240, 10**6)
    assert many <= 1.3 * few, (few, many)
    assert naive > 2 * few, (few, naive)


CONFIG = layouts.from_values(small.hf_config())


@given(st.integers(1, 2**36), st.sampled_from(["float32", "bfloat16"]))
def test_portions_fit_and_grow(free, dtype):
    """What is worked on at a time takes an eighth of the memory, and grows with it."""
    storage = needs.Storage(dtype)
    tiles, tokens = needs.portions(CONFIG, storage, free)
    assert tiles == 1 or 8 * needs.vision_bytes(CONFIG, tiles, storage, tiles) <= free
    assert tokens == 64 or 8 * needs.prefill_bytes(CONFIG.text, tokens, storage, tokens) <= free
    more = needs.portions(CONFIG, storage, 2 * free)
    assert tiles <= more[0] <= plans.TILES and tokens <= more[1] <= plans.CHUNK
    assert needs.portions(CONFIG, storage, None) == (plans.TILES, plans.CHUNK)


def test_little_memory_gives_the_same_answer(monkeypatch):
    """Told of hardly any free memory, it goes on tile by tile, 64 tokens at a time, and says so."""
    model, frames = llava_min.load(device="cpu"), small.frames(6)
    whole = model.generate("Describe the video.", videos=[frames], max_tokens=8)
    few = needs.portions(model.config, model.storage, 1)
    monkeypatch.setattr("llava_min.engine.handle.portions", lambda *given: few)
    done = []
    model.progress = lambda count, total: done.append((count, total))
    parts = model.generate("Describe the video.", videos=[frames], max_tokens=8)
    tokens = parts.usage["prompt_tokens"]
    assert parts.token_ids == whole.token_ids
    assert done == [(n, tokens) for n in (*range(64, tokens, 64), tokens)]
