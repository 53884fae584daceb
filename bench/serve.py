"""A server under load: requests and tokens a second, the first token, the time between tokens.

    python -m bench serve [--models 0.5B] [--concurrency 1 4 8 16] [--rates 0.5 0.8] [--only ...]

closed   so many clients, each of which asks again when it has its answer
open     requests that come at random (Poisson), at parts of the rate that 8 clients reached
gaps     a stream next to an 8,000-token prompt: its longest gap; a short question after that prompt

The server is a process of its own, and so are its clients, who read every chunk as it comes: on a
small machine they take a part of what is measured. Random weights answer at random, so that answers
go on to their last token. A token that completes no character has no chunk: times are those between
chunks.
Read checkpoints.py, serve_clients.py first. Read next: ledger.py.
"""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from llava_min.families.folder import EMBEDDED

from . import ask, checkpoints, ledger, llamacpp
from .serve_clients import Heard, ask_once, body_of, closed, open_loop, picture_part, text_part

SECTIONS = ("closed", "open", "gaps")
WORDS = ("where", "is", "the", "star", "and", "what", "color", "has", "a", "circle", "of", "them")
MIXTURE = {
    # kind of question -> how many of ten; a tower of real size takes a CPU seconds a tile
    "embedded": {"text": 5, "picture": 3, "clip": 2},
    "0.5B": {"text": 10},
}
TOKENS = (16, 64)  # of an answer, from and to
LONG_PROMPT = 8_000  # tokens, about
SHORT = 7  # short questions next to it, at most
LETTER = "64"  # the id of "a" where a vocabulary begins with bytes


@contextlib.contextmanager
def listening(ready: str, *command: str) -> Iterator[str]:
    """A server in a process of its own, which says where it listens in a line with `ready`.

    Gives its address, 127.0.0.1:PORT.
    """
    command = (sys.executable, "-m", *command)
    said = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    running = subprocess.Popen(command, **said, text=True)
    try:
        for line in running.stderr:
            if ready in line:
                drain = threading.Thread(target=running.stderr.read, daemon=True)
                drain.start()  # a full pipe would stop the server
                yield line.split("http://")[1].split()[0].split("/")[0]
                break
        else:
            raise RuntimeError(f"{command[2]} did not start")
    finally:
        running.kill()
        running.wait()


def ours(folder: Path, threads: int):
    """This project's server, which takes no step that somebody compiled here: its address."""
    room = "--slots", "8", "--slot-tokens", "16384", "--threads", str(threads), "--no-compile"
    return listening(
        "ready at http://", "llava_min", "serve", "-m", str(folder), "--port", "0", *room
    )


@contextlib.contextmanager
def peer(folder: Path, threads: int) -> Iterator[str]:
    """The server of llama-cpp-python with the same decoder in bfloat16: its address.

    It answers one request at a time.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as there:
        path = Path(there) / "decoder.gguf"
        llamacpp.write(folder, "bf16", path, vocabulary=True)
        options = ["--model", str(path), "--port", str(port), "--n_ctx", "4096"]
        options += ["--chat_format", "chatml", "--n_threads", str(threads)]
        options += ["--interrupt_requests", "false"]  # or the next request would cut an answer
        options += ["--n_threads_batch", str(threads)]
        with listening("running on http://", "llama_cpp.server", *options) as address:
            yield address


def questions(shape: str, count: int, kinds: dict[str, int], clip: Path) -> list[bytes]:
    """Bodies of requests of mixed kinds and lengths, the same for each call."""
    rng = random.Random(0)
    names = [name for name, share in kinds.items() for _ in range(share)]
    bodies = []
    for number in range(count):
        kind = names[number % len(names)]
        words = " ".join(rng.choices(WORDS, k=rng.choice((8, 30, 120))))
        parts = [text_part(f"{number} {words}")]
        if kind == "picture":
            parts.insert(0, picture_part(EMBEDDED / "samples" / "shapes.png"))
        elif kind == "clip":
            parts.insert(0, picture_part(clip))
        bodies.append(body_of(parts, rng.randint(*TOKENS), frames=4))
    return bodies


def summary(found: list[Heard], seconds: float) -> dict[str, float]:
    """Rates, and the 50th, 95th and 99th percentile of the waiting, in milliseconds."""
    tokens = sum(one.tokens for one in found)
    row = {"requests_per_s": len(found) / seconds, "tokens_per_s": tokens / seconds}
    waits = {"ttft": [one.first for one in found], "itl": [g for one in found for g in one.gaps]}
    for name, values in waits.items():
        for part in (50, 95, 99):
            ordered = sorted(values)
            row[f"{name}_p{part}_ms"] = 1000 * ordered[round(part / 100 * (len(ordered) - 1))]
    return row


def row(shape: str, load: str, name: str = "llava_min", **figures: object) -> dict[str, object]:
    """A row under the keys by which a ledger tells rows apart."""
    return {"section": "serve", "shape": shape, "context": load, "name": name, **figures}


def closed_rows(
    shape: str,
    servers: dict[str, str],
    bodies: list[bytes],
    counts: list[int],
    turns: int,
    load: str,
) -> list[dict]:
    """A row for each server, name -> address, and number of clients; all take turns."""
    rows: dict[tuple[str, int], list[dict]] = defaultdict(list)
    for _ in range(turns):
        for count in counts:
            for name, address in servers.items():
                start = time.perf_counter()
                found = asyncio.run(closed(address, bodies, count))
                rows[name, count].append(summary(found, time.perf_counter() - start))
    return [
        row(shape, f"{load} c={count}", name, requests=len(bodies), turns=turns, **middle(found))
        for (name, count), found in rows.items()
    ]


def middle(found: list[dict]) -> dict[str, float]:
    """The median of each figure over the turns, and the spread of the tokens per second."""
    figures = {name: ledger.spread([one[name] for one in found])[1] for name in found[0]}
    low, _, high = ledger.spread([one["tokens_per_s"] for one in found])
    return figures | {"tokens_per_s_p20": low, "tokens_per_s_p80": high}


def open_rows(shape: str, address: str, bodies: list[bytes], rates: list[float], most: float):
    """A row for each rate, as a part of `most` requests a second."""
    for part in rates:
        start = time.perf_counter()
        found = asyncio.run(open_loop(address, bodies, part * most))
        figures = summary(found, time.perf_counter() - start)
        rate = {"rate": part * most, "requests": len(bodies)}
        yield row(shape, f"open {part:g} of c=8", **rate, **figures)


def spelling(words: str, tokens: int) -> bytes:
    """A request whose answer is a letter again and again, so that each token is a text at once.

    Random weights write bytes that are no character, and their text waits.
    """
    return body_of([text_part(words)], tokens, logit_bias={LETTER: 100})


def gap_row(shape: str, address: str) -> dict[str, object]:
    """The longest gap of a stream while a long prompt is read, and short questions after it."""
    count = lambda words: asyncio.run(ask_once(address, spelling(words, 1))).prompt
    words = int(800 * LONG_PROMPT / count("other " * 800))
    long = spelling("now " + "other " * words, 2)  # nothing of it is there already
    short = [f"where is star {number}" for number in range(2 * SHORT)]
    alone = [asyncio.run(ask_once(address, spelling(s, 2))) for s in short[SHORT:]]
    stream, read, after = asyncio.run(beside(address, long, short[:SHORT]))
    return row(
        shape,
        "gaps",
        prompt_tokens=read.prompt,
        longest_gap_ms=1000 * max(stream.gaps),
        median_gap_ms=1000 * ledger.spread(stream.gaps)[1],
        long_ttft_ms=1000 * read.first,
        short_questions=len(after),
        short_ttft_ms=1000 * ledger.spread([heard.first for heard in after])[1],
        short_ttft_worst_ms=1000 * max(heard.first for heard in after),
        short_ttft_alone_ms=1000 * ledger.spread([heard.first for heard in alone])[1],
    )


async def beside(address: str, long: bytes, short: list[str]) -> tuple[Heard, Heard, list[Heard]]:
    """(a stream, a long prompt next to it, the short questions that come while that is read).

    The stream's gaps are those from the long prompt's coming to the end of its answer. The short
    questions come one after another, as many as there is time for.
    """
    stream, after = Heard(), []
    writing = asyncio.create_task(ask_once(address, spelling("go on", 4_000), stream))
    while len(stream.gaps) < 5:
        await asyncio.sleep(0.01)
    calm = len(stream.gaps)
    reading = asyncio.create_task(ask_once(address, long))
    for words in short:
        await asyncio.sleep(0.3)
        if reading.done():
            break
        after.append(await ask_once(address, spelling(words, 2)))
    read = await reading
    stream.gaps = stream.gaps[calm:]
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    return stream, read, after


def run(
    shape: str,
    sections: list[str],
    counts: list[int],
    rates: list[float],
    requests: int,
    turns: int,
    out: Path,
) -> Path:
    """Measure and keep rows; the path of their file. shape: a key of shapes.TEXTS."""
    folder = EMBEDDED if shape == "embedded" else checkpoints.folder_of(shape)
    path, rows = out / "serve-cpu.jsonl", []
    if shape == "embedded":
        torch.set_num_threads(1)  # its products are too small for two
    threads, servers = torch.get_num_threads(), {}
    with tempfile.TemporaryDirectory() as there, contextlib.ExitStack() as running:
        clip = ask.write_clip(Path(there) / "clip.mp4", 20)
        texts = questions(shape, requests, {"text": 1}, clip)
        mixed = questions(shape, requests, MIXTURE[shape], clip)
        address = servers["llava_min"] = running.enter_context(ours(folder, threads))
        asyncio.run(closed(address, texts[:8], 8))  # warm
        if "closed" in sections:
            if len(MIXTURE[shape]) > 1:
                rows += closed_rows(shape, servers, mixed, counts, turns, "mixed")
            if shape != "embedded" and llamacpp.INSTALLED:
                servers["llama-cpp-python"] = running.enter_context(peer(folder, threads))
                asyncio.run(closed(servers["llama-cpp-python"], texts[:1], 1))
            rows += closed_rows(shape, servers, texts, counts, turns, "texts")
        if "open" in sections:
            start = time.perf_counter()
            asyncio.run(closed(address, mixed, 8))
            most = len(mixed) / (time.perf_counter() - start)
            rows += open_rows(shape, address, mixed, rates, most)
        if "gaps" in sections:
            rows.append(gap_row(shape, address))
    for one in rows:
        print(text_of(one), flush=True)
    ledger.keep(path, rows)
    return path


def text_of(one: dict) -> str:
    """A row as a line."""
    figures = {k: v for k, v in one.items() if isinstance(v, float)}
    shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    return f"{one['shape']} {one['context']} {one['name']}: {shown}"
