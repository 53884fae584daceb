"""llava-min serve: the options of the server, and its start.

in:  the words after `serve`
out: an exit code, once the server was stopped

Read command/arguments.py first. Read next: serve/run.py.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from .. import use_kernels
from ..base.habits import folder
from ..errors import ParameterError
from . import arguments, report
from .flags import COUNT, DAILY, DETAILS, SWITCH, Flag, How, must_be, number
from .threads import set_threads

LOADING = (
    "--model",
    "--device",
    "--devices",
    "--tensor-parallel",
    "--pipeline-parallel",
    "--offload",
    "--dtype",
    "--int4",
    "--int8",
    "--lora",
    "--kv-dtype",
    "--kernels",
    "--compile",
    "--threads",
    "--context",
    "--config",
    "--quiet",
    "--verbose",
)  # options of the command itself that serve has too


def size(text: str) -> int:
    """Bytes, with K, M or G for powers of 1024.

    >>> size("64M"), size("100")
    (67108864, 100)
    """
    unit = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if unit else text
    if not digits.isdecimal() or not 0 < int(digits) << unit < 1 << 40:
        raise must_be("a size such as 64M", text)
    return int(digits) << unit


def a_folder(text: str) -> Path:
    """The path of a folder that is there."""
    if not os.path.isdir(text):
        raise must_be("a folder", text)
    return Path(text)


def api_key(text: str) -> str:
    """A key, or the first line of the file whose name comes after @."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8").partition("\n")[0].strip()
        except (OSError, ValueError):
            raise must_be("a key or @FILE with one", text) from None
    if not text:
        raise must_be("a key that is not empty", text)
    return text


REPEATED = How(action="append", default=[])
SERVING: tuple[Flag, ...] = (
    (
        "--host",
        "the address to listen at (%(default)s); 0.0.0.0 is all of this machine's",
        How(default="127.0.0.1", metavar="HOST"),
    ),
    ("--port", "the port (%(default)s)", How(type=number(0, 65535), default=8000, metavar="N")),
    (
        "--api-key",
        "what every client must send; @FILE reads it from a file",
        How(type=api_key, metavar="KEY"),
    ),
    (
        "--served-name",
        "what the model is called (default: as it was given to -m)",
        How(metavar="NAME"),
    ),
    ("--slots", "answers at a time (4, or what memory allows)", How(type=COUNT, metavar="N")),
    (
        "--slot-tokens",
        "room of each for a prompt and its answer (default: the context, or what memory allows)",
        How(type=COUNT, metavar="N"),
    ),
    (
        "--queue",
        "requests that may wait for a slot (%(default)s); more are answered 429",
        How(type=number(0, 100_000), default=32, metavar="N"),
    ),
    (
        "--max-body",
        "the longest request (64M), its pictures in base64 included",
        How(type=size, default=64 << 20, metavar="SIZE"),
    ),
    (
        "--media-path",
        "a folder whose files requests may name as file:// URLs (default: none)",
        How(type=a_folder, metavar="FOLDER"),
    ),
    ("--no-fetch", "fetch no URLs; pictures then come as data: URIs only", SWITCH),
    (
        "--allow-host",
        "a host that may be fetched from though its address is not public, with * for any "
        "letters; repeatable",
        How(**REPEATED, metavar="HOST"),
    ),
    (
        "--server-name",
        "another name by which clients call this server, such as that of a proxy; repeatable",
        How(**REPEATED, metavar="NAME"),
    ),
    (
        "--cors-origin",
        "a web page that may ask this server from a browser; repeatable",
        How(**REPEATED, metavar="URL"),
    ),
    (
        "--grace",
        "seconds for which answers go on when the server is stopped (%(default)g)",
        How(type=number(0.0, 3600.0), default=10.0, metavar="S"),
    ),
    ("--log-requests", "write what is asked to the log, pictures and all", SWITCH),
)


def parser() -> argparse.ArgumentParser:
    """The options of serve."""
    script = os.path.basename(sys.argv[0]).startswith("llava-min")
    root = argparse.ArgumentParser(
        prog="llava-min serve" if script else "python -m llava_min serve",
        description="Answer questions over HTTP as OpenAI's clients ask them: base_url "
        "http://127.0.0.1:8000/v1. It needs the extra: pip install 'llava_min[serve]'.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    for flags, text, how in (*SERVING, *(f for f in (*DAILY, *DETAILS) if known(f))):
        root.add_argument(*flags.split(" "), help=text, **how)
    return root


def known(flag: Flag) -> bool:
    """Whether an option of the command itself is one of serve too."""
    return flag[0].split(" ")[-1] in LOADING


def main(given: list[str]) -> int:
    """Serve until a signal comes; the exit code. Raises LlavaMinError."""
    root = parser()
    try:
        found, unknown = root.parse_known_args(given)
    except argparse.ArgumentError as error:
        raise arguments.complaint(error) from None
    if unknown:
        flags = (flags for flags, _, _ in (*SERVING, *filter(known, (*DAILY, *DETAILS))))
        raise arguments.not_understood(unknown[0], " ".join(flags).split(" "))
    if found.bits and len(set(found.bits)) > 1:
        raise ParameterError("--int4 and --int8 cannot be used together.")
    if found.model is not None:
        folder(found.model)
    report.log_to_stderr(found.quiet, found.verbose)
    try:
        from ..serve.guard import Rules
        from ..serve.parts import Borders
        from ..serve.run import Listening, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ParameterError(
            f"serve needs the package {error.name}: pip install 'llava_min[serve]'."
        ) from None
    from ..base.progress import Progress
    from ..engine.load import load

    set_threads(found.threads)
    use_kernels(found.kernels)
    listening = Listening(
        host=found.host,
        port=found.port,
        rules=Rules.of(found.host, tuple(found.server_name), found.api_key, found.max_body),
        borders=Borders(found.media_path, not found.no_fetch, tuple(found.allow_host)),
        origins=tuple(found.cors_origin),
        slots=found.slots,
        tokens=found.slot_tokens,
        waiting=found.queue,
        grace=found.grace,
        log_requests=found.log_requests,
    )
    progress = Progress("loading", found.quiet)
    settings = arguments.loading(found) | arguments.compiling(found)
    work = partial(load, found.model, progress=progress, **settings)
    name = found.served_name or found.model or "llava_min-toy"
    serve(work, name, listening)
    return 0
