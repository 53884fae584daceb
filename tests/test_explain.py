"""What an answer looked at: the weights are those that the decoder itself used, the rows are where
their patches are, and what is kept is what was asked for.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from test_families import FAMILIES, Family, pixels_of

import llava_min
from llava_min import image, projector
from llava_min import segments as plans
from llava_min.cache import Layer
from llava_min.engine.prefix import Prefix
from llava_min.errors import OutputError, ParameterError
from llava_min.explain import attention, measures, occlusion, pictures, sinks
from llava_min.explain.explaining import sources
from llava_min.explain.forced import before
from llava_min.explain.places import grid_fits, spread
from llava_min.explain.rows import KINDS, Rows
from llava_min.families import layouts
from llava_min.kernels.attention import causal_mask
from llava_min.trace import watch

STAR = str(small.TINY / "samples" / "shapes.png")
BOX = (28, 11, 99, 77)  # of the star in it: left, top, right, bottom
CLIP = str(small.TINY / "samples" / "clip.mp4")
FLASH, NUMBER = 6, (83, 131, 143, 211)  # of 8 frames the one that shows a number, and where
QUESTION = "Where is the star?"
TINY = layouts.read_config(small.TINY)


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


@pytest.fixture(scope="module")
def found(model):
    return model.explain(QUESTION, images=[STAR])


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: Family(name, folder / name) for name in FAMILIES}


# The weights are the decoder's own ------------------------------------------------


def mixed_again(model, prepared, ids) -> tuple[list, list, list]:
    """Of each layer: what passed "mixed" for an answer's rows, weights times values, and sums."""
    logits, cache = model.prefilled(prepared, len(ids))
    layers = cache.layers()
    made = [0.0] * len(layers)
    sums = [0.0] * len(layers)

    def take(layer, columns, weights):
        values = attention.vectors(layers[layer].values, layers[layer].value_scales, columns)
        values = values.repeat_interleave(len(weights) // len(values), 0)
        made[layer] = made[layer] + weights @ values.to(weights.dtype)
        sums[layer] = sums[layer] + weights.sum(-1)

    with attention.weighing(cache, take, {}), watch("mixed") as mixed:
        before(model.network, logits, cache, ids)
    return [one[0].transpose(0, 1) for one in mixed], made, sums


def check_weights(model, question, answer: list[int], bound: float, **media) -> None:
    """Weights times values are each layer's own output; log-probabilities are those of score()."""
    prepared = model.prepare(question, **media)
    own, made, sums = mixed_again(model, prepared, answer)
    assert len(own) == model.config.text.num_layers
    for one, other, total in zip(own, made, sums):
        assert (one - other).abs().max() <= bound * max(1, one.abs().max())
        assert (total - 1).abs().max() < 1e-5
    explained = model.explain(question, answer, **media)
    score = model.score(question, answer, **media)
    np.testing.assert_allclose(
        explained.log_probabilities, score.log_probabilities, atol=bound * 10
    )
    np.testing.assert_allclose(explained.shares.sum(-1), 1, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_every_family(families, name, monkeypatch):
    """Odd sizes, two pictures, a clip; blocks of a few columns, which do not divide the prompt."""
    monkeypatch.setattr(attention, "NUMBERS", 700)
    model, ids = families[name].ours, [7, 300, 12, 45]
    pair = [small.picture(57, 113), small.picture(131, 60, seed=1)]
    check_weights(model, "What is it?", ids, 2e-5, images=pair)
    if name != "next":
        check_weights(model, "What is it?", ids, 2e-5, videos=[small.frames(3, 61, 43)])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 50), st.integers(0, 99))
def test_blocks_of_any_size(numbers, new, before, seed):
    """Wherever the blocks end, they are the softmax of the whole, and no row sees a later one."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, new, 4, 8, generator=generator, dtype=torch.float64)
    keys = torch.randn(1, 2, before + new + 3, 8, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([before], dtype=torch.int32)
    layer = Layer(keys, keys, None, None, lengths, np.array([before]))
    mask = causal_mask(new, before)
    exact = (
        query[0].transpose(0, 1) @ keys[0, :, : before + new].repeat_interleave(2, 0).mT
    ) / 8**0.5
    exact = exact.masked_fill(~mask, -torch.inf).softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "NUMBERS", 4 * new * numbers)
        found = list(attention.blocks(query, layer, attention.total(query, layer)))
    assert [columns.stop - columns.start for columns, _ in found[:-1]] == [numbers] * (
        len(found) - 1
    )
    assert (torch.cat([weights for _, weights in found], -1) - exact).abs().max() < 1e-12


@pytest.mark.parametrize(
    "how, bound",
    [
        ({"dtype": "float64"}, 1e-10),
        ({"kv_dtype": "int8", "dtype": "float32"}, 2e-5),
        ({"kv_dtype": "fp8", "dtype": "float32"}, 2e-5),
        ({"bits": 4, "dtype": "float32"}, 2e-5),
        ({"dtype": "bfloat16"}, 0.02),  # the decoder rounds weights to 8 bits; these are not
    ],
    ids=str,
)
def test_weights_however_numbers_are_stored(how, bound):
    model = llava_min.load(**how)
    ids = model.tokenizer.encode_text("In the top left.")
    check_weights(model, QUESTION, ids, bound, images=[STAR])


@pytest.mark.parametrize("name", ["next", "interleave"])
def test_weights_are_those_of_transformers(families, name):
    """Eager attention of the class itself: each plane, and the shares of each kind."""
    family, ids, picture = families[name], [7, 300, 12], small.picture(100, 60)
    family.model.set_attn_implementation("eager")
    explained = family.ours.explain("What?", ids, images=[picture])
    pixels = {"pixel_values": pixels_of(name, [picture])}
    if name == "next":
        from agreement import their_pixels

        pixels = their_pixels("next", [picture], None)
    prompt = family.expanded("What?", {"images": [picture]}, 510)
    whole = torch.tensor([prompt + ids[:-1]])
    with torch.no_grad():
        theirs = family.model(input_ids=whole, output_attentions=True, **pixels).attentions
    kinds = explained.rows.all_kinds(whole.shape[1])
    for layer, weights in enumerate(theirs):
        weights = weights[0, :, len(prompt) - 1 :].numpy()
        for kind in range(len(KINDS)):
            shares = weights[..., kinds == kind].sum(-1)
            np.testing.assert_allclose(explained.shares[layer, ..., kind], shares, atol=2e-5)
        for head in range(weights.shape[0]):
            plane = weights[head][:, explained.rows.tokens]
            np.testing.assert_allclose(explained.planes[layer, head], plane, atol=2e-4)
        mean = weights.mean(0)[:, explained.rows.tokens]
        np.testing.assert_allclose(explained.planes[layer, None], mean, atol=2e-4)
    whole = np.mean([weights[0].mean(0).numpy() for weights in theirs], axis=0)
    mean = whole[len(prompt) - 1 :, explained.rows.tokens]
    np.testing.assert_allclose(explained.planes[None, None], mean, atol=2e-4)


# Rows are where their patches are ----------------------------------------------------


def config_of(name: str, tile: int, anyres_max: int | None):
    """The configuration of a family with tiles of another side, which patches need not divide."""
    config = TINY if name == "onevision" else layouts.parse_config(FAMILIES[name])
    if config.grids:
        config = replace(config, grids=tuple((r, c) for r in (1, 2, 3) for c in (1, 2, 3)))
    vision = replace(config.vision, image_size=tile)
    return replace(config, vision=vision, anyres_max=anyres_max)


def brightness(tiles: np.ndarray, config) -> torch.Tensor:
    """The mean of each patch of each tile, as if it were the projector's work: [B N 1]."""
    side, patch = config.vision.side, config.vision.patch_size
    seen = torch.from_numpy(tiles[:, : side * patch, : side * patch].astype(np.float64))
    return (
        seen.unflatten(2, (side, patch))
        .unflatten(1, (side, patch))
        .mean((2, 4, 5))
        .flatten(1)[..., None]
    )


def rows_of(visual, bright: torch.Tensor, config) -> torch.Tensor:
    """The rows of a visual in the order in which the projector gives them: [tokens]."""
    newline = torch.zeros(1, dtype=bright.dtype)
    if isinstance(visual, plans.Clip):
        pooled = projector.pool(bright, config.pool_mode)
        rows = projector.frames_rows(pooled, newline, visual.newlines)
        end = projector.clip_end(newline, visual.newlines)
        return (rows if end is None else torch.cat([rows, end]))[:, 0]
    if visual.grid is None:
        return projector.single_tile_rows(bright, newline if config.newline else None)[:, 0]
    return projector.picture_rows(bright, visual.grid, newline)[:, 0]


@st.composite
def planted(draw):
    """A family, a mode, the size of a picture, and where in it a patch is bright."""
    name = draw(st.sampled_from(["onevision", *FAMILIES]))
    tile, most = draw(st.sampled_from([84, 93])), draw(st.sampled_from([None, 2]))
    config = config_of(name, tile, most)
    modes = [*config.image_modes, *(["clip"] if config.pool_mode else [])]
    size = draw(st.tuples(st.integers(60, 360), st.integers(60, 360)))
    spot = draw(st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 0.9)))
    return config, draw(st.sampled_from(modes)), size, spot


@settings(max_examples=60, deadline=None)
@given(planted())
def test_a_bright_patch_is_found_at_its_place(case):
    """In every family, geometry and mode the brightest pixel of the map of the brightness of rows
    is within half a row's box of the patch's middle, after text and another picture. Where tiles
    are no whole number of patches, half of what lies unseen between two tiles comes to that.
    """
    config, mode, size, spot = case
    clip = mode == "clip"
    visual = plans.clip([0.0, 0.5], size, config) if clip else plans.picture(size, mode, config)
    boxes = Rows.of(plans.Plan((visual,), 9999), config).boxes
    sides = np.nanmedian(boxes[:, 2:] - boxes[:, :2], axis=0)  # of a row on the source
    middle = np.array([spot[0] * size[0], spot[1] * size[1]])
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    (left, top), (right, bottom) = (
        np.clip(middle + sign * sides / 2, 0, size).round().astype(int) for sign in (-1, 1)
    )
    pixels[top:bottom, left:right] = 255
    middle = np.array([left + right, top + bottom]) / 2
    how = config.frame_mode if clip else mode
    tiles = image.MODES[how](image.Image.fromarray(pixels), config)
    dark = image.MODES[how](image.Image.fromarray(pixels * 0), config)  # a border may be bright
    if clip:
        tiles, dark = (np.stack([dark[0], one[0]]) for one in (tiles, dark))
    brighter = brightness(tiles, config) - brightness(dark, config)
    bright = rows_of(visual, brighter, config).numpy()
    seen = np.concatenate([np.nanmin(boxes[:, :2], axis=0), np.nanmax(boxes[:, 2:], axis=0)])
    if left < seen[0] or top < seen[1] or right > seen[2] or bottom > seen[3]:
        return  # a crop has cut it off, or the tile is no whole number of patches
    first = plans.picture((70, 90), config.image_modes[-1], config)
    plan = plans.Plan((plans.Text((1, 2)), first, plans.Text((3,)), visual), 9999)
    rows = Rows.of(plan, config)
    assert rows.tokens.tolist() == [*range(2, 2 + first.tokens),
                                    *range(3 + first.tokens, plan.tokens)]  # fmt: skip
    explained = explanation_of(rows, config, [first, visual], bright)
    for kind in {KINDS[kind] for kind in rows.kinds[rows.visuals == 1]} - {"newline"}:
        found = explained.map(0, visual=1, kind=kind, frame=1 if clip else None)
        own = rows.boxes[(rows.visuals == 1) & (rows.kinds == KINDS.index(kind))]
        half = np.nanmax(own[:, 2:] - own[:, :2], axis=0) / 2
        if kind == "grid":
            unseen = config.tile - config.vision.side * config.vision.patch_size
            half += [unseen / fit.scale / 2 for fit in grid_fits(visual, config)]
        bright_places = np.argwhere(found >= 0.999 * found.max())[:, ::-1] + 0.5
        distance = np.abs(np.median(bright_places, axis=0) - middle)
        assert (distance <= half + 1.5).all(), (kind, distance, half)  # two ends are rounded


def explanation_of(rows, config, visuals, bright):
    """An Explanation of one word that looked at the last visual as much as its rows are bright."""
    from llava_min.explain.explanation import Explanation
    from llava_min.request.visuals import Encodable

    weights = np.concatenate([np.zeros(len(rows.tokens) - len(bright)), bright])
    return Explanation(
        model="", config=config, answer="", token_ids=[0], tokens=[""], log_probabilities=[0.0],
        top=[[]], shares=np.zeros((1, 1, 1, 6)), planes={(None, None): weights[None]}, rows=rows,
        lengths={(None, None): np.ones(len(weights))},
        visuals=[Encodable(visual, np.empty(0)) for visual in visuals], sources=[], prompt=[],
        suggested=None,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_weights_are_spread_whole(width, height, seed):
    """Boxes with ends between pixels: nothing is lost, and nothing lies outside of its box."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (3, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + 0.4 * np.array([width, height])], 1)
    weights = rng.random(3)
    found = spread(weights, boxes, (width, height))
    assert found.shape == (height, width) and found.sum() == pytest.approx(weights.sum(), rel=1e-5)
    alone = spread(weights[:1], boxes[:1], (width, height))
    left, top, right, bottom = boxes[0]
    ys, xs = np.nonzero(alone)
    assert (xs + 1 > left).all() and (xs < right).all()
    assert (ys + 1 > top).all() and (ys < bottom).all()
    assert not spread(weights, np.full((3, 4), np.nan), (width, height)).any()


# What is kept --------------------------------------------------------------------------


def inside(found: np.ndarray, box) -> bool:
    y, x = divmod(int(found.argmax()), found.shape[1])
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def test_the_toy_looks_at_the_star(model, found):
    assert found.answer.startswith("In the top left.") and found.left_out == []
    assert found.tokens == [model.tokenizer.decode([i], special=True) for i in found.token_ids]
    assert all(top[0][0] == word for top, word in zip(found.top, found.tokens))
    assert [top[0][1] for top in found.top] == pytest.approx(
        np.exp(found.log_probabilities).tolist()
    )
    layers, heads = TINY.text.num_layers, TINY.text.num_heads
    assert len(found.planes) == layers * heads + layers + 1
    assert inside(found.map(0, 3), BOX) and inside(found.map(0, *found.suggested), BOX)
    pixels = found.map(0, 3)
    patches = found.shares[3, :, 0][:, [2, 3]].sum(-1).mean()
    assert pixels.shape == (240, 320) and pixels.sum() == pytest.approx(patches, rel=0.02)
    parts = found.map(0, 3, kind="base") + found.map(0, 3, kind="grid")
    np.testing.assert_allclose(pixels, parts, atol=1e-9)


def test_shares_are_those_of_the_planes(found):
    for (layer, head), plane in found.planes.items():
        if layer is not None and head is not None:
            for kind in (2, 3, 5):
                share = plane[:, found.rows.kinds == kind].astype(np.float64).sum(1)
                np.testing.assert_allclose(found.shares[layer, head, :, kind], share, atol=1e-3)


@pytest.mark.parametrize("room, words", [(351 * 2 * 6 * 8, 6), (351 * 2 * 4 * 3, 3)])
def test_with_less_room_the_rest_is_the_same(model, found, monkeypatch, room, words):
    """Fewer heads, then fewer words; it says so, and names a map that it did not keep."""
    monkeypatch.setattr(measures, "KEPT", room)
    fewer = model.explain(QUESTION, found.token_ids, images=[STAR])
    assert len(fewer.tokens) == words and len(fewer.left_out) == 1 + (words < 6)
    kept = list(fewer.planes)
    assert kept[:2] == [(None, None), (3, None)] and len(kept) == (7 if words == 6 else 3)
    assert kept[1] == fewer.suggested and kept[2][1] is not None
    assert sum(2 * p.size for p in fewer.planes.values()) <= room
    for key, plane in fewer.planes.items():
        np.testing.assert_allclose(plane, found.planes[key][:words], atol=1e-3)
    with pytest.raises(ParameterError, match="layer 0, head 3 was not kept"):
        fewer.map(0, 0, 3)


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 4), st.integers(1, 3), st.data())
def test_as_many_planes_are_kept_as_there_is_room_for(words, rows, layers, heads, data):
    """Of float16, the mean of all as two. All words with the least planes come first, then planes;
    the most useful come first, each once.
    """
    room = data.draw(st.integers(1, 2 * 40 * 9 * 16))
    marks = torch.tensor(
        data.draw(st.permutations(range(layers * (heads + 1)))), dtype=torch.float32
    ).view(layers, heads + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "KEPT", room)
        held = measures.words_that_fit(words, rows)
        wanted = measures.wanted(marks, held, rows)
    plane = 2 * max(rows, 1)  # bytes of a word
    assert 1 <= held <= words
    assert held == 1 or 4 * held * plane <= room
    assert held == words or 4 * (held + 1) * plane > room
    every = 1 + layers * (heads + 1)
    assert len(wanted) == len(set(wanted)) == min(every, max(3, room // (held * plane) - 1))
    best = [divmod(n, heads) for n in marks[:, :-1].flatten().argsort(descending=True).tolist()]
    first = (int(marks[:, -1].argmax()), None)
    others = [(n, None) for n in reversed(range(layers)) if n != first[0]]
    whole = [(None, None), first, best[0], *others, *best[1:]]
    assert wanted == whole[: len(wanted)] and measures.suggested(marks) == first


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 8), st.integers(1, 400))
def test_blocks_of_columns_hold_so_many_weights(seen, new, heads, most):
    """All columns that the rows can see, in order, as many at a time as there is room for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "NUMBERS", most)
        found = attention.parts(new, heads, SimpleNamespace(longest=seen))
    ends = [0, *(part.stop for part in found)]
    assert [part.start for part in found] == ends[:-1] and ends[-1] == seen + new
    for part in found:
        length = part.stop - part.start
        assert length == 1 or length * heads * new <= most
        assert part.stop == ends[-1] or (length + 1) * heads * new > most


@given(st.integers(1, 2000))
def test_a_clip_has_25_runs_of_frames_at_most(frames):
    """Of one length but for the last, and no longer than they must be."""
    found = occlusion.runs(frames)
    assert [n for run in found for n in run] == list(range(frames))
    length = len(found[0])
    assert len(found) <= 25 and (length == 1 or -(-frames // (length - 1)) > 25)
    assert all(len(run) == length for run in found[:-1]) and len(found[-1]) <= length


def test_a_mark_is_the_share_of_patches_times_how_near_they_are_to_one(monkeypatch):
    """By hand, of two heads over a text token and four patches: equal weights on all patches are
    aimed at nothing, one patch is aimed at, two of four by half, and so is half of the share. Two
    heads that are each aimed at two patches have a mean that is aimed at none.
    """
    kinds = np.array([1, 2, 2, 3, 3])
    for first, second, expected in (
        ([0, 0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0, 0], None),
        ([0, 0.5, 0.5, 0, 0], [0, 0, 0, 0.5, 0.5], (0.5, 0.5, 0)),
        ([0.5, 0, 0.25, 0, 0.25], [0.5, 0, 0.25, 0, 0.25], (0.25, 0.25, 0.25)),
        ([1, 0, 0, 0, 0], [1, 0, 0, 0, 0], (0, 0, 0)),
        ([0.6, 0.4, 0, 0, 0], [0.6, 0.4, 0, 0, 0], (0.4, 0.4, 0.4)),
    ):
        shares = measures.Shares(SimpleNamespace(num_layers=1, num_heads=2), 1, kinds)
        weights = torch.tensor([[first], [second]])
        for columns in (slice(0, 2), slice(2, 5)):
            shares.take(0, columns, weights[..., columns])
        found = shares.marks()[0].tolist()
        assert found == pytest.approx(expected or [0, 1, found[2]], abs=1e-6)
        assert 0 <= found[2] <= max(found[:2]) + 1e-6
    for kinds, weights, mark in (
        ([1, 2], [0.25, 0.75], 0.75),  # a single patch is always aimed at
        ([2, 2], [0.5, 0.5], 0),
    ):
        one = measures.Shares(SimpleNamespace(num_layers=1, num_heads=1), 1, np.array(kinds))
        one.take(0, slice(0, 2), torch.tensor([[weights]]))
        assert one.marks()[0].tolist() == pytest.approx([mark] * 2, abs=1e-6)


def test_an_answer_may_be_given_in_any_form(model, found):
    answer = model.generate(QUESTION, images=[STAR])
    by_answer = model.explain(QUESTION, answer, images=[STAR])
    text = model.explain(QUESTION, "In the top left.", images=[STAR], words=3, alternatives=2)
    assert by_answer.token_ids == found.token_ids and len(by_answer.stages) == 4
    assert text.tokens == found.tokens[:3] and len(text.top[0]) == 2 and not text.stages
    np.testing.assert_allclose(text.planes[3, 1], found.planes[3, 1][:3], atol=1e-3)
    one = model.explain(QUESTION, "In the top left.", images=[STAR], words=1)
    np.testing.assert_allclose(one.planes[3, 1], found.planes[3, 1][:1], atol=1e-3)
    other = model.explain(QUESTION, "Purple.", images=[STAR])
    assert other.log_probabilities[0] < found.log_probabilities[0] - 3


def test_a_chat_goes_on_after_an_explanation(model, found):
    """The cache of an answer is used and left as the next question needs it."""
    prefix, options = Prefix(model.empty_cache(0)), {"images": [STAR], "max_tokens": 8}
    answer = model.generate(QUESTION, prefix=prefix, **options)
    explained = model.explain(QUESTION, answer, prefix=prefix, **options)
    for key, plane in explained.planes.items():
        np.testing.assert_allclose(plane, found.planes[key], atol=2e-3)
    again = model.generate(QUESTION, prefix=prefix, **options)
    assert again.token_ids == answer.token_ids and again.usage["cached_tokens"] > 350


def test_text_alone_has_shares_and_no_map(model):
    explained = model.explain("Where is the star?", max_tokens=3)
    assert explained.planes == {} and explained.suggested is None
    np.testing.assert_allclose(explained.shares[..., :2].sum(-1), 1, atol=1e-5)
    with pytest.raises(ParameterError, match="visual"):
        explained.map(0)


def test_a_prompt_that_ends_with_a_picture(model):
    """Its last row is no text: it is taken as it enters the decoder."""
    ids = [*model.tokenizer.encode_text("Look:"), -200]
    explained = model.explain(ids, [5, 6], images=[STAR])
    score = model.score(ids, [5, 6], images=[STAR])
    np.testing.assert_allclose(explained.log_probabilities, score.log_probabilities, atol=1e-4)


def test_wrong_arguments(model, found, tmp_path):
    for wrong in ({"words": 0}, {"alternatives": "2"}, {"answer": ""}, {"answer": []}):
        with pytest.raises(ParameterError):
            model.explain(QUESTION, images=[STAR], **wrong)
    for look in (lambda: found.map(6), lambda: found.map(0, visual=1), lambda: found.map(0, 9)):
        with pytest.raises(ParameterError):
            look()
    with pytest.raises(ParameterError, match=r"\.html or \.safetensors"):
        found.save(tmp_path / "x.pdf")
    with pytest.raises(OutputError):
        found.save(tmp_path / "none" / "x.safetensors")


def test_numbers_are_saved(found, tmp_path):
    found.save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert "In the top left." in file.metadata()["llava_min explanation"]
        assert np.array_equal(file.get_tensor("planes.3.None"), found.planes[3, None])
        assert np.array_equal(file.get_tensor("shares"), found.shares)
        assert np.array_equal(file.get_tensor("rows.boxes"), found.rows.boxes, equal_nan=True)


# Sinks ---------------------------------------------------------------------------------


def test_a_row_with_short_values_is_a_sink_where_words_look_at_it(model, found):
    """Values of the patch that gets most are made short in one layer and one key/value head: there
    it is a sink, in heads that read these values and look at it, and in no other map.
    """
    prefix = Prefix(model.empty_cache(0))
    model.generate(QUESTION, images=[STAR], prefix=prefix)
    token = int(found.rows.tokens[found.planes[3, 0].mean(0).argmax()])
    prefix.cache.values[3, 0, 0, token] *= 0.01
    made = model.explain(QUESTION, found.token_ids, images=[STAR], prefix=prefix)
    row = int(np.flatnonzero(found.rows.tokens == token)[0])
    for key in made.planes:
        read = key in ((3, 0), (3, 1))  # of four heads that read two
        assert (made.lengths[key][row] < 0.05) == read, key
        assert made.sinks(*key)[row] <= read and not found.sinks(*key)[row]
    assert made.sinks(3, 0)[row] and made.sinks(3, 0).sum() == found.sinks(3, 0).sum() + 1


@pytest.mark.parametrize(
    "looks, length, kind, sink",
    [
        (5.1, 0.25, "patch", True),
        (4.9, 0.25, "patch", False),
        (5.1, 0.26, "patch", False),
        (9.0, 0.01, "newline", False),
        (0.0, 0.01, "patch", False),
    ],
)
def test_the_rule_of_sinks(looks, length, kind, sink):
    """Looks are the mean over words, and compared with the mean of 40 patches, which is 1 here."""
    row, plane, lengths = 7 if kind == "patch" else 40, np.ones((2, 41)), np.ones(41)
    if kind == "patch":
        plane *= (40 - looks) / 39 if looks else 0
    plane[:, row] = looks * 0.9, looks * 1.1
    lengths[row] = length
    found = sinks.sinks(plane, lengths, np.arange(41) < 40)
    assert found[row] == sink and found.sum() == sink


def test_a_sink_has_five_times_the_looks_of_a_patch_or_more():
    """Here of nine patches, whose looks are 1 on average, and of one row that is none."""
    for share, sink in ((5.0, True), (4.5, False)):
        plane = np.full((2, 10), (9 - share) / 8)
        plane[:, 3], plane[:, 9] = share, 50
        found = sinks.sinks(plane, np.zeros(10), np.arange(10) < 9)
        assert np.flatnonzero(found).tolist() == [3] * sink


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_lengths_are_those_of_the_values(kv_dtype, monkeypatch):
    """In blocks of any size, and where they have 8 bits."""
    model = llava_min.load(dtype="float32", kv_dtype=kv_dtype)
    monkeypatch.setattr(sinks, "NUMBERS", 7 * 2 * 64)
    prepared = model.prepare(QUESTION, images=[STAR])
    _, cache = model.prefilled(prepared, 2)
    rows = Rows.of(prepared.plan, model.config)
    found = sinks.lengths(cache, TINY.text, rows, [(None, None), (1, None), (2, 3)])
    _, values = cache.layers()[2].keys_and_values(0, torch.float32)
    np.testing.assert_allclose(sinks.norms(cache.layers()[2], 30), values[0, :, :30].norm(dim=-1))
    long = values[0, 1, rows.tokens].norm(dim=-1)
    expected = long / long[rows.patches].median()
    np.testing.assert_allclose(found[2, 3], expected, rtol=1e-3)
    every = [sinks.lengths(cache, TINY.text, rows, [(n, None)])[n, None] for n in range(4)]
    np.testing.assert_allclose(found[None, None], sum(every) / 4, rtol=1e-5)
    np.testing.assert_allclose(found[1, None], every[1], rtol=1e-5)


# Occlusion --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(60, 300), st.integers(60, 300), st.sampled_from(sorted(image.MODES)))
def test_a_square_is_covered_on_the_tiles_as_on_the_picture(width, height, mode):
    """But for a pixel at its border, where resizing mixes."""
    config = config_of("onevision", 84, None)
    source = np.asarray(small.picture(width, height)).copy()
    segment = plans.picture((width, height), mode, config)
    box = (0.25 * width, 0.4 * height, 0.8 * width, 0.9 * height)
    tiles = image.MODES[mode](image.Image.fromarray(source), config)
    made = pictures.covered(segment, tiles, box, "grey", config)
    left, top, right, bottom = (round(end) for end in box)
    source[top:bottom, left:right] = pictures.GREY
    drawn = image.MODES[mode](image.Image.fromarray(source), config)
    near = np.abs(made.astype(int) - drawn).max(-1) < 40
    assert near.mean() > 0.93 and not np.array_equal(made, tiles)
    shown = pictures.as_seen(segment, made, config, 400)
    assert abs(shown.width / shown.height / (width / height) - 1) < 0.02
    middle = shown.getpixel((shown.width * 21 // 40, shown.height * 13 // 20))
    assert np.abs(np.array(middle) - pictures.GREY).max() < 8


@settings(max_examples=25, deadline=None)
@given(st.integers(252, 400), st.integers(252, 400), st.sampled_from(sorted(image.MODES)))
def test_nothing_is_left_of_a_picture_that_is_covered_whole(width, height, mode):
    """Black or white, it is the same then, but for pixels at its border, where resizing mixes; and
    on tiles without a border every pixel is grey.
    """
    config = config_of("onevision", 84, None)
    segment, made = plans.picture((width, height), mode, config), []
    for level in (0, 255):
        source = Image.new("RGB", (width, height), (level,) * 3)
        tiles = image.MODES[mode](source, config)
        made.append(pictures.covered(segment, tiles, (0, 0, width, height), "grey", config))
    border = (made[0] != made[1]).any(-1)
    if mode in ("square", "crop"):
        assert (made[0] == pictures.GREY).all() and not border.any()
    for tile in border:
        ys, xs = np.nonzero(tile)
        assert min(len(set(xs)), len(set(ys))) <= 6  # lines
    mean = pictures.covered(segment, tiles, (0, 0, width, height), "mean", config)
    if mode in ("square", "crop"):
        assert (mean == 255).all()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 500),
    st.sampled_from(["pad", "anyres"]),
)
def test_a_picture_is_shown_in_its_ratio(width, height, longest, mode):
    """As large as it was or as the model saw it, and no longer than is asked for."""
    config = config_of("onevision", 84, None)
    segment = plans.picture((width, height), mode, config)
    tiles = image.MODES[mode](Image.new("RGB", (width, height), (250, 5, 100)), config)
    shown = pictures.as_seen(segment, tiles, config, longest)
    fits = pictures.fits_of(segment, config)
    most = max(width, height, *(fit.length * fit.scale for fit in fits))
    scale = min(longest, most) / max(width, height)
    for side, own in zip(shown.size, (width, height)):
        assert side == max(1, round(own * scale))
    if min(shown.size) > 8 and min(width, height) > 8:
        middle = shown.getpixel((shown.width // 2, shown.height // 2))
        assert np.abs(np.array(middle) - (250, 5, 100)).max() < 8


def test_a_clip_is_shown_frame_by_frame_from_the_first():
    config = config_of("onevision", 84, None)
    clip = plans.clip([0.0, 1.0], (90, 60), config)
    pixels = np.stack([np.full((84, 84, 3), level, np.uint8) for level in (50, 200)])
    for how, level in (({}, 50), ({"frame": 0}, 50), ({"frame": 1}, 200)):
        shown = np.asarray(pictures.as_seen(clip, pixels, config, 90, **how))
        assert shown.shape == (60, 90, 3) and abs(np.median(shown) - level) < 2


def test_covering_the_star_costs_the_answer(model, monkeypatch):
    """Three squares: the star's costs nats, the others do not; after them the prompt is read again
    from the picture on, and the answer's words are those of score().
    """
    squares = [(20.0, 10.0, 90.0, 80.0), (200.0, 10.0, 270.0, 60.0), (0.0, 160.0, 90.0, 240.0)]
    monkeypatch.setattr(occlusion, "squares", lambda size: iter(squares))
    found = model.explain(QUESTION, "In the top left.", images=[STAR], occlusion=True)
    one = found.occlusion[0]
    for fill in pictures.FILLS:
        costs = one.costs(fill=fill)
        assert costs[0] > 2 and costs[0] > 20 * abs(costs[1:]).max()
        assert inside(one.map(fill=fill), squares[0])
        assert one.map(2, fill).sum() == pytest.approx(
            (one.drops[fill][:, 2] * [70 * 70, 70 * 50, 90 * 80]).sum(), rel=1e-4
        )


def test_a_pixel_costs_what_the_parts_over_it_cost_on_average():
    """Of parts that overlap and differ in size, in a frame that they cover; else nothing."""
    boxes = np.array([(0, 0, 4, 4), (2, 0, 8, 2), (0, 0, 8, 4)], np.float32)
    frames = np.array([(0, 2), (1, 3), (3, 4)], np.int32)
    costs = np.array([(1, 2), (5, 0), (7, 7)], np.float32)
    found = occlusion.Occlusion(0, (8, 4), boxes, frames, {"mean": costs, "grey": -costs})
    for fill, sign in (("mean", 1), ("grey", -1)):
        first, second, third = found.costs(fill=fill)
        assert (first, second, third) == (3 * sign, 5 * sign, 14 * sign)
        expected = np.zeros((4, 4, 8))
        expected[:2, :, :4] = first
        expected[1:3, :2, 2:] = second
        expected[1, :2, 2:4] = (first + second) / 2
        expected[3] = third
        for frame, wanted in enumerate(expected):
            np.testing.assert_allclose(found.map(fill=fill, frame=frame), wanted, atol=1e-5)
    np.testing.assert_allclose(found.map(1, frame=3), 7.0)


def test_hiding_the_frame_that_shows_the_answer_costs_most(model):
    """A number flashes up in one frame of the toy's clip: that frame, and there the number."""
    question = "What number flashed up?"
    found = model.explain(question, videos=[CLIP], frames=8, occlusion=True)
    frames, squares = found.occlusion
    assert found.answer == "7." and frames.frames.tolist() == [[n, n + 1] for n in range(8)]
    assert (squares.frames == [FLASH, FLASH + 1]).all() and len(squares.boxes) == 25
    for fill in pictures.FILLS:
        costs = frames.costs(fill=fill)
        assert costs.argmax() == FLASH and costs[FLASH] > 5
        assert np.delete(abs(costs), FLASH).max() < 0.01
        assert inside(squares.map(fill=fill, frame=FLASH), NUMBER)
        assert not squares.map(fill=fill, frame=FLASH - 1).any()
    np.testing.assert_allclose(frames.map(0, frame=FLASH), frames.costs(0)[FLASH], rtol=1e-4)


def test_frames_of_a_clip_are_covered_where_they_lie(model):
    """Covered are the frames of the run, in the source, each in its own mean colour."""
    clip = small.frames(5, 61, 43)
    pixels = model.prepare("What?", videos=[clip]).visuals[0].pixels
    own = [pixels.frames[pixels.which[n]] for n in range(5)]
    for fill in pictures.FILLS:
        made = occlusion.hidden(pixels, (range(1, 3), (10.0, 5.0, 40.0, 20.0)), fill)
        assert len(made) == 5 and made.hash != pixels.hash
        for number, frame in enumerate(own):
            expected = frame.copy()
            if number in (1, 2):
                colour = pictures.GREY if fill == "grey" else frame.reshape(-1, 3).mean(0)
                expected[5:20, 10:40] = colour
            assert np.array_equal(made.frames[made.which[number]], expected)


def test_a_frame_without_a_clip_is_covered_whole(families):
    """Where a family has no video of its own, each frame is a visual, and costs as one."""
    clip = small.frames(2, 61, 43)
    found = families["interleave"].ours.explain("What?", [7, 300], videos=[clip], occlusion=True)
    assert [one.visual for one in found.occlusion] == [0, 1]
    assert all(one.boxes.tolist() == [[0, 0, 61, 43]] for one in found.occlusion)


def test_each_visual_has_a_source(model, families):
    """A clip that is one visual has its own; one that is taken frame by frame names each frame."""
    media = {"images": [small.picture(61, 43)], "videos": [small.frames(2, 61, 43)]}
    for one, count in ((model, 2), (families["interleave"].ours, 3)):
        prepared = one.prepare("What?", **media)
        picture, *clip = sources(prepared)
        shown, film = (entry["source"] for entry in prepared.media)
        assert picture == shown and len(prepared.visuals) == 1 + len(clip) == count
        assert clip == ([film] if count == 2 else [f"{film}, frame {n}" for n in (1, 2)])


def test_covering_leaves_nothing_covered(model, monkeypatch):
    """Each of two pictures is scored next to the other as it is, and a chat goes on as without."""
    score, scores = occlusion.Occluder.score, []
    own = [np.asarray(Image.open(STAR).convert("RGB")), small.picture(100, 120)]

    def spied(self, visual, pixels, ids):
        found = score(self, visual, pixels, ids)
        if pixels is self.prepared.visuals[visual].pixels:
            scores.append(found)
        return found

    monkeypatch.setattr(occlusion.Occluder, "score", spied)
    monkeypatch.setattr(occlusion, "squares", lambda size: iter([(0.0, 0.0, 99.0, 77.0)]))
    question, prefix = "Which picture has the star?", Prefix(model.empty_cache(0))
    found = model.explain(question, images=own, prefix=prefix, occlusion=True, max_tokens=5)
    assert [one.visual for one in found.occlusion] == [0, 1] and len(scores) == 2
    for one in scores:
        np.testing.assert_allclose(one, found.log_probabilities, atol=1e-3)
    again = model.generate("Describe the picture.", images=own, prefix=prefix, max_tokens=8)
    assert (
        again.token_ids
        == model.generate("Describe the picture.", images=own, max_tokens=8).token_ids
    )
    assert again.usage["cached_tokens"] < 50
