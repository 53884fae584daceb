"""The command line: options in, one frozen Settings out.

in:  the words of a command line
out: Settings, or a text to print; LlavaMinError with exit code 2 names a wrong option

No torch here: --help costs milliseconds.
Read options.py first. Read next: command/main.py.
"""

import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ..base.files import regular
from ..errors import ParameterError, PromptError, shown
from ..media.limits import PROMPT_BYTES


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    prompt: str | None
    model: str | None
    images: tuple[str, ...]
    videos: tuple[str, ...]
    options: dict
    load: dict
    kernels: str
    threads: int | None
    output: str
    stream: bool
    show_prompt: bool
    trace: bool
    quiet: bool
    verbose: bool
    chat: bool
    prompt_cache: str | None
    batch: str | None
    answers: str | None
    resume: bool
    batch_size: int
    plan: bool
    memory: float | None


def number(kind, low, high, open_low=False):
    """A converter for numbers between bounds."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # which is in no range
        if not ((low < value if open_low else low <= value) and value <= high):
            article = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"expected {article} {'above' if open_low else 'from'} {low} "
                f"{'up ' if open_low else ''}to {high}, found {text!r}"
            )
        return value

    return convert


def seconds(text: str) -> float:
    """Seconds, M:SS or H:MM:SS, each with a fraction or without.

    >>> seconds("90.5"), seconds("1:02:03")
    (90.5, 3723.0)
    """
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise argparse.ArgumentTypeError(f"expected seconds or H:MM:SS, found {text!r}")
    return sum(float(part) * 60**power for power, part in enumerate(reversed(text.split(":"))))


COUNT = number(int, 1, 2**31 - 1)
DAILY = (
    # flags, what --help says, how argparse takes it
    ("-m --model",
     "folder, alias (onevision-0.5b, onevision-7b, llava-video-7b, next-video-7b, interleave-0.5b, "
     "long-llava-7b, ...) or org/name[@revision] on the Hugging Face hub (default: the embedded "
     "toy, which knows drawn shapes only)",
     dict(metavar="MODEL")),
    ("--image", "a picture: path, http(s)://, file://, data:, or - for stdin; repeatable",
     dict(metavar="SRC", action="append", default=[])),
    ("--video", "a video: path, URL, data:, or a folder of pictures; repeatable",
     dict(metavar="SRC", action="append", default=[])),
    ("--frames", "frames to sample from a video (default: the checkpoint's)",
     dict(type=COUNT, metavar="N")),
    ("--max-tokens", "the longest answer (%(default)s)",
     dict(type=COUNT, default=512, metavar="N")),
    ("--temperature", "0 is greedy (%(default)s)",
     dict(type=number(float, 0, 100), default=0.0, metavar="T")),
    ("--seed", "of the random numbers (%(default)s)",
     dict(type=number(int, 0, 2**63 - 1), default=0, metavar="N")),
    ("--chat", "a conversation: ask again about the same media (/help inside)",
     dict(action="store_true")),
    ("--prompt-cache", "keep the work on the prompt in FILE; where it is there, go on from it",
     dict(metavar="FILE")),
    ("--json", "print one JSON object instead of text", dict(action="store_true")),
    ("--plan", "do not answer: count tokens, bytes and seconds from sizes alone",
     dict(action="store_true")),
    ("--show-prompt", "print the rendered prompt to stderr", dict(action="store_true")),
    ("--trace", "print every stage from pixels to words to stderr", dict(action="store_true")),
    ("-q --quiet", "only the answer and errors", dict(action="store_true")),
    ("-v --verbose", "more on stderr, and tracebacks", dict(action="store_true")),
    ("--version", "print the version and exit", dict(action="store_true")),
    ("--help-all", "every option", dict(action="store_true")),
)  # fmt: skip
DETAILS = (
    ("--fps", "frames to sample from each second of a video, --frames at most",
     dict(type=number(float, 0, 1000, open_low=True), metavar="F")),
    ("--start", "sample a video from here on: seconds or H:MM:SS",
     dict(type=seconds, metavar="T")),
    ("--end", "sample a video up to here", dict(type=seconds, metavar="T")),
    ("--at", "the frames of a video nearest to these times",
     dict(type=lambda text: tuple(map(seconds, text.split(","))), default=(), metavar="T,T,...")),
    ("--subtitles", "an .srt file: what is said at the sampled times is told before the question",
     dict(metavar="FILE")),
    ("--max-tiles", "grids of at most N tiles a picture", dict(type=COUNT, metavar="N")),
    ("--multi-image", "several pictures: auto, pad (one tile each) or anyres",
     dict(choices=("auto", "pad", "anyres"), default="auto")),
    ("--timestamps",
     "tell the times of a video's frames (default: where the checkpoint was trained so)",
     dict(action=argparse.BooleanOptionalAction)),
    ("--system", "a system turn", dict(metavar="TEXT")),
    ("--template",
     "how turns are written: auto, TEMPLATES",
     dict(default="auto", metavar="NAME")),
    ("--raw", "the prompt is complete: its special tokens are parsed, no template is applied",
     dict(action="store_true")),
    ("--prefill", "the beginning of the answer", dict(metavar="TEXT", default="")),
    ("--top-p", "the smallest set of tokens with this much probability",
     dict(type=number(float, 0, 1, open_low=True), default=1.0, metavar="P")),
    ("--top-k", "the K most likely tokens; 0 is all",
     dict(type=number(int, 0, 2**31 - 1), default=0, metavar="K")),
    ("--min-p", "tokens at least this probable, relative to the best",
     dict(type=number(float, 0, 1), default=0.0, metavar="P")),
    ("--repetition-penalty", "above 1 discourages tokens that have occurred",
     dict(type=number(float, 0.01, 100), default=1.0, metavar="R")),
    ("--stop", "end the answer before this text; repeatable",
     dict(action="append", default=[], metavar="TEXT")),
    ("--ignore-eos", "do not stop at the end token", dict(action="store_true")),
    ("--device", "auto, cpu, cuda, mps (mps: untested)",
     dict(choices=("auto", "cpu", "cuda", "mps"), default="auto")),
    ("--dtype", "auto, bfloat16, float16, float32",
     dict(choices=("auto", "bfloat16", "float16", "float32"), default="auto")),
    ("--int4", "quantise the decoder to four bits while loading",
     dict(action="store_const", const=4, dest="bits")),
    ("--int8", "quantise it to eight bits", dict(action="store_const", const=8, dest="bits")),
    ("--kv-dtype", "of the cache: auto (as the weights), int8, fp8",
     dict(choices=("auto", "int8", "fp8"), default="auto")),
    ("--kernels", "auto, reference, triton",
     dict(choices=("auto", "reference", "triton"), default="auto")),
    ("--threads", "threads on a CPU", dict(type=number(int, 1, 1024), metavar="N")),
    ("--context", "the longest sequence, instead of the checkpoint's",
     dict(type=COUNT, metavar="N")),
    ("--config", "override a key of config.json; repeatable",
     dict(action="append", default=[], metavar="KEY=VALUE")),
    ("--memory", "GB that --plan should fit into (default: what is free)",
     dict(type=number(float, 0, 1e6, open_low=True), metavar="GB")),
    ("--jsonl", "print one JSON object a line: the events, then the answer",
     dict(action="store_true")),
    ("--no-stream", "print the answer at once", dict(action="store_true")),
    ("--batch", "answer each line of a file: JSON with question or messages, images, videos, id, "
     "and options of its own such as max_tokens; paths are relative to the working directory",
     dict(metavar="IN.JSONL")),
    ("-o --output", "where the answers of --batch go, an object a line, in the same order",
     dict(metavar="OUT.JSONL")),
    ("--resume", "go on with an output file: only lines without an answer are asked",
     dict(action="store_true")),
    ("--batch-size", "lines that are answered together (%(default)s)",
     dict(type=COUNT, default=4, metavar="N")),
)  # fmt: skip


def parser(everything: bool) -> argparse.ArgumentParser:
    """The options; with `everything` false, --help shows the daily ones only."""
    root = argparse.ArgumentParser(
        prog="python -m llava_min.generate",
        description="Ask about pictures and videos. With no arguments, a question about the "
        "embedded picture.",
        epilog="Other commands, as the first word: check (against transformers), inspect and "
        "quantize (a checkpoint)." + ("" if everything else " --help-all shows every option."),
        allow_abbrev=False,
    )
    root.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the question; @FILE reads it from a file, - from stdin. <image> and <video> in it "
        "place "
        "the visuals, otherwise they come first in the order given",
    )
    for flags, text, settings in DAILY:
        root.add_argument(*flags.split(" "), help=text, **settings)
    for flags, text, settings in DETAILS:
        shown = text if everything else argparse.SUPPRESS
        if everything and "TEMPLATES" in text:  # not for --help, which is to be quick
            from ..families.templates import TEMPLATES

            shown = text.replace("TEMPLATES", ", ".join(TEMPLATES))
        root.add_argument(*flags.split(" "), help=shown, **settings)
    return root


def parse(arguments: list[str]) -> Settings | str:
    """Settings, or a text to print (--version, --help-all)."""
    root = parser(everything="--help-all" in arguments)
    root.error = refuse
    given = root.parse_args(arguments)
    if given.version:
        from .. import __version__

        return f"llava_min {__version__}"
    if given.help_all:
        return root.format_help().rstrip()
    if given.image.count("-") + given.video.count("-") + (given.prompt == "-") > 1:
        raise ParameterError("cannot read stdin", "-", "at most one use of it", "several")
    if given.json and given.jsonl:
        raise ParameterError("cannot print", "--json", "one form of output", "--jsonl too")
    check_batch(given)
    names = (
        "frames",
        "fps",
        "start",
        "end",
        "at",
        "subtitles",
        "max_tiles",
        "multi_image",
        "system",
        "template",
        "raw",
        "prefill",
        "timestamps",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop",
        "seed",
        "ignore_eos",
    )
    overrides = dict(map(override, given.config))
    return Settings(
        prompt=read_prompt(given.prompt), model=given.model, images=tuple(given.image),
        videos=tuple(given.video), options={name: getattr(given, name) for name in names},
        load={"device": given.device, "dtype": given.dtype, "kv_dtype": given.kv_dtype,
              "context": given.context, "bits": given.bits, "config": overrides},
        kernels=given.kernels, threads=given.threads,
        output="json" if given.json else "jsonl" if given.jsonl else "text",
        stream=not given.no_stream, show_prompt=given.show_prompt, trace=given.trace,
        quiet=given.quiet, verbose=given.verbose, chat=given.chat, prompt_cache=given.prompt_cache,
        batch=given.batch, answers=given.output, resume=given.resume, batch_size=given.batch_size,
        plan=given.plan, memory=given.memory
    )  # fmt: skip


def check_batch(given: argparse.Namespace) -> None:
    """--batch needs a place for its answers, and takes its questions from its own file alone."""
    if given.batch and not given.output:
        raise ParameterError("cannot answer a batch", "--batch", "-o OUT.JSONL beside it", "none")
    if not given.batch and (given.output or given.resume):
        raise ParameterError("cannot go on", "-o, --resume", "--batch IN.JSONL beside them", "none")
    beside = ("prompt", "image", "video", "json", "jsonl", "show_prompt", "trace", "no_stream",
              "chat", "prompt_cache")  # fmt: skip
    for name in beside if given.batch else ():
        if getattr(given, name):
            option = "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")
            raise ParameterError("cannot answer a batch", option, "it not beside --batch", "it")


def refuse(message: str) -> None:
    message = message if len(message) <= 400 else message[:397] + "..."
    raise ParameterError("cannot understand the command", "arguments", "what --help shows", message)


def override(text: str) -> tuple[str, object]:
    """KEY=VALUE as (key, value): the value as JSON where it is JSON, otherwise as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ParameterError("cannot override", "--config", "KEY=VALUE", repr(text))
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def read_prompt(text: str | None) -> str | None:
    """The prompt as text: from the argument, @file or stdin.

    PromptError where it is empty, too long or not UTF-8.
    """
    if text is None:
        return None
    name = "prompt"
    if text == "-":
        name, data = "stdin", sys.stdin.buffer.read(PROMPT_BYTES + 1)
    elif text.startswith("@"):
        name = text[1:]
        if not regular(Path(name)):
            raise PromptError("cannot read the prompt", shown(name), "a file", "none")
        try:
            with open(name, "rb") as file:
                data = file.read(PROMPT_BYTES + 1)
        except OSError as error:
            found = error.strerror
            raise PromptError("cannot read the prompt", shown(name), "a file", found) from None
    else:
        data = text.encode("utf-8", "surrogateescape")
    if len(data) > PROMPT_BYTES:
        raise PromptError("cannot read the prompt", name, f"at most {PROMPT_BYTES} bytes", "more")
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            "cannot read the prompt",
            name,
            "UTF-8",
            f"the byte 0x{data[error.start]:02x} at {error.start}",
        ) from None
    if not decoded.strip():
        raise PromptError("cannot ask", name, "a question", "an empty text")
    return decoded.rstrip("\n") if name != "prompt" else decoded
