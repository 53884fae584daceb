"""The command line: options in, one frozen Settings out.

in:  the words of a command line
out: Settings, or a text to print; LlavaMinError with exit code 2 names a wrong option

No torch here: --help costs milliseconds.
Read command/habits.py first. Read next: command/main.py.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from ..base.files import regular
from ..errors import ParameterError, PromptError, no_such_option, shown, wrong_value
from ..media.limits import PROMPT_BYTES
from . import habits
from .flags import BATCH_SIZE, DAILY, DETAILS

NOT_TOGETHER = {
    # an option -> those that cannot act next to it
    "json": ("jsonl",),
    "plan": ("chat", "batch", "prompt_cache", "show_prompt", "trace", "explain", "compile"),
    "explain": ("chat", "batch"),
    # what looks at every layer, or keeps them, needs all of them in one place
    "devices": ("prompt_cache", "explain", "trace", "lora"),
    "tensor_parallel": ("prompt_cache", "explain", "trace", "lora", "devices", "offload"),
    "pipeline_parallel": ("prompt_cache", "explain", "trace", "lora", "devices", "offload"),
    "offload": ("prompt_cache", "lora", "devices"),
    "batch": (
        "prompt",
        "image",
        "video",
        "json",
        "jsonl",
        "show_prompt",
        "trace",
        "no_stream",
        "chat",
        "prompt_cache",
        "lookup",
    ),
}
NEEDED = {
    # an option -> what it needs, as options one of which is given, and as words
    "output": (("batch",), "--batch IN.JSONL, the file of questions"),
    "resume": (("batch",), "--batch IN.JSONL, the file of questions"),
    "batch_size": (("batch",), "--batch IN.JSONL, the file of questions"),
    "occlusion": (("explain", "chat"), "--explain FILE.html, which shows it"),
    "memory": (("plan",), "--plan, which compares with it"),
} | dict.fromkeys(
    ("frames", "fps", "start", "end", "at", "subtitles", "timestamps"),
    (("video", "chat", "batch"), "--video SRC"),
)
ENDINGS = {
    # what argparse complains of -> how the sentence that begins with the option ends
    "expected one argument": "needs a value",
    "ignored explicit argument": "takes no value",
}


TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    prompt: str | None
    model: str | None
    images: tuple[str, ...]
    videos: tuple[str, ...]
    options: "dict[str, Any]"  # arguments of Options
    load: "dict[str, Any]"  # arguments of load()
    kernels: str
    threads: int | None
    output: str  # "text", "json" or "jsonl"
    stream: bool
    show_prompt: bool
    trace: bool
    quiet: bool
    verbose: bool
    chat: bool
    prompt_cache: str | None
    explain: str | None
    occlusion: bool
    batch: str | None  # the file of questions
    answers: str | None  # the file of answers to them
    resume: bool
    batch_size: int
    plan: bool
    memory: float | None  # GB
    notices: tuple[str, ...]  # about what was given, for stderr


def parser(everything: bool) -> argparse.ArgumentParser:
    """The options; with `everything` false, --help shows the daily ones only."""
    script = os.path.basename(sys.argv[0]).startswith("llava-min")
    root = argparse.ArgumentParser(
        prog="llava-min" if script else "python -m llava_min",
        description="Ask about pictures and videos. With no arguments, a question about the "
        "embedded picture.",
        epilog="Other commands, as the first word: serve (over HTTP), check (against "
        "transformers), verify (against what is published), inspect and quantize (a checkpoint), "
        "completion (in a shell)." + ("" if everything else " --help-all shows every option."),
        allow_abbrev=False,
        exit_on_error=False,
    )
    root.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the question; @FILE reads it from a file, - from stdin. <image> and <video> in it "
        "place the visuals, otherwise they come first in the order given",
    )
    for flags, text, how in DAILY:
        root.add_argument(*flags.split(" "), help=text, **how)
    for flags, text, how in DETAILS:
        shown = text if everything else argparse.SUPPRESS
        if everything and "TEMPLATES" in text:  # not for --help, which is to be quick
            from ..families.templates import TEMPLATES

            shown = text.replace("TEMPLATES", ", ".join(TEMPLATES))
        root.add_argument(*flags.split(" "), help=shown, **how)
    return root


def parse(arguments: list[str]) -> Settings | str:
    """Settings, or a text to print (--version, --help-all); ParameterError names a wrong option."""
    words = habits.Words(arguments)
    root = parser(everything="--help-all" in words.options)
    try:
        given, unknown = root.parse_known_args(words.options)
    except argparse.ArgumentError as error:
        raise complaint(error) from None
    if unknown:
        raise not_understood(unknown[0])
    if given.version:
        from .version import version

        return version(everything=given.verbose)
    if given.help_all:
        return root.format_help().rstrip()
    if len(words.prompts) > 1:
        raise second_prompt(words.prompts[1])
    given.prompt = next(iter(words.prompts), None)
    check_together(given)
    settings = settings_of(given)
    check_needs(given)
    return settings


def settings_of(given: argparse.Namespace) -> Settings:
    """The Settings of a command line; the prompt is read where it is in a file.

    ParameterError where options of the answer do not go together, before anything is loaded.
    """
    from ..options import Options  # which --help does without

    options = {field.name: getattr(given, field.name) for field in fields(Options)}
    Options.of(**options)
    return Settings(
        prompt=read_prompt(given.prompt),
        model=given.model,
        images=tuple(given.image),
        videos=tuple(given.video),
        options=options,
        load=loading(given) | ({} if given.plan else compiling(given)),
        kernels=given.kernels,
        threads=given.threads,
        output="json" if given.json else "jsonl" if given.jsonl else "text",
        stream=not given.no_stream,
        show_prompt=given.show_prompt,
        trace=given.trace,
        quiet=given.quiet,
        verbose=given.verbose,
        chat=given.chat,
        prompt_cache=given.prompt_cache,
        explain=given.explain,
        occlusion=given.occlusion,
        batch=given.batch,
        answers=given.output,
        resume=given.resume,
        batch_size=given.batch_size or BATCH_SIZE,
        plan=given.plan,
        memory=given.memory,
        notices=tuple(habits.notices(given.prompt, [*given.image, *given.video])),
    )


def loading(given: argparse.Namespace) -> "dict[str, Any]":
    """The arguments of load() but the folder."""
    return {
        "device": given.device,
        "dtype": given.dtype,
        "kv_dtype": given.kv_dtype,
        "context": given.context,
        "bits": given.bits[0] if given.bits else None,
        "config": dict(map(override, given.config)),
    } | several(given)


def several(given: argparse.Namespace) -> "dict[str, Any]":
    """Those of the arguments of load() that are not at their defaults, and are rarely given."""
    rare = {
        "adapter": given.lora,
        "devices": given.devices,
        "tensor_parallel": given.tensor_parallel,
        "pipeline_parallel": given.pipeline_parallel,
        "offload": given.offload,
    }
    return {
        name: value
        for name, value in rare.items()
        if asked(given, "lora" if name == "adapter" else name)
    }


def compiling(given: argparse.Namespace) -> "dict[str, Any]":
    """The argument of load() about the compiled step, where it is given."""
    return {} if given.compile is None else {"compile": given.compile}


def complaint(error: argparse.ArgumentError) -> ParameterError:
    """What argparse complains of, as a sentence that begins with the option's long name."""
    name = str(error.argument_name).split("/")[-1]
    endings = (ours for theirs, ours in ENDINGS.items() if error.message.startswith(theirs))
    return ParameterError(f"{name} {next(endings, error.message)}.")


def not_understood(word: str, known: "Sequence[str] | None" = None) -> ParameterError:
    """The error for a word of the command line that begins as an option does, and is none.

    known: the options that there are, if not those of the command itself.
    """
    own = [flag for flags, _, _ in (*DAILY, *DETAILS) for flag in flags.split(" ")]
    return no_such_option(word.partition("=")[0], known or own)


def second_prompt(word: str) -> ParameterError:
    """The error for a word after the prompt that is no option's value."""
    if os.path.exists(word):
        hint = "--image or --video comes before each file."
    else:
        hint = "put it all in quotes."
    return ParameterError(
        f"There can be only one PROMPT, and {shown(word)} is a second one: {hint}"
    )


def check_together(given: argparse.Namespace) -> None:
    """ParameterError where two options do not go together."""
    if given.image.count("-") + given.video.count("-") + (given.prompt == "-") > 1:
        raise ParameterError("Only one of PROMPT, --image and --video can be -, which reads stdin.")
    if given.bits and len(set(given.bits)) > 1:
        raise ParameterError("--int4 and --int8 cannot be used together.")
    for name, others in NOT_TOGETHER.items():
        for other in others if asked(given, name) else ():
            if asked(given, other):
                raise ParameterError(f"{option(name)} and {option(other)} cannot be used together.")
    if given.batch and not given.output:
        raise ParameterError("--batch needs -o OUT.JSONL, the file for its answers.")
    if given.resume and given.output == "-":
        raise ParameterError("--resume needs an --output file with a name, not -.")


def check_needs(given: argparse.Namespace) -> None:
    """ParameterError where an option needs another to act."""
    for name, (others, words) in NEEDED.items():
        if getattr(given, name) and not any(getattr(given, other) for other in others):
            raise ParameterError(f"{option(name)} needs {words}.")


def asked(given: argparse.Namespace, name: str) -> bool:
    """Whether an option asks for something; one process or one device is nothing."""
    value = getattr(given, name)
    return bool(value) and (value is True or value != 1)


def option(name: str) -> str:
    """An option as it is written."""
    return "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")


def override(text: str) -> tuple[str, object]:
    """KEY=VALUE as (key, value): the value as JSON where it is JSON, otherwise as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise wrong_value("--config", "KEY=VALUE", text)
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def read_prompt(text: str | None) -> str | None:
    """The prompt as text: from the argument, @file or stdin.

    In a file, a byte order mark is no text, and CR LF is a line break. PromptError where the
    prompt is empty, too long or not UTF-8.
    """
    if text is None:
        return None
    name, in_file = "prompt", text == "-" or text.startswith("@")
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
        found = f"the byte 0x{data[error.start]:02x} at {error.start}"
        raise PromptError("cannot read the prompt", name, "UTF-8", found) from None
    if in_file:
        decoded = decoded.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n")
    if not decoded.strip():
        raise PromptError("cannot ask", name, "a question", "an empty text")
    return decoded
