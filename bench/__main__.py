"""python -m bench kernels | generate | batch | load | devices | quality | explain | frames | \
ask | video | serve | scale | niah | long | lease | lmms: how fast and good, beside peers.

Results go to bench/results/ as one JSON line for each row, plots beside them as SVG.
Read arguments.py first.
"""

import json
import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from . import arguments, ledger, measure, plots


def main(given: list[str]) -> int:
    """Run one command; 2 where its options do not fit or nothing can be measured here."""
    settings = arguments.parse(given, __doc__.splitlines()[0])
    command = settings.command
    if command in ("kernels", "batch") or (command == "generate" and settings.device == "cuda"):
        return beside_limits(settings)
    if command in ("generate", "load", "devices", "quality", "explain", "frames"):
        print(on_cpu(settings))
        return 0
    return OTHERS[command](settings)


# Beside the limits of a GPU ----------------------------------------------------------


def beside_limits(settings: Namespace) -> int:
    """kernels, batch and generate on a GPU; batch runs on a CPU, too."""
    anywhere = settings.dry_run or settings.command == "batch"
    if not anywhere and (missing := measure.no_device()):
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    if settings.command == "kernels" and (unknown := unknown_section(settings.sections)):
        print(f"bench: {unknown}", file=sys.stderr)
        return 2
    rows, limits = measured(settings)
    device = measure.machine()["device"]
    if not settings.dry_run and device.endswith("no CUDA"):
        path = settings.out / f"{settings.command}-cpu.jsonl"
        ledger.keep(path, [asdict(row) | {"of_ceiling": None} for row in rows])
        print(path)
        return 0
    name = "dry-run" if settings.dry_run else f"{settings.command}-{device.replace(' ', '-')}"
    path = settings.out / f"{name}.jsonl"
    measure.save(rows, limits, path)
    print(path, *plots.draw(path), sep="\n")
    return 0


def unknown_section(sections: list[str]) -> str | None:
    """What is wrong with the first of these names that is none of kernels.SECTIONS."""
    from . import kernels

    for section in sections:
        if section not in kernels.SECTIONS:
            return f"unknown section {section!r}: expected {', '.join(kernels.SECTIONS)}"
    return None


def measured(settings: Namespace) -> tuple[list[measure.Row], dict[str, float]]:
    """The rows of a command, and the limits of this machine."""
    if settings.command == "kernels":
        from . import kernels

        sections = settings.sections or list(kernels.SECTIONS)
        return kernels.run(sections, settings.dry_run, settings.rounds)
    if settings.command == "batch":
        from . import batch

        return batch.run(settings.model, settings.dry_run)
    from . import generate

    return generate.run(settings.models or ["0.5B", "7B"], settings.dry_run)


# On a CPU ------------------------------------------------------------------------------


def on_cpu(settings: Namespace) -> Path:
    """What needs no GPU; a dry run takes toy sizes and writes into a temporary folder."""
    dry = settings.dry_run
    out = Path(tempfile.mkdtemp()) if dry else settings.out
    if settings.command == "quality":
        from . import quality

        sections = settings.only or ["errors", "answers", "cache"]
        return quality.run(20 if dry else settings.samples, sections, out)
    if settings.command == "explain":
        from . import explain

        sections = settings.only or list(explain.SECTIONS)
        return explain.run(4 if dry else settings.samples, sections, out, dry)
    if settings.command == "frames":
        from . import frames

        sections = settings.only or list(frames.SECTIONS)
        shape, counts, pairs = "0.5B", settings.frames, settings.pairs
        if dry:
            shape, counts, pairs = "embedded", [2, 16], 1
        return frames.run(shape, counts, sections, pairs, out)
    pairs, models = (1, ["embedded"]) if dry else (settings.pairs, settings.models or ["0.5B"])
    if settings.command == "load":
        from . import load

        return load.run(models, settings.only or list(load.SECTIONS), pairs, out)
    from . import cpu

    contexts = [100] if dry else settings.context or list(cpu.CONTEXTS)
    if settings.command == "devices":
        from . import devices

        return devices.run(models[0], contexts, pairs, out)
    sections = settings.only or list(cpu.SECTIONS)
    about = models[0], contexts, sections, settings.formats, pairs, out
    return cpu.run(*about, settings.also)


# On any machine ------------------------------------------------------------------------


def ask(settings: Namespace) -> int:
    """Second questions."""
    from . import ask

    few = (32, 1) if settings.dry_run else (settings.frames, settings.rounds)
    rows = ask.run(settings.model, *few)
    print(ask.table(rows))
    name = "dry-run" if settings.dry_run else f"ask-{Path(settings.model or 'embedded').name}"
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


def video(settings: Namespace) -> int:
    from . import video

    print(video.run(settings.dry_run, settings.out, settings.rounds))
    return 0


def serve(settings: Namespace) -> int:
    from . import serve

    dry = settings.dry_run
    out = Path(tempfile.mkdtemp()) if dry else settings.out
    shapes = ["embedded"] if dry else settings.models or ["embedded", "0.5B"]
    counts, requests = ([1, 2], 4) if dry else (settings.concurrency, settings.requests)
    for shape in shapes:
        sections = settings.only or (["closed"] if dry else list(serve.SECTIONS))
        few = (counts, settings.rates, requests, 1 if dry else settings.pairs)
        print(serve.run(shape, sections, *few, out))
    return 0


def scale(settings: Namespace) -> int:
    from . import scale

    print(scale.run(settings.model, settings.dry_run, settings.lines, settings.out))
    return 0


def lmms(settings: Namespace) -> int:
    from . import lmms

    print(lmms.run(settings.python, settings.questions, settings.out))
    return 0


def niah(settings: Namespace) -> int:
    from . import niah

    print(*niah.run(settings), sep="\n")
    return 0


def long(settings: Namespace) -> int:
    from . import long

    row = json.dumps(long.run(settings.tokens, settings.kv_dtype))
    settings.out.mkdir(parents=True, exist_ok=True)
    with (settings.out / "long-embedded.jsonl").open("a") as file:
        print(row, file=file)
    print(row)
    return 0


def lease(settings: Namespace) -> int:
    """The nine minutes, or what follows from them."""
    if settings.write and not settings.apply:
        print("bench: --write needs --apply DIR", file=sys.stderr)
        return 2
    if settings.apply:
        from .lease import apply

        return apply.main(settings.apply, settings.write)
    from .lease import run

    return run.main(settings)


def plot(settings: Namespace) -> int:
    from . import cpu

    kernels = all("ours" in row for row in ledger.read(settings.file))
    written = plots.draw(settings.file) if kernels else cpu.draw(settings.file)
    if not written:
        print(f"bench: nothing in {settings.file} is drawn", file=sys.stderr)
        return 2
    print(*written, sep="\n")
    return 0


OTHERS = {
    "ask": ask,
    "video": video,
    "serve": serve,
    "lmms": lmms,
    "niah": niah,
    "long": long,
    "scale": scale,
    "lease": lease,
    "plot": plot,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
