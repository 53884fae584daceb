"""Named mistakes: each slip that an implementer of LLaVA makes sooner or later must show.

A mistake stands in the place of one line of the walk, and is held against what the other tests hold
the code against: outputs of the original code (test_agrees_golden), transformers on a small model
of another family (test_families), known token counts (test_anyres). One that moves nothing fails.
"""

import inspect
import math
import sys
import types

import numpy as np
import pytest
import small
import test_agrees_golden as stored
from test_anyres import KNOWN, ONEVISION
from test_families import FAMILIES, GRIDS, TILE, Family, clip_processor

import llava_min
from llava_min import anyres, image, model, projector, vision
from llava_min import segments as plans
from llava_min.families import layouts, originals, sections
from llava_min.kernels import rope
from llava_min.weights import names

pytest.importorskip("transformers")


def make(monkeypatch, module, right: str, wrong: str) -> None:
    """Put `wrong` in the place of `right` in a module's source, for all that import from it.

    The module is executed again; whatever it defines replaces the old thing wherever that is bound.
    """
    source = inspect.getsource(module)
    assert source.count(right) == 1, right
    fresh = types.ModuleType(module.__name__)
    fresh.__package__, fresh.__file__ = module.__package__, module.__file__
    monkeypatch.setitem(sys.modules, module.__name__, fresh)  # dataclasses look there
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), vars(fresh))
    mine = [m for name, m in sys.modules.items() if name.startswith("llava_min.")]
    for name, old in list(vars(module).items()):
        if (
            name.startswith("__")
            or vars(fresh).get(name, old) is old
            or isinstance(old, str | int | float)
        ):
            continue
        for other in {id(m): m for m in [*mine, module]}.values():
            for bound, value in list(vars(other).items()):
                if value is old:
                    monkeypatch.setattr(other, bound, vars(fresh)[name])
    for name, value in vars(fresh).items():  # numbers and texts belong to the module itself
        if isinstance(value, str | int | float) and not name.startswith("__"):
            monkeypatch.setattr(module, name, value)


# What a mistake is held against: each gives an error and its bound --------------------------------


def golden(case: str):
    """The logits of ours beside those of the original code."""

    def error(_) -> tuple[float, float]:
        folder = "tiny_video" if case.startswith("video") else "tiny_ov"
        folder, overrides = stored.GOLDEN / folder, stored.overrides_of(case)
        ours = llava_min.load(folder, dtype="float32", config=overrides)
        pictures, clips = stored.inputs(case)
        expected = np.load(stored.GOLDEN / f"{case}.npz")
        ids = expected["input_ids"][0].tolist()
        several = "anyres" if case == "ov_two_anyres" else "auto"
        given = dict(images=pictures, videos=clips, multi_image=several)
        logits = ours.logits(ids, **given).numpy()
        if len(logits) != stored.CASES[case]["seq_len"]:
            return math.inf, stored.BOUND
        return np.abs(logits[expected["rows"]] - expected["logits"]).max(), stored.BOUND

    return error


def family(name: str, *size: int):
    """The logits of ours beside those of the family's class, for a picture or (no size) a clip."""

    def error(families) -> tuple[float, float]:
        theirs, ours = families(name)
        frames, picture = small.frames(3), small.picture(*size) if size else None
        media = {"images": [picture]} if size else {"videos": [frames]}
        if size and name == "next":
            from transformers.models.llava_next import image_processing_pil_llava_next as their

            processor = their.LlavaNextImageProcessorPil(
                size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE},
                image_grid_pinpoints=GRIDS)  # fmt: skip
        else:
            processor = clip_processor()
        pixels = dict(processor([picture] if size else list(frames), return_tensors="pt"))
        if not size:
            pixels = {"pixel_values_videos": pixels["pixel_values"][None]}
        ids = theirs.expanded("What?", media, 510 if size else 511)
        expected = theirs.logits(ids, **pixels)
        found = ours().logits("What?", **media)
        bound = 5e-5 * max(1.0, expected.abs().max().item() / 5)
        same = found.shape == expected.shape
        return (found - expected).abs().max().item() if same else math.inf, bound

    return error


def counts(_) -> tuple[float, float]:
    """Known token counts; 1152 x 1404 stays under the cap by a little."""
    known = KNOWN | {(1152, 1404): 8765}
    return max(
        abs(plans.picture(size, "anyres", ONEVISION).tokens - tokens)
        for size, tokens in known.items()
    ), 0  # fmt: skip


def original_count(_) -> tuple[float, float]:
    """196 x 1323 in the original layout: 108 rows of 15 patches (transformers keeps 17)."""
    wide = {"image_grid_pinpoints": [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]}
    tower = {"vision_config": {**small.hf_config()["vision_config"], "image_size": 384}}
    settings = layouts.parse_config({**small.original_config(small.hf_config()), **wide, **tower})
    return abs(plans.picture((196, 1323), "anyres", settings).tokens - 27 * 27 - 108 * 16), 0


def defaults(_) -> tuple[float, float]:
    """What a configuration does not say is what their classes say."""
    from transformers import CLIPVisionConfig, Qwen2Config, SiglipVisionConfig

    clip, siglip, text = CLIPVisionConfig(), SiglipVisionConfig(), Qwen2Config()
    long, other = (layouts.parse_config(FAMILIES[name]) for name in ("long_llava", "interleave"))
    bare = {k: v for k, v in FAMILIES["long_llava"]["text_config"].items() if k != "rms_norm_eps"}
    bare = layouts.parse_config({**FAMILIES["long_llava"], "text_config": bare})
    pairs = ((long.vision.norm_eps, clip.layer_norm_eps), (bare.text.norm_eps, text.rms_norm_eps),
             (other.vision.norm_eps, siglip.layer_norm_eps))  # fmt: skip
    return max(abs(mine - their) for mine, their in pairs), 0


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """(theirs, a function that loads ours again) of a family, made when it is first asked for."""
    made, folder = {}, tmp_path_factory.mktemp("families")

    def get(name: str):
        if name not in made:
            made[name] = Family(name, folder / name)
        return made[name], lambda: llava_min.load(folder / name, dtype="float32")

    return get


PICTURE, GRID = golden("ov_single_300x200"), golden("ov_single_640x480")
CAPPED = golden("ov_single_2000x700")
PAIR, CLIP = golden("ov_two_pad"), golden("ov_video_one_token")
LONG, NEXT, FILM = family("long_llava", 90, 60), family("next", 56, 56), family("next_video")
INTERPOLATE = 'F.interpolate(patch_map[None], grid.shape, mode="bilinear"'
MISTAKES = {
    # name: (module, the right words, the wrong words, what shows it)
    "tanh GELU in the projector": (
        projector, '(features), "gelu"', '(features), "gelu_pytorch_tanh"', PICTURE),
    "erf GELU in SigLIP": (
        vision, "self.mlp_norm(patches)), self.activation",
        'self.mlp_norm(patches)), "gelu"', PICTURE),
    "erf GELU in CLIP": (
        vision, "self.mlp_norm(patches)), self.activation",
        'self.mlp_norm(patches)), "gelu"', LONG),
    "SigLIP's epsilon in CLIP": (
        sections, '"quick_gelu",\n        norm_eps=1e-5',
        '"quick_gelu",\n        norm_eps=1e-6', defaults),
    "CLIP's epsilon in SigLIP": (
        sections, '"gelu_pytorch_tanh",\n        norm_eps=1e-6',
        '"gelu_pytorch_tanh",\n        norm_eps=1e-5', defaults),
    "Vicuna's epsilon in Qwen2": (
        sections, 'fields.positive("rms_norm_eps", 1e-6)',
        'fields.positive("rms_norm_eps", 1e-5)', defaults),
    "the class token kept, a patch dropped": (vision, "patches[:, 1:]", "patches[:, :-1]", LONG),
    "CLIP's last block": (sections, "num_layers=stored + 1 + layer", "num_layers=stored", LONG),
    "SigLIP's last but one block": (
        originals, "layer if clip else -1", "layer if clip else -2", PICTURE),
    "CLIP's first norm forgotten": (vision, "self.pre_norm(patches)\n", "patches\n", LONG),
    "a norm behind the last block": (
        vision, 'return see("features", patches,',
        'return see("features", nn.functional.layer_norm(patches, patches.shape[-1:]),', PICTURE),
    "pairs of neighbours in RoPE": (
        rope, "values.roll(values.shape[-1] // 2, dims=-1)",
        "values.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)", PICTURE),
    "the default theta": (sections, 'fields.positive("rope_theta", 10_000.0)', "10_000.0", PICTURE),
    "linear scaling forgotten": (sections, 'scaling.positive("factor") if', "1.0 if", FILM),
    "linear scaling the wrong way": (rope, "/ factor *", "* factor *", FILM),
    "keys for values": (
        names, '"decoder.blocks.{n}.qkv.", "key"', '"decoder.blocks.{n}.qkv.", "value"', PICTURE),
    "gate for up": (
        names, '"decoder.blocks.{n}.gate_up.", "gate"',
        '"decoder.blocks.{n}.gate_up.", "up"', PICTURE),
    "transformers' rounding in the original": (
        originals, "unpad_rounded=False,\n        newline=True,\n        newline_position",
        "unpad_rounded=True,\n        newline=True,\n        newline_position", original_count),
    "grids by width first": (
        layouts, 'tower.image_size, height_first=True),\n        image_modes=("anyres",)',
        'tower.image_size, height_first=False),\n        image_modes=("anyres",)', NEXT),
    "the cap rounded": (
        anyres, "int(rows // excess), int(columns // excess)",
        "round(rows / excess), round(columns / excess)", counts),
    "the cap at 1.0": (anyres, "excess <= 1.1", "excess <= 1.0", counts),
    "an antialiased cap": (projector, INTERPOLATE, INTERPOLATE + ", antialias=True", CAPPED),
    "aligned corners": (projector, INTERPOLATE, INTERPOLATE + ", align_corners=True", CAPPED),
    "newlines before the rows": (
        projector, "torch.cat([rows, ends]", "torch.cat([ends, rows]", PICTURE),
    "the whole picture last": (
        projector, "[projected[0], end_rows(patch_map, newline)]",
        "[end_rows(patch_map, newline), projected[0]]", PICTURE),
    "tiles in columns": (projector, ".permute(2, 0, 3, 1, 4)", ".permute(2, 1, 3, 0, 4)", GRID),
    "the border kept": (projector, "patch_map[:, grid.rows, grid.columns]", "patch_map", PICTURE),
    "pooling that rounds down": (projector, "math.ceil(s / 2)", "s // 2", CLIP),
    "pooling before the projector": (
        model, "projector.pool(self.projector(features), mode)",
        "self.projector(projector.pool(features, mode))", golden("video_one_token_max")),
    "pooling behind the projector": (
        layouts, "pool_before_projector=True", "pool_before_projector=False", FILM),
    "no newline behind the clip": (
        projector, 'if position != "one_token":', "if True:", CLIP),
    "a newline a frame for one a row": (
        projector, 'if position == "grid":',
        'if position == "never":', golden("video_grid_average")),
    "bilinear pictures": (
        image, "picture.resize((tile, tile), Image.Resampling.BICUBIC)",
        "picture.resize((tile, tile), Image.Resampling.BILINEAR)", PICTURE),
    "a picture in the corner of its grid": (
        image, "((canvas_size[0] - inner.width) // 2, (canvas_size[1] - inner.height) // 2)",
        "(0, 0)", PICTURE),
    "padding in black": (image, "int(255 * channel)", "0", PAIR),
    "a crop rounded up": (
        image, "left, top = (size[0] - tile) // 2",
        "left, top = (size[0] - tile + 1) // 2", family("long_llava", 57, 56)),
    "pixels over 256": (vision, "(255.0,)", "(256.0,)", PICTURE),
    "mean and deviation of SigLIP in CLIP": (
        sections, "mean=(0.48145466, 0.4578275, 0.40821073)", "mean=(0.5, 0.5, 0.5)", LONG),
}  # fmt: skip
ANYTHING = (AssertionError, RuntimeError, ValueError, KeyError, llava_min.LlavaMinError)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_shows(name, families, monkeypatch):
    module, right, wrong, against = MISTAKES[name]
    families("long_llava"), families("next"), families("next_video")  # made before the mistake
    make(monkeypatch, module, right, wrong)
    try:
        error, bound = against(families)
    except ANYTHING:
        return  # refused outright
    assert error > bound


@pytest.mark.parametrize("against", dict.fromkeys(row[3] for row in MISTAKES.values()))
def test_without_a_mistake_nothing_shows(against, families):
    error, bound = against(families)
    assert error <= bound
