"""Which layers stay on the device, and when the others come to it."""

import pytest
import small

import llava_min
from llava_min.engine import offload
from llava_min.families import layouts
from llava_min.planning.memory import Storage
from llava_min.planning.split import block_bytes

TINY = layouts.read_config(small.TINY)


@pytest.mark.parametrize("held", [0, 1])
def test_a_layer_comes_while_the_one_before_it_computes(monkeypatch, held):
    """In turn, and after the last one the first: each is copied once a pass."""
    monkeypatch.setattr(offload, "blocks_in_place", lambda *given: held)
    model = llava_min.load(dtype="float32", offload=True)
    decoder = model.network.decoder
    count, events = 4 - held, []
    for place in decoder.places:
        place.block.register_forward_pre_hook(
            lambda *given, place=place: events.append(("computes", place.index))
        )
    fetch = offload.tensors_of

    def noted(block):
        (copied,) = (place.index for place in decoder.places if place.block is block)
        events.append(("comes", copied))
        return fetch(block)

    monkeypatch.setattr(offload, "tensors_of", noted)
    model.generate("Hello", max_tokens=3, ignore_eos=True)  # a chunk, then two steps
    one = [(("comes", (n + 1) % count), ("computes", n)) for n in range(count)]
    assert events == [("comes", 0), *(event for pair in one * 3 for event in pair)]


def test_a_gpu_keeps_as_many_layers_as_fit_beside_two_places(monkeypatch):
    """In three quarters of what is free: a quarter is left for cache and activations."""
    storage = Storage("bfloat16", device="cuda")
    layer = block_bytes(TINY, storage)
    for fit, held in ((0, 0), (1, 0), (2, 0), (3, 1), (7, 5)):
        enough = -(-layer * fit * 4 // 3)
        for free, wanted in ((enough, held), (enough - 1, max(held - 1, 0))):
            monkeypatch.setattr(offload, "free_bytes", lambda device, free=free: free)
            assert offload.blocks_in_place(TINY, storage, "cuda") == wanted
            assert offload.blocks_in_place(TINY, storage, "cpu") == 0
    monkeypatch.setattr(offload, "free_bytes", lambda device: None)
    assert offload.blocks_in_place(TINY, storage, "cuda") == 0
