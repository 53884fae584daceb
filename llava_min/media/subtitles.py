"""Subtitles (.srt) -> the lines that are shown while a video's sampled frames are.

in:  a file, the sampled times in seconds
out: a text that goes before the question

Each line that is shown at one of the times, from its start up to its end, comes once, in order.
Read media/video.py first. Read next: request/visuals.py.
Agrees with: the evaluation of Video-MME with subtitles, and its words.
"""

import re

from ..errors import MediaError
from . import limits
from . import sources as media

TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{3})"
CUE = re.compile(rf"{TIME} *--> *{TIME}[^\n]*\n((?:.*\S.*\n?)*)")
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
Cue = tuple[float, float, str]  # from this second up to that one, the text


def parse_subtitles(text: str) -> list[Cue]:
    """The cues of an .srt file, in its order, without their markup.

    >>> parse_subtitles("1\\n00:00:01,500 --> 00:01:02,000\\n<i>Well,</i>\\nhello.\\n\\n")
    [(1.5, 62.0, 'Well, hello.')]
    """
    cues = []
    for *numbers, words in CUE.findall(text.replace("\r\n", "\n")):
        hours, minutes, seconds, thousandths = (numbers[part::4] for part in range(4))
        start, end = (
            int(h) * 3600 + int(m) * 60 + int(s) + int(t) / 1000
            for h, m, s, t in zip(hours, minutes, seconds, thousandths)
        )
        cues.append((start, end, " ".join(MARKUP.sub("", words).split())))
    return cues


def read_subtitles(source: media.Readable) -> list[Cue]:
    """The cues of a file; MediaError where it holds none."""
    data = media.read_bytes(source, limits.PROMPT_BYTES)
    try:
        cues = parse_subtitles(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        cues = []
    if not cues:
        raise MediaError(
            "cannot read the subtitles",
            media.name_of(source),
            "cues of an .srt file in UTF-8",
            "none",
        )
    return cues


def subtitles_at(cues: list[Cue], times: tuple[float, ...]) -> str:
    """What is said at `times`, introduced by a sentence; empty where nothing is said."""
    lines = [words for start, end, words in cues if any(start <= time < end for time in times)]
    return "\n".join(["This video's subtitles are listed below:", *lines]) if lines else ""
