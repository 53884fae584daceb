"""The command: python -m llava_min, python -m llava_min.generate, or the script llava-min.

in:  the words of a command line
out: an answer on stdout, an exit code (errors.py)

Read command/arguments.py first. Read next: command/report.py.
"""

import atexit
import contextlib
import errno
import io
import json
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from pathlib import Path

from .. import use_kernels
from ..base.habits import folder
from ..errors import LlavaMinError, OutputError
from . import arguments, batch_file, report
from .threads import set_threads

TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from ..engine.handle import Model
    from .report import Reporter

log = logging.getLogger("llava_min")
TOOLS = ("serve", "check", "verify", "inspect", "quantize", "completion")  # no question begins so


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says how it ended (errors.py)."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = any(re.fullmatch(r"-q*v[qv]*|--verbose", word) for word in argv)
    try:
        open_streams()
        if argv and argv[0] in TOOLS:
            code = tool(argv)
        elif isinstance(settings := arguments.parse(argv), str):
            print(settings)
            code = 0
        else:
            code = answer_or_error(settings)
        sys.stdout.flush()  # while it can still be said that there is no room
        return code
    except LlavaMinError as error:
        above = traceback.format_exc() if verbose else ""
        return exit_with(f"error: {error}", error.exit_code, above)
    except KeyboardInterrupt:
        return exit_with("interrupted", 130, "\n" if sys.stderr.isatty() else "")
    except BrokenPipeError:
        return discard(sys.stdout, 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        full = OutputError("cannot write the answer", "stdout", "room", os.strerror(error.errno))
        return discard(sys.stdout, exit_with(f"error: {full}", full.exit_code))


def open_streams() -> None:
    """Standard streams for any text: closed ones lead nowhere.

    A character that the terminal lacks is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def exit_with(line: str, code: int, above: str = "") -> int:
    """The exit code, after a line on stderr, which may be full or closed too."""
    try:
        print(f"{above}llava_min: {line}", file=sys.stderr, flush=True)
    except OSError:
        return discard(sys.stderr, code)
    return code


def discard(stream: "TextIO", code: int) -> int:
    """The exit code; what `stream` still holds is discarded.

    Otherwise Python would complain at its end, with an exit code of its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def tool(argv: list[str]) -> int:
    """Run another command with options of its own."""
    if argv[0] == "completion":
        from .completion import completion

        print(completion(argv[1:], TOOLS))
        return 0
    if argv[0] == "serve":
        from . import serve

        return serve.main(argv[1:])
    if argv[0] == "check":
        from ..check import compare

        return compare.main(argv[1:])
    if argv[0] == "verify":
        from ..check import verify

        return verify.main(argv[1:])
    from ..weights import __main__ as checkpoints

    return checkpoints.main(argv)


def answer_or_error(settings: arguments.Settings) -> int:
    """Load, ask, report; an error is raised again after it was printed where objects are."""
    try:
        return answer(settings)
    except LlavaMinError as error:
        report.print_error(error, settings.output)
        raise


def answer(settings: arguments.Settings) -> int:
    """Load, ask, report."""
    report.log_to_stderr(settings.quiet, settings.verbose)
    for notice in settings.notices:
        log.warning(notice)
    if settings.model is not None:
        folder(settings.model)
    if settings.plan:
        return show_plan(settings)
    work = batch_file.Work.of(settings) if settings.batch else None
    import torch

    from .. import trace
    from ..base.progress import Progress
    from ..engine import load as loading
    from ..engine.prefix import check_writable
    from ..families import folder as checkpoint_folder

    if settings.explain:
        check_writable(Path(settings.explain), "cannot write the explanation")
    set_threads(settings.threads)
    use_kernels(settings.kernels)
    if work and torch.cuda.device_count() > 1:
        torch.cuda.set_device(work.share.local % torch.cuda.device_count())
    model = loading.load(
        settings.model, progress=Progress("loading", settings.quiet), **settings.load
    )
    for detail in model.details if settings.verbose else ():
        print(f"llava_min: not read: {detail}", file=sys.stderr)
    if work:
        return work.answer(model, settings)
    reporter = report.Reporter(settings, model.name, embedded=settings.model is None)
    question, images, videos = settings.prompt, settings.images, settings.videos
    if question is None and not images and not videos and not settings.chat:
        question = checkpoint_folder.EXAMPLE_QUESTION
        images = (str(checkpoint_folder.EXAMPLE_PICTURE),)
        reporter.line(f"[{question} {os.path.relpath(images[0])}]")
    with trace.tracing(sys.stderr) if settings.trace else contextlib.nullcontext():
        options = settings.options | {"prompt_cache": settings.prompt_cache}
        if settings.chat:
            from .console import Console

            return Console(model.chat(**options), reporter, images, videos).loop(question)
        if settings.explain:
            return explain(model, reporter, question, images, videos)
        asked = model.events(question, images=images, videos=videos, interruptible=True, **options)
        return 130 if reporter.follow(asked, question).finish_reason == "interrupted" else 0


def explain(
    model: "Model",
    reporter: "Reporter",
    question: str | None,
    images: "Sequence[str]",
    videos: "Sequence[str]",
) -> int:
    """Answer, then write what the answer's words looked at."""
    from ..engine.prefix import Prefix

    settings, prefix = reporter.settings, Prefix(model.empty_cache(0))
    assert settings.explain is not None
    asked = model.events(
        question,
        images=images,
        videos=videos,
        prefix=prefix,
        prompt_cache=settings.prompt_cache,
        interruptible=True,
        **settings.options,
    )
    answer = reporter.follow(asked, question)
    if answer.finish_reason == "interrupted":
        return 130
    found = model.explain(
        question,
        answer,
        images=images,
        videos=videos,
        occlusion=settings.occlusion,
        prefix=prefix,
        **settings.options,
    )
    reporter.save(found, settings.explain)
    return 0


def show_plan(settings: arguments.Settings) -> int:
    """Print what the answer would cost, without torch."""
    from ..planning.forecast import forecast
    from ..planning.page import WIDTH

    found = forecast(
        settings.model,
        settings.prompt,
        images=settings.images,
        videos=settings.videos,
        kernels=settings.kernels,
        memory=settings.memory,
        **settings.load,
        **settings.options,
    )
    if settings.output == "text":
        print(found.text(shutil.get_terminal_size((WIDTH, 0)).columns))
    else:
        print(json.dumps(found.json(), ensure_ascii=False))
    return 0


def run() -> None:
    """The console script.

    A thread that is still at work, such as one that loads a server's model, is not waited for. If
    Python ended under it, torch would abort the process.
    """
    code = main()
    if any(thread.daemon for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)
