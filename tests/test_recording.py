"""Recorded passes of the tower: any number of tiles, each recorded when it comes again, equal to
ordinary ones.
"""

import gc
import io
import weakref
from dataclasses import replace

import pytest
import small
import torch
from operations import WAITS, recorded

import llava_min
from llava_min import trace
from llava_min.engine import recording as engine
from llava_min.engine.recording import TILES, RecordedTower, Recording, sums
from llava_min.kernels import choose
from llava_min.vision import VisionTower


def tower_and_tiles(count: int):
    tower = small.random_model(small.hf_config()).vision
    side = tower.config.image_size
    return tower, torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)


def check(tower, recorded, tiles) -> None:
    with torch.inference_mode():
        found, exact = recorded(tiles), torch.cat([tower(t) for t in tiles.split(sums(len(tiles)))])
    assert torch.equal(found, exact)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_any_number_of_tiles(count):
    """Three times, with other tiles: an ordinary pass, one that is recorded, one repeated."""
    tower, tiles = tower_and_tiles(3 * count)
    recorded = RecordedTower(tower)
    for some in tiles.split(count):
        check(tower, recorded, some)
    assert set(recorded.passes) == set(sums(count)) and None not in recorded.passes.values()
    assert sum(sums(count)) == count


def test_counts_are_sums_of_powers_of_two():
    """So that any number of tiles takes as few replays as its bits say."""
    assert sums(15) == list(TILES) == [8, 4, 2, 1] and sums(17) == [8, 8, 1] and not sums(0)


def test_features_outlive_the_next_pass():
    """What was returned does not change when the recording runs again."""
    tower, tiles = tower_and_tiles(4)
    recorded = RecordedTower(tower)
    with torch.inference_mode():
        kept = [recorded(one) for one in tiles.split(1)]
        assert all(torch.equal(found, tower(one)) for found, one in zip(kept, tiles.split(1)))


@pytest.mark.parametrize("clip", [False, True])
def test_a_pass_waits_for_nothing(clip):
    """What is recorded reads no number back and makes no tensor from the host's numbers."""
    tower, tiles = tower_and_tiles(2)
    if clip:
        parts = {"patch_bias": False, "class_token": True, "pre_norm": True}
        tower = VisionTower(replace(tower.config, activation="quick_gelu", **parts))
    with torch.inference_mode():
        found = {name for name, _ in recorded(lambda: tower(tiles))}
    assert found and not found & WAITS


def test_passes_go_with_their_tower():
    """Their graphs are free at once, and not when Python looks for circles."""
    tower, tiles = tower_and_tiles(1)
    passes = RecordedTower(tower)
    for _ in range(2):
        passes(tiles)
    held = [weakref.ref(one) for one in (passes.passes[1], passes.passes[1].recording)]
    gc.disable()
    try:
        del passes
        assert [one() for one in held] == [None] * 2
    finally:
        gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_something_is_recorded(enabled):
    """An older graph that ends then spoils the recording; afterwards all is as it was."""
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), engine.uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_single_picture_is_not_recorded_and_a_trace_sees_every_pass():
    tower, tiles = tower_and_tiles(1)
    recorded, stream = RecordedTower(tower), io.StringIO()
    recorded(tiles)
    assert recorded.passes == {1: None}
    for _ in range(2):
        recorded(tiles)
    with trace.tracing(stream):
        recorded(tiles)
    assert "patch_embedding" in stream.getvalue()


def test_a_recording_repeats_its_work():
    """Without a GPU: the work itself, each time, and never when it is made."""
    done = []
    recording = Recording(lambda: done.append(1), torch.device("cpu"))
    assert not done and recording.graph is None
    recording()
    recording()
    assert done == [1, 1]


@pytest.mark.parametrize("device, kernels, expected", [
    ("cuda", "triton", True),
    ("cuda", "reference", False),
    ("cpu", "triton", False),  # in the interpreter
    ("cpu", "cpu", False),
])  # fmt: skip
def test_what_is_recorded_is_triton_on_cuda(monkeypatch, device, kernels, expected):
    monkeypatch.setattr(choose, "explained", lambda device: (kernels, "so it is"))
    assert engine.recorded(torch.device(device)) == expected


@pytest.mark.gpu
def test_recorded_tiles_on_a_gpu():
    """The graph's features are those of an ordinary pass, for every count that is recorded."""
    tower = llava_min.load(device="cuda", dtype="float16").network.vision.tower
    recorded, side = RecordedTower(tower), tower.config.image_size
    for count in (*TILES, 13):
        for _ in range(3):
            tiles = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device="cuda")
            check(tower, recorded, tiles)
    assert all(one.recording.graph is not None for one in recorded.passes.values())
