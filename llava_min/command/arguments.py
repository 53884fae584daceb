"""The command line: options in, one frozen Settings out.

in:  the words of a command line
out: Settings, or a text to print; LlavaMinError with exit code 2 names a wrong option

No torch here: --help costs milliseconds.
Read command/flags.py first. Read next: command/main.py.
"""

import argparse
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from ..base.files import regular
from ..errors import ParameterError, PromptError, no_such_option, shown, wrong_value
from ..media.limits import PROMPT_BYTES
from .flags import DAILY, DETAILS

NOT_IN_A_BATCH = (
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
)
ENDINGS = {
    # what argparse complains of -> how the sentence that begins with the option ends
    "expected one argument": "needs a value",
    "ignored explicit argument": "takes no value",
}


TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
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


def parser(everything: bool) -> argparse.ArgumentParser:
    """The options; with `everything` false, --help shows the daily ones only."""
    root = argparse.ArgumentParser(
        prog="python -m llava_min.generate",
        description="Ask about pictures and videos. With no arguments, a question about the "
        "embedded picture.",
        epilog="Other commands, as the first word: check (against transformers), inspect and "
        "quantize (a checkpoint)." + ("" if everything else " --help-all shows every option."),
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
    root = parser(everything="--help-all" in arguments)
    try:
        given, unknown = root.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise complaint(error) from None
    if unknown:
        raise not_understood(unknown[0])
    if given.version:
        from .. import __version__

        return f"llava_min {__version__}"
    if given.help_all:
        return root.format_help().rstrip()
    check_together(given)
    return settings_of(given)


def settings_of(given: argparse.Namespace) -> Settings:
    """The Settings of a command line without an error; the prompt is read where it is in a file."""
    from ..options import Options  # which --help does without

    return Settings(
        prompt=read_prompt(given.prompt),
        model=given.model,
        images=tuple(given.image),
        videos=tuple(given.video),
        options={field.name: getattr(given, field.name) for field in fields(Options)},
        load={
            "device": given.device,
            "dtype": given.dtype,
            "kv_dtype": given.kv_dtype,
            "context": given.context,
            "bits": given.bits,
            "config": dict(map(override, given.config)),
        },
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
        batch=given.batch,
        answers=given.output,
        resume=given.resume,
        batch_size=given.batch_size,
        plan=given.plan,
        memory=given.memory,
    )


def complaint(error: argparse.ArgumentError) -> ParameterError:
    """What argparse complains of, as a sentence that begins with the option's long name."""
    name = str(error.argument_name).split("/")[-1]
    endings = (ours for theirs, ours in ENDINGS.items() if error.message.startswith(theirs))
    return ParameterError(f"{name} {next(endings, error.message)}.")


def not_understood(word: str) -> ParameterError:
    """The error for a word of the command line that is no option and no prompt."""
    if word.startswith("-") and word != "-":
        known = [flag for flags, _, _ in (*DAILY, *DETAILS) for flag in flags.split(" ")]
        return no_such_option(word.partition("=")[0], known)
    return ParameterError(
        f"There can be only one PROMPT, and {shown(word)} is a second one: put it all in quotes."
    )


def check_together(given: argparse.Namespace) -> None:
    """ParameterError where two options do not go together, or one needs another."""
    if given.image.count("-") + given.video.count("-") + (given.prompt == "-") > 1:
        raise ParameterError("Only one of PROMPT, --image and --video can be -, which reads stdin.")
    if given.json and given.jsonl:
        raise ParameterError("--json and --jsonl cannot be used together.")
    if given.batch and not given.output:
        raise ParameterError("--batch needs -o OUT.JSONL, the file for its answers.")
    for name in ("output", "resume"):
        if getattr(given, name) and not given.batch:
            raise ParameterError(f"--{name} needs --batch IN.JSONL, the file of questions.")
    for name in NOT_IN_A_BATCH if given.batch else ():
        if getattr(given, name):
            option = "PROMPT" if name == "prompt" else "--" + name.replace("_", "-")
            raise ParameterError(f"--batch and {option} cannot be used together.")


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
        found = f"the byte 0x{data[error.start]:02x} at {error.start}"
        raise PromptError("cannot read the prompt", name, "UTF-8", found) from None
    if not decoded.strip():
        raise PromptError("cannot ask", name, "a question", "an empty text")
    return decoded.rstrip("\n") if name != "prompt" else decoded
