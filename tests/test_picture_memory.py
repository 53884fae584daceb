"""The memory of pictures of extreme shape stays within what the plan says, in a child with a limit.

One pixel beside thousands used to be enlarged whole before the middle was cut out of it.
"""

import resource
from dataclasses import replace

import numpy as np
import pytest
import small
from bad_input import command, forked, plain_memory, status_of
from PIL import Image

import llava_min
from llava_min import image
from llava_min.families import layouts
from llava_min.media import sources as media
from llava_min.planning import memory as needs

CONFIG = layouts.read_config(small.TINY)
LARGE = replace(CONFIG, vision=replace(CONFIG.vision, image_size=336))
SLACK = 24 << 20  # what imports, the file and the heap take beside the picture
SIZES = [(1, 3000), (3000, 1), (2, 30_000), (30_000, 2), (1, 65_535), (65_535, 1), (700, 40_000)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", image.MODES)
def test_a_thin_picture_takes_what_the_plan_says(tmp_path, mode, size):
    Image.new("RGB", size, "white").save(tmp_path / "thin.png")
    planned = needs.picture_bytes(LARGE, size, mode)
    assert planned < 700 << 20

    def work() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (status_of("VmSize") + planned + SLACK,) * 2)
        tiles = image.MODES[mode](media.open_picture(tmp_path / "thin.png"), LARGE)
        return int(tiles.shape[1:] != (LARGE.tile, LARGE.tile, 3))

    ended = forked(work)
    assert ended.code == 0, ended.err
    assert ended.memory < planned + SLACK


@pytest.mark.parametrize("kind", ["transparent", "16 bits", "floats", "hidden", "turned", "open"])
def test_opening_a_large_picture_takes_what_the_plan_says(tmp_path, kind):
    """In every way that makes copies of it."""
    size, exif = (2500, 2000), Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    picture = Image.new("LA" if kind == "transparent" else "RGB", size, 9)
    if kind in ("16 bits", "floats"):
        picture = Image.fromarray(np.full(size, 7, np.uint16 if kind == "16 bits" else np.float32))
    format = {"floats": "TIFF", "turned": "JPEG", "open": "JPEG"}.get(kind, "PNG")
    options = {"transparency": (9, 0, 0)} if kind == "hidden" else {}
    picture.save(tmp_path / "large", format, exif=exif, **options)
    if kind == "open":
        (tmp_path / "large").write_bytes((tmp_path / "large").read_bytes()[:-2])
    planned = needs.picture_bytes(CONFIG, size, "square")
    ended = forked(lambda: media.open_picture(tmp_path / "large").width * 0)
    assert ended.code == 0, ended.err
    assert ended.memory < planned + SLACK


def test_thin_frames_take_no_more_than_thin_pictures():
    clip = np.full((2, 30_000, 2, 3), 200, np.uint8)
    for mode in image.MODES:
        config = replace(LARGE, frame_mode=mode)
        planned = needs.picture_bytes(config, (2, 30_000), mode)

        def work(config=config, planned=planned) -> int:
            resource.setrlimit(resource.RLIMIT_AS, (status_of("VmSize") + planned + SLACK,) * 2)

            class Frames(list):
                hash = b""

            return 0 * len(image.FrameTiles(Frames(clip), config, range(2))[1])

        assert forked(work).code == 0, mode


def test_the_plan_counts_a_large_picture_and_the_run_keeps_to_it(tmp_path):
    """As the command sees it: two pictures, one of them thin, each padded to a square."""
    for name, size in (("thin.png", (2, 30_000)), ("other.png", (60, 50))):
        Image.new("RGB", size, "white").save(tmp_path / name)
    pictures = [str(tmp_path / name) for name in ("thin.png", "other.png")]
    plan = llava_min.plan(None, "What?", images=pictures, device="cpu", max_tokens=1)
    alone = llava_min.plan(None, "What?", images=pictures[1:], device="cpu", max_tokens=1)
    more = plan.memory().total - alone.memory().total
    assert more > 0
    named = [part for picture in pictures for part in ("--image", picture)]
    ended = command(["What?", *named, "--device", "cpu", "--max-tokens", "1"])
    assert ended.code == 0, ended
    assert ended.memory - plain_memory() < more + SLACK
    with pytest.raises(llava_min.errors.MemoryBudgetError):
        large = Image.new("RGB", (5000, 4000))
        llava_min.plan(None, "What?", images=[large], device="cpu", memory=0.2).check_room()
