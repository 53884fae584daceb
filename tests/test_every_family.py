"""Each family beside its transformers class on drawn pictures and clips: pixels bit-equal, as many
tokens, logits within the bound, the same greedy answer; and token counts at the real sizes.
"""

import json
import math

import agreement
import pytest
import test_real_sizes
from agreement import PUBLISHED
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_min import segments as plans
from llava_min.families import layouts

pytest.importorskip("transformers")
side = st.one_of(st.integers(1, 130), st.integers(1, 2400))
size = st.tuples(side, side).filter(lambda pair: pair[0] * pair[1] < 250_000)
sizes = st.one_of(
    st.sampled_from(agreement.EXTREMES).map(lambda one: [one]),
    st.lists(size, min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: agreement.opened(name, folder / name) for name in PUBLISHED}


def check(found: dict) -> None:
    assert found["tiles"], "a pixel differs"
    assert found["counts"], "another number of tokens"
    assert found["logits"] <= agreement.bound(found["largest"])


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=12, deadline=None)
@given(sizes=sizes)
def test_pictures(families, name, sizes):
    check(agreement.difference(name, families[name], sizes, 0))


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if name not in agreement.PICTURES_ONLY]
)
@pytest.mark.parametrize("frames", [1, 4, 9])
def test_clips(families, name, frames):
    check(agreement.difference(name, families[name], [], frames))


@pytest.mark.parametrize("name", PUBLISHED)
def test_greedy_answers(families, name):
    """16 tokens, at least 6 of them different: a model that repeats itself would prove little."""
    ours, theirs = agreement.greedy(name, families[name])
    assert ours == theirs and len(ours) == 16 and len(set(ours)) >= 6


def counter(name: str):
    """(our configuration at the real size, a function that counts as their processor does)."""
    values = test_real_sizes.CHECKPOINTS[name][0]
    ours = layouts.parse_config(values)
    tile, rows = ours.tile, ours.vision.side
    if ours.family == "llava":
        return ours, lambda width, height: rows * rows
    from types import SimpleNamespace

    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

    next = ours.family == "llava_next_video"
    theirs = object.__new__(LlavaNextProcessor if next else LlavaOnevisionProcessor)
    grids = [[tile * r, tile * c] for r, c in ours.grids]
    theirs.image_processor = SimpleNamespace(image_grid_pinpoints=grids)
    theirs.num_image_tokens, theirs.vision_aspect_ratio = rows * rows, "anyres_max_9"
    theirs.patch_size, theirs.num_additional_image_tokens = 14, 1
    theirs.vision_feature_select_strategy = "default"
    return ours, lambda w, h: theirs._get_number_of_features(h, w, tile, tile) - next


@pytest.mark.parametrize("name", test_real_sizes.CHECKPOINTS)
@settings(max_examples=400, deadline=None)
@given(width=st.integers(1, 2400), height=st.integers(1, 2400))
def test_counts_at_the_real_size(name, width, height):
    """384/14 and 336/14, at least 300 sizes a family. The original code cuts a product where
    transformers rounds it: there, one row or column on either side may differ.
    """
    ours, theirs = counter(name)
    mine = plans.picture((width, height), ours.image_modes[0], ours).tokens
    if ours.unpad_rounded:
        assert mine == theirs(width, height)
    else:
        assert abs(mine - theirs(width, height)) <= 2 * (6 * ours.vision.side + 1)


def test_the_committed_table_is_within_its_bounds():
    """Written by `python tests/support/agreement.py`."""
    rows = [json.loads(line) for line in agreement.RESULTS.read_text().splitlines()]
    assert {row["family"] for row in rows} >= {title for _, title, _ in PUBLISHED.values()}
    for row in rows:
        assert row["cases"] >= 14 and math.isfinite(row["worst"]) and row["worst"] <= 5e-5
    for row, (real, _, _) in zip(rows, PUBLISHED.values()):
        assert {key: row[key] for key in ("picture", "frame", "context")} == agreement.published(
            real
        )
