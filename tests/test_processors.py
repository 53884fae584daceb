"""The processor files of a folder, next to transformers' own image processors on the same files."""

import importlib
import json
import logging

import numpy as np
import pytest
import small
import torch
from test_families import FAMILIES, GRIDS, TILE

import llava_min
from llava_min import image, vision
from llava_min.errors import CheckpointError
from llava_min.families import layouts, processors
from llava_min.families.fields import Fields

transformers = pytest.importorskip("transformers")
ONEVISION = small.hf_config()
SQUARE, EDGE = {"height": TILE, "width": TILE}, {"shortest_edge": TILE}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
OTHER = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
KINDS = {
    # module of transformers: its class, without the "Pil"
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "llava": "LlavaImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
}
SETTINGS = {
    # family: (its config.json, the module of its class, the file as published, at our tile)
    "llava_1_5": (FAMILIES["llava_1_5"], "clip", {"size": EDGE, "crop_size": SQUARE}),
    "long_llava": (FAMILIES["long_llava"], "clip", {"size": EDGE, "crop_size": SQUARE}),
    "interleave": (FAMILIES["interleave"], "siglip", {"size": SQUARE, **HALF}),
    "next": (
        FAMILIES["next"],
        "llava_next",
        {"size": EDGE, "crop_size": SQUARE, "image_grid_pinpoints": GRIDS},
    ),
    "next_video": (
        FAMILIES["next_video"],
        "llava_next",
        {"size": EDGE, "crop_size": SQUARE, "image_grid_pinpoints": GRIDS},
    ),
    "onevision": (
        ONEVISION,
        "llava_onevision",
        {"size": SQUARE, "image_grid_pinpoints": ONEVISION["image_grid_pinpoints"], **HALF},
    ),
}
SIZES = [[(90, 60)], [(60, 90)], [(56, 56)], [(57, 131), (140, 40)]]


def write(folder, name: str, values: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def as_files_say(family: str, folder, *given):
    return processors.as_files_say(layouts.parse_config(SETTINGS[family][0]), folder, given)


def processor_class(kind: str):
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    return getattr(module, f"{KINDS[kind]}Pil")


def our_pixels(config, mode: str, picture) -> torch.Tensor:
    tiles = torch.from_numpy(np.asarray(image.MODES[mode](picture, config)))
    return vision.normalise(tiles, config.vision, torch.float32)


def check_pixels(family: str, kind: str, folder, values: dict) -> None:
    """Our tiles of one and of two pictures, as transformers' processor of the folder makes them."""
    write(folder, "preprocessor_config.json", values)
    config, theirs = as_files_say(family, folder), processor_class(kind).from_pretrained(folder)
    for sizes in SIZES:
        pictures = [small.picture(*size, seed=sum(size)) for size in sizes]
        several = len(pictures) > 1
        mode = config.several_images if several else config.image_modes[0]
        batch = [pictures] if several and family == "onevision" else pictures
        pixels = theirs(batch, return_tensors="pt")["pixel_values"]
        for picture, expected in zip(pictures, pixels):
            found = our_pixels(config, mode, picture)
            expected = expected if expected.ndim == 4 else expected[None]
            torch.testing.assert_close(found, expected[: len(found)], atol=1e-6, rtol=1e-6)
            assert not expected[len(found) :].any()  # what pads a batch


@pytest.mark.parametrize(
    "change",
    [
        {},
        OTHER,
        {"size": SQUARE},
        {"size": [TILE, TILE]},
        {"crop_size": TILE, "do_center_crop": True},
        {"crop_size": SQUARE, "do_convert_rgb": None, "resample": 3, "rescale_factor": 1 / 255},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", SETTINGS)
def test_what_is_obeyed_in_every_family(tmp_path, family, change):
    _, kind, published = SETTINGS[family]
    values = {"image_processor_type": KINDS[kind], **published, **change}
    check_pixels(family, kind, tmp_path, values)


@pytest.mark.parametrize(
    "family, kind, change",
    [
        ("llava_1_5", "llava", {"do_pad": True}),
        ("llava_1_5", "llava", {"do_pad": True, "do_center_crop": False, **OTHER}),
        ("llava_1_5", "clip", {"image_mean": 0.4, "image_std": [0.2, 0.3, 0.4]}),
        ("interleave", "llava", {"do_pad": True, "crop_size": SQUARE}),
        ("interleave", "llava", {"do_pad": None, "crop_size": SQUARE}),
        ("interleave", "clip", {"do_center_crop": True, "size": TILE, "crop_size": TILE, **HALF}),
        ("interleave", "siglip", {"size": TILE, "default_to_square": True}),
        ("llava_1_5", "clip", {"size": SQUARE, "do_center_crop": False, "crop_size": 48}),
        ("llava_1_5", "clip", {"do_pad": True}),
        ("llava_1_5", "clip", {"do_normalize": False}),
        ("llava_1_5", "clip", {"do_normalize": None, **OTHER}),
        ("next", "llava_next", {"do_normalize": False, "do_pad": True}),
        ("next_video", "llava_next", {"do_center_crop": False}),
        ("onevision", "llava_onevision", {"size": EDGE}),
    ],
    ids=str,
)
def test_what_is_obeyed_where_the_class_can_do_it(tmp_path, family, kind, change):
    published = SETTINGS[family][2]
    values = {"image_processor_type": KINDS[kind], **published, **change}
    check_pixels(family, kind, tmp_path, values)


@pytest.mark.parametrize(
    "family, kind", [("onevision", "llava_onevision"), ("interleave", "llava")]
)
def test_a_missing_mean_is_that_of_the_class(tmp_path, family, kind):
    """Both towers were trained with another one."""
    published = {key: SETTINGS[family][2][key] for key in SETTINGS[family][2].keys() - HALF.keys()}
    values = {"image_processor_type": KINDS[kind], **published, "crop_size": SQUARE}
    check_pixels(family, kind, tmp_path, values)


REFUSED = [
    {"size": {"height": TILE, "width": 2 * TILE}},
    {"size": {"shortest_edge": TILE + 8}},
    {"size": {"shortest_edge": TILE, "longest_edge": 2 * TILE}},
    {"size": "56"},
    {"do_resize": False},
    {"do_resize": None},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5},
    {"resample": 2},
    {"resample": "bicubic"},
    {"image_mean": [0.5, 0.5]},
    {"image_mean": [0.5, 0.5, True]},
    {"image_mean": "0.5"},
    {"image_std": [0.5, 0.0, 0.5]},
    {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": 5},
    {"do_normalize": "no"},
    {"fps": 2.0},
    {"num_frames": 0},
    {"num_frames": 2.5},
]


@pytest.mark.parametrize("change", REFUSED, ids=str)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("family", SETTINGS)
def test_what_is_refused_by_name(tmp_path, family, nested, change):
    """In both files that pictures have, and, where it is no class, in those that clips have."""
    _, kind, published = SETTINGS[family]
    values = {"image_processor_type": KINDS[kind], **published}
    (key,) = change
    places = [(None, "preprocessor_config.json")]
    if key != "image_processor_type":
        places = [*places, ("preprocessor_config.json", "video_preprocessor_config.json")]
    for pictures, name in places:
        if pictures:
            write(tmp_path, pictures, values)
        held, file = {**values, **change}, name
        if nested:
            section = "video_processor" if name.startswith("video") else "image_processor"
            held, file = {section: held}, "processor_config.json"
        write(tmp_path, file, held)
        with pytest.raises(CheckpointError, match=key) as error:
            as_files_say(family, tmp_path)
        assert error.value.exit_code == 3 and file in str(error.value)


@pytest.mark.parametrize(
    "family, change, named",
    [
        ("llava_1_5", {"do_center_crop": False}, "do_center_crop"),
        ("llava_1_5", {"crop_size": 48}, "crop_size"),
        ("llava_1_5", {"do_pad": True, "pad_size": SQUARE}, "pad_size"),
        ("llava_1_5", {"image_processor_type": "LlavaNextImageProcessor"}, "image_processor_type"),
        ("llava_1_5", {"feature_extractor_type": "ViTFeatureExtractor"}, "feature_extractor_type"),
        ("next", {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
        ("next", {"crop_size": None}, "crop_size"),  # transformers cuts at 224 then
        ("next", {"image_grid_pinpoints": GRIDS[:3]}, "image_grid_pinpoints"),
        ("onevision", {"image_grid_pinpoints": [[TILE, TILE]]}, "image_grid_pinpoints"),
        ("onevision", {"crop_size": 48}, "crop_size"),
        ("onevision", {"do_normalize": False}, "do_normalize"),  # several pictures are padded
    ],
    ids=str,
)
def test_what_a_family_cannot_do_is_refused_by_name(tmp_path, family, change, named):
    values = {"image_processor_type": KINDS[SETTINGS[family][1]], **SETTINGS[family][2], **change}
    if "feature_extractor_type" in change:
        del values["image_processor_type"]
    write(tmp_path, "preprocessor_config.json", values)
    with pytest.raises(CheckpointError, match=named):
        as_files_say(family, tmp_path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("family", SETTINGS)
def test_files_as_transformers_saves_them_change_nothing(tmp_path, family, nested, caplog):
    values, kind, published = SETTINGS[family]
    saved = processor_class(kind)(**published)
    if nested:
        write(tmp_path, "processor_config.json", {"image_processor": saved.to_dict()})
    else:
        saved.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        config = as_files_say(family, tmp_path)
    assert config == layouts.parse_config(values) and config.ignored == () and not caplog.records


@pytest.mark.parametrize("name", ["llava_1_5", "next"])
def test_a_whole_processor_as_transformers_saves_it(tmp_path, name):
    """One file for pictures and the counts of tokens, with the tokenizer next to it."""
    _, kind, published = SETTINGS[name]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(small.TINY / "tokenizer.json")
    )
    cls = transformers.LlavaProcessor if name == "llava_1_5" else transformers.LlavaNextProcessor
    made = processor_class(kind)(**published)
    cls(made, tokenizer, patch_size=14, vision_feature_select_strategy="default").save_pretrained(
        tmp_path
    )
    assert not (tmp_path / "preprocessor_config.json").exists()
    config = as_files_say(name, tmp_path)
    assert config == layouts.parse_config(SETTINGS[name][0]) and config.ignored == ()


@pytest.mark.parametrize(
    "name, values",
    [
        # as on the hub, at our tile
        (
            "llava_1_5",
            {
                "crop_size": SQUARE,
                "do_center_crop": True,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "CLIPImageProcessor",
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "processor_class": "LlavaProcessor",
                "resample": 3,
                "rescale_factor": 0.00392156862745098,
                "size": EDGE,
            },
        ),
        (
            "long_llava",
            {
                "crop_size": TILE,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": TILE,
            },
        ),
        (
            "next_video",
            {
                "_valid_processor_keys": ["images", "do_resize"],
                "aspect_ratio_setting": "anyres",
                "crop_size": SQUARE,
                "do_center_crop": True,
                "do_pad": True,
                "image_grid_pinpoints": GRIDS,
                "image_processor_type": "LlavaNextImageProcessor",
                "processor_class": "LlavaNextVideoProcessor",
                "size": EDGE,
            },
        ),
    ],
    ids=["llava_1_5", "long_llava", "next_video"],
)
def test_published_files_change_nothing(tmp_path, name, values):
    write(tmp_path, "preprocessor_config.json", values)
    config = as_files_say(name, tmp_path)
    assert config == layouts.parse_config(SETTINGS[name][0]) and config.ignored == ()


def test_the_original_layout_takes_any_class_and_its_own_order_of_sides(tmp_path):
    """Its grids are (width, height); its own code reads no such file."""
    values = small.original_config(ONEVISION) | {"image_grid_pinpoints": [[TILE, 2 * TILE]]}
    config = layouts.parse_config(values)
    for kind, mean in (("siglip", {}), ("clip", HALF), ("llava_onevision", HALF)):
        held = {"image_processor_type": KINDS[kind], "size": SQUARE, **mean}
        held["image_grid_pinpoints"] = [[TILE, 2 * TILE]]
        write(tmp_path, "preprocessor_config.json", held)
        assert processors.as_files_say(config, tmp_path, ()) == config
        del held["image_processor_type"]
        write(tmp_path, "preprocessor_config.json", held)
        assert processors.as_files_say(config, tmp_path, ()) == config
        held["image_grid_pinpoints"] = [[2 * TILE, TILE]]
        write(tmp_path, "preprocessor_config.json", held)
        with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
            processors.as_files_say(config, tmp_path, ())


@pytest.mark.parametrize("name", ["LlavaNextVideoImageProcessor", "LlavaNextImageProcessorFast"])
def test_other_names_of_a_class(tmp_path, name):
    """Older files name the class of clips, or that of another backend."""
    values = {"image_processor_type": name, **SETTINGS["next_video"][2]}
    write(tmp_path, "preprocessor_config.json", values)
    assert as_files_say("next_video", tmp_path) == layouts.parse_config(FAMILIES["next_video"])


# Clips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SETTINGS)
@pytest.mark.parametrize("place", ["nested", "video", "both", "pictures"])
def test_num_frames_wherever_it_stands(tmp_path, family, place):
    """The nested section first, then the file for clips, then the one for pictures."""
    _, kind, published = SETTINGS[family]
    pictures = {"image_processor_type": KINDS[kind], **published}
    if place in ("nested", "both"):
        write(tmp_path, "processor_config.json", {"video_processor": {"num_frames": 5}})
    if place in ("video", "both"):
        number = 7 if place == "both" else 5
        write(tmp_path, "video_preprocessor_config.json", {"num_frames": number})
    if place == "pictures":
        pictures["num_frames"] = 5
    write(tmp_path, "preprocessor_config.json", pictures)
    config = as_files_say(family, tmp_path)
    assert config.frames == 5
    older = any("video_preprocessor_config.json, since" in key for key in config.ignored)
    assert older == (place == "both")


@pytest.mark.parametrize("family", ["onevision", "next_video"])
@pytest.mark.parametrize(
    "change",
    [
        {"size": SQUARE, "do_center_crop": False},
        {"size": EDGE, "do_center_crop": True, "crop_size": SQUARE},
        {"size": SQUARE, "do_center_crop": True, "crop_size": SQUARE},
    ],
    ids=str,
)
@pytest.mark.parametrize("alone", [True, False])
def test_frames_become_tiles_as_the_file_says(tmp_path, family, change, alone):
    """alone: there is no file for pictures, and the clips' mean is that of the tower."""
    values = {**change, "video_processor_type": "VideoProcessor"}
    if alone:
        values |= OTHER
    else:
        _, kind, published = SETTINGS[family]
        write(tmp_path, "preprocessor_config.json", published)
        values |= {key: published[key] for key in HALF if key in published}
    write(tmp_path, "video_preprocessor_config.json", values)
    config = as_files_say(family, tmp_path)
    mean, std = config.vision.mean, config.vision.std
    if alone:
        assert mean == tuple(OTHER["image_mean"]) and std == tuple(OTHER["image_std"])
    theirs = processor_class("clip")(**{**change, "image_mean": mean, "image_std": std})
    frame = small.picture(90, 60)
    expected = theirs([frame], return_tensors="pt")["pixel_values"]
    assert torch.allclose(our_pixels(config, config.frame_mode, frame), expected, atol=1e-6)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"image_mean": [0.1, 0.2, 0.3]}, "image_mean"),
        ({"image_std": [0.1, 0.2, 0.3]}, "image_std"),
        ({"do_normalize": False}, "do_normalize"),
        ({"size": EDGE, "do_center_crop": False}, "do_center_crop"),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["onevision", "next_video"])
def test_clips_are_normalised_as_pictures_are(tmp_path, family, change, named):
    write(tmp_path, "preprocessor_config.json", SETTINGS[family][2])
    write(tmp_path, "video_preprocessor_config.json", {"size": SQUARE, **change})
    with pytest.raises(CheckpointError, match=rf"video_preprocessor_config\.json: {named}"):
        as_files_say(family, tmp_path)


def test_both_sections_as_transformers_saves_them_change_nothing(tmp_path):
    """Its video processors cannot run without torchvision; these are the keys that they write."""
    clips = {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": False,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_sample_frames": False,
        "fps": None,
        "num_frames": None,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "return_metadata": False,
        "size": SQUARE,
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        **HALF,
    }
    pictures = processor_class("llava_onevision")(**SETTINGS["onevision"][2]).to_dict()
    whole = {
        "image_processor": pictures,
        "video_processor": clips,
        "image_token": "<image>",
        "num_image_tokens": 16,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    }
    write(tmp_path, "processor_config.json", whole)
    config = as_files_say("onevision", tmp_path)
    assert config == layouts.parse_config(ONEVISION) and config.ignored == ()


def test_frames_that_are_padded_need_the_mean(tmp_path):
    """Where each frame is a picture of its own, as in LLaVA-1.5."""
    pictures = {"image_processor_type": "LlavaImageProcessor", **SETTINGS["llava_1_5"][2]}
    write(tmp_path, "preprocessor_config.json", pictures)
    write(tmp_path, "video_preprocessor_config.json", {"size": SQUARE, "do_pad": True})
    config = as_files_say("llava_1_5", tmp_path)
    assert (config.image_modes, config.frame_mode) == (("crop",), "pad")
    clips = {"size": SQUARE, "do_pad": True, "do_normalize": False}
    write(tmp_path, "video_preprocessor_config.json", clips)
    with pytest.raises(CheckpointError, match="do_normalize: expected True, where pictures"):
        as_files_say("llava_1_5", tmp_path)


# Which file, and what is said --------------------------------------------------------------------


def test_the_nested_section_is_read_before_the_older_file(tmp_path):
    section = {"image_processor_type": "CLIPImageProcessor", **SETTINGS["llava_1_5"][2], **OTHER}
    write(tmp_path, "processor_config.json", {"image_processor": section})
    write(tmp_path, "preprocessor_config.json", {"do_resize": False})
    config = as_files_say("llava_1_5", tmp_path)
    assert config.vision.mean == tuple(OTHER["image_mean"])
    assert config.ignored == ("preprocessor_config.json, since processor_config.json comes first",)


def test_unknown_keys_are_listed(tmp_path):
    values = {**SETTINGS["interleave"][2], "sharpen": True, "image_grid_pinpoints": GRIDS}
    write(tmp_path, "preprocessor_config.json", values)
    write(tmp_path, "processor_config.json", {"my_key": 1, "image_token": "<image>"})
    assert as_files_say("interleave", tmp_path).ignored == (
        "processor_config.json: my_key",
        "preprocessor_config.json: image_grid_pinpoints",
        "preprocessor_config.json: sharpen",
    )


def test_another_mean_is_told(tmp_path, caplog):
    write(tmp_path, "preprocessor_config.json", {**SETTINGS["llava_1_5"][2], **OTHER})
    with caplog.at_level(logging.INFO):
        as_files_say("llava_1_5", tmp_path)
    assert "mean (0.485, 0.456, 0.406)" in caplog.text


def test_grids_that_the_caller_gives_are_not_contradicted(tmp_path):
    """And the same grids in another order are the same."""
    values = {**SETTINGS["next"][2], "image_grid_pinpoints": GRIDS[::-1]}
    write(tmp_path, "preprocessor_config.json", values)
    assert as_files_say("next", tmp_path).grids == layouts.parse_config(FAMILIES["next"]).grids
    write(tmp_path, "preprocessor_config.json", values | {"image_grid_pinpoints": GRIDS[:1]})
    as_files_say("next", tmp_path, "image_grid_pinpoints")


def test_a_loaded_model_prepares_as_the_folder_says(tmp_path):
    """From load() to the rows: another mean in the file, other rows; the same mean, the same."""
    folder = small.small(tmp_path / "model")
    picture, plain = small.picture(90, 60), llava_min.load(folder, dtype="float32")
    for name, same in (("processor_config.json", True), ("preprocessor_config.json", False)):
        published = SETTINGS["onevision"][2] if same else SETTINGS["onevision"][2] | OTHER
        write(folder, name, {"image_processor": published} if same else published)
        if not same:
            (folder / "processor_config.json").unlink()
        rows = llava_min.load(folder, dtype="float32").embed("What?", images=[picture])
        assert torch.equal(rows, plain.embed("What?", images=[picture])) == same


def test_a_mean_is_three_numbers_up_to_a_million():
    for value in ([0, -1e6, 1e6], [1, 2.5, 3]):
        assert processors.triple(Fields({"image_mean": value}, ""), "image_mean", ()) == (*value,)
    for value in ([0, 0, 1.1e6], [0, -1.1e6, 0], [1, 2, 3, 4], [1, 2, "3"]):
        with pytest.raises(CheckpointError, match="image_mean: expected three numbers"):
            processors.triple(Fields({"image_mean": value}, ""), "image_mean", ())


@pytest.mark.parametrize("name", processors.PROCESSORS)
def test_what_a_class_fixes_is_what_transformers_fixes(name):
    """A file may leave all of it out. transformers has no class for LLaVA-NeXT-Video's pictures
    any more; it was a copy of LLaVA-NeXT's.
    """
    ours = processors.PROCESSORS[name]
    theirs = getattr(transformers, f"{name.removesuffix('Video')}ImageProcessorPil")
    assert (list(ours.mean), list(ours.std)) == (theirs.image_mean, theirs.image_std)
    assert ours.crops == bool(getattr(theirs, "do_center_crop", False))
    assert ours.grids == bool(getattr(theirs, "image_grid_pinpoints", None))
    squares = hasattr(theirs, "pad_to_square")  # one that cuts tiles pads to their canvas
    assert ours.pads == (squares and not ours.grids)
    assert theirs.resample == processors.BICUBIC
    if ours.crops:
        assert theirs.crop_size == {"height": processors.CROP, "width": processors.CROP}
