"""The command: python -m llava_min, python -m llava_min.generate, or the script llava-min."""

import contextlib
import logging
import os
import sys

from . import arguments, batch_file
from .errors import LlavaMinError, ParameterError


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code says how it ended (errors.py)."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = "-v" in argv or "--verbose" in argv
    try:
        settings = arguments.parse(argv)
        if isinstance(settings, str):
            print(settings)
            return 0
        return answer(settings)
    except LlavaMinError as error:
        if verbose:
            raise
        print(f"llava_min: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("llava_min: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def answer(settings: arguments.Settings) -> int:
    """Load, ask, report."""
    level = logging.ERROR if settings.quiet else logging.INFO
    logging.basicConfig(format="llava_min: %(message)s", level=level, stream=sys.stderr)
    work = batch_file.Work.of(settings) if settings.batch else None
    import torch

    from . import loaded, report, trace
    from .kernels import choose

    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.kernels == "triton" and not choose.language.AVAILABLE:
        raise ParameterError("cannot run", "--kernels", "a CUDA GPU for triton", "none")
    choose.use(settings.kernels)
    model = loaded.load(
        settings.model, progress=report.Progress("loading", settings.quiet), **settings.load
    )
    for detail in model.details if settings.verbose else ():
        print(f"llava_min: not read: {detail}", file=sys.stderr)
    if work:
        return work.answer(model, settings)
    reporter = report.Reporter(settings, model.name, embedded=settings.model is None)
    question, images, videos = settings.prompt, settings.images, settings.videos
    if question is None and not images and not videos and not settings.chat:
        question, images = loaded.EXAMPLE_QUESTION, (str(loaded.EXAMPLE_PICTURE),)
        reporter.line(f"[{question} {os.path.relpath(images[0])}]")
    with trace.tracing(sys.stderr) if settings.trace else contextlib.nullcontext():
        options = settings.options | {"prompt_cache": settings.prompt_cache}
        if settings.chat:
            from .chat import Console

            return Console(model.chat(**options), reporter, images, videos).run(question)
        asked = model.events(question, images=images, videos=videos, **options)
        return 130 if reporter.follow(asked).finish_reason == "interrupted" else 0


def run() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
