"""Every other family against its transformers class: small random models, float32.

long-llava (CLIP, Qwen2), llava-interleave (SigLIP, Qwen1.5, tied), LLaVA-1.5 (CLIP, LLaMA), LLaVA-
NeXT (CLIP, anyres, LLaMA or Mistral) and LLaVA-NeXT-Video (with linear rope scaling).
"""

import json

import pytest
import small
import torch
from safetensors.torch import save_file

import llava_min
from llava_min import image, prompt
from llava_min import segments as plans
from llava_min.errors import CheckpointError
from llava_min.families import layouts, sections
from llava_min.families.fields import Fields

transformers = pytest.importorskip("transformers")
TILE, SIDE = 56, 4
GRIDS = [
    [56, 112],
    [112, 56],
    [112, 112],
    [168, 56],
    [56, 168],
]  # the published five, (height, width)


def clip(**changes) -> dict:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": 14,
        "projection_dim": 16,
        **changes,
    }


def siglip() -> dict:
    return {**clip(), "model_type": "siglip_vision_model", "vision_use_head": False}


def decoder(kind: str, **changes) -> dict:
    return {
        "model_type": kind,
        "vocab_size": 512,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 509,
        "pad_token_id": None,
        "bos_token_id": None,
        **changes,
    }


QWEN = decoder("qwen2", rope_theta=1e9)
TIED = decoder("qwen2", rope_theta=1e6, tie_word_embeddings=True, num_key_value_heads=4)
LLAMA = decoder("llama", rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.5})
MISTRAL = decoder("mistral", rope_theta=1e6, sliding_window=None)
COMMON = {"image_token_index": 510, "projector_hidden_act": "gelu"}
FAMILIES = {
    "long_llava": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        **COMMON,
        "vision_config": clip(),
        "text_config": QWEN,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "interleave": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        **COMMON,
        "vision_config": siglip(),
        "text_config": TIED,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "llava_1_5": {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        **COMMON,
        "vision_config": clip(),
        "text_config": decoder("llama"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "next": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        **COMMON,
        "vision_config": clip(),
        "text_config": decoder("llama"),
        "image_grid_pinpoints": GRIDS,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "next_mistral": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        **COMMON,
        "vision_config": clip(),
        "text_config": MISTRAL,
        "image_grid_pinpoints": GRIDS,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "next_video": {
        "architectures": ["LlavaNextVideoForConditionalGeneration"],
        "model_type": "llava_next_video",
        **COMMON,
        "video_token_index": 511,
        "vision_config": clip(),
        "text_config": LLAMA,
        "image_grid_pinpoints": GRIDS,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "spatial_pool_mode": "average",
        "spatial_pool_stride": 2,
    },
}


class Family:
    """A family's transformers model with random weights, saved by us in the old names, and ours
    loaded from it.
    """

    known = FAMILIES

    def __init__(self, name: str, folder):
        self.settings = self.known[name]
        torch.manual_seed(0)
        cls = getattr(transformers, self.settings["architectures"][0])
        self.model = cls(cls.config_class.from_dict(self.settings)).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape) + (parameter.ndim == 1) * 0.5)
        tensors = {
            self.stored_name(name): t.contiguous().clone()
            for name, t in self.model.state_dict().items()
        }
        if self.settings["text_config"].get("tie_word_embeddings"):
            tensors.pop("language_model.lm_head.weight")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config()))
        tokenizer = (small.TINY / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(tokenizer.replace("<|endoftext|>", "<s>"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        self.ours = llava_min.load(folder, dtype="float32")

    def config(self) -> dict:
        """What config.json says of the model."""
        return self.settings

    @staticmethod
    def stored_name(name: str) -> str:
        """A name of transformers 5 in the wording of the published files."""
        for new, old in (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
            ("model.image_newline", "image_newline"),
        ):
            if name.startswith(new):
                return old + name[len(new) :].removeprefix("vision_model.")
        return name

    @torch.no_grad()
    def logits(self, ids, **inputs) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids]), **inputs).logits[0]

    def expanded(self, question, media, token: int, **options) -> list[int]:
        """The prompt's ids with `token` in place of every visual row."""
        ids = []
        for segment in self.ours.prepare(question, **media, **options).plan.segments:
            ids += segment.ids if isinstance(segment, plans.Text) else [token] * segment.tokens
        return ids


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: Family(name, folder / name) for name in FAMILIES}


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= 5e-5 * max(1.0, theirs.abs().max().item() / 5)


def clip_processor(**changes):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, **changes
    )


def pixels_of(name: str, pictures) -> torch.Tensor:
    """One tile for each picture, by transformers' processors."""
    if name == "interleave":
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        processor = SiglipImageProcessorPil(
            size={"height": TILE, "width": TILE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
    else:
        processor = clip_processor()
    return processor(pictures, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", ["long_llava", "interleave", "llava_1_5"])
@pytest.mark.parametrize(
    "sizes", [[(90, 60)], [(57, 56), (56, 81)], [(30, 200), (339, 336), (56, 56)]], ids=str
)
def test_one_tile_a_picture(families, name, sizes):
    family = families[name]
    pictures = [small.picture(*size, seed=sum(size)) for size in sizes]
    ids = family.expanded("What?", {"images": pictures}, 510)
    theirs = family.logits(ids, pixel_values=pixels_of(name, pictures))
    check(family.ours.logits("What?", images=pictures), theirs)
    assert ids.count(510) == SIDE**2 * len(pictures)


@pytest.mark.parametrize("name", ["next", "next_mistral", "next_video"])
@pytest.mark.parametrize(
    "size", [(56, 56), (100, 60), (60, 100), (300, 40), (40, 300), (57, 113)], ids=str
)
def test_anyres_with_clip(families, name, size):
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    family, picture = families[name], small.picture(*size)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=GRIDS,
    )
    pixels = processor([picture], return_tensors="pt")
    ids = family.expanded("What?", {"images": [picture]}, 510)
    check(family.ours.logits("What?", images=[picture]), family.logits(ids, **pixels))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_next_video_averages_before_the_projector(families, count):
    family, frames = families["next_video"], small.frames(count)
    pixels = clip_processor()(list(frames), return_tensors="pt")["pixel_values"][None]
    ids = family.expanded("What?", {"videos": [frames]}, 511)
    assert ids.count(511) == count * (SIDE // 2) ** 2
    check(
        family.ours.logits("What?", videos=[frames]), family.logits(ids, pixel_values_videos=pixels)
    )


def test_a_picture_and_a_clip_in_one_prompt(families):
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    family, frames, picture = families["next_video"], small.frames(3), small.picture(100, 60)
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=GRIDS,
    )
    video = clip_processor()(list(frames), return_tensors="pt")["pixel_values"][None]
    ids = []
    for segment in family.ours.prepare("What?", images=[picture], videos=[frames]).plan.segments:
        if isinstance(segment, plans.Text):
            ids += segment.ids
        else:
            ids += [510 if isinstance(segment, plans.Picture) else 511] * segment.tokens
    theirs = family.logits(
        ids, **processor([picture], return_tensors="pt"), pixel_values_videos=video
    )
    check(family.ours.logits("What?", images=[picture], videos=[frames]), theirs)


@pytest.mark.parametrize("name", ["long_llava", "interleave"])
def test_frames_become_pictures_where_there_is_no_video(families, name):
    """A clip is its frames, whether they are given as a clip, as pictures, or placed one by one."""
    ours, frames = families[name].ours, small.frames(4)
    as_clip = ours.logits("What?", videos=[frames])
    assert torch.equal(as_clip, ours.logits("What?", images=list(frames)))
    placed = "<image>" * 4 + "\nWhat?"
    assert torch.equal(as_clip, ours.logits(placed, videos=[frames]))
    check(
        as_clip,
        families[name].logits(
            families[name].expanded("What?", {"videos": [frames]}, 510),
            pixel_values=pixels_of(name, list(frames)),
        ),
    )


def test_towers_and_decoders_are_what_the_files_say(families):
    """CLIP's last block is left out; the linear factor divides positions, multiplies context."""
    ours = {name: family.ours.config for name, family in families.items()}
    assert ours["long_llava"].vision.num_layers == 2 and ours["interleave"].vision.num_layers == 3
    assert ours["next_video"].text.rope_factor == 2.5 and ours["next_video"].text.context == 10240
    assert ours["interleave"].text.tied and not ours["long_llava"].text.tied
    assert not ours["next"].text.qkv_bias and ours["long_llava"].text.qkv_bias
    templates = {"long_llava": "long_llava", "interleave": "interleave"}
    templates |= dict.fromkeys(("llava_1_5", "next", "next_video"), "vicuna")
    templates["next_mistral"] = "mistral"
    assert {name: ours[name].template for name in templates} == templates


@pytest.mark.parametrize("form", [-2, [-2], 2, [2], -1, [3]], ids=str)
def test_the_feature_layer_in_every_form_is_transformers(families, form):
    """Of three blocks: from the end or from the front, alone or in a list."""
    family, picture = families["llava_1_5"], small.picture(90, 60)
    settings = layouts.parse_config({**family.settings, "vision_feature_layer": form})
    ids = family.expanded("What?", {"images": [picture]}, 510)
    pixels = pixels_of("llava_1_5", [picture])
    theirs = family.logits(ids, pixel_values=pixels, vision_feature_layer=form)
    same = settings.vision == family.ours.config.vision
    ours = family.ours.logits("What?", images=[picture])
    assert same == (form not in (-1, [3]))
    assert torch.allclose(ours, theirs, atol=1e-3) == same


def test_a_stray_factor_without_rope_scaling_is_not_obeyed():
    """The first revision of LLaVA-NeXT-Video had `factor` as a stray key of text_config."""
    settings = {
        **FAMILIES["next_video"],
        "text_config": decoder("llama", factor=2.0, type="linear"),
    }
    assert layouts.parse_config(settings).text.rope_factor == 1.0


@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_is_stretched_by_the_factor_of_linear_scaling_alone(where, key):
    """As in transformers 5's rope_parameters, which name the kind "default" where nothing is."""
    for given, factor in (
        ({key: "linear", "factor": 3.0}, 3.0),
        ({key: "default"}, 1.0),
        ({key: "default", "factor": 3.0}, 1.0),
        ({"rope_theta": 5e5}, 1.0),
    ):
        text = decoder("llama", rope_theta=2e4, rope_scaling=None) | {where: given}
        found = layouts.parse_config({**FAMILIES["next_video"], "text_config": text}).text
        assert (found.rope_factor, found.rope_theta) == (factor, given.get("rope_theta", 2e4))
        assert found.context == text.get("max_position_embeddings", 4096) * factor


def test_the_original_walks_its_grids_by_width_first():
    """300 x 300 on the five grids: the original takes 336 wide and 672 high, HF the other."""
    from llava_min.anyres import best_grid

    pairs = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    hf = [(a // 336, b // 336) for a, b in pairs]
    original = [(b // 336, a // 336) for a, b in pairs]
    assert best_grid((300, 300), tuple(hf), 336) == (1, 2)
    assert best_grid((300, 300), tuple(original), 336) == (2, 1)


@pytest.mark.parametrize("mode, allowed", [("pad", False), ("anyres", True)])
def test_only_the_family_s_own_modes(families, mode, allowed):
    picture = small.picture(60, 60)
    if allowed:
        families["next"].ours.logits("What?", images=[picture], multi_image=mode)
    else:
        with pytest.raises(llava_min.ParameterError, match="multi_image"):
            families["next"].ours.logits("What?", images=[picture], multi_image=mode)


@pytest.mark.parametrize(
    "size, grid, tokens",
    [
        ((336, 336), (1, 2), 1176),
        ((384, 384), (2, 2), 2928),
        ((300, 200), (1, 2), 1464),
        ((200, 300), (1, 2), 984),
        ((640, 480), (2, 2), 2340),
        ((1024, 899), (2, 2), 2634),
        ((500, 1500), (3, 1), 2376),
        ((2000, 700), (1, 3), 2232),
        ((1920, 1080), (2, 2), 1948),
        ((101, 997), (3, 1), 1224),
        ((2304, 2304), (2, 2), 2928),
    ],
)
def test_token_counts_of_next_video_at_its_real_size(size, grid, tokens):
    settings = {
        **FAMILIES["next_video"],
        "vision_config": clip(image_size=336),
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    }
    segment = plans.picture(size, "anyres", layouts.parse_config(settings))
    assert (segment.grid.tiles, segment.tokens) == (grid, tokens)


def test_cropping_takes_the_floor_of_the_middle():
    """339 x 336: offset 1; torchvision's own centre crop would round to 2."""
    settings = layouts.parse_config(
        {**FAMILIES["long_llava"], "vision_config": clip(image_size=336)}
    )
    picture = small.picture(339, 336)
    import numpy as np

    assert np.array_equal(image.cropped_tile(picture, settings)[0], np.asarray(picture)[:, 1:337])


def test_time_instruction_word_for_word():
    text = prompt.time_instruction((0.0, 1.5), 3.0)
    assert text == (
        "The video lasts for 3.00 seconds, and 2 frames are uniformly sampled from it. These "
        "frames are "
        "located at 0.00s,1.50s.Please answer the following questions related to this video."
    )


# Missing keys, and the largest sizes ----------------------------------------------

DECODERS = {"qwen2": "Qwen2Config", "llama": "LlamaConfig", "mistral": "MistralConfig"}
TOWERS = {"siglip_vision_model": "SiglipVisionConfig", "clip_vision_model": "CLIPVisionConfig"}
SIZES = {"hidden_size": "hidden_size", "intermediate_size": "intermediate_size"}
SIZES |= {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
DECODER_SIZES = {"vocab_size": "vocab_size", "context": "max_position_embeddings"}
DECODER_SIZES |= {"num_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps"}


def compare(ours, theirs, names: dict[str, str]) -> None:
    found = {own: getattr(ours, own) for own in names}
    assert found == {own: getattr(theirs, name) for own, name in names.items()}


@pytest.mark.parametrize("kind", DECODERS)
def test_missing_keys_of_a_decoder_are_those_of_its_class(kind):
    """Published files rely on them: LLaVA-1.5 names hardly a size of its decoder."""
    theirs = getattr(transformers, DECODERS[kind])()
    whole = {"sliding_window": None} if kind == "mistral" else {}  # refused with its class's own
    ours = sections.text_config(Fields({**whole}, ""), kind, False, ())
    compare(ours, theirs, SIZES | DECODER_SIZES)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"] and ours.rope_factor == 1
    assert ours.head_dim == theirs.hidden_size // theirs.num_attention_heads
    assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    given = {"num_attention_heads": 64, **whole}
    more = sections.text_config(Fields(given, ""), kind, False, ())
    theirs = getattr(transformers, DECODERS[kind])(num_attention_heads=64)
    assert more.num_kv_heads == theirs.num_key_value_heads
    if whole:
        assert theirs.sliding_window == sections.DECODERS[kind].sliding_window


@pytest.mark.parametrize(
    "rows, chat",
    [(32_000, "vicuna"), (63_999, "vicuna"), (64_000, "yi"), (127_999, "yi"), (128_000, "llama3")],
)
def test_a_vocabulary_of_llama_tells_its_chat_from_a_border_on(rows, chat):
    for kind, wanted in (("llama", chat), ("qwen2", "qwen"), ("mistral", "mistral")):
        whole = {"sliding_window": None} if kind == "mistral" else {}
        text = sections.text_config(Fields({"vocab_size": rows, **whole}, ""), kind, False, ())
        assert sections.chat_of(kind, text) == wanted


def test_settings_that_ask_for_nothing_are_the_defaults_of_transformers():
    """What generation_config.json leaves out, so that the rest of it is listed."""
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert {key: theirs[key] for key in layouts.NEUTRAL} == layouts.NEUTRAL


@pytest.mark.parametrize("kind", TOWERS)
def test_missing_keys_of_a_tower_are_those_of_its_class(kind):
    given = {"model_type": kind, "image_size": 224, "patch_size": 16}
    theirs = getattr(transformers, TOWERS[kind])()
    ours = sections.vision_config(Fields(given, ""), -1)
    names = {"activation": "hidden_act", "norm_eps": "layer_norm_eps"}
    compare(ours, theirs, SIZES | names)
    for back in (1, 2):
        fields = Fields({"vision_feature_layer": theirs.num_hidden_layers + 1 - back}, "")
        assert layouts.feature_layer(fields, Fields(given, ""), -1) == -back


DEFAULTS = (
    "vision_feature_layer",
    "projector_hidden_act",
    "multimodal_projector_bias",
    "use_image_newline_parameter",
    "spatial_pool_mode",
    "spatial_pool_stride",
    "spatial_pool_out_channels",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_keys_of_a_family_are_those_of_its_class(name):
    """Only sizes are given; their class fills in the rest, and we refuse none of it."""
    cls = getattr(transformers, FAMILIES[name]["architectures"][0]).config_class
    kept = ("architectures", "vision_config", "text_config", "image_grid_pinpoints")
    short = {key: value for key, value in FAMILIES[name].items() if key in kept}
    theirs = cls.from_dict(short).to_dict()
    whole = {key: theirs[key] for key in DEFAULTS if key in theirs}
    assert layouts.parse_config(short) == layouts.parse_config({**whole, **short})


LARGEST = {"num_hidden_layers": 1024, "head_dim": 1024, "image_size": 8192, "hidden_size": 2**20}
LARGEST |= {"vocab_size": 2**24, "max_position_embeddings": 2**31 - 1, "patch_size": 2**20}


@pytest.mark.parametrize("key", LARGEST)
def test_a_size_is_from_1_to_the_largest(key):
    """So that no product of two overflows, and no file asks for a network without end."""
    for size in (1, LARGEST[key]):
        assert Fields({key: size}, "").size(key) == size
    for size in (0, LARGEST[key] + 1):
        with pytest.raises(CheckpointError, match=f"{key}: expected a number from 1 to"):
            Fields({key: size}, "").size(key)


@pytest.mark.parametrize(
    "kind, right", [(int, 3), (float, 3), (str, "3"), (bool, True), (list, [])]
)
def test_a_value_is_of_its_type_and_no_other(kind, right):
    """True is no number, and a whole number may stand for one with a fraction."""
    assert Fields({"key": right}, "").get("key", kind) == right
    for other in (3, 3.5, "3", True, [], {}, None):
        if type(other) is not type(right) and not (kind is float and type(other) is float):
            with pytest.raises(
                CheckpointError, match=f"key: expected a value of type {kind.__name__}"
            ):
                Fields({"key": other}, "").get("key", kind)


def test_a_choice_is_one_of_those_that_there_are():
    for value in (-2, -1):
        assert Fields({"key": value}, "").integer("key", -2, choices=(-2, -1)) == value
    for value in (0, -3, -2.0, "-2", True, None):
        with pytest.raises(CheckpointError, match="key: expected -2 or -1"):
            Fields({"key": value}, "").integer("key", -2, choices=(-2, -1))


def decoder_of(**given):
    return sections.text_config(Fields(given, "file"), "qwen2", False, ())


def mistral_of(**given):
    return sections.text_config(Fields(given, "file"), "mistral", False, ())


def tower_of(layer: int, **given):
    tower = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **given}
    return sections.vision_config(Fields(tower, "file"), layer)


def grids_of(value) -> tuple[tuple[int, int], ...]:
    return sections.grids(Fields({"grids": value}, "file"), "grids", 14, height_first=True)


def test_the_borders_of_what_sections_allow():
    """The last value that is taken and the first that is refused."""
    assert decoder_of(head_dim=2).head_dim == 2
    assert tower_of(-1, num_hidden_layers=1).num_layers == 1
    assert tower_of(-2, num_hidden_layers=2).num_layers == 1
    assert tower_of(-1, patch_size=28).side == 1
    assert mistral_of(max_position_embeddings=4096).context == 4096
    assert len(grids_of("(1x1),...,(16x16)")) == len(grids_of([[14, 14]] * 256)) == 256
    assert grids_of([[16 * 14, 16 * 14]]) == ((16, 16),)
    assert grids_of("(1x1),...,(1x1)") == ((1, 1),)
    limits = {"max_position_embeddings": 2**30, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert decoder_of(**limits).context == 2**31 - 1
    for window in (300, 301, None):  # a token looks back at the whole context
        found = mistral_of(sliding_window=window, max_position_embeddings=300)
        assert found.context == 300
    for refused, named in (
        (
            lambda: mistral_of(sliding_window=299, max_position_embeddings=300),
            "sliding_window: expected null, or at least the context of 300",
        ),
        (lambda: mistral_of(max_position_embeddings=4097), "sliding_window: expected null"),
        (lambda: decoder_of(head_dim=3), "head_dim: expected an even number"),
        (lambda: decoder_of(hidden_size=66), "num_attention_heads: expected a divisor"),
        (lambda: decoder_of(num_key_value_heads=5), "num_key_value_heads: expected a divisor"),
        (lambda: decoder_of(rms_norm_eps=0), "rms_norm_eps: expected a finite number above 0"),
        (lambda: decoder_of(rope_theta=float("inf")), "rope_theta: expected a finite number"),
        (lambda: tower_of(-2, num_hidden_layers=1), "num_hidden_layers: expected enough blocks"),
        (lambda: tower_of(-1, patch_size=29), "patch_size: expected at most image_size 28"),
        (lambda: grids_of("(1x1),...,(1x257)"), "grids: expected 1 to 256 grids"),
        (lambda: grids_of("(1x1)"), "grids: expected a range"),
        (lambda: grids_of([[14, 14]] * 257), "grids: expected 1 to 256 grids"),
        (lambda: grids_of([]), "grids: expected 1 to 256 grids"),
        (lambda: grids_of([[14, 257 * 14]]), "grids: expected 1 to 256 grids"),
        (lambda: grids_of([[0, 14]]), "grids: expected pairs of positive numbers"),
        (lambda: grids_of([[14, 14, 14]]), "grids: expected pairs of positive numbers"),
        (lambda: grids_of([[14, 15]]), "grids: expected multiples of the tile's side"),
        (lambda: grids_of([[15, 14]]), "grids: expected multiples of the tile's side"),
    ):
        with pytest.raises(CheckpointError, match=named):
            refused()
