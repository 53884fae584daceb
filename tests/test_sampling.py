"""The choice of the next token: the definitions of the filters, and draws that depend on (seed,
position) alone.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_min.errors import NumericsError, ParameterError
from llava_min.sampling import Sampling, candidates, draw, greedy, next_id, penalised

logits_of = st.lists(st.floats(-20, 20), min_size=1, max_size=30).map(lambda x: torch.tensor(x))


@given(logits_of)
def test_greedy_is_the_first_of_the_largest(logits):
    assert next_id(logits, [], 0, Sampling(), len(logits)) == logits.tolist().index(
        max(logits.tolist())
    )


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), min_size=1),
    st.integers(1, 12),
)
def test_greedy_of_what_is_finite_and_known(logits, known):
    """The first of the largest of the known ids, and none where one of these is not finite."""
    meant = logits[:known]
    finite = all(map(math.isfinite, meant))
    wanted = meant.index(max(meant)) if finite else -1
    assert greedy(torch.tensor([logits, logits]), known).tolist() == [wanted] * 2


def test_what_is_known_to_be_the_largest_is_not_looked_for_again():
    """Unless a penalty makes another the largest. Of no tokens there is nothing to penalise."""
    logits = torch.tensor([1.0, 3.0, 2.9])
    for ids, penalty, expected in (([], 1, 2), ([1], 1, 2), ([], 1.5, 2), ([1], 1.5, 2)):
        found = next_id(logits, ids, 0, Sampling(repetition_penalty=penalty), 3, likely=2)
        assert found == expected
    assert next_id(logits, [1], 0, Sampling(repetition_penalty=1.5), 3, likely=0) == 2
    assert next_id(logits, [1], 0, Sampling(temperature=1.0, top_k=1), 3, likely=0) == 1


@settings(max_examples=200, deadline=None)
@given(logits_of, st.floats(0.1, 5), st.integers(0, 8), st.floats(0.05, 1), st.floats(0, 0.9))
def test_filters_keep_what_their_definitions_keep(logits, temperature, top_k, top_p, min_p):
    """By definition, spelt out in numpy: k largest, smallest set with p, at least min_p of the
    best.
    """
    ids, weights = candidates(logits, Sampling(temperature, top_k, top_p, min_p))
    scaled = logits.double().numpy() / temperature
    probability = np.exp(scaled - scaled.max())
    probability /= probability.sum()
    order = sorted(range(len(probability)), key=lambda i: -probability[i])
    if top_k:
        order = order[:top_k]
    share = probability[order] / probability[order].sum()
    kept, total = [], 0.0
    for index, p in zip(order, share):
        if total >= top_p - 1e-12 and kept:
            break
        if p >= min_p * share[0] - 1e-12:
            kept.append(index)
        total += p
    slack = min(
        abs(np.cumsum(share) - top_p).min(), abs(share - min_p * share[0])[1:].min(initial=1)
    )
    if slack > 1e-9 and len(set(np.round(probability, 12))) == len(
        probability
    ):  # no ties at a border
        assert ids.tolist() == kept
    assert math.isclose(weights.sum().item(), 1, rel_tol=1e-9)


def test_the_filters_agree_with_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    for _ in range(20):
        logits = 3 * torch.randn(1, 40)
        chain = transformers.LogitsProcessorList(
            [
                transformers.TemperatureLogitsWarper(0.7),
                transformers.TopKLogitsWarper(12),
                transformers.TopPLogitsWarper(0.8),
                transformers.MinPLogitsWarper(0.05),
            ]
        )
        theirs = chain(torch.zeros(1, 1, dtype=torch.long), logits.clone())[0]
        ids, weights = candidates(logits[0], Sampling(0.7, 12, 0.8, 0.05))
        assert set(ids.tolist()) == set(torch.isfinite(theirs).nonzero().flatten().tolist())
        assert torch.allclose(torch.softmax(theirs, 0)[ids].double(), weights, atol=1e-6)


def test_repetition_penalty_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    logits, ids = torch.randn(30), [3, 3, 7, 29, -200]
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([[3, 3, 7, 29]]), logits[None].clone()
    )
    assert torch.equal(penalised(logits, ids, 1.3), theirs[0])


def test_the_penalty_leaves_out_ids_that_have_no_logit():
    """The placeholder of a visual is one, and rows that pad the head have no id."""
    logits = torch.tensor([1.0, -1.0, 2.0])
    assert penalised(logits, [-1, -200, 3, 4], 2.0).tolist() == logits.tolist()
    assert penalised(logits, [0, 1, 2, 3], 2.0).tolist() == [0.5, -2.0, 1.0]


def test_top_p_takes_what_is_needed_and_no_more():
    """Four equal tokens make a half with two, and every token's own weight makes it with one."""
    for top_p, kept in ((0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)):
        assert len(candidates(torch.zeros(4), Sampling(1.0, 0, top_p, 0.0))[0]) == kept


def test_draws_follow_the_probabilities():
    """Chi-squared over 4000 positions: 3 degrees of freedom exceed 16.3 once in a thousand; the
    seed is fixed.
    """
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    counts = np.bincount([draw(weights, 11, position) for position in range(4000)], minlength=4)
    expected = 4000 * weights.numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_a_draw_depends_on_seed_and_position_alone(seed, position):
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    first = draw(weights, seed, position)
    draw(weights, seed, position + 1)
    assert draw(weights, seed, position) == first
    others = {draw(weights, seed, position + step) for step in range(12)}
    assert len(others) > 1


def test_ids_that_stand_for_nothing_are_never_chosen():
    logits = torch.tensor([1.0, 2.0, 50.0])
    assert next_id(logits, [], 0, Sampling(), known=2) == 1
    assert {next_id(logits, [], p, Sampling(temperature=50.0), known=2) for p in range(40)} == {
        0,
        1,
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_never_sampled(bad):
    logits = torch.tensor([0.0, bad, 1.0])
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(NumericsError, match="position 12"):
            next_id(logits, [], 12, sampling, 3)


@pytest.mark.parametrize("temperature", [1e-8, 1e-300, 5e-324])
def test_tiny_temperature_is_greedy(temperature):
    """Down to the least number above 0, by which logits of any size overflow."""
    logits = torch.tensor([1.0, 1.001, 0.0])
    assert {next_id(logits, [], p, Sampling(temperature), 3) for p in range(20)} == {1}


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 2),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "abc"),
    ],
)
def test_parameters_out_of_range_are_named(name, value):
    with pytest.raises(ParameterError, match=name):
        Sampling(**{name: value})
