"""How soon a second question about the same clip is answered: in a chat, and by a prompt cache.

Each way is beside a fresh run, which must give the same ids. In one process the time to the first
token counts from the call, video decoding included. For new processes a stopwatch runs from the
start of the process to the first line of its answer: import and loading included. The fresh run and
the others take turns.
Read checkpoints.py first. Read next: measure.py.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

import llava_min
from llava_min.families.folder import EMBEDDED
from llava_min.weights.tiny import scenes

from . import checkpoints, measure

FIRST, SECOND = "Describe the video.", "What color is the circle at the end?"
ANSWER = 8  # tokens of each answer


def write_clip(path: Path, frames: int) -> Path:
    """A drawn clip of `frames` frames at 10 a second, H.264."""
    clip = scenes.draw_clip(np.random.default_rng(0), (320, 240), frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for scene in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_image(scenes.render(scene))))
        container.mux(stream.encode())
    return path


def conversation(folder: Path, clip: Path, frames: int, rounds: int):
    """(seconds to the first token, tokens of the second prompt, whether the ids are the same).

    The seconds are lists, one each for the first question, the second one in a chat, and the second
    one from scratch.
    """
    model, options = llava_min.load(folder, compile=False), dict(frames=frames, max_tokens=ANSWER)
    times, same = [[], [], []], True
    for _ in range(rounds):
        chat = model.chat(**options)
        first = chat.ask(FIRST, videos=[clip])
        second = chat.ask(SECOND)
        alone = model.generate(chat.turns[:-1], videos=[clip], **options)
        same &= second.token_ids == alone.token_ids
        for seconds, answer in zip(times, (first, second, alone)):
            seconds.append(answer.timings["ttft_s"])
    return times, alone.usage["prompt_tokens"], same


def process(folder: Path, clip: Path, question: str, frames: int, *more: str):
    """(seconds from the start of a process to its first token, the ids of its answer)."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "llava_min", question, "-m", folder, "--video", clip]
    command += ["--frames", str(frames), "--max-tokens", str(ANSWER), "--jsonl", "--quiet", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        first = None
        for line in running.stdout:
            if first is None and json.loads(line)["event"] == "text":
                first = time.perf_counter() - start
    return first, json.loads(line)["token_ids"]


def processes(folder: Path, clip: Path, frames: int, rounds: int, cache: Path):
    """Seconds of new processes: (with a prompt cache, from scratch), and whether ids are equal."""
    process(folder, clip, FIRST, frames, "--prompt-cache", cache)
    times, same = [[], []], True
    for _ in range(rounds):
        kept, ids = process(folder, clip, SECOND, frames, "--prompt-cache", cache)
        alone, expected = process(folder, clip, SECOND, frames)
        same &= ids == expected
        times[0].append(kept)
        times[1].append(alone)
    return times, same


def row(case: str, seconds: list[float], fresh: list[float], **more) -> dict:
    """The seconds of a way to ask, and how many times sooner it is than a fresh run."""
    p20, p50, p80 = np.quantile(seconds, (0.2, 0.5, 0.8))
    sooner = float(np.median(fresh) / p50)
    return {
        "section": "ask",
        "case": case,
        "p20_s": p20,
        "p50_s": p50,
        "p80_s": p80,
        "times_sooner": sooner,
        **more,
    }


def run(model: str | None, frames: int, rounds: int) -> list[dict]:
    """A row for each way to ask. model: a folder, "0.5B" with random weights, or None: embedded."""
    with tempfile.TemporaryDirectory() as there:
        folder = checkpoints.folder_of(model) if model == "0.5B" else model or EMBEDDED
        clip, cache = write_clip(Path(there) / "clip.mp4", frames), Path(there) / "cache"
        (first, second, cold), tokens, same = conversation(folder, clip, frames, rounds)
        (kept, alone), same_kept = processes(folder, clip, frames, rounds, cache)
        common = {
            "model": model or "embedded",
            "frames": frames,
            "prompt_tokens": tokens,
            "rounds": rounds,
            "cache_bytes": cache.stat().st_size,
        }
    here = common | measure.machine()
    return [
        row("first question of a chat", first, first, **here),
        row("second question, cold run", cold, cold, **here),
        row("second question of a chat", second, cold, same_ids=same, **here),
        row("new process, cold run", alone, alone, **here),
        row("new process, prompt cache", kept, alone, same_ids=same_kept, **here),
    ]


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = [f"{'first token of the':28} {'p50 s':>8} {'p20':>8} {'p80':>8} {'sooner':>8} same ids"]
    for row in rows:
        same = {True: "yes", False: "NO"}.get(row.get("same_ids"), "")
        lines.append(
            f"{row['case']:28} {row['p50_s']:8.3f} {row['p20_s']:8.3f} {row['p80_s']:8.3f} "
            f"{row['times_sooner']:7.1f}x {same}"
        )
    return "\n".join(lines)
