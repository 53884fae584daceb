"""What the kernels and the models should reach, beside what was measured.

in:  the journal      out: a line for each mark

"par" is what is good, "goal" what is very good, on an H200; where an H100 differs, it has its own.
Read next: ceilings.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .place import Found, limits_of


def rows_of(found: Found, stage: str) -> list[dict]:
    """The rows of one stage."""
    return [row for row in found.rows if row["stage"] == stage]


def seconds(row: dict) -> float | None:
    """The time of a row of the stage whole."""
    if row.get("seconds") is not None:
        return row["seconds"]
    return row["ms"] / 1e3 if row.get("ms") is not None else None


@dataclass
class Mark:
    """A figure that should reach `par`, and at best `goal`."""

    name: str
    value: Callable[[Found], float | None]
    par: float
    goal: float
    unit: str
    h100: tuple[float, float] | None = None

    def line(self, found: Found) -> str:
        """The mark in one line: what was measured, and what of par and goal it reached."""
        value, (par, goal) = self.value(found), (self.par, self.goal)
        if self.h100 and found.headers and "H100" in str(found.headers[-1].get("device")):
            par, goal = self.h100
        if value is None:
            verdict, shown = "not there", "-"
        else:
            sign = 1 if goal > par else -1  # of seconds, fewer are better
            reached = [sign * value >= sign * mark for mark in (par, goal)]
            verdict = "goal" if reached[1] else "par" if reached[0] else "BELOW PAR"
            shown = f"{value:.3g}"
        return f"{self.name:50} {shown:>6} {self.unit:9} par {par:g}, goal {goal:g}: {verdict}"


def measured(found: Found, stage: str, *words: str, **wanted) -> list[dict]:
    """The rows of a stage whose text holds these words and whose fields have these values."""

    def fits(row: dict) -> bool:
        text = " ".join(
            str(row.get(name, ""))
            for name in ("section", "shape", "what", "model", "format", "name")
        )
        return all(word in text for word in words) and all(
            row.get(name) == value for name, value in wanted.items()
        )

    return [row for row in rows_of(found, stage) if fits(row)]


def beside(section: str, peer: str, **wanted) -> Callable[[Found], float | None]:
    """The smallest ratio of a peer's time to ours, over the shapes of a section that fit."""

    def value(found: Found) -> float | None:
        rows = [
            row
            for row in measured(found, "peers", section)
            if all(test(row) for test in wanted.values())
        ]
        theirs = {row["shape"]: row["p50_ms"] for row in rows if row["name"] == peer}
        ratios = [
            theirs[row["shape"]] / row["p50_ms"]
            for row in rows
            if row["name"] == "llava_min" and row["shape"] in theirs
        ]
        return min(ratios, default=None)

    return value


def of_limit(found: Found) -> float | None:
    """Decode attention at 128k: the share of the measured bandwidth of reading, in percent."""
    rows = measured(found, "peers", "decode 7B", name="llava_min", size=131072)
    limits = limits_of(found.rows)
    return 100e9 * rows[-1]["gb_per_s"] / limits["read"] if rows and limits else None


def rate(found: Found) -> float | None:
    """Tokens per second of the 7B decoder in int4 after 1,024 tokens."""
    rows = measured(found, "whole", what="decode", model="7B", format="int4", size=1024)
    return rows[-1].get("tokens_per_s") if rows else None


def duration(**wanted) -> Callable[[Found], float | None]:
    """Seconds of the last row of the stage whole that fits."""

    def value(found: Found) -> float | None:
        rows = measured(found, "whole", **wanted)
        return seconds(rows[-1]) if rows else None

    return value


of_cudnn = beside("prefill 7B", "sdpa cudnn", long=lambda row: row["size"] >= 8192)
of_int4pack = beside("int4 7B gate_up", "_weight_int4pack_mm", one=lambda row: row["size"] == 1)
prompt = duration(what="prefill", model="7B", size=32768)
frames = duration(what="frames", model="7B", size=64)
MARKS = (
    Mark("prefill attention, head 128, from 8k: of cuDNN", of_cudnn, 0.72, 0.95, "x"),
    Mark("decode attention at 128k: of the bandwidth", of_limit, 80, 92, "%"),
    Mark("int4 gate_up, one row: of _weight_int4pack_mm", of_int4pack, 1.3, 1.8, "x"),
    Mark("7B int4, decoding after 1,024 tokens", rate, 570, 740, "tokens/s", (400, 520)),
    Mark("7B, a prompt of 32k", prompt, 1.15, 0.97, "s"),
    Mark("64 OneVision frames to the first token", frames, 0.5, 0.4, "s"),
)
