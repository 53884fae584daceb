"""The cache: what is stored comes back, to half a step with 8 bits, and lengths never mix."""

import json

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min import segments as plans
from llava_min.cache import Cache
from llava_min.command import main as command
from llava_min.errors import ParameterError
from llava_min.kernels import rope
from llava_min.kernels.decode_attention import decode_attention

KINDS = (None, torch.int8, torch.float8_e4m3fn)
LAYERS, HEADS, WIDTH = 2, 2, 12  # of the small model


@pytest.fixture(scope="module")
def llava():
    return small.random_model(small.hf_config(tied=False), dtype=torch.float64)


def filled(config, lengths, new, kind, seed=0):
    """(a cache that has seen `lengths`, keys and values [2 B T K E] that come next)."""
    torch.manual_seed(seed)
    cache = Cache.empty(config, len(lengths), max(lengths) + new + 3, torch.float64, kind)
    for row, length in enumerate(lengths):
        for index in range(config.num_layers if length else 0):
            cache.row(row).layers()[index].store(*torch.randn(2, 1, length, HEADS, WIDTH).double())
        cache.row(row).advance(length)
    return cache, torch.randn(2, len(lengths), new, HEADS, WIDTH).double()


def seen_of(cache):
    """A copy of what each row has seen, tensor by tensor."""
    found = cache.tensors()
    lengths = found.pop("lengths").tolist()
    return [
        tensor[:, row, :, :length].double() + 0
        for tensor in found.values()
        for row, length in enumerate(lengths)
    ]


def allowed(vectors, kind):
    """The most that 8 bits may be off, for each number of vectors [... E]."""
    largest = vectors.abs().amax(-1, keepdim=True) * (1 + 1e-5)
    if kind == torch.int8:
        return (largest / 254).expand_as(vectors)
    if kind is None:
        return torch.zeros_like(vectors)
    return torch.maximum(vectors.abs() / 16, largest / 448 / 1024)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.integers(1, 5),
    st.sampled_from(KINDS),
    st.integers(0, 999),
)
def test_what_is_stored_comes_back(llava, lengths, new, kind, seed):
    """Behind each row's own length, counted on the host or on the device; nothing else changes."""
    config = llava.config.text
    cache, (key, value) = filled(config, lengths, new, kind, seed)
    other, _ = filled(config, lengths, new, kind, seed)
    before = seen_of(cache)
    cache.layers()[1].store(key, value)
    other.on_device().layers()[1].store(key, value)
    for kept, old in zip(seen_of(cache), before, strict=True):
        assert torch.equal(kept, old)
    for counted, stop in ((cache, max(lengths) + new), (other.on_device(), cache.capacity)):
        found = counted.layers()[1].keys_and_values(new, torch.float64)
        assert found[0].shape == (len(lengths), HEADS, stop, WIDTH)
        for row, length in enumerate(lengths):
            for kept, vectors in zip(found, (key, value)):
                written = kept[row, :, length : length + new].transpose(0, 1)
                assert torch.all((written - vectors[row]).abs() <= allowed(vectors[row], kind))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.integers(1, 8),
    st.integers(0, 999),
    st.floats(0.1, 4.0),
)
def test_attention_over_8_bits_stays_near(llava, lengths, new, seed, scale):
    """A key that is off by half a step s/2 moves a score by at most e = |query|_1 s/2 / sqrt(E),
    and its weight by a factor of at most exp(2e); a value is off by half a step of its own.
    """
    config = llava.config.text
    caches = [filled(config, lengths, new, kind, seed)[0] for kind in (None, torch.int8)]
    _, (key, value) = filled(config, lengths, new, None, seed)
    query = scale * torch.randn(len(lengths), new, 2 * HEADS, WIDTH).double()
    for cache in caches:
        cache.layers()[0].store(key, value)
    exact, near = (decode_attention(query, cache.layers()[0]) for cache in caches)
    both = caches[0].layers()[0].keys_and_values(new, torch.float64)
    keys, values = (tensor.nan_to_num(0.0) for tensor in both)
    score = query.abs().sum(-1).max() * keys.abs().max() / 254 / WIDTH**0.5
    bound = torch.expm1(2 * score) * values.abs().max() + values.abs().max() / 254
    assert (exact - near).abs().max() <= bound
    assert kept_apart(caches)


def kept_apart(caches) -> bool:
    """8 bits were really read: the two caches share no memory and hold different dtypes."""
    return [c.keys.dtype for c in caches] == [torch.float64, torch.int8]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bytes_are_as_counted(llava, kind):
    """2E numbers a token, layer and head; with 8 bits two float32 scales besides."""
    cache, _ = filled(llava.config.text, [5, 2], 1, kind)
    per_vector = 2 * WIDTH * 8 if kind is None else 2 * WIDTH + 8
    counted = LAYERS * 2 * HEADS * cache.capacity * per_vector
    tensors = [t for t in cache.stored(lambda tensor: tensor) if t is not None]
    assert sum(t.numel() * t.element_size() for t in tensors) == counted
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_growing_and_rewinding_keep_what_was_seen(llava, kind):
    cache, (key, value) = filled(llava.config.text, [5, 2], 3, kind)
    before = seen_of(cache)
    cache.layers()[0].store(key, value)
    cache.advance(3)
    cache.rewind(3)
    cache.grow(40)
    assert cache.capacity == 40 and cache.host_lengths.tolist() == cache.lengths.tolist() == [5, 2]
    assert len(cache.tensors()) == (3 if kind is None else 5)
    for kept, old in zip(seen_of(cache), before, strict=True):
        assert torch.equal(kept, old)
    with pytest.raises(AssertionError):
        cache.advance(36)


def prefilled(llava, ids, kind, chunk=4096, batch=1, row=0, capacity=60):
    cache = Cache.empty(llava.config.text, batch, capacity, torch.float64, kind)
    plan = plans.Plan((plans.Text(tuple(ids)),), 99)
    return llava.prefill(plan, [], cache.row(row), chunk=chunk, keep="all"), cache


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(2, 30), st.integers(1, 29), st.sampled_from(KINDS[1:]))
def test_8_bits_in_chunks_step_by_step_and_in_a_batch(llava, seed, count, chunk, kind):
    """Every query reads its keys from the cache, so the same 8 bits whatever the chunks: logits
    equal at 1e-10, and a row of a batch holds the very bits of its single run.
    """
    ids = np.random.default_rng(seed).integers(0, 500, count).tolist()
    whole, cache = prefilled(llava, ids, kind)
    parts, _ = prefilled(llava, ids, kind, chunk)
    assert (whole - parts).abs().max() < 1e-10
    _, begun = prefilled(llava, ids[:1], kind)
    for place, one in enumerate(ids[1:4], start=1):
        stepped = llava.decode(torch.tensor([one]), begun)
        assert (stepped[0] - whole[place]).abs().max() < 1e-10
    _, many = prefilled(llava, ids, kind, batch=3, row=1)
    for name, tensor in cache.tensors().items():
        kept = many.row(1).tensors()[name]
        assert torch.equal(kept.double(), tensor.double()), name


def test_8_bits_change_logits_a_little(llava):
    """Not at all would mean that they are not used: int8 is nearer than fp8, and both are near."""
    ids = np.random.default_rng(0).integers(0, 500, 40).tolist()
    exact, eight, four = (prefilled(llava, ids, kind)[0] for kind in KINDS)
    errors = [float((x - exact).pow(2).mean().sqrt() / exact.std()) for x in (eight, four)]
    assert 1e-4 < errors[0] < errors[1] < 0.2, errors


def test_the_option_reaches_the_cache(capsys):
    """--kv-dtype int8 answers the embedded question as the weights' dtype does, and is reported."""
    answers = {}
    for kind in ("auto", "int8", "fp8"):
        assert command.main(["--json", "--quiet", "--max-tokens", "9", "--kv-dtype", kind]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["settings"]["kv_dtype"] == kind
        answers[kind] = found["text"]
    assert answers["auto"] == answers["int8"] and answers["fp8"]
    model = llava_min.load(kv_dtype="int8")
    assert model.empty_cache(7, 2).keys.dtype == torch.int8
    assert model.empty_cache(7, 2).key_scales.shape == (*model.empty_cache(7, 2).keys.shape[:4],)
    with pytest.raises(ParameterError, match="kv_dtype"):
        llava_min.load(kv_dtype="int4")


MUTANTS = {
    "scales forgotten": ("dequantise", lambda steps, scales, dtype: steps.to(dtype)),
    "scale of the whole tensor": (
        "quantise",
        lambda x, kind: ((x / x.abs().max() * 127).to(kind), x[..., 0] * 0 + x.abs().max() / 127),
    ),
    "cut, not rounded": (
        "quantise",
        lambda x, kind: (
            (x / x.abs().amax(-1, keepdim=True) * 127).to(kind),
            x.abs().amax(-1) / 127,
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(llava, name, monkeypatch):
    monkeypatch.setattr(rope, *MUTANTS[name])
    cache, (key, value) = filled(llava.config.text, [3], 5, torch.int8)
    cache.layers()[1].store(key, value)
    kept = cache.layers()[1].keys_and_values(5, torch.float64)[0][0, :, 3:8].transpose(0, 1)
    assert torch.any((kept - key[0]).abs() > allowed(key[0], torch.int8))
