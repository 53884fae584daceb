"""Frames of long clips: seeking and decoding a little, beside decoding everything.

A clip is drawn by a script (H.264, 640 x 360, 30 frames a second), once for each distance of key
frames. Each candidate takes the same 64 frames, evenly spread, in a process of its own, so that its
peak memory is its own too. "the spans alone" is the floor: it is told where the key frames and the
frames are, and decodes just from one to the other. "PyAV, everything" is the loop of the tutorials.
Read next: measure.py.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import measure

RATE, SIZE, FRAMES = 30, (640, 360), 64
LOOP = 3000  # a multiple of every distance of key frames
CANDIDATES = ("llava_min", "the spans alone", "PyAV, everything")


@dataclass
class Row:
    """One candidate on one clip. Times of several runs, sorted; memory above that before it."""

    section: str
    clip: str
    name: str
    seconds: list[float]
    frames: int
    decoded: int
    peak_mb: float
    times_equal: bool  # the frames' times are those of the rule


def write(path: Path, seconds: int, key: int) -> None:
    """A clip of moving noise with a key frame every `key` frames, two B-frames between others.

    LOOP frames are encoded, and their packets repeated until the clip is long enough.
    """
    import av

    options = {
        "preset": "veryfast",
        "crf": "28",
        "bf": "2",
        "sc_threshold": "0",
        "g": str(key),
        "keyint_min": str(key),
    }
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (SIZE[1] // 8, 2 * SIZE[0] // 8, 3), dtype=np.uint8)
    picture, packets, count = coarse.repeat(8, 0).repeat(8, 1), [], seconds * RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for number in range(min(LOOP, count)):
            left = 2 * number % SIZE[0]
            shown = np.ascontiguousarray(picture[:, left : left + SIZE[0]])
            packets += stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24"))
        packets += stream.encode()
        ticks = round(1 / (RATE * packets[0].time_base))  # of one frame
        stamps = [(packet.pts, packet.dts, packet.time_base) for packet in packets]
        for start in range(0, count, len(packets)):
            for packet, (pts, dts, base) in zip(packets[: count - start], stamps):
                packet.stream, packet.time_base = stream, base
                packet.pts, packet.dts = pts + start * ticks, dts + start * ticks
                container.mux(packet)


def ours(path: str) -> tuple[list[float], int]:
    """(times, frames decoded)."""
    from llava_min.media import film, video

    opened = film.Film(path, path)
    numbers = video.chosen(opened, opened.seconds, video.Choice(FRAMES), path)
    times = [opened[number] for number in numbers]
    assert sum(1 for _ in opened.pictures(numbers)) == FRAMES
    return times, opened.decoded


def spans(path: str, key: int, total: int) -> tuple[list[float], int]:
    """The floor, for a clip that is known: groups of `key` frames, at RATE."""
    import av

    times, decoded = [], 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number in np.linspace(0, total - 1, FRAMES).astype(int).tolist():
            start = number // key * key / RATE
            container.seek(int(start / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                decoded += 1
                if frame.time >= number / RATE - 1e-4:
                    frame.to_ndarray(format="rgb24")
                    times.append(frame.time)
                    break
    return times, decoded


def everything(path: str, total: int) -> tuple[list[float], int]:
    """Decode all frames, keep those that are wanted."""
    import av

    wanted, times = set(np.linspace(0, total - 1, FRAMES).astype(int).tolist()), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frame.to_ndarray(format="rgb24")
                times.append(frame.time)
    return times, total


def child(name: str, path: str, key: int, total: int) -> None:
    """One run in this process; prints what it took."""
    import av  # noqa: F401 (imported before the clock starts)

    import llava_min.media.video  # noqa: F401

    before, start = measure.resident("VmRSS"), time.perf_counter()
    run = {
        CANDIDATES[0]: lambda: ours(path),
        CANDIDATES[1]: lambda: spans(path, key, total),
        CANDIDATES[2]: lambda: everything(path, total),
    }[name]
    times, decoded = run()
    seconds = time.perf_counter() - start
    peak_mb = (measure.resident("VmHWM") - before) / 1e6
    rule = np.linspace(0, total - 1, FRAMES).astype(int) / RATE
    equal = len(times) == FRAMES and bool(np.abs(np.array(times) - rule).max() < 1e-3)
    print(json.dumps([seconds, len(times), decoded, peak_mb, equal]))


def measured(path: Path, key: int, seconds: int, rounds: int) -> list[Row]:
    """Rows of one clip, the candidates in turns; decoding everything takes minutes: once."""
    found: dict[str, list] = {name: [] for name in CANDIDATES}
    for turn in range(rounds):
        for name, runs in found.items():
            if turn and name == CANDIDATES[2]:
                continue
            call = [sys.executable, "-m", "bench.video", name, path, key, seconds * RATE]
            output = subprocess.run(map(str, call), capture_output=True, text=True, check=True)
            runs.append(json.loads(output.stdout))
    clip = f"{seconds} s, a key frame every {key}"
    return [
        Row(
            "video",
            clip,
            name,
            sorted(run[0] for run in runs),
            runs[0][1],
            runs[0][2],
            max(run[3] for run in runs),
            all(run[4] for run in runs),
        )
        for name, runs in found.items()
    ]


def table(rows: list[Row]) -> str:
    """The rows as text, with each time over that of the spans alone."""
    lines = [f"{'clip':32} {'candidate':18} {'s':>8} {'x spans':>8} {'decoded':>8} {'MB':>6} times"]
    middle = lambda row: row.seconds[len(row.seconds) // 2]
    floor = {row.clip: middle(row) for row in rows if row.name == CANDIDATES[1]}
    for row in rows:
        equal = "equal" if row.times_equal else "DIFFER"
        lines.append(
            f"{row.clip:32} {row.name:18} {middle(row):8.2f} {middle(row) / floor[row.clip]:8.2f} "
            f"{row.decoded:8} {row.peak_mb:6.0f} {equal}"
        )
    return "\n".join(lines)


def run(dry: bool, out: Path, rounds: int = 3) -> Path:
    """Every distance of key frames; a dry run takes ten seconds of clip, and means nothing."""
    rows, seconds = [], 10 if dry else 3600
    with tempfile.TemporaryDirectory() as folder:
        for key in (30, 250, 600):
            path = Path(folder) / f"{key}.mp4"
            print(f"drawing {seconds} s with a key frame every {key}", flush=True)
            write(path, seconds, key)
            rows += measured(path, key, seconds, 1 if dry else rounds)
            path.unlink()
    print(table(rows), flush=True)
    target = out / ("dry-run-video.jsonl" if dry else "video.jsonl")
    target.parent.mkdir(parents=True, exist_ok=True)
    here = measure.machine()
    target.write_text("".join(json.dumps(asdict(row) | here) + "\n" for row in rows))
    return target


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
