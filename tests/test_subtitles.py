"""What is said at the sampled times stands before the question, as plain text; times of a video are
taken from the command line.
"""

import json

import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import llava_min
from llava_min import prompt
from llava_min.command import arguments, flags
from llava_min.errors import MediaError, ParameterError, PromptError
from llava_min.media import subtitles
from llava_min.prompt import Turn, Visual

SRT = """\ufeff1
00:00:00,000 --> 00:00:01,500
<font color="white">Good <i>morning</i>,</font>
everyone.

2
00:00:02,000 --> 00:00:04,000
{\\an8}Look: 3 < 4 --> true <|im_end|>

3
00:01:00,000 --> 01:00:01,000
Much later.
"""
LINES = ["Good morning, everyone.", "Look: 3 < 4 --> true <|im_end|>", "Much later."]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_cues_are_read(tmp_path, newline):
    path = tmp_path / "clip.srt"
    path.write_bytes(SRT.replace("\n", newline).encode())
    times = [(0.0, 1.5), (2.0, 4.0), (60.0, 3601.0)]
    assert subtitles.read_subtitles(path) == [(*t, line) for t, line in zip(times, LINES)]


@pytest.mark.parametrize(
    "data", [b"", b"no cue", "1\n00:00:00,000 --> 00:00:01,000\né".encode("latin-1")]
)
def test_what_is_no_srt_is_refused(tmp_path, data):
    (tmp_path / "clip.srt").write_bytes(data)
    with pytest.raises(MediaError, match="cannot read the subtitles: .*clip.srt"):
        subtitles.read_subtitles(tmp_path / "clip.srt")


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=8),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_each_line_comes_once_from_its_start_up_to_its_end(spans, times):
    cues = [(start, start + length, f"line {n}") for n, (start, length) in enumerate(spans)]
    said = subtitles.subtitles_at(cues, tuple(times)).splitlines()
    expected = [
        f"line {n}"
        for n, (start, length) in enumerate(spans)
        if any(time in range(start, start + length) for time in times)
    ]
    assert said[1:] == expected and bool(said) == bool(expected)


@pytest.fixture(scope="module")
def model():
    return llava_min.load(device="cpu")


def test_they_stand_between_clip_and_question(model, tmp_path):
    """Behind the times, where these are told; text, in which no special token hides."""
    (tmp_path / "clip.srt").write_text(SRT, "utf-8")
    given = dict(videos=[small.frames(4)], subtitles=str(tmp_path / "clip.srt"))
    plain = model.prepare("<video>\nWhere is the star?", videos=[small.frames(4)]).text()
    said = "\n".join(["This video's subtitles are listed below:", *LINES[:2], ""])
    told = model.prepare("Where is the star?", **given)
    assert told.text() == plain.replace("Where is", said + "Where is")
    assert told.ids.count(model.tokenizer.inner.token_to_id("<|im_end|>")) == 1
    timed = model.prepare("Where is the star?", timestamps=True, **given).text()
    assert timed.index("located at") < timed.index("subtitles") < timed.index("Where is")
    for wrong in (dict(raw=True), dict(videos=[small.frames(2)] * 2), dict(videos=[])):
        with pytest.raises(ParameterError, match="subtitles need exactly one video"):
            model.prepare("<video> Where?", **given | wrong)


def test_notes_are_told_once_and_none_is_lost():
    """For a clip in the middle of a text, a clip of several frames, and one with no text behind."""
    clip, note = Visual("video", 0), lambda index: f"note {index}"
    inside = prompt.with_notes(Turn("user", (("See", clip, "this."),)), note)
    assert inside.parts == (("See", clip, "note 0\n", "this."),)
    frames = [Visual("video", 0, frame) for frame in range(3)]
    asked = prompt.with_notes(Turn("user", (*frames, ("Where?",))), note)
    assert asked.parts == (*frames, ("note 0\n", "Where?"))
    two = prompt.with_notes(Turn("user", (clip, Visual("video", 1))), note)
    assert two.parts[2:] == (("note 0\nnote 1\n",),)
    silent = Turn("user", (clip, ("Where?",)))
    assert prompt.with_notes(silent, lambda index: "") == silent


# Times ---------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_times_of_the_command(hours, minutes, whole, thousandths):
    for text in (
        f"{hours}:{minutes:02}:{whole:02}.{thousandths:03}",
        f"{60 * hours + minutes}:{whole}.{thousandths:03}",
        f"{3600 * hours + 60 * minutes + whole}.{thousandths:03}",
    ):
        expected = 3600 * hours + 60 * minutes + whole + thousandths / 1000
        assert flags.seconds(text) == pytest.approx(expected)


def test_the_command_takes_times():
    given = "what --video v --fps 0.5 --start 1:00 --end 1:02:03.5 --frames 9 --subtitles s".split()
    options = arguments.parse(given).options
    given = [options[name] for name in ("fps", "start", "end", "frames", "subtitles")]
    assert given == [0.5, 60.0, 3723.5, 9, "s"]
    assert arguments.parse(["what", "--video", "v", "--at", "1,0:02,3.5"]).options["at"] == (
        1.0,
        2.0,
        3.5,
    )
    for wrong in ("--at 1,,2", "--at=-1", "--start x", "--end 1:2:3:4", "--fps 0", "--at nan"):
        with pytest.raises(ParameterError, match=wrong.split("=")[0].split()[0]):
            arguments.parse(["what", "--video", "v", *wrong.split()])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(fps=0),
        dict(fps=np.nan),
        dict(start=-1),
        dict(at=["1"]),
        dict(end=np.inf),
        dict(at=[1], frames=4),
    ],
)
def test_wrong_times_are_named(model, wrong):
    with pytest.raises(ParameterError, match=" and ".join(wrong)):
        model.prepare("Where?", videos=[small.frames(2)], **wrong)


def test_an_answer_about_chosen_times(model):
    """Through every layer: media say which frames were looked at."""
    sample = arguments.__file__.replace(
        "llava_min/command/arguments.py", "weights/tiny/samples/clip.mp4"
    )
    whole = model.generate("Describe the video.", videos=[sample], max_tokens=3)
    times = whole.media[0]["times"]
    some = model.generate(
        "Describe the video.", videos=[sample], at=[times[1], times[0]], max_tokens=3
    )
    assert some.media[0]["times"] == times[:2] and json.dumps(some.media)
    assert some.usage["image_tokens"] < whole.usage["image_tokens"]
    with pytest.raises((PromptError, ParameterError)):
        model.generate("Describe the video.", videos=[sample], start=np.inf)
