"""The processor files of a folder: how pictures and clips are prepared for the tower.

in:  a folder, the LlavaConfig of its config.json
out: the LlavaConfig that prepares them as the files say, or CheckpointError

transformers 5 writes one file, processor_config.json, with the sections image_processor and
video_processor, and reads these before the older preprocessor_config.json and
video_preprocessor_config.json. Where nothing is said of clips, what is said of pictures counts for
them. A value is obeyed where there is a way of preparing that does the same, and refused by name
where there is none. A missing key has the default of its class in transformers, but for sizes,
which are those of the tower, and for what clips share with pictures.
Read families/sections.py first. Read next: families/layouts.py.
Agrees with: the image and video processors of transformers on Pillow.
"""

import logging
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from ..base.files import read_json
from ..config import LlavaConfig
from ..errors import CheckpointError
from .fields import Fields
from .sections import TOWERS, grids

log = logging.getLogger("llava_min")
Triple = tuple[float, float, float]
BOTH, PICTURES, CLIPS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
HALF, CLIP = TOWERS["siglip_vision_model"], TOWERS["clip_vision_model"]
BICUBIC, CROP = 3, 224  # the filter's number in Pillow; the crop_size of classes that have one


@dataclass(frozen=True)
class Processor:
    """What the class of an image processor fixes.

    mean, std: of pixels, where the file has none. crops: whether the middle is taken, where the
    file does not say. pads: whether it can pad pictures to squares. grids: whether it cuts tiles.
    """

    mean: Triple = CLIP.mean
    std: Triple = CLIP.std
    crops: bool = True
    pads: bool = False
    grids: bool = False


PROCESSORS = {
    # the name of a class, without what follows the model's name -> what it does
    "CLIP": Processor(),
    "Siglip": Processor(HALF.mean, HALF.std, crops=False),
    "Llava": Processor(pads=True),
    "LlavaNext": Processor(grids=True),
    "LlavaNextVideo": Processor(grids=True),
    "LlavaOnevision": Processor(crops=False, grids=True),
}
ONE_TILE, TILES = ("Llava", "CLIP", "Siglip"), ("LlavaNext", "LlavaNextVideo")
FAMILIES = {
    # family: the classes that prepare its pictures, the one of a file that names none first
    "llava": ONE_TILE,
    "llava_next_video": TILES,
    "llava_onevision": ("LlavaOnevision",),
    "llava_original": ("CLIP", "LlavaNext"),
}
ORIGINAL = ("llava_qwen", "llava_original")  # families of the original layout
SUFFIX = re.compile(r"(Image|Video)?(Processor|FeatureExtractor)(Fast|Pil)?$")
NOT_READ = frozenset(  # keys that change nothing in what is computed here
    """
    processor_class image_processor_type video_processor_type feature_extractor_type auto_map
    _valid_processor_keys aspect_ratio_setting do_convert_rgb do_sample_frames data_format
    input_data_format device return_tensors return_metadata disable_grouping model_input_names
    default_to_square pad_size chat_template image_seq_length image_token video_token patch_size
    num_image_tokens num_additional_image_tokens vision_feature_select_strategy vision_aspect_ratio
    """.split()  # the last eight count tokens, which is done from config.json here
)


def as_files_say(config: LlavaConfig, folder: Path, given: Collection[str]) -> LlavaConfig:
    """The configuration, changed to what the folder's processor files say.

    given: the keys that the caller has put in place of those of config.json; files do not
    contradict them.
    """
    pictures, clips, ignored = sections(folder)
    if pictures is not None:
        config = with_pictures(config, pictures, given)
    if clips is not None or pictures is not None:
        config = with_clips(config, pictures, clips)
    for section in (pictures, clips):
        if section is not None:
            unread = section.values.keys() - section.asked - NOT_READ
            ignored += [f"{section.where}: {key}" for key in sorted(unread)]
    return replace(config, ignored=(*config.ignored, *ignored))


def sections(folder: Path) -> tuple[Fields | None, Fields | None, list[str]]:
    """(what is said of pictures, what is said of clips, what is not read).

    null is False for what is done or not, and says nothing else.
    """
    ignored: list[str] = []
    found: dict[str, Fields] = {}
    if (folder / BOTH).exists():
        whole = Fields(read_json(folder / BOTH, "processor"), BOTH)
        for key in ("image_processor", "video_processor"):
            if whole.values.get(key) is not None:
                found[key] = whole.section(key)
        unread = whole.values.keys() - whole.asked - NOT_READ
        ignored += [f"{BOTH}: {key}" for key in sorted(unread) if whole.values[key] is not None]
    for key, name in (("image_processor", PICTURES), ("video_processor", CLIPS)):
        if (folder / name).exists() and key in found:
            ignored.append(f"{name}, since {BOTH} comes first")
        elif (folder / name).exists():
            found[key] = Fields(read_json(folder / name, "processor"), name)
    for section in found.values():
        done = {key: value or False for key, value in section.values.items() if key[:3] == "do_"}
        told = {key: value for key, value in section.values.items() if value is not None}
        section.values = {**told, **done}
    return found.get("image_processor"), found.get("video_processor"), ignored


# Pictures and clips ------------------------------------------------------------


def with_pictures(config: LlavaConfig, fields: Fields, given: Collection[str]) -> LlavaConfig:
    """The configuration with the mean, the deviation and the way to tiles of the file."""
    processor, anyres = processor_of(config, fields), "anyres" in config.image_modes
    check_pixels(fields)
    mode = tile_mode(fields, processor, config.tile, cut=anyres)
    padded = "pad" in config.image_modes or mode == "pad"
    config = normalised(config, *mean_and_std(fields, processor.mean, processor.std, padded))
    if anyres:
        check_grids(config, fields, given)
    elif mode is None:
        raise not_square(fields)
    elif config.family not in ORIGINAL:  # whose code pads pictures before a processor has them
        config = replace(config, image_modes=(mode,), several_images=mode)
    return config


def with_clips(config: LlavaConfig, pictures: Fields | None, clips: Fields | None) -> LlavaConfig:
    """The configuration with the way of frames to tiles, and how many frames a clip gives.

    One tower normalises pictures and clips, so clips cannot have a mean of their own.
    """
    fields = clips or pictures
    assert fields is not None
    check_pixels(fields)
    processor = processor_of(config, pictures) if pictures else PROCESSORS[classes(config)[0]]
    mode = tile_mode(fields, processor, config.tile, cut=False)
    if clips is not None:
        if mode is None:
            raise not_square(clips)
        shared = config.vision.mean, config.vision.std
        found = mean_and_std(clips, *shared, padded=mode == "pad")
        if pictures is None:
            config = normalised(config, *found)
        elif found != shared:
            normal = clips.values.get("do_normalize", True)
            key = "do_normalize" if not normal else "image_mean"
            key = "image_std" if normal and found[0] == shared[0] else key
            raise refused(clips, key, "what is said of pictures")
    if "fps" in fields.values:
        raise refused(fields, "fps", "none, or num_frames in its place")
    frames = fields.size("num_frames", config.frames)
    padded = config.frame_mode == "pad" and config.family in ORIGINAL
    mode = config.frame_mode if padded else mode or config.frame_mode
    return replace(config, frame_mode=mode, frames=frames)


def normalised(config: LlavaConfig, mean: Triple, std: Triple) -> LlavaConfig:
    """The configuration with this mean and deviation, and a word where they are not its tower's."""
    if (mean, std) == (config.vision.mean, config.vision.std):
        return config
    log.info(f"pixels are normalised as the processor file says: mean {mean}, deviation {std}")
    return replace(config, vision=replace(config.vision, mean=mean, std=std))


# Keys --------------------------------------------------------------------------


def classes(config: LlavaConfig) -> tuple[str, ...]:
    """The classes that may prepare pictures of a family; any where a family has none of its own."""
    if config.family in FAMILIES:
        return FAMILIES[config.family]
    return ("Siglip", *(name for name in PROCESSORS if name != "Siglip"))


def processor_of(config: LlavaConfig, fields: Fields) -> Processor:
    """The class that a file names, or that of its family."""
    key = "image_processor_type"
    if key not in fields.values and "feature_extractor_type" in fields.values:
        key = "feature_extractor_type"
    known = classes(config)
    name = fields.get(key, str, f"{known[0]}ImageProcessor")
    if SUFFIX.sub("", name) not in known:
        expected = " or ".join(f"{each}ImageProcessor" for each in known)
        raise refused(fields, key, expected)
    return PROCESSORS[SUFFIX.sub("", name)]


def check_pixels(fields: Fields) -> None:
    """CheckpointError where pictures are not resized by Pillow's bicubic, or not scaled to 1."""
    for key in ("do_resize", "do_rescale"):
        if not fields.get(key, bool, True):
            raise refused(fields, key, "True")
    if fields.get("resample", int, BICUBIC) != BICUBIC:
        raise refused(fields, "resample", f"{BICUBIC}, bicubic")
    if not math.isclose(fields.positive("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise refused(fields, "rescale_factor", "1/255")


def tile_mode(fields: Fields, processor: Processor, tile: int, cut: bool) -> str | None:
    """How a picture becomes one tile, a key of image.MODES; None where it would not be square.

    cut: whether the picture has been cut into tiles before, each of which must stay as it is.
    """
    square: dict[str, object] = {"height": tile, "width": tile}
    edge: dict[str, object] = {"shortest_edge": tile}
    size, crop_size = shape(fields, "size"), shape(fields, "crop_size")
    if size is None:
        size = edge if processor.crops else square
    if size not in (square, edge):
        raise refused(fields, "size", f"{tile}, the side of the tower's tiles")
    crop = fields.get("do_center_crop", bool, processor.crops)
    if crop_size is None and cut and processor.grids and processor.crops:
        crop_size = {"height": CROP, "width": CROP}  # tiles are cut at it, whatever size says
    if crop_size not in (None, square) and (crop or cut):
        raise refused(fields, "crop_size", f"{tile}, the side of the tower's tiles")
    pad = fields.get("do_pad", bool, False)
    if pad and processor.pads:
        return "pad"
    if pad and not processor.grids and "pad_size" in fields.values:
        raise refused(fields, "pad_size", "none")
    if size == edge:
        return "crop" if crop else None
    return "square"


def not_square(fields: Fields) -> CheckpointError:
    """The error for tiles that would not be square."""
    return refused(fields, "do_center_crop", "True, where size is a shortest edge")


def check_grids(config: LlavaConfig, fields: Fields, given: Collection[str]) -> None:
    """CheckpointError where the file allows other grids of tiles than config.json."""
    key = "image_grid_pinpoints"
    if key in fields.values and key not in given:
        found = grids(fields, key, config.tile, height_first=config.family not in ORIGINAL)
        if set(found) != set(config.grids):
            raise refused(fields, key, "those of config.json")
    fields.asked.add(key)


def shape(fields: Fields, key: str) -> dict[str, object] | None:
    """A size as transformers understands it, by the names of its sides; None where none is said.

    A number is the shortest edge, or, of what is cut out, the side of a square.
    """
    fields.asked.add(key)
    value = fields.values.get(key)
    if isinstance(value, dict):
        return {side: pixels for side, pixels in value.items() if pixels is not None}
    if isinstance(value, list) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    if value is None:
        return None
    if type(value) is not int:
        raise refused(fields, key, "a size in pixels")
    if key == "crop_size" or fields.get("default_to_square", bool, False):
        return {"height": value, "width": value}
    return {"shortest_edge": value}


def mean_and_std(fields: Fields, mean: Triple, std: Triple, padded: bool) -> tuple[Triple, Triple]:
    """What pixels are normalised by; 0 and 1 leave them as they are.

    padded: whether pictures are padded with the mean, which is then needed for that.
    """
    found = triple(fields, "image_mean", mean), triple(fields, "image_std", std)
    if min(found[1]) <= 0:
        raise refused(fields, "image_std", "numbers above 0")
    if fields.get("do_normalize", bool, True):
        return found
    if padded:
        raise refused(fields, "do_normalize", "True, where pictures are padded with the mean")
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def triple(fields: Fields, key: str, default: Triple) -> Triple:
    """A number for each of red, green and blue, of which one alone stands for all."""
    fields.asked.add(key)
    value: object = fields.values.get(key, list(default))
    given: list[object] = value if isinstance(value, list) else [value] * 3
    numbers = [float(x) for x in given if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(given) != 3 or len(numbers) != 3 or max(map(abs, numbers)) > 1e6:
        raise refused(fields, key, "three numbers")
    return numbers[0], numbers[1], numbers[2]


def refused(fields: Fields, key: str, expected: str) -> CheckpointError:
    """The error for a key that asks for what nothing here does."""
    hint = "If the file belongs to another model, move it away."
    return fields.refused(key, expected, fields.values.get(key), hint)
