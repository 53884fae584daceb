"""Every option of the command line: its flags, what --help says of it, how it is read.

in:  nothing; command/arguments.py gives these to argparse
out: DAILY and DETAILS

No torch here: --help costs milliseconds. What a value must be is said as the end of a sentence that
begins with the option: "--top-p must be a number above 0 and at most 1, not '2'."
Read options.py first. Read next: command/habits.py.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from ..base.habits import SHORT
from ..errors import shown
from ..options import MOST_DRAFTED

Action = str | type[argparse.Action]


TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from typing import TypedDict

    class How(TypedDict, total=False):
        """How argparse takes an option: arguments of add_argument."""

        action: Action
        type: Callable[[str], object]
        const: object
        default: object
        dest: str
        metavar: str
        nargs: str
else:
    How = dict


Flag = tuple[str, str, How]  # flags, what --help says, how the option is taken


def must_be(expected: str, text: str) -> argparse.ArgumentTypeError:
    """The error for a value that an option cannot have."""
    return argparse.ArgumentTypeError(f"must be {expected}, not {shown(text)}")


def number(low: float, high: float, open_low: bool = False) -> Callable[[str], float]:
    """A converter for numbers between bounds, whole ones where `low` is; open_low: above it.

    >>> number(1, 8)("2"), number(0.0, 1.0)("1")
    (2, 1.0)
    """
    whole = isinstance(low, int)
    noun = "a whole number" if whole else "a number"
    least, most = (low, high) if whole else (f"{low:g}", f"{high:g}")
    expected = f"{noun} above {least} and at most {most}"
    if not open_low:
        expected = f"{noun} from {least} to {most}"

    def convert(text: str) -> float:
        value = math.nan  # which is in no range
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            pass
        if not ((low < value if open_low else low <= value) and value <= high):
            raise must_be(expected, text)
        return value

    return convert


def choice(*names: str) -> How:
    """How argparse takes one of a few names, of which the first is the default.

    Other libraries' short names for them are taken too.
    """

    def convert(text: str) -> str:
        text = SHORT.get(text, text)
        if text not in names:
            raise must_be(f"{', '.join(names[:-1])} or {names[-1]}", text)
        return text

    return How(type=convert, default=names[0], metavar=f"{{{','.join(names)}}}")


def names(flags: str, how: How) -> list[str]:
    """Every name of an option: one that may be true or false has a second one.

    >>> names("--compile", How(action=argparse.BooleanOptionalAction))
    ['--compile', '--no-compile']
    """
    found = flags.split(" ")
    if how.get("action") is argparse.BooleanOptionalAction:
        found += [f"--no-{name.removeprefix('--')}" for name in found]
    return found


def threads(text: str) -> int | None:
    """A number of threads; None for auto."""
    return None if text == "auto" else int(number(1, 1024)(text))


def takes_a_value(how: How) -> bool:
    """Whether the word after an option is its value, whatever it is."""
    return how.get("action", "append") == "append" and "nargs" not in how


def seconds(text: str) -> float:
    """Seconds, M:SS or H:MM:SS, each with a fraction or without.

    >>> seconds("90.5"), seconds("1:02:03")
    (90.5, 3723.0)
    """
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise must_be("seconds or H:MM:SS", text)
    return sum(float(part) * 60**power for power, part in enumerate(reversed(text.split(":"))))


def times(text: str) -> tuple[float, ...]:
    """Times with commas between them."""
    return tuple(map(seconds, text.split(",")))


def text_or_file(text: str) -> str:
    """A text, or that of the file whose name comes after @."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, ValueError):
        raise must_be("a text or @FILE with a file of text", text) from None


def alternatives(text: str) -> tuple[str, ...]:
    """Texts with | between them.

    >>> alternatives("yes|no")
    ('yes', 'no')
    """
    if not all(found := tuple(text.split("|"))):
        raise must_be("texts with | between them", text)
    return found


def devices(text: str) -> tuple[str, ...]:
    """Devices with commas between them."""
    return tuple(text.split(","))


def explanation(text: str) -> str:
    """The name of a file that an explanation can be written to."""
    if not text.endswith((".html", ".safetensors")):
        raise must_be("a file that ends in .html or .safetensors", text)
    return text


BATCH_SIZE = 4
SWITCH = How(action="store_true")
COUNT = number(1, 2**31 - 1)
DAILY: tuple[Flag, ...] = (
    # flags, what --help says, how argparse takes it
    (
        "-m --model",
        "folder, alias (onevision-0.5b, onevision-7b, llava-video-7b, next-video-7b, "
        "interleave-0.5b, long-llava-7b, ...) or org/name[@revision] on the Hugging Face hub "
        "(default: the embedded toy, which knows drawn shapes only)",
        How(metavar="MODEL"),
    ),
    (
        "--image",
        "a picture: path, http(s)://, file://, data:, or - for stdin; repeatable, "
        "and more paths may come after it",
        How(metavar="SRC", action="append", default=[]),
    ),
    (
        "--video",
        "a video: path, URL, data:, or a folder of pictures; repeatable",
        How(metavar="SRC", action="append", default=[]),
    ),
    (
        "--frames",
        "frames to sample from a video (default: the checkpoint's)",
        How(type=COUNT, metavar="N"),
    ),
    (
        "--max-tokens",
        "the longest answer (%(default)s)",
        How(type=COUNT, default=512, metavar="N"),
    ),
    (
        "--temperature",
        "0 is greedy (%(default)s)",
        How(type=number(0.0, 100.0), default=0.0, metavar="T"),
    ),
    (
        "--seed",
        "of the random numbers (%(default)s)",
        How(type=number(0, 2**63 - 1), default=0, metavar="N"),
    ),
    ("--chat", "a conversation: ask again about the same media (/help inside)", SWITCH),
    (
        "--prompt-cache",
        "keep the work on the prompt in FILE; where it is there, go on from it",
        How(metavar="FILE"),
    ),
    (
        "--explain",
        "write a page that shows what each word of the answer looked at (or all numbers, as "
        ".safetensors)",
        How(type=explanation, metavar="FILE.html"),
    ),
    ("--json", "print one JSON object instead of text", SWITCH),
    ("--plan", "do not answer: count tokens, bytes and seconds from sizes alone", SWITCH),
    ("--show-prompt", "print the rendered prompt to stderr", SWITCH),
    ("--trace", "print every stage from pixels to words, as it is first passed, to stderr", SWITCH),
    ("-q --quiet", "only the answer and errors", SWITCH),
    ("-v --verbose", "more on stderr, and tracebacks", SWITCH),
    ("--version", "print the version and exit; with -v, that of everything it uses", SWITCH),
    ("--help-all", "every option", SWITCH),
)
DETAILS: tuple[Flag, ...] = (
    (
        "--fps",
        "frames to sample from each second of a video, --frames at most",
        How(type=number(0.0, 1000.0, open_low=True), metavar="F"),
    ),
    ("--start", "sample a video from here on: seconds or H:MM:SS", How(type=seconds, metavar="T")),
    ("--end", "sample a video up to here", How(type=seconds, metavar="T")),
    (
        "--at",
        "the frames of a video nearest to these times",
        How(type=times, default=(), metavar="T,T,..."),
    ),
    (
        "--subtitles",
        "an .srt file: what is said at the sampled times is told before the question",
        How(metavar="FILE"),
    ),
    ("--max-tiles", "grids of at most N tiles a picture", How(type=COUNT, metavar="N")),
    (
        "--multi-image",
        "several pictures: auto, pad (one tile each) or anyres",
        choice("auto", "pad", "anyres"),
    ),
    (
        "--timestamps",
        "tell the times of a video's frames (default: where the checkpoint was trained so)",
        How(action=argparse.BooleanOptionalAction),
    ),
    ("--system", "a system turn", How(metavar="TEXT")),
    ("--template", "how turns are written: auto, TEMPLATES", How(default="auto", metavar="NAME")),
    (
        "--raw",
        "the prompt is complete: its special tokens are parsed, no template is applied",
        SWITCH,
    ),
    ("--prefill", "the beginning of the answer", How(metavar="TEXT", default="")),
    (
        "--top-p",
        "the smallest set of tokens with this much probability",
        How(type=number(0.0, 1.0, open_low=True), default=1.0, metavar="P"),
    ),
    (
        "--top-k",
        "the K most likely tokens; 0 is all",
        How(type=number(0, 2**31 - 1), default=0, metavar="K"),
    ),
    (
        "--min-p",
        "tokens at least this probable, relative to the best",
        How(type=number(0.0, 1.0), default=0.0, metavar="P"),
    ),
    (
        "--repetition-penalty",
        "above 1 discourages tokens that have occurred",
        How(type=number(0.01, 100.0), default=1.0, metavar="R"),
    ),
    (
        "--stop",
        "end the answer before this text; repeatable",
        How(action="append", default=[], metavar="TEXT"),
    ),
    ("--ignore-eos", "do not stop at the end token", SWITCH),
    (
        "--json-schema",
        "the answer is JSON of this schema, which is JSON itself or @FILE (extra: grammar)",
        How(type=text_or_file, metavar="JSON"),
    ),
    (
        "--choices",
        "the answer is one of these texts, with | between them (extra: grammar)",
        How(type=alternatives, default=(), metavar="A|B|..."),
    ),
    (
        "--regex",
        "the answer matches this regular expression (extra: grammar)",
        How(metavar="REGEX"),
    ),
    (
        "--lookup",
        f"draft up to N tokens ({MOST_DRAFTED}) from what came after the same words before, and "
        "verify them in one step: faster where an answer repeats its prompt or itself",
        How(
            nargs="?",
            type=number(1, MOST_DRAFTED),
            const=MOST_DRAFTED,
            default=0,
            metavar="N",
        ),
    ),
    (
        "--device",
        "auto, cpu, cuda, mps, xpu (mps, xpu: untested)",
        choice("auto", "cpu", "cuda", "mps", "xpu"),
    ),
    (
        "--devices",
        "share the layers among several: cuda:0,cuda:1,... or cpu,cpu",
        How(type=devices, default=(), metavar="D,D,..."),
    ),
    (
        "-tp --tensor-parallel",
        "share each layer among N processes, which makes tokens faster (docs/scale.md)",
        How(type=COUNT, default=1, metavar="N"),
    ),
    (
        "-pp --pipeline-parallel",
        "share the layers among N processes, which makes long prompts and clips faster",
        How(type=COUNT, default=1, metavar="N"),
    ),
    (
        "--offload",
        "keep layers that do not fit on the GPU in the host's memory, and stream them",
        SWITCH,
    ),
    (
        "--dtype",
        "auto, bfloat16, float16, float32, float64",
        choice("auto", "bfloat16", "float16", "float32", "float64"),
    ),
    (
        "--int4",
        "quantise the decoder to four bits while loading",
        How(action="append_const", const=4, dest="bits"),
    ),
    (
        "--int8",
        "quantise decoder, vision tower and projector to eight bits while loading",
        How(action="append_const", const=8, dest="bits"),
    ),
    (
        "--lora",
        "a folder with a LoRA adapter as PEFT writes it, merged into the weights",
        How(metavar="FOLDER"),
    ),
    ("--kv-dtype", "of the cache: auto (as the weights), int8, fp8", choice("auto", "int8", "fp8")),
    (
        "--kernels",
        "auto, reference (plain torch, as on any device), triton",
        choice("auto", "reference", "triton"),
    ),
    (
        "--compile",
        "on a CPU: compile the decode step, once for a model's shape and format, which takes a "
        "minute and a C++ compiler; later runs use it unasked",
        How(action=argparse.BooleanOptionalAction),
    ),
    (
        "--threads",
        "threads on a CPU (auto: a thread for each core that this process may use)",
        How(type=threads, metavar="N"),
    ),
    (
        "--context",
        "the longest sequence, instead of the checkpoint's",
        How(type=COUNT, metavar="N"),
    ),
    (
        "--config",
        "override a key of config.json; repeatable",
        How(action="append", default=[], metavar="KEY=VALUE"),
    ),
    (
        "--memory",
        "GB that --plan should fit into (default: what is free)",
        How(type=number(0.0, 1e6, open_low=True), metavar="GB"),
    ),
    (
        "--occlusion",
        "with --explain: also cover parts of each picture and clip and score the answer again, "
        "which reads the prompt 51 times for a picture and up to 101 times for a clip",
        SWITCH,
    ),
    ("--jsonl", "print one JSON object a line: the events, then the answer", SWITCH),
    ("--no-stream", "print the answer at once", SWITCH),
    (
        "--batch",
        "answer each line of a file, or of stdin for -: JSON with question or messages, images, "
        "videos, id, and options of its own such as max_tokens; paths are relative to the working "
        "directory",
        How(metavar="IN.JSONL"),
    ),
    (
        "-o --output",
        "where the answers of --batch go, an object a line, in the same order; - is stdout",
        How(metavar="OUT.JSONL"),
    ),
    ("--resume", "go on with an output file: only lines without an answer are asked", SWITCH),
    (
        "--batch-size",
        f"lines that are answered together ({BATCH_SIZE})",
        How(type=COUNT, metavar="N"),
    ),
)
