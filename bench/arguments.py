"""What each command of the benchmarks takes.

in:  the words after `python -m bench`
out: an argparse.Namespace with `command`

Read next: __main__.py.
"""

import argparse
from pathlib import Path

from . import measure

DRY = "go through everything at toy size on a CPU; the figures mean nothing"


def parse(given: list[str], about: str) -> argparse.Namespace:
    """The command and its options; `about` is the first line of the help."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = kernels, generate, load, devices, quality, explain, frames, ask, batch, video, serve
    measured += (scale,)
    for add in measured:
        command = add(commands)
        command.add_argument(
            "--out", type=Path, default=measure.RESULTS, help="folder (default bench/results)"
        )
        command.add_argument("--dry-run", action="store_true", help=DRY)
    for add in (niah, long, lease, lmms, plot):
        add(commands)
    return parser.parse_args(given)


def sections(command: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    command.add_argument("--only", nargs="*", choices=names, help="on a CPU: these parts")


def pairs(command: argparse.ArgumentParser, count: int) -> None:
    command.add_argument(
        "--pairs", type=int, default=count, help="turns on a CPU (default %(default)s)"
    )


def kernels(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("kernels", help="each kernel at real shapes beside its peers")
    command.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help="prefill, vision, decode, int4, pointwise, rope; all by default",
    )
    command.add_argument(
        "--rounds", type=int, default=measure.ROUNDS, help="turns of each candidate (default 9)"
    )
    return command


def generate(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "generate", help="7B and 0.5B decoders with random weights, and the vision tower"
    )
    command.add_argument("--models", nargs="*", help="0.5B, 7B (default: both; on a CPU 0.5B)")
    command.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: beside transformers, in float32, bf16, int8, int4",
    )
    command.add_argument(
        "--context",
        type=int,
        nargs="*",
        metavar="N",
        help="on a CPU: hundreds of tokens (default 200 1500 6000)",
    )
    command.add_argument(
        "--formats",
        nargs="*",
        default=["bf16", "int4"],
        choices=("float32", "bf16", "int8", "int4"),
        help="on a CPU (default bf16 int4)",
    )
    command.add_argument(
        "--also",
        nargs="*",
        default=[],
        choices=("compiled", "lookup"),
        help="on a CPU: other ways of the decode step, in the same turns",
    )
    sections(command, ("vision", "picture", "prefill", "decode", "batch", "profile", "operators"))
    pairs(command, 7)
    return command


def load(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "load", help="loading and the whole command, in processes of their own, on a CPU"
    )
    command.add_argument("--models", nargs="*", help="0.5B, 7B (default 0.5B)")
    sections(command, ("load", "cold", "quantise"))
    pairs(command, 7)
    return command


def devices(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "devices", help="decoding in int4 by plain torch beside what was done before, on a CPU"
    )
    command.add_argument("--models", nargs="*", help="0.5B, 7B (default 0.5B)")
    hundreds = "hundreds of tokens (default 200 1500 6000)"
    command.add_argument("--context", type=int, nargs="*", metavar="N", help=hundreds)
    pairs(command, 7)
    return command


def quality(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "quality", help="what int4, int8 and a cache of 8 bits cost the embedded checkpoint"
    )
    command.add_argument("--samples", type=int, default=2000, help="a task (default 2000)")
    sections(command, ("errors", "answers", "cache", "paired"))
    return command


def explain(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "explain", help="do an explanation's maps point at what was asked for, and what they cost"
    )
    command.add_argument("--samples", type=int, default=2000, help="scenes (default 2000)")
    sections(command, ("pointing", "occlusion", "cost", "memory"))
    return command


def frames(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "frames", help="the memory of a clip's prompt, chunk by chunk and all at once, on a CPU"
    )
    command.add_argument(
        "--frames",
        type=int,
        nargs="*",
        default=[8, 32, 64],
        metavar="N",
        help="of the clip (default 8 32 64)",
    )
    sections(command, ("prefill", "memory"))
    pairs(command, 3)
    return command


def ask(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "ask",
        help="the first token of a second question: in a chat, with a prompt cache, from scratch",
    )
    command.add_argument("-m", "--model", help="a folder, or 0.5B: that shape, random weights")
    command.add_argument("--frames", type=int, default=1024, help="of the clip (default 1024)")
    command.add_argument("--rounds", type=int, default=7, help="turns of each (default 7)")
    return command


def batch(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "batch", help="four prompts together beside one, random weights; on a CPU too"
    )
    command.add_argument("--model", default="0.5B", help="0.5B, 7B (default %(default)s)")
    return command


def video(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "video", help="64 frames of an hour: seeking to them, and decoding everything"
    )
    command.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    return command


def serve(commands) -> argparse.ArgumentParser:
    command = commands.add_parser("serve", help="a server under load, on a CPU")
    command.add_argument("--models", nargs="*", help="embedded, 0.5B (default: both)")
    command.add_argument(
        "--concurrency", type=int, nargs="*", default=[1, 4, 8, 16], help="(default 1 4 8 16)"
    )
    command.add_argument(
        "--rates", type=float, nargs="*", default=[0.5, 0.8], help="(default 0.5 0.8)"
    )
    command.add_argument("--requests", type=int, default=64, help="of a load (default 64)")
    sections(command, ("closed", "open", "gaps"))
    pairs(command, 3)
    return command


def scale(commands) -> argparse.ArgumentParser:
    command = commands.add_parser(
        "scale", help="a model over several processes, and a batch; predictions beside it"
    )
    command.add_argument("--model", default="embedded", help="embedded, 0.5B, 7B (%(default)s)")
    command.add_argument("--lines", type=int, default=200, help="of the batch (%(default)s)")
    return command


def niah(commands) -> None:
    command = commands.add_parser(
        "niah", help="a needle frame in a long clip: found at which depth of how many frames?"
    )
    command.add_argument("-m", "--model", help="a folder (default: the embedded checkpoint)")
    command.add_argument("--frames", type=int, nargs="*", help="lengths (default 4 to 256)")
    command.add_argument("--depths", type=int, default=6, help="from start to end (default 6)")
    command.add_argument("--needles", type=int, default=20, help="different ones (default 20)")
    film = "a film of your own, of which a frame a second is taken (with --asked)"
    command.add_argument("--haystack", help=film)
    asked = "its needles: a JSON list of {image, question, answer}, or a folder with needles.json"
    command.add_argument("--asked", type=Path, metavar="PATH", help=asked)
    command.add_argument("--out", type=Path, default=measure.RESULTS, help="folder")
    command.add_argument("--dry-run", action="store_true", help="two lengths, one needle")


def long(commands) -> None:
    command = commands.add_parser("long", help="the memory of a very long prompt on a CPU (Linux)")
    command.add_argument(
        "--tokens", type=int, default=224_000, help="(default 224000: half an hour)"
    )
    command.add_argument("--kv-dtype", choices=("auto", "int8"), default="auto")
    command.add_argument("--out", type=Path, default=measure.RESULTS, help="folder")


def lease(commands) -> None:
    command = commands.add_parser(
        "lease", help="check and measure everything in nine minutes of one GPU, losing nothing"
    )
    command.add_argument("--minutes", type=float, default=9.0, help="in all (default 9)")
    command.add_argument("--out", type=Path, default=Path("lease"), help="folder (default lease)")
    command.add_argument("--resume", action="store_true", help="run what is missing in --out")
    rehearse = "rehearse at toy size; the figures mean nothing"
    command.add_argument("--dry-run", action="store_true", help=rehearse)
    follows = "what follows from DIR, as a patch in it"
    command.add_argument("--apply", type=Path, metavar="DIR", help=follows)
    command.add_argument("--write", action="store_true", help="with --apply: change the files, too")


def plot(commands) -> None:
    which = "draw the plots of a file of results again: of kernels, or of generate"
    command = commands.add_parser("plot", help=which)
    command.add_argument("file", type=Path)


def lmms(commands) -> None:
    command = commands.add_parser("lmms", help="lmms-eval on drawn scenes, by the adapter and HTTP")
    command.add_argument(
        "--python", required=True, help="the Python that has lmms-eval (docs/evaluation.md)"
    )
    command.add_argument("--questions", type=int, default=500, help="(default %(default)s)")
    command.add_argument(
        "--out", type=Path, default=measure.RESULTS, help="folder (default bench/results)"
    )
