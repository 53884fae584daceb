"""The repeated decode step: equal to ordinary decoding, the same work each time, no wait for the
device.
"""

import gc
import importlib
import weakref
from dataclasses import replace

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import WAITS, recorded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import llava_min
from llava_min.cache import Cache
from llava_min.config import Quantization
from llava_min.engine.step import Step, decoding
from llava_min.errors import NumericsError
from llava_min.kernels import activation, choose, decode_attention, norm, rope
from llava_min.options import Sampling
from llava_min.sampling import next_id
from llava_min.weights import packed

KINDS = (None, torch.int8, torch.float8_e4m3fn)


@pytest.fixture(scope="module")
def models():
    """In float64, which torch computes, and in float32, which the kernels can take."""
    text = {"hidden_size": 64, "num_attention_heads": 4}  # heads of 16: the kernels want 2^n
    config = small.hf_config(tied=False, **text)
    return {dtype: small.random_model(config, dtype=dtype) for dtype in
            (torch.float64, torch.float32)}  # fmt: skip


def prefilled(model, lengths, dtype, kind=None, spare=8):
    """A cache with rows of these lengths; what no row has written is NaN, or 127 of NaN scales."""
    cache = Cache.empty(model.config.text, len(lengths), max(lengths) + spare, dtype, kind)
    for tensor in cache.stored(lambda tensor: tensor):
        if tensor is not None:
            tensor.view(torch.uint8).fill_(127) if tensor.element_size() == 1 else tensor.fill_(
                torch.nan
            )
    generator = torch.Generator().manual_seed(sum(lengths))
    for row, length in enumerate(lengths):
        ids = torch.randint(0, 500, (1, length), generator=generator)
        with torch.inference_mode():
            model.decoder(model.decoder.embed(ids), cache.row(row))
        cache.row(row).advance(length)
    return cache


def both_ways(model, lengths, dtype, kind, kernels="auto"):
    """Logits of three greedy steps: (ordinary decoding, the step), each [3 B V]."""
    caches = [prefilled(model, lengths, dtype, kind) for _ in range(2)]
    step = Step(model, caches[1], model.config.text.vocab_size)
    ordinary, repeated, ids = [], [], [7] * len(lengths)
    for _ in range(3):
        with choose.using(kernels):
            ordinary.append(model.decode(torch.tensor(ids), caches[0]))
            logits, likely = step(ids)
            repeated.append(logits.clone())
            assert likely == logits.argmax(-1).tolist()
        ids = ordinary[-1].argmax(-1).tolist()
    for cache in caches:
        assert cache.host_lengths.tolist() == cache.lengths.tolist() == [n + 3 for n in lengths]
    return torch.stack(ordinary), torch.stack(repeated)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.sampled_from(KINDS))
def test_a_step_is_an_ordinary_step(models, lengths, kind):
    """By torch in float64: the step goes over the whole capacity, of which most is masked NaN."""
    ordinary, repeated = both_ways(models[torch.float64], lengths, torch.float64, kind)
    assert (ordinary - repeated).abs().max() < 1e-12 * ordinary.abs().max()


@pytest.mark.parametrize(("lengths", "kind"), [([21, 2], None), ([5], torch.int8)], ids=str)
def test_through_the_kernels_bit_for_bit(models, lengths, kind):
    """The kernels read lengths on the device in both cases."""
    ordinary, repeated = both_ways(models[torch.float32], lengths, torch.float32, kind, "triton")
    assert torch.equal(ordinary, repeated)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_step_does_the_same_and_waits_for_nothing(models, kind):
    """What is recorded has the same operations on the same sizes at every length, reads no number
    back and makes no tensor from the host's numbers; its memory stays where it is.
    """
    model = models[torch.float64]
    cache = prefilled(model, [5, 11], torch.float64, kind)
    step = Step(model, cache, 100)
    before = [t.data_ptr() for t in cache.stored(lambda t: t) if t is not None]
    first, *others = [recorded(step.work) for _ in range(4)]
    assert first and all(other == first for other in others)
    assert not {name for name, _ in first} & WAITS
    assert [t.data_ptr() for t in cache.stored(lambda t: t) if t is not None] == before
    seen = {name for name, _ in recorded(lambda: torch.tensor([1, 0]).nonzero().max().item())}
    assert seen >= {"lift_fresh", "nonzero", "_local_scalar_dense"}  # it would have been noticed


def test_a_step_goes_with_its_owner(models):
    """Its graph and its cache are free at once, and not when Python looks for circles."""
    model = models[torch.float64]
    step = Step(model, prefilled(model, [5], torch.float64), 100)
    step([3])
    held = [weakref.ref(one) for one in (step, step.recording, step.on_device)]
    gc.disable()
    try:
        del step
        assert [one() for one in held] == [None] * 3
    finally:
        gc.enable()


def test_plain_torch_reads_no_more_than_was_seen(models):
    """A step on a CPU is not the one that is repeated, which goes over the whole capacity."""
    model, whole = models[torch.float64], []
    for made in (decoding, Step):
        step = made(model, prefilled(model, [5], torch.float64, spare=56), 100)
        operations = recorded(lambda step=step: step([3]))
        whole.append(any(" 61]" in sizes for _, sizes in operations))  # scores of all 61 places
    assert whole == [False, True]


def test_every_step_launches_the_same(models, monkeypatch):
    """The kernels get the same grids, numbers and caches at every length."""
    calls = []

    def recording(launch):
        def record(kernel, grid, *arguments, **options):
            numbers = [x.shape if isinstance(x, torch.Tensor) else x for x in arguments]
            calls.append((kernel.fn.__name__, grid, str(numbers), str(options)))
            launch(kernel, grid, *arguments, **options)

        return record

    for module in (activation, decode_attention, norm, rope):
        monkeypatch.setattr(module, "launch", recording(module.launch))
    model, rounds = models[torch.float32], []
    step = Step(model, prefilled(model, [3, 17], torch.float32, torch.int8), 100)
    with choose.using("triton"):
        for _ in range(2):
            calls.clear()
            step.work()
            rounds.append(list(calls))
    blocks = model.config.text.num_layers
    assert rounds[0] == rounds[1] and len(rounds[0]) == 6 * blocks + 1


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU runs: all but views, and memory that nothing fills."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if torch.is_tensor(x)}
        made = [x.untyped_storage().data_ptr() for x in tree_leaves(found) if torch.is_tensor(x)]
        name = function.__name__.split(".")[0]
        view = any(storage in given for storage in made) and not name.endswith("_")
        self.count += bool(made) and not view and "empty" not in name
        return found


@pytest.mark.parametrize("quantised", [False, True], ids=["16 bits", "int4"])
def test_launches_of_a_layer(quantised, monkeypatch):
    """Kernels of a decode step that each further layer adds: at most ten, and no more in four bits.

    Ours are counted as they are launched, and not run; torch's by the operations that are no view.
    """
    for name in ("activation", "decode_attention", "int4", "norm", "rope"):
        module = importlib.import_module(f"llava_min.kernels.{name}")
        monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: ours.append(kernel))
    counted = []
    for layers in (1, 3):
        text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": layers}
        model, ours = small.random_model(small.hf_config(tied=False, **text)), []
        if quantised:
            quantise_on_the_spot(model)
        step = Step(model, Cache.empty(model.config.text, 1, 40), 100)
        with choose.using("triton"), Launches() as launches:
            step.work()
        counted.append(len(ours) + launches.count)
    assert (counted[1] - counted[0]) / 2 == 10


def quantise_on_the_spot(model) -> None:
    """Packed layers of four bits in place of the decoder's linears, of any numbers."""
    wanted = Quantization(bits=4, group=128, head=16)
    model.config = replace(model.config, quantization=wanted)
    packed.swap(model)
    for layer in model.decoder.modules():
        if isinstance(layer, packed.Packed):
            layer.to_empty(device="cpu")
            with choose.using("triton"):  # whose words a GPU has
                layer.ready()


def test_ids_are_left_on_the_device(models):
    """A row that goes on with its most likely token needs nothing from the host; another does."""
    model = models[torch.float64]
    cache = prefilled(model, [5, 11], torch.float64)
    step, copied = Step(model, cache, model.config.text.vocab_size), []
    _, likely = step([7, 7])
    for ids in (likely, [likely[0], 3], [8, 9]):
        copied.append("lift_fresh" in {name for name, _ in recorded(lambda ids=ids: step(ids))})
        assert (step.ids >= 0).all()
    assert copied == [False, True, True]


def test_what_is_left_is_an_id(models, monkeypatch):
    """The first id is one like any other; a row that is not finite leaves the harmless 0."""
    model = models[torch.float64]
    step = Step(model, prefilled(model, [5, 11, 2], torch.float64), 2)
    logits = torch.tensor([[3.0, 1.0, 9.0], [1.0, 3.0, 9.0], [torch.nan, 1.0, 9.0]])
    monkeypatch.setattr(model, "decode", lambda ids, cache: logits)
    assert step([7, 7, 7])[1] == [0, 1, -1] and step.ids.tolist() == [0, 1, 0]


def test_a_greedy_token_waits_once():
    """One number comes back from the device; a second wait for NaN would cost as much again."""
    logits = torch.tensor([0.0, 3.0, 2.0, 9.0])
    names = [name for name, _ in recorded(lambda: next_id(logits, [], 0, Sampling(), 3))]
    assert names.count("_local_scalar_dense") == 1 and not (set(names) & WAITS) - {
        "_local_scalar_dense"
    }
    assert next_id(logits, [], 0, Sampling(), 3) == 1
    for wrong in (torch.nan, torch.inf, -torch.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(NumericsError, match="position 5"):
                next_id(torch.tensor([0.0, wrong]), [], 5, Sampling(temperature=temperature), 2)


def test_a_full_cache_is_refused(models):
    model = models[torch.float64]
    step = Step(model, prefilled(model, [4], torch.float64, spare=1), 100)
    step([1])
    with pytest.raises(AssertionError):
        step([1])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_a_recorded_step_on_a_gpu(kind, monkeypatch):
    """The graph's tokens are those of ordinary steps; a token waits for the device once."""
    model = llava_min.load(device="cuda", dtype="float16").network
    config = model.config.text
    caches = [Cache.empty(config, 2, 40, torch.float16, kind, "cuda") for _ in range(2)]
    for cache in caches:
        for row, length in enumerate((9, 20)):
            ids = torch.arange(length, device="cuda")[None] * 7 % 40
            with torch.inference_mode():
                model.decoder(model.decoder.embed(ids), cache.row(row))
            cache.row(row).advance(length)
    step, ids = Step(model, caches[1], config.vocab_size), [3, 4]
    for first in (True, *[False] * 9):
        ordinary = model.decode(torch.tensor(ids, device="cuda"), caches[0])
        with monkeypatch.context() as patched:  # the replay itself waits for nothing
            if not first:
                assert step.recording.graph is not None
                patched.setattr(step, "recording", without_waiting(step.recording))
            logits, likely = step(ids)
        assert torch.equal(logits, ordinary)
        ids = [next_id(row, [], 0, Sampling(), config.vocab_size) for row in logits]
        assert ids == likely
    assert caches[1].lengths.tolist() == caches[1].host_lengths.tolist() == [19, 30]


def without_waiting(recording):
    """The same call, with an error where the host would wait for the device."""

    def call():
        torch.cuda.set_sync_debug_mode("error")
        results = recording()
        torch.cuda.set_sync_debug_mode("default")
        return results

    return call
