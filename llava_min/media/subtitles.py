"""Subtitles (.srt, WebVTT) -> the lines that are shown while a video's sampled frames are.

in:  a file, the sampled times in seconds
out: a text that goes before the question

Each line that is shown at one of the times, from its start up to its end, comes once, in order.
Read media/video.py first. Read next: request/visuals.py.
Agrees with: the evaluation of Video-MME with subtitles, and its words.
"""

import codecs
import re

from ..errors import MediaError
from . import limits
from . import sources as media

TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"  # hours may be missing
TIMES = re.compile(rf"\s*{TIME}\s*-->\s*{TIME}(?!\d)")
MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
Cue = tuple[float, float, str]  # from this second up to that one, the text


def parse_subtitles(text: str) -> list[Cue]:
    """The cues of a file, in its order, without their markup.

    A cue ends with a blank line, or where the times of the next one come. A line of digits right
    before those is that cue's number.

    >>> parse_subtitles("1\\n00:00:01,500 --> 00:01:02,000\\n<i>Well,</i>\\nhello.\\n\\n")
    [(1.5, 62.0, 'Well, hello.')]
    >>> parse_subtitles("00:01.000 --> 00:02.000\\n10\\n7\\n00:03.000 --> 00:04.000\\nbye")
    [(1.0, 2.0, '10'), (3.0, 4.0, 'bye')]
    """
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    is_webvtt = lines[0].startswith("WEBVTT")
    cues: list[tuple[float, float, list[str]]] = []
    shown: list[str] = []  # the lines of the cue that is being read
    for line in lines:
        if times := TIMES.match(line):
            if shown and shown[-1].strip().isdecimal():
                shown.pop()
            shown = []
            cues.append((seconds(*times.groups()[:4]), seconds(*times.groups()[4:]), shown))
        elif not line.strip():
            shown = []
        else:
            shown.append(line)
    return [(start, end, plain(" ".join(words), is_webvtt)) for start, end, words in cues]


def seconds(hours: str | None, minutes: str, whole: str, part: str) -> float:
    """The time that four numbers say; the last one holds the digits after the point.

    >>> seconds(None, "01", "02", "5")
    62.5
    """
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(whole) + float(f"0.{part}")


def plain(words: str, is_webvtt: bool) -> str:
    """A cue's words without markup. In WebVTT &lt; is a sign that the markup left free."""
    words = MARKUP.sub("", words)
    if is_webvtt:
        import html  # which takes a millisecond to import

        words = html.unescape(words)
    return " ".join(words.split())


def read_subtitles(source: media.Readable) -> list[Cue]:
    """The cues of a file in UTF-8, or in UTF-16 with its mark; MediaError where it holds none."""
    data = media.read_bytes(source, limits.PROMPT_BYTES)
    try:
        in_words = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        cues = parse_subtitles(data.decode("utf-16" if in_words else "utf-8-sig"))
    except UnicodeDecodeError:
        cues = []
    if not cues:
        raise MediaError(
            "cannot read the subtitles",
            media.name_of(source),
            "cues of an .srt or WebVTT file in UTF-8",
            "none",
        )
    return cues


def subtitles_at(cues: list[Cue], times: tuple[float, ...]) -> str:
    """What is said at `times`, introduced by a sentence; empty where nothing is said."""
    lines = [words for start, end, words in cues if any(start <= time < end for time in times)]
    return "\n".join(["This video's subtitles are listed below:", *lines]) if lines else ""
