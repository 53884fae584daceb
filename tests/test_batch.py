"""A batch answers as its members alone: different lengths, visuals, samplings, in any order."""

import pytest
import small
import torch

import llava_min
from llava_min.errors import ParameterError, PromptError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In float64, so that a margin between two tokens is never a matter of rounding."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    return llava_min.load(folder, dtype="float64")


REQUESTS = [
    {"question": "What?", "images": [small.picture(130, 60)], "max_tokens": 9},
    {"question": "Where is the star in this picture?", "max_tokens": 4, "ignore_eos": True},
    {
        "question": "And now?",
        "videos": [small.frames(3)],
        "temperature": 0.9,
        "seed": 5,
        "max_tokens": 12,
    },
    {
        "question": "<image> or <image>?",
        "images": [small.picture(50, 50), small.picture(60, 40)],
        "temperature": 1.2,
        "seed": 1,
        "top_k": 20,
        "max_tokens": 15,
        "stop": ["e"],
    },
]


@pytest.mark.catalogue("NU-BATCH", "a batch, in any order, samples as its members alone")
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2], [1, 1, 1]], ids=str)
def test_a_batch_answers_as_its_members_alone(model, order):
    requests = [REQUESTS[index] for index in order]
    together = model.generate_batch(requests)
    for request, answer in zip(requests, together):
        given = dict(request)
        alone = model.generate(given.pop("question"), **given)
        assert answer.token_ids == alone.token_ids
        assert (answer.text, answer.finish_reason) == (alone.text, alone.finish_reason)
        assert answer.usage.items() > alone.usage.items()


def test_one_forward_a_step_for_all(model, monkeypatch):
    decode, sizes = model.network.decode, []
    monkeypatch.setattr(
        model.network, "decode", lambda ids, cache: sizes.append(len(ids)) or decode(ids, cache)
    )
    model.generate_batch([{"question": "What?", "max_tokens": 6, "ignore_eos": True}] * 3)
    assert sizes == [3] * 5


def test_an_empty_batch_and_wrong_requests(model):
    assert model.generate_batch([]) == []
    with pytest.raises(PromptError, match="request 1"):
        model.generate_batch([{"question": "What?"}, "nonsense"])
    with pytest.raises(ParameterError, match="temperatur"):
        model.generate_batch([{"question": "What?", "temperatur": 1}])


def test_a_row_never_sees_another(model):
    """NaN in a neighbour's part of the cache would reach every logit if rows were mixed up."""
    plain = model.generate_batch([{"question": "What?", "max_tokens": 3}] * 2)
    assert plain[0].token_ids == plain[1].token_ids
    assert torch.isfinite(model.logits("What?")).all()
