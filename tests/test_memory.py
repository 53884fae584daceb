"""A long prompt needs no more memory than a short one, but for its cache: tiles and tokens are
worked on a few at a time, as many as fit.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import llava_min
from llava_min import image
from llava_min import segments as plans
from llava_min.families import layouts
from llava_min.model import Portion
from llava_min.planning import memory as needs

CHILD = """
import json, re, sys, torch, small
from llava_min import segments as plans
from llava_min.cache import Cache
from llava_min.kernels import attention_cpu
attention_cpu.LEAST = 2**60  # oneDNN keeps code for each size of a block
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
    """60 frames and then 600, 2 tiles and 256 tokens at a time: within 4 MiB, where the rows of 540
    frames take 8. All at once they need more than five times as much.
    """
    few, many = peaks(2, 256, 60, 600)
    assert many <= few + 4 * 2**20, (few, many)
    (naive,) = peaks(600, 10**6, 600)
    assert naive > 5 * many, (many, naive)


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
    most = {"cpu": (2, 1024), "cuda": (plans.TILES, plans.CHUNK)}[device]
    assert needs.portions(CONFIG, storage, None) == most
    twice = 2 * tiles, 2 * tokens
    assert tiles == most[0] or 8 * needs.vision_bytes(CONFIG, twice[0], storage, twice[0]) > free
    needed = needs.prefill_bytes(CONFIG.text, twice[1], storage, twice[1])
    assert tokens == most[1] or 8 * needed > free


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


# Counted by hand ------------------------------------------------------------------

SMALL = replace(
    CONFIG.text, hidden_size=20, intermediate_size=70, num_heads=6, num_kv_heads=2, head_dim=10
)
PREFILL = {
    # tokens, chunk, MLP's width, storage: bytes. Of 7 new tokens the cosines and sines take 560,
    # the MLP 28 (3 x 70 + 4 x 20) = 8,120, attention 28 (4 x 20 + 5 x 60) + 560 = 11,200
    "one chunk, in which attention is wider": (7, 7, 70, {}, 11_200 + 560),
    "an MLP that is wider": (7, 7, 700, {}, 28 * (2100 + 80) + 560),
    "earlier tokens: one more result": (30, 7, 70, {}, 11_200 + 7 * 60 * 4 + 560),
    "in float32 too": (30, 7, 70, {"dtype": "bfloat16"}, 14 * 380 + 560 + 7 * 60 * 14 + 560),
    "float64 needs none": (30, 7, 70, {"dtype": "float64"}, 56 * 380 + 560 + 7 * 60 * 8 + 560),
    "8-bit keys and values": (7, 7, 70, {"kv_dtype": "int8"}, 11_200 + 2 * 7 * 20 * 4 + 560),
    "packed weights": (7, 7, 70, {"bits": 4}, 11_200 + 560 + 2 * 70 * 20 * 4),
    "packed, in parts": (7, 7, 2**22, {"bits": 4}, 28 * (3 * 2**22 + 80) + 560 + 2**26 * 4),
}


@pytest.mark.parametrize("case", PREFILL)
def test_the_bytes_of_a_chunk(case):
    tokens, chunk, width, storage, expected = PREFILL[case]
    text = replace(SMALL, intermediate_size=width)
    assert needs.prefill_bytes(text, tokens, needs.Storage(**storage), chunk) == expected


PICTURES = {
    # size, mode: pixels at the worst moment. Tiles of 56 x 56 pixels take 3,136
    "decoding, four copies": ((100, 50), "square", 4 * 5000),
    "resizing: rows, and the result twice": ((10, 5), "square", 50 + 56 * 5 + 2 * 3136),
    "a wide canvas": ((100, 40), "anyres", 4000 + 112 * 40 + 2 * 112 * 56),
    "a tall canvas": ((40, 100), "anyres", 4000 + 56 * 100 + 2 * 112 * 56),
    "the sides before a crop": ((20, 11), "crop", 220 + 102 * 11 + 2 * 102 * 56),
    "the longest side that is made": ((500, 10), "crop", 5000 + 2800 * 10 + 2 * 2800 * 56),
    "one that is cut before": ((510, 10), "crop", 4 * 5100),
    "a square, whole": ((10, 5), "pad", 50 + 56 * 10 + 2 * 100 + 2 * 3136),
    "a square in parts": ((2**14, 1), "pad", 2**14 + 56 * 2**14 + 2 * image.PART + 2 * 3136),
}


@pytest.mark.parametrize("case", PICTURES)
def test_the_bytes_of_a_picture(case):
    size, mode, pixels = PICTURES[case]
    assert needs.picture_bytes(CONFIG, size, mode) == 4 * pixels


def test_the_bytes_of_the_tower():
    """Tiles of 16 patches: in the MLP 2 x 32 and two or three of 480 numbers; put together, four
    of 48.
    """
    for activation, copies in (("gelu_pytorch_tanh", 2), ("quick_gelu", 3)):
        vision = replace(CONFIG.vision, activation=activation, intermediate_size=480)
        config, storage = replace(CONFIG, vision=vision), needs.Storage("bfloat16")
        tile = 2 * 16 * (2 * 32 + copies * 480)
        assert needs.vision_bytes(config, 3, storage, 2) == 2 * tile
        assert needs.vision_bytes(config, 1, storage, 2) == tile
        assert needs.vision_bytes(config, 99, storage, 2) == 2 * 4 * 99 * 16 * 48


def plan_of(*segments) -> plans.Plan:
    return plans.Plan(tuple(segments), 4096)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_prompt_needs_is_put_together(device):
    """The widest moment, the rows that wait, and the cache of prompt and answer.

    The longest part that is made whole waits, and two chunks of rows.
    """
    storage = needs.Storage(device=device)
    row, (tiles, chunk) = 4 * 48, storage.portions
    text = plan_of(plans.Text([3] * 10))
    assert needs.opening_bytes(CONFIG, text) == needs.tower_bytes(CONFIG, text, storage) == 0
    alone = needs.alone(CONFIG, text, 5, storage)
    assert alone.cache == 15 * 2 * 2 * 2 * 12 * 4
    rest = needs.LIBRARIES if device == "cuda" else 0
    decoder = needs.prefill_bytes(CONFIG.text, 10, storage, chunk)
    assert alone.activations == decoder + 30 * row + rest
    assert alone.total == alone.weights + alone.cache + alone.activations
    long = needs.alone(CONFIG, plan_of(plans.Text([3] * 3000)), 0, storage)
    decoder = needs.prefill_bytes(CONFIG.text, 3000, storage, chunk)
    assert long.activations == decoder + (3000 + 2 * min(chunk, 3000)) * row + rest
    picture = plans.picture((400, 300), "anyres", CONFIG)
    clip = plans.clip([0.0] * 99, (500, 500), CONFIG)
    seen = needs.alone(CONFIG, plan_of(picture, clip), 0, storage)
    rows = picture.tokens + 2 * min(chunk, picture.tokens + clip.tokens)
    tower = max(
        needs.vision_bytes(CONFIG, picture.tiles, storage, tiles),
        needs.vision_bytes(CONFIG, tiles, storage, tiles),
    )
    assert needs.tower_bytes(CONFIG, plan_of(picture, clip), storage) == tower
    assert needs.opening_bytes(CONFIG, plan_of(picture, clip)) == 4 * 4 * 500 * 500
    decoder = needs.prefill_bytes(CONFIG.text, picture.tokens + clip.tokens, storage, chunk)
    opening = 4 * 4 * 500 * 500 if device == "cpu" else 0
    assert seen.activations == max(tower, decoder, opening) + rows * row + rest
    whole = {count: plan_of(plans.clip([0.0] * count, (9, 9), CONFIG)) for count in (1, 40)}
    for count, plan in whole.items():  # a clip waits frame by frame
        decoder = needs.prefill_bytes(CONFIG.text, plan.tokens, storage, chunk)
        tower = needs.vision_bytes(CONFIG, min(count, tiles), storage, tiles)
        widest = max(tower, decoder, needs.opening_bytes(CONFIG, plan) * (device == "cpu"))
        expected = widest + 2 * min(chunk, plan.tokens) * row + rest
        assert needs.alone(CONFIG, plan, 0, storage).activations == expected


def test_towers_that_share_tiles_have_all_rows_wait():
    """Pictures and clips are encoded before the prompt is read, as many tiles as towers take."""
    storage = needs.Storage(towers=3)
    picture, clip = (
        plans.picture((400, 300), "anyres", CONFIG),
        plans.clip([0.0] * 99, (5, 5), CONFIG),
    )
    plan = plan_of(plans.Text([3] * 5), picture, plans.Text([3] * 7), clip)
    assert needs.waiting_tokens(plan, storage) == 7 + picture.tokens + clip.tokens
    assert needs.waiting_tokens(plan, needs.Storage()) == picture.tokens
    frames = plan_of(clip)
    k, chunk = storage.portions
    assert needs.tower_bytes(CONFIG, frames, storage) == needs.vision_bytes(
        CONFIG, 3 * k, storage, k
    )
    waiting = needs.row_bytes(CONFIG, clip.tokens + 2 * min(chunk, clip.tokens), storage)
    decoder = needs.prefill_bytes(CONFIG.text, clip.tokens, storage, chunk)
    widest = max(needs.tower_bytes(CONFIG, frames, storage), decoder)
    assert needs.alone(CONFIG, frames, 0, storage).activations == widest + waiting
    free = 8 * needs.vision_bytes(CONFIG, 3 * k, storage, k)
    assert needs.portions(CONFIG, storage, free)[0] == k
    assert needs.portions(CONFIG, storage, free - 8)[0] == k // 2


def test_what_prompts_need_together():
    """Room for the longest in each row, and the logits of those that wait for the last."""
    storage, each = needs.Storage(), [plan_of(plans.Text([3] * count)) for count in (9, 70, 30)]
    found = needs.together(CONFIG, [(plan, 4) for plan in each], storage)
    longest = needs.alone(CONFIG, each[1], 4, storage)
    assert needs.logit_bytes(CONFIG, 5) == 5 * 512 * (4 + 4)
    assert found.cache == 3 * longest.cache and found.weights == longest.weights
    assert found.activations == longest.activations + 2 * needs.logit_bytes(CONFIG, 1)


def test_the_operations_of_a_prompt():
    """Two for each weight and row, and four for each number of a query and key that meet."""
    clip = plans.clip([0.0] * 3, (56, 56), CONFIG)
    prompt = plan_of(plans.Text([3] * 5), clip)
    tower, prefill = needs.operations(CONFIG, prompt)
    blocks = 2 * (4 * 32 * 32 + 2 * 32 * 48)
    projector = 32 * 48 + 48 * 48
    assert tower == 3 * 16 * (2 * (blocks + projector) + 2 * 4 * 16 * 32)
    decoder = 2 * (2 * 48 * 48 + 2 * 48 * 24 + 3 * 48 * 80)
    tokens = 5 + clip.tokens
    assert prefill == tokens * 2 * decoder + 4 * 2 * 48 * tokens * tokens // 2
