"""Taking patches, heads and the way to pictures away, and gradients of an answer's score."""

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import FAMILIES, Family

import llava_min
from llava_min.errors import ParameterError
from llava_min.explain import attention, gradients
from llava_min.trace import edit

STAR = str(small.TINY / "samples" / "shapes.png")
BOX, OTHER = (28, 11, 99, 77), (232, 156, 292, 209)  # of the star and of the triangle
QUESTION, ANSWER = "Where is the star?", "In the top left."


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return Family("next", tmp_path_factory.mktemp("families") / "next").ours


def cost(scores) -> float:
    before, after = (sum(score.log_probabilities) for score in scores)
    return before - after


def test_the_answer_needs_the_patches_of_its_shape(model):
    """They cost less than a covered square: other patches have seen the shape too."""
    rows = model.explain(QUESTION, ANSWER, images=[STAR], words=1).rows
    star, triangle = rows.inside(BOX), rows.inside(OTHER)
    assert len(star) > 10 and not set(star) & set(triangle)
    for row in star:
        x, y = rows.boxes[row].reshape(2, 2).mean(0)
        assert BOX[0] <= x <= BOX[2] and BOX[1] <= y <= BOX[3]
    costs = [cost(model.knock_out(QUESTION, ANSWER, images=[STAR], patches=p))
             for p in (star, triangle)]  # fmt: skip
    assert costs[0] > 1 and costs[0] > 20 * abs(costs[1])


def test_patches_of_the_second_picture_are_those(model):
    """The numbers go on from picture to picture: all rows of the second are as its mean."""
    question, pictures = "Which picture has the star?", [STAR, STAR]
    rows = model.explain(question, "Both pictures.", images=pictures, words=1).rows
    first = np.flatnonzero(rows.visuals == 0).tolist()
    second = np.flatnonzero(rows.visuals == 1).tolist()
    passed = []

    def alike(piece):
        passed.append(len(piece))
        return piece.mean(0).expand_as(piece).clone() if len(passed) == 2 else piece

    with edit("visual_rows", None, alike):
        expected = model.score(question, "Both pictures.", images=pictures)
    _, found = model.knock_out(question, "Both pictures.", images=pictures, patches=second)
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)
    _, other = model.knock_out(question, "Both pictures.", images=pictures, patches=first)
    assert passed[0] == len(first) and abs(cost((found, other))) > 1e-3


def test_heads_are_those_of_an_edit(model):
    def silenced(mixed):
        mixed[:, :, 1] = 0
        return mixed

    with edit("mixed", 0, silenced):
        expected = model.score(QUESTION, ANSWER, images=[STAR])
    before, after = model.knock_out(QUESTION, ANSWER, images=[STAR], heads=[(0, 1)])
    assert before == model.score(QUESTION, ANSWER, images=[STAR]) != after
    np.testing.assert_allclose(after.log_probabilities, expected.log_probabilities, atol=1e-6)
    _, both = model.knock_out(QUESTION, ANSWER, images=[STAR], heads=[(0, 1), (2, 3), (2, 0)])
    assert cost((after, both)) != 0


def test_without_looking_a_picture_tells_nothing(model):
    """Two pictures get the same score, which is no longer that of one who sees."""
    before, star = model.knock_out(QUESTION, ANSWER, images=[STAR], looking=True)
    white = np.full((240, 320, 3), 255, np.uint8)
    _, blank = model.knock_out(QUESTION, ANSWER, images=[white], looking=True)
    np.testing.assert_allclose(star.log_probabilities, blank.log_probabilities, atol=1e-5)
    assert cost((before, star)) > 2


def test_without_looking_the_rest_adds_up_to_one(family, monkeypatch):
    """Rows of text are those of a decoder whose mask hides the pictures from text, whatever the
    chunks and blocks.
    """
    pictures, ids = [small.picture(57, 113), small.picture(90, 60)], [7, 300, 12]
    prepared = family.prepare("What is it?", images=pictures)
    visual = np.zeros(prepared.plan.tokens + len(ids), bool)
    visual[llava_min_rows(prepared, family).tokens] = True
    rows = family.embed("What is it?", images=pictures)
    rows = torch.cat([rows, family.network.decoder.embed(torch.tensor([ids[:-1]]))[0]])
    hidden = torch.from_numpy(visual[: len(rows)])
    mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    mask &= ~(~hidden[:, None] & hidden[None, :])
    plain = torch.nn.functional.scaled_dot_product_attention

    def masked(*given, is_causal, **options):
        return plain(*given, attn_mask=mask, **options)

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(gradients.F, "scaled_dot_product_attention", masked)
        logits = gradients.logits(family.network.decoder, rows)[-len(ids) :]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    monkeypatch.setattr(attention, "NUMBERS", 3000)
    _, found = family.knock_out("What is it?", ids, images=pictures, looking=True)
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-4)


def llava_min_rows(prepared, model):
    from llava_min.explain.rows import Rows

    return Rows.of(prepared.plan, model.config)


@pytest.mark.parametrize(
    "wrong", [{"patches": [351]}, {"patches": [-1]}, {"heads": [(4, 0)]}, {"heads": [(0, -1)]}]
)
def test_what_is_not_there_cannot_be_taken_away(model, wrong):
    with pytest.raises(ParameterError):
        model.knock_out(QUESTION, ANSWER, images=[STAR], **wrong)


@pytest.mark.parametrize("name", [*FAMILIES, "toy"])
def test_the_differentiable_decoder_is_the_decoder(tmp_path, model, name):
    """Its logits are those of logits(), for each family's decoder."""
    ours = model if name == "toy" else Family(name, tmp_path / name).ours
    rows = ours.embed("What is it?", images=[small.picture(70, 60)])
    expected = ours.logits("What is it?", images=[small.picture(70, 60)])
    with torch.inference_mode():
        found = gradients.logits(ours.network.decoder, rows)
    assert (found - expected).abs().max() <= 5e-5 * max(1, expected.abs().max() / 5)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 99), st.integers(1, 3))
def test_gradients_are_those_of_differences(seed, count):
    network = small.random_model(small.hf_config(tied=seed % 2 == 0), seed, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 48, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 500, (count,), generator=generator).tolist()
    score = lambda rows: gradients.answer_score(network.decoder, rows, ids)
    assert torch.autograd.gradcheck(score, rows, atol=1e-6, rtol=1e-4, fast_mode=True)
    found = gradients.gradient(network.decoder, rows.detach(), ids)
    assert torch.equal(found, torch.autograd.grad(score(rows), rows)[0])


def test_the_gradient_is_largest_where_the_shape_is(model):
    """By norm, of the grid's patches; and a step along it makes the answer likelier."""
    question, wrong = "What color is the circle?", "Red."
    found = model.gradient(question, wrong, images=[STAR])
    rows = model.explain(question, wrong, images=[STAR], words=1).rows
    grid = np.flatnonzero(rows.kinds == 3)
    brightest = grid[found[rows.tokens[grid]].norm(dim=1).argmax()]
    x, y = rows.boxes[brightest].reshape(2, 2).mean(0)
    assert 129 - 16 <= x <= 190 + 16 and 94 - 16 <= y <= 154 + 16
    embedded, ids = model.embed(question, images=[STAR]), model.tokenizer.encode_text(wrong)
    assert found.shape == embedded.shape
    with torch.inference_mode():
        scores = [gradients.answer_score(model.network.decoder, embedded + step * found, ids)
                  for step in (0, 1e-3)]  # fmt: skip
    assert scores[1] > scores[0]


def test_packed_weights_have_no_gradient():
    model = llava_min.load(bits=4, dtype="float32")
    with pytest.raises(ParameterError, match="without bits"):
        model.gradient(QUESTION, ANSWER, images=[STAR])
