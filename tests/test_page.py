"""The page of an explanation: one file that needs nothing else, in a real browser if there is one.

The browser is Debian's or any other Chromium, driven by playwright; without either these tests are
skipped.
"""

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import numpy as np
import peers
import pytest
import small
import test_explain
from PIL import Image

import llava_min
from llava_min import image
from llava_min import segments as plans
from llava_min.command.main import main
from llava_min.errors import ParameterError
from llava_min.explain import occlusion, page, pictures
from llava_min.explain.rows import Rows
from llava_min.request.visuals import Encodable

STAR = str(small.TINY / "samples" / "shapes.png")
CLIP = str(small.TINY / "samples" / "clip.mp4")
CAP = 8 * 2**20
BOXES = {  # left, top, right, bottom of what the sample shows
    "star": (28, 11, 99, 77),
    "number": (229, 20, 299, 67),
    "circle": (129, 94, 190, 154),
    "triangle": (232, 156, 292, 209),
}
NAMES = {
    " star": "star",
    "4": "number",
    "2": "number",
    " circle": "circle",
    " triangle": "triangle",
    " yellow": "star",
    " blue": "circle",
    " red": "triangle",
}
PATCH = 16  # pixels of the sample along a patch of its grid
NASTY = "</script><img src=x onerror=alert(1)>\u2028<!-- \"'&"


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


@pytest.fixture(scope="module")
def described(model):
    answer = model.generate("Describe the picture.", images=[STAR])
    return model.explain("Describe the picture.", answer, images=[STAR])


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


# Without a browser ---------------------------------------------------------------------


def test_the_template_is_small_and_asks_for_nothing():
    text = page.TEMPLATE.read_text()
    assert len(text.encode()) <= 60_000
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(|innerHTML|insertAdjacent|eval\(|\bon\w+=", text
    )
    assert not re.search(r"\sstyle=", text)  # the policy would refuse it


def test_markup_shows_as_text(described):
    """In a word, an alternative, the prompt and a picture's name."""
    nasty = replace(
        described, answer=NASTY, tokens=[NASTY] * len(described.tokens), sources=[NASTY],
        prompt=[NASTY, 0], top=[[(NASTY, 0.5)]] * len(described.tokens), left_out=[NASTY],
    )  # fmt: skip
    text = page.page(nasty)
    assert text.count("</script>") == 2 and "<img" not in text
    found = data_of(text)
    assert found["words"][0]["text"] == found["visuals"][0]["source"] == NASTY
    assert unescape(re.search(r"<title>(.*?)</title>", text)[1]) == NASTY


def test_the_page_is_the_same_each_time(described, model):
    again = model.explain("Describe the picture.", described.token_ids, images=[STAR])
    assert page.page(again) == page.page(replace(described, stages=[]))
    assert "srcdoc" in described._repr_html_() and "<script" not in described._repr_html_()


def test_the_numbers_are_those_of_the_explanation(described):
    found = data_of(page.page(described))
    assert [one["text"] for one in found["words"]] == described.tokens
    np.testing.assert_allclose(found["shares"], described.shares.mean(1), atol=1e-4)
    assert len(found["planes"]) == len(described.planes) and found["left_out"] == []
    for plane in found["planes"]:
        own = described.planes[plane["layer"], plane["head"]].astype(np.float32)
        steps = np.frombuffer(page.base64.b64decode(plane["values"]), np.uint8).reshape(own.shape)
        made = (steps / 255) ** 2 * np.array(plane["largest"])[:, None]
        assert (np.abs(made - own) <= np.sqrt(own * own.max(1, keepdims=True)) / 250 + 1e-5).all()
    boxes = np.frombuffer(page.base64.b64decode(found["rows"]["boxes"]), np.uint16).reshape(-1, 4)
    own = described.rows.boxes
    assert ((boxes == page.NOWHERE).all(1) == np.isnan(own[:, 0])).all()
    inside = ~np.isnan(own[:, 0])
    made = boxes[inside] / (page.NOWHERE - 1) * np.tile([320, 240], 2)
    np.testing.assert_allclose(made, own[inside], atol=0.01)


@pytest.mark.parametrize("kind", ["a large picture", "a long clip"])
def test_the_page_of_a_large_model_fits(kind):
    """28 layers of 28 heads, 64 words, 6,500 rows or 100,000: what was left out is said."""
    config = test_explain.config_of("onevision", 378, None)
    grids = tuple((r, c) for r in range(1, 7) for c in range(1, 7))
    config = replace(config, grids=grids, anyres_max=9)
    if kind == "a long clip":
        visual = plans.clip([0.5 * n for n in range(512)], (640, 360), config)
    else:
        visual = plans.picture((1500, 1100), "anyres", config)
    rng = np.random.default_rng(0)
    tile = np.asarray(small.picture(378, 378))  # noise, which JPEG cannot make small
    tiles = [tile] * visual.tiles if kind == "a large picture" else [tile * 0] * visual.tiles
    rows = Rows.of(plans.Plan((plans.Text((1,)), visual), 10**6), config)
    words = 64 if kind == "a large picture" else 12
    plane = rng.random((words, len(rows.tokens))).astype(np.float16)
    found = replace(
        test_explain.explanation_of(rows, config, [visual], np.ones(len(rows.tokens))),
        tokens=["word"] * words, log_probabilities=[-0.5] * words, top=[[("x", 0.25)] * 5] * words,
        shares=rng.random((28, 28, words, 6)).astype(np.float32), sources=["x"], prompt=[0],
        planes={(None, None): plane} | {(layer, None): plane for layer in range(28)},
        lengths={(at, None): np.ones(len(plane[0])) for at in (None, *range(28))},
        visuals=[Encodable(visual, tiles)],
    )  # fmt: skip
    text = page.page(found)
    assert len(text.encode()) <= CAP and len(data_of(text)["planes"]) >= 3
    assert any("maps" in sentence for sentence in data_of(text)["left_out"])


@pytest.mark.parametrize("sizes", [(), ((100, 60),), ((100, 60), (50, 80), (300, 299))])
def test_boxes_are_parts_of_their_own_picture(sizes):
    config = test_explain.config_of("onevision", 378, None)
    visuals = [plans.picture(size, "anyres", config) for size in sizes]
    rows = Rows.of(plans.Plan((plans.Text((1,)), *visuals), 10**6), config)
    found = test_explain.explanation_of(rows, config, visuals, np.ones(len(rows.tokens)))
    stored = page.rows(replace(found, visuals=[Encodable(one, []) for one in visuals]))
    boxes, owners = (
        np.frombuffer(base64.b64decode(stored[name]), np.uint16) for name in ("boxes", "visuals")
    )
    shown = ~np.isnan(rows.boxes[:, 0])
    for number, size in enumerate(sizes):
        own = shown & (owners == number)
        parts = boxes.reshape(-1, 4)[own] / (page.NOWHERE - 1)
        np.testing.assert_allclose(parts * np.tile(size, 2), rows.boxes[own], atol=0.01)
        assert parts.min() == 0 and parts.max() == 1
    assert (boxes.reshape(-1, 4)[~shown] == page.NOWHERE).all()


def test_maps_are_told_apart_by_their_names(described):
    """One is suggested, or none; one is of all layers."""
    keys = [(None, None), *((layer, head) for layer in (0, 1) for head in (None, 0, 1))]
    layers = replace(described, shares=described.shares[:2])
    for suggested in (None, (0, None), (1, None)):
        names = [page.name_of(key, replace(layers, suggested=suggested)) for key in keys]
        assert len(set(names)) == len(names)
        for mark, meant in (("suggested", suggested), ("of all layers", (None, None))):
            assert [mark in name for name in names] == [key == meant for key in keys], mark


def test_the_map_to_show_first_is_the_suggested_one(described):
    """Or, where the page has no room for it or none is suggested, that of all layers."""
    planes = list(described.planes)
    assert planes[page.start(described, planes)] == described.suggested != planes[0]
    assert page.start(described, [*planes[2:], planes[1]]) == len(planes) - 2
    for found, held in ((described, planes[:1]), (replace(described, suggested=None), planes)):
        assert held[page.start(found, held)] == (None, None)


@pytest.mark.parametrize("words, rows, room", [
    (5, 10, 10**6), (5, 10, 250), (5, 10, 249), (5, 10, 150), (5, 10, 149), (5, 10, 29), (3, 0, 9)
])  # fmt: skip
def test_as_many_maps_and_words_as_there_is_room_for(described, monkeypatch, words, rows, room):
    """All words with three maps come first, then maps; where there is no room, a word and three."""
    monkeypatch.setattr(page, "PLANES", room)
    found = replace(
        described, tokens=["word"] * words, rows=SimpleNamespace(tokens=range(rows)),
        planes={(layer, None): None for layer in range(20)},
    )  # fmt: skip
    planes, held = page.planes_that_fit(found)
    assert planes == list(found.planes)[: len(planes)] and 1 <= held <= words
    rows = max(rows, 1)
    size = len(planes) * held * rows
    assert size <= room or (len(planes) == 3 and held == 1)
    assert len(planes) == 20 or size + held * rows > room
    assert held == words or 3 * (held + 1) * rows > room


@pytest.mark.parametrize(
    "size, capped", [((300, 120), False), ((90, 400), False), ((700, 700), True)]
)
def test_a_grid_is_told_with_the_patches_that_show_the_picture(size, capped):
    """Also where a border lies before them; and from how many they were interpolated."""
    config = replace(
        test_explain.config_of("onevision", 84, None), anyres_max=2 if capped else None
    )
    picture = plans.picture(size, "anyres", config)
    grid = picture.grid
    assert capped or grid.rows.start + grid.columns.start > 0
    found = page.shown(picture)
    for length, span in zip(found, (grid.rows, grid.columns)):
        assert length == len(range(10**6)[span])
    assert (found != grid.shape) == capped


def shown_bytes(found) -> tuple[list[dict], list[list[bytes]], list[str]]:
    """(what the page says of each visual, its JPEGs, what was left out of them)."""
    visuals, left_out = page.pictures(found)
    files = [
        [base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")) for uri in one["images"]]
        for one in visuals
    ]
    return visuals, files, left_out


def several(*visuals, config):
    """An explanation of visuals of noise."""
    rows = Rows.of(plans.Plan((plans.Text((1,)), *visuals), 10**6), config)
    found = test_explain.explanation_of(rows, config, visuals, np.ones(len(rows.tokens)))
    pixels = [small.frames(visual.tiles, config.tile, config.tile) for visual in visuals]
    held = [Encodable(*both) for both in zip(visuals, pixels)]
    return replace(found, sources=[f"{n}.png" for n in range(len(held))], visuals=held)


def test_each_visual_has_its_own_rows_and_pictures():
    """A still one picture, a clip one for each frame, in order, each with the rows that it has."""
    config = test_explain.config_of("onevision", 84, None)
    stills = [plans.picture(size, "anyres", config) for size in ((300, 120), (90, 200))]
    clip = plans.clip([0.0, 0.5, 1.0], (160, 90), config)
    found = several(stills[0], clip, stills[1], config=config)
    visuals, files, _ = shown_bytes(found)
    assert [len(one) for one in files] == [1, 3, 1]
    stored = {
        name: np.frombuffer(base64.b64decode(text), np.uint8 if name == "kinds" else np.uint16)
        for name, text in page.rows(found).items()
    }
    frames = found.rows.frames
    assert set(frames) == {-1, 0, 1, 2}
    assert (stored["frames"] == np.where(frames == -1, page.NOWHERE, frames)).all()
    assert (stored["kinds"] == found.rows.kinds).all()
    assert (stored["visuals"] == found.rows.visuals).all()
    end = 0
    for number, (one, visual) in enumerate(zip(visuals, (stills[0], clip, stills[1]))):
        assert (one["source"], one["size"]) == (f"{number}.png", visual.size)
        assert (one["first"], one["end"]) == (end, end + visual.tokens)
        assert (found.rows.visuals[one["first"] : one["end"]] == number).all()
        assert one["token"] == found.rows.tokens[end] == 1 + end
        assert list(one["times"]) == list(getattr(visual, "times", ()))
        assert len(one["views"]) == (0 if visual is clip else 2)
        end += visual.tokens
    assert end == len(found.rows.tokens)


def test_all_pictures_together_have_the_room_for_pictures(monkeypatch):
    """A lone one has all of it: it becomes smaller, and this is said, where it takes a byte more.
    Frames and stills have equal parts.
    """
    config = test_explain.config_of("onevision", 84, None)
    still, clip = (
        plans.picture((300, 120), "anyres", config),
        plans.clip([0.0, 0.5, 1.0], (160, 90), config),
    )
    one = several(still, config=config)
    ((whole,),) = shown_bytes(one)[1]
    for room, smaller in ((len(whole), False), (len(whole) - 1, True)):
        monkeypatch.setattr(page, "PICTURES", room)
        _, ((made,),), left_out = shown_bytes(one)
        assert (made != whole) == smaller == bool(left_out) and len(made) <= room
    for visuals in ([still, still], [clip, still], [still, clip, still], [clip]):
        found = several(*visuals, config=config)
        monkeypatch.setattr(page, "PICTURES", 10**6)
        longest = max(len(made) for files in shown_bytes(found)[1] for made in files)
        count = sum(3 if visual is clip else 1 for visual in visuals)
        for room in (count * longest, count * longest - 1):
            monkeypatch.setattr(page, "PICTURES", room)
            _, files, left_out = shown_bytes(found)
            assert sum(len(made) for one in files for made in one) <= room
            assert bool(left_out) == (room < count * longest)


@pytest.mark.parametrize("name", ["onevision", "next", "interleave", "llava_1_5"])
@pytest.mark.parametrize("size", [(300, 120), (90, 250), (100, 100)])
def test_views_say_where_the_picture_lies(name, size):
    """On the canvas of its grid, and on its base tile: where a white picture is not a black one.
    What a crop cuts off lies outside.
    """
    config = test_explain.config_of(name, 84, None)
    for mode in config.image_modes:
        picture = plans.picture(size, mode, config)
        tiles = [image.MODES[mode](Image.new("RGB", size, (level,) * 3), config)
                 for level in (0, 255)]  # fmt: skip
        found = page.views(several(picture, config=config), picture)
        names = ["grid", "base tile"] if picture.grid else ["base tile"]
        assert [view["name"] for view in found] == names
        for view in found:
            if view["name"] == "grid":
                rows, columns = picture.grid.tiles
                down, right = picture.grid.shape
                text = f"grid: {rows} x {columns} tiles, {down} x {right} patches"
                own = [pictures.canvas_of(picture, one, 0, config) for one in tiles]
            else:
                rows, columns, side = 1, 1, config.vision.side
                text, own = f"base tile, {mode}: {side} x {side} patches", [t[0] for t in tiles]
            assert view["text"] == text and tuple(view["tiles"]) == (rows, columns)
            assert view["canvas"] == [columns * 84, rows * 84]
            differs = np.abs(own[1].astype(int) - own[0]).max(-1) > 127
            ys, xs = np.nonzero(differs)
            seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            inner = np.clip(view["inner"], 0, np.tile(view["canvas"], 2))
            assert np.abs(seen - inner).max() <= 1, (mode, view)
            left, top, right, bottom = view["inner"]
            assert (right - left) / (bottom - top) == pytest.approx(
                1 if view["name"] == "base tile" and mode in ("anyres", "square")
                else size[0] / size[1], rel=0.05
            )  # fmt: skip


def test_text_is_written_as_it_is(described):
    """In the file, too: an answer in Chinese takes no six letters for each of its own."""
    assert "星" in page.page(replace(described, prompt=["星"]))


def test_frames_of_a_strip_are_smaller_than_a_picture():
    """A clip of one frame is shown as large as a picture."""
    config, size = test_explain.config_of("onevision", 378, None), (1280, 720)
    sides = []
    for visual in (
        plans.picture(size, "pad", config),
        *(plans.clip([0.5] * n, size, config) for n in (1, 2)),
    ):
        rows = Rows.of(plans.Plan((plans.Text((1,)), visual), 10**6), config)
        found = test_explain.explanation_of(rows, config, [visual], np.ones(len(rows.tokens)))
        pixels = [np.zeros((378, 378, 3), np.uint8)] * visual.tiles
        found = replace(found, sources=["x"], visuals=[Encodable(visual, pixels)])
        ((shown, _),) = [page.pictures(found)]
        uris = shown[0]["images"]
        sides.append(
            [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in uris]
        )
    picture, one, two = sides
    assert picture == one and len(two) == 2 and two[0] == two[1] < one[0]


def test_the_command_writes_it(tmp_path, capsys):
    target = tmp_path / "x.html"
    assert main(["Where is the star?", "--image", STAR, "--explain", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == "In the top left.\n" and f"[explained in {target}]" in err
    found = data_of(target.read_text())
    assert len(found["stages"]) == 4 and found["visuals"][0]["source"] == STAR


def test_a_chat_explains_its_newest_answer(tmp_path, capsys, monkeypatch):
    """And goes on afterwards; before the first answer there is nothing to explain."""
    target = tmp_path / "x.html"
    lines = iter([f"/explain {target}", f"/image {STAR}", "Where is the star?",
                  f"/explain {target}", "What color is the star?", "/explain x.pdf"])  # fmt: skip

    def typed(prompt=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert main(["--chat"]) == 2
    out, err = capsys.readouterr()
    assert out.split("\n")[:2] == ["In the top left.", "Yellow."]
    assert "no answer yet" in err and "not as 'x.pdf'" in err
    assert [one["text"] for one in data_of(target.read_text())["words"]][2:4] == [" top", " left"]


@pytest.mark.parametrize(
    "words, code",
    [
        (["--explain", "x.pdf"], 2),
        (["--explain", "none/x.html"], 6),
        (["--explain", "x.html", "--plan"], 2),
        (["--explain", "x.html", "--chat"], 2),
        (["--occlusion"], 2),
    ],
    ids=str,
)
def test_what_cannot_be_explained_is_said_first(words, code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["Where?", *words]) == code
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_a_chat_without_an_answer(model):
    with pytest.raises(ParameterError, match="no answer yet"):
        model.chat().explain()


# In Chromium -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright, of the test extra"
    )
    path = peers.browser_path()
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens an explanation; at the end nothing was asked for and no error said."""
    heard, opened = [], []

    def open_page(found, **options):
        target = tmp_path / "page.html"
        found.save(target)
        context = browser.new_context(offline=True, **options)
        shown = context.new_page()
        shown.on("console", lambda message: heard.append(message.text))
        shown.on("pageerror", lambda error: heard.append(str(error)))
        shown.on("dialog", lambda dialog: heard.append(dialog.message))
        shown.on("request", lambda request: heard.append(request.url))
        shown.goto(target.as_uri())
        shown.wait_for_selector("#words button[aria-pressed=true]" if options.get(
            "java_script_enabled", True) else "#static")  # fmt: skip
        assert heard.pop(0) == target.as_uri()
        opened.append(context)
        return shown

    yield open_page
    for context in opened:
        context.close()
    own = "Canvas2D: Multiple readback"  # what these tests do to the page's canvases
    assert [text for text in heard if not text.startswith(own)] == []


BRIGHTEST = """canvas => {
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let most = 0, found = [];
  for (let i = 3; i < pixels.length; i += 4) most = Math.max(most, pixels[i]);
  for (let i = 3; i < pixels.length; i += 4) if (pixels[i] === most)
    found.push([((i - 3) / 4) % width + 0.5, Math.floor((i - 3) / 4 / width) + 0.5]);
  return found;
}"""


def brightest(shown, selector="#pictures canvas") -> tuple[float, float]:
    """The middle of the brightest pixels of an overlay, which has the sample's 320 x 240."""
    return tuple(np.mean(shown.locator(selector).first.evaluate(BRIGHTEST), axis=0))


def test_each_word_is_brightest_where_it_says(described, open_page):
    """The kind of each shape and both digits inside of the box, its colour within a patch of it."""
    shown = open_page(described)
    buttons = shown.locator("#words button")
    assert buttons.count() == len(described.tokens)
    tested = set()
    for index, word in enumerate(described.tokens):
        if word not in NAMES:
            continue
        buttons.nth(index).click()
        (x, y), (left, top, right, bottom) = brightest(shown), BOXES[NAMES[word]]
        near = 1.5 * PATCH if word in (" yellow", " blue", " red") else 0
        assert left - near <= x <= right + near and top - near <= y <= bottom + near, (word, x, y)
        tested.add(word)
    assert tested == NAMES.keys()
    for index in range(shown.locator("#plane option").count()):
        shown.locator("#plane").select_option(index=index)
    for part in ("base", "grid", "joined"):
        shown.locator("#part").select_option(part)


def test_arrow_keys_move_from_word_to_word(described, open_page):
    shown = open_page(described, color_scheme="dark")
    last = len(described.tokens)
    for key, number in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", last),
                        ("ArrowRight", last), ("Home", 1), ("ArrowLeft", 1)):  # fmt: skip
        shown.keyboard.press(key)
        assert shown.locator("#said").inner_text().startswith(f"Word {number} of {last}")
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate("document.activeElement.textContent") == " yellow"
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    cells = shown.locator("#ribbon canvas")
    cells.scroll_into_view_if_needed()
    bounds = cells.bounding_box()
    shown.mouse.move(bounds["x"] + 4, bounds["y"] + 4)
    assert shown.locator("#hover").inner_text() == "Position 3: a patch, base."


def test_markup_stays_text_in_the_browser(described, open_page):
    nasty = replace(described, answer=NASTY, tokens=[NASTY] * len(described.tokens),
                    sources=[NASTY], prompt=[NASTY, 0])  # fmt: skip
    shown = open_page(nasty)
    assert shown.locator("#words button").first.inner_text() == NASTY
    assert shown.locator("img").count() == 1 and NASTY in shown.locator("#ribbon").inner_text()


def test_without_a_script_there_is_a_table(described, open_page):
    shown = open_page(described, java_script_enabled=False)
    text = shown.locator("#static").inner_text()
    assert "' star'" in text and "100.0%" in text and shown.locator("#static tr").count() == 35


def test_a_clip_is_a_strip_of_frames(model, open_page):
    """The frame in which a number flashes up is brighter than the others for its digits."""
    question = "What number flashed up?"
    found = model.explain(question, videos=[CLIP], frames=8)
    shown = open_page(found)
    assert shown.locator("#pictures img").count() == 8
    captions = shown.locator("#pictures figcaption").all_inner_texts()
    shares = [float(re.search(r"([\d.]+)%", caption)[1]) for caption in captions]
    own = [found.weights(0, 3)[found.rows.frames == frame].sum() for frame in range(8)]
    assert int(np.argmax(shares)) == int(np.argmax(own)) and max(shares) > 2 * np.median(shares)


@pytest.fixture(scope="module")
def covered(described):
    """With one square that costs a nat for each word."""
    boxes = np.array(list(occlusion.squares((320, 240))), np.float32)
    costs = np.zeros((25, len(described.tokens)), np.float32)
    costs[6] = 1
    drops, frames = {"mean": costs, "grey": costs}, np.tile([0, 1], (25, 1))
    found = occlusion.Occlusion(0, (320, 240), boxes, frames, drops)
    return replace(described, occlusion=[found])


def test_occlusion_is_shown_beside(covered, open_page):
    shown, boxes = open_page(covered), covered.occlusion[0].boxes
    left, top, right, bottom = boxes[6]
    x, y = brightest(shown, "#covered canvas")
    assert left <= x <= right and top <= y <= bottom
    assert f"{len(covered.tokens)}.00 nats" in shown.locator("#cost").inner_text()
    shown.locator("#whose").select_option("word")
    assert "1.00 nats" in shown.locator("#cost").inner_text()


@pytest.fixture(scope="module")
def clip(model):
    return model.explain("What number flashed up?", videos=[CLIP], frames=8, occlusion=True)


def test_covered_frames_are_a_strip(clip, open_page):
    """Each with its cost, the one with the number brightest; then that one with its squares."""
    shown = open_page(clip)
    captions = shown.locator("#covered .strip figcaption").all_inner_texts()
    costs = [float(re.search(r"frame \d: (-?[\d.]+) nats$", caption)[1]) for caption in captions]
    np.testing.assert_allclose(costs, clip.occlusion[0].costs(), atol=0.01)
    brightness = shown.locator("#covered canvas[role=img]").evaluate_all(
        f"all => all.map(canvas => ({OPACITY})(canvas))"
    )
    assert len(brightness) == 9 and int(np.argmax(brightness[:8])) == int(np.argmax(costs)) == 6
    squares = shown.locator("#covered > figure figcaption").inner_text()
    assert squares.startswith("frame 7: ") and squares.endswith("worst square")
    x, y = brightest(shown, "#covered > figure canvas")
    assert 83 <= x <= 143 and 131 <= y <= 211  # where the number is


OPACITY = """canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.reduce((sum, value, i) => i % 4 === 3 ? sum + value : sum, 0);
}"""


def with_sink(found):
    """(an explanation whose first map has a sink in the middle of its grid, the sink's box)."""
    key, row = found.suggested, found.rows.inside((150, 110, 170, 130))[-1]
    plane, short = found.planes[key].copy(), found.lengths[key].copy()
    plane[:, row], short[row] = 0.9, 0.01
    made = replace(
        found, planes={**found.planes, key: plane}, lengths={**found.lengths, key: short}
    )
    assert np.flatnonzero(made.sinks(*key)).tolist() == [row]
    return made, found.rows.boxes[row]


def test_sinks_are_marked_and_can_be_left_out(described, open_page):
    made, (left, top, right, bottom) = with_sink(described)
    shown = open_page(made)
    assert shown.locator("#share").inner_text().endswith("Sinks, hatched: 1.")
    hatched = shown.locator("#pictures canvas").nth(1)
    (x0, y0), (x1, y1) = (np.array(hatched.evaluate(BRIGHTEST)).__getattribute__(end)(axis=0)
                          for end in ("min", "max"))  # fmt: skip
    assert left - 1 <= x0 and x1 <= right + 1 and top - 1 <= y0 and y1 <= bottom + 1
    x, y = brightest(shown)
    assert left <= x <= right and top <= y <= bottom
    shown.locator("#bare").check()
    x, y = brightest(shown)
    assert not (left <= x <= right and top <= y <= bottom)
    shown.locator("#plane").select_option(index=0)
    assert not shown.locator("#bared").is_visible()
    assert hatched.evaluate(OPACITY) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["picture", "clip"])
def test_nothing_that_axe_finds(covered, clip, which, scheme, open_page):
    """axe-core's rules: contrast, names of what can be operated, landmarks, order of headings."""
    script = peers.node_package("axe-core") / "axe.min.js"
    found = with_sink(covered)[0] if which == "picture" else clip
    found = replace(found, left_out=["Something."])
    shown = open_page(found, color_scheme=scheme, bypass_csp=True)
    shown.locator("#static summary").click()
    shown.evaluate(script.read_text())
    result = shown.evaluate("axe.run()")
    wrong = [(one["id"], node["target"]) for one in result["violations"] for node in one["nodes"]]
    assert wrong == []
    assert {"color-contrast", "select-name"} <= {one["id"] for one in result["passes"]}


@pytest.mark.parametrize("which", ["picture", "clip"])
def test_a_narrow_window_needs_no_scrolling_sideways(covered, clip, which, open_page):
    found = with_sink(covered)[0] if which == "picture" else clip
    found = replace(found, sources=["/a/path/that/no/window/of/a/telephone/has/room/for.png"])
    shown = open_page(found, viewport={"width": 360, "height": 740})
    shown.locator("#static summary").click()
    assert shown.evaluate("document.documentElement.scrollWidth") == 360


def test_pictures_are_those_of_the_tiles(described):
    """The picture on the page has the source's ratio and colours, also where it was padded."""
    uri = data_of(page.page(described))["visuals"][0]["images"][0]
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    source = Image.open(STAR).convert("RGB").resize(shown.size)
    assert shown.size[0] / shown.size[1] == pytest.approx(4 / 3, rel=0.01)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(source)).mean() < 5
