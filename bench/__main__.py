"""python -m bench kernels | generate | batch | load | quality | frames | ask | video | niah | \
long | lease: how fast and how good, beside peers and limits.

Results go to bench/results/ as one JSON line for each row, plots beside them as SVG.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from . import ledger, measure, plots


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="each kernel at real shapes beside its peers")
    kernels.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help="prefill, vision, decode, int4, pointwise, rope; all by default",
    )
    kernels.add_argument(
        "--rounds", type=int, default=measure.ROUNDS, help="turns of each candidate (default 9)"
    )
    whole = commands.add_parser(
        "generate", help="7B and 0.5B decoders with random weights, and the vision tower"
    )
    whole.add_argument("--models", nargs="*", help="0.5B, 7B (default: both; on a CPU 0.5B)")
    whole.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                       help="cpu: beside transformers, in float32, bf16, int8, int4")  # fmt: skip
    whole.add_argument("--context", type=int, nargs="*", metavar="N",
                       help="on a CPU: hundreds of tokens (default 200 1500 6000)")  # fmt: skip
    whole.add_argument("--formats", nargs="*", default=["bf16", "int4"],
                       choices=("float32", "bf16", "int8", "int4"),
                       help="on a CPU (default bf16 int4)")  # fmt: skip
    starting = commands.add_parser(
        "load", help="loading and the whole command, in processes of their own, on a CPU"
    )
    starting.add_argument("--models", nargs="*", help="0.5B, 7B (default 0.5B)")
    quality = commands.add_parser(
        "quality", help="what int4 and a cache of 8 bits cost the embedded checkpoint"
    )
    quality.add_argument("--samples", type=int, default=2000, help="a task (default 2000)")
    reading = commands.add_parser(
        "frames", help="the memory of a clip's prompt, chunk by chunk and all at once, on a CPU"
    )
    reading.add_argument("--frames", type=int, nargs="*", default=[8, 32, 64], metavar="N",
                         help="of the clip (default 8 32 64)")  # fmt: skip
    for command, sections in ((whole, ("vision", "prefill", "decode", "profile")),
                              (starting, ("load", "cold", "quantise")),
                              (quality, ("errors", "answers", "cache")),
                              (reading, ("prefill", "memory"))):  # fmt: skip
        command.add_argument("--only", nargs="*", choices=sections, help="on a CPU: these parts")
    for command, pairs in ((whole, 7), (starting, 7), (reading, 3)):
        command.add_argument("--pairs", type=int, default=pairs,
                             help="turns on a CPU (default %(default)s)")  # fmt: skip
    again = commands.add_parser(
        "ask",
        help="the first token of a second question: in a chat, with a prompt cache, from scratch",
    )
    again.add_argument("-m", "--model", help="a folder, or 0.5B: that shape, random weights")
    again.add_argument("--frames", type=int, default=1024, help="of the clip (default 1024)")
    again.add_argument("--rounds", type=int, default=7, help="turns of each (default 7)")
    batch = commands.add_parser(
        "batch", help="four prompts together beside one, random weights; on a CPU too"
    )
    batch.add_argument("--model", default="0.5B", help="0.5B, 7B (default %(default)s)")
    clips = commands.add_parser(
        "video", help="64 frames of an hour: seeking to them, and decoding everything"
    )
    clips.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    for command in (kernels, whole, starting, quality, reading, again, batch, clips):
        command.add_argument(
            "--out", type=Path, default=measure.RESULTS, help="folder (default bench/results)"
        )
        command.add_argument(
            "--dry-run",
            action="store_true",
            help="go through everything at toy size on a CPU; the figures mean nothing",
        )
    needle = commands.add_parser(
        "niah", help="a needle frame in a long clip: found at which depth of how many frames?"
    )
    needle.add_argument("-m", "--model", help="a folder (default: the embedded checkpoint)")
    needle.add_argument("--frames", type=int, nargs="*", help="lengths (default 4 to 256)")
    needle.add_argument("--depths", type=int, default=6, help="from start to end (default 6)")
    needle.add_argument("--needles", type=int, default=20, help="different ones (default 20)")
    needle.add_argument("--haystack", help="a film of your own (with --asked)")
    needle.add_argument("--asked", type=Path, metavar="FILE",
                        help="its needles: a JSON list of {image, question, answer}")  # fmt: skip
    needle.add_argument("--out", type=Path, default=measure.RESULTS, help="folder")
    needle.add_argument("--dry-run", action="store_true", help="two lengths, one needle")
    large = commands.add_parser("long", help="the memory of a very long prompt on a CPU (Linux)")
    large.add_argument("--tokens", type=int, default=224_000, help="(default 224000: half an hour)")
    large.add_argument("--kv-dtype", choices=("auto", "int8"), default="auto")
    large.add_argument("--out", type=Path, default=measure.RESULTS, help="folder")
    lease = commands.add_parser(
        "lease", help="check and measure everything in nine minutes of one GPU, losing nothing"
    )
    lease.add_argument("--minutes", type=float, default=9.0, help="in all (default 9)")
    lease.add_argument("--out", type=Path, default=Path("lease"), help="folder (default lease)")
    lease.add_argument("--resume", action="store_true", help="run what is missing in --out")
    lease.add_argument(
        "--dry-run", action="store_true", help="rehearse at toy size; the figures mean nothing"
    )
    lease.add_argument(
        "--apply", type=Path, metavar="DIR", help="what follows from DIR, as a patch in it"
    )
    lease.add_argument("--write", action="store_true", help="with --apply: change the files, too")
    draw = commands.add_parser("plot", help="draw the plots of a file of results again")
    draw.add_argument("file", type=Path)
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    settings = arguments(given)
    if settings.command == "plot":
        print(*plots.draw(settings.file), sep="\n")
        return 0
    if settings.command == "lease":
        return lease(settings)
    if settings.command == "long":
        from . import long

        row = json.dumps(long.run(settings.tokens, settings.kv_dtype))
        settings.out.mkdir(parents=True, exist_ok=True)
        with (settings.out / "long-embedded.jsonl").open("a") as file:
            print(row, file=file)
        print(row)
        return 0
    if settings.command == "niah":
        from . import niah

        print(*niah.run(settings), sep="\n")
        return 0
    if settings.command == "video":
        from . import video

        print(video.run(settings.dry_run, settings.out, settings.rounds))
        return 0
    if settings.command == "ask":
        return ask(settings)
    if settings.command in ("load", "quality", "frames") or vars(settings).get("device") == "cpu":
        print(on_cpu(settings))
        return 0
    anywhere = settings.dry_run or settings.command == "batch"
    if not anywhere and (missing := measure.no_device()):
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    if settings.command == "kernels":
        from . import kernels

        unknown = [section for section in settings.sections if section not in kernels.SECTIONS]
        if unknown:
            print(
                f"bench: unknown section {unknown[0]!r}: expected {', '.join(kernels.SECTIONS)}",
                file=sys.stderr,
            )
            return 2
        rows, limits = kernels.run(
            settings.sections or list(kernels.SECTIONS), settings.dry_run, settings.rounds
        )
    elif settings.command == "batch":
        from . import batch

        rows, limits = batch.run(settings.model, settings.dry_run)
    else:
        from . import generate

        models = settings.models or ["0.5B", "7B"]
        rows, limits = generate.run(models, settings.dry_run)
    if not settings.dry_run and (device := measure.machine()["device"]).endswith("no CUDA"):
        path = settings.out / f"{settings.command}-cpu.jsonl"
        ledger.keep(path, [asdict(row) | {"of_ceiling": None} for row in rows])
        print(path)
        return 0
    name = "dry-run" if settings.dry_run else f"{settings.command}-{device.replace(' ', '-')}"
    path = settings.out / f"{name}.jsonl"
    measure.save(rows, limits, path)
    print(path, *plots.draw(path), sep="\n")
    return 0


def lease(settings: argparse.Namespace) -> int:
    """The nine minutes, or what follows from them."""
    if settings.write and not settings.apply:
        print("bench: --write needs --apply DIR", file=sys.stderr)
        return 2
    if settings.apply:
        from .lease import apply

        return apply.main(settings.apply, settings.write)
    from .lease import run

    return run.main(settings)


def on_cpu(settings: argparse.Namespace) -> Path:
    """What needs no GPU; a dry run takes toy sizes and writes into a temporary folder."""
    dry = settings.dry_run
    out = Path(tempfile.mkdtemp()) if dry else settings.out
    if settings.command == "quality":
        from . import quality

        sections = settings.only or ["errors", "answers", "cache"]
        return quality.run(20 if dry else settings.samples, sections, out)
    if settings.command == "frames":
        from . import frames

        sections = settings.only or list(frames.SECTIONS)
        shape, counts, pairs = "0.5B", settings.frames, settings.pairs
        if dry:
            shape, counts, pairs = "toy", [2, 16], 1
        return frames.run(shape, counts, sections, pairs, out)
    pairs, models = (1, ["toy"]) if dry else (settings.pairs, settings.models or ["0.5B"])
    if settings.command == "load":
        from . import load

        return load.run(models, settings.only or list(load.SECTIONS), pairs, out)
    from . import cpu

    contexts = [100] if dry else settings.context or list(cpu.CONTEXTS)
    sections = settings.only or list(cpu.SECTIONS)
    return cpu.run(models[0], contexts, sections, settings.formats, pairs, out)


def ask(settings: argparse.Namespace) -> int:
    """Second questions, on any machine."""
    from . import ask

    few = (32, 1) if settings.dry_run else (settings.frames, settings.rounds)
    rows = ask.run(settings.model, *few)
    print(ask.table(rows))
    name = "dry-run" if settings.dry_run else f"ask-{Path(settings.model or 'embedded').name}"
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
