"""How to answer: what the user chooses besides the question, with its limits.

in:  keyword arguments
out: Options, or ParameterError

No torch here: planning reads these too (segments.py, planning/forecast.py).
Read sampling.py, generate.py first.
"""

from dataclasses import dataclass, fields
from pathlib import Path

from .errors import ParameterError, shown


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 change nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        limits = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31 - 1),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.01, 100.0),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            right_type = type(value) in ((int,) if type(low) is int else (int, float))
            if not right_type or not low <= value <= high:  # NaN is in no range
                raise ParameterError(
                    "cannot sample",
                    name,
                    f"a{'n integer' if type(low) is int else ' number'} from {low} to {high}",
                    shown(value),
                )
        if self.top_p == 0:
            raise ParameterError("cannot sample", "top_p", "a number above 0", "0")


TYPES = {"system": str | None, "prefill": str, "template": str, "raw": bool, "ignore_eos": bool,
         "timestamps": bool | None, "at": tuple, "subtitles": str | Path | None}  # fmt: skip


@dataclass(frozen=True)
class Options(Sampling):
    """How to answer: sampling, when to stop, how prompt and visuals are prepared."""

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    at: tuple[float, ...] = ()
    subtitles: str | Path | None = None
    max_tiles: int | None = None
    multi_image: str = "auto"
    timestamps: bool | None = None
    system: str | None = None
    template: str = "auto"
    raw: bool = False
    prefill: str = ""

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_tokens", "frames", "max_tiles"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ParameterError("cannot generate", name, "a number from 1 on", repr(value))
        for name, kind in TYPES.items():
            if not isinstance(getattr(self, name), kind):
                raise ParameterError(
                    "cannot generate",
                    name,
                    getattr(kind, "__name__", kind),
                    repr(getattr(self, name)),
                )
        beside = (self.frames, self.fps, self.start, self.end)
        if self.at and beside != (None,) * 4:
            raise ParameterError(
                "cannot sample the video", "at", "it alone", "frames, fps, start or end"
            )
        for value in (*beside[1:], *self.at):
            number = type(value) in (int, float) and 0 <= value < float("inf")
            if value is not None and not number:
                name, expected = "fps, start, end, at", "numbers from 0 on"
                raise ParameterError("cannot sample the video", name, expected, shown(value))
        if self.fps == 0:
            raise ParameterError("cannot sample the video", "fps", "a number above 0", "0")
        if self.multi_image not in ("auto", "pad", "anyres"):
            raise ParameterError(
                "cannot generate", "multi_image", "auto, pad or anyres", repr(self.multi_image)
            )
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if type(self.stop) is not tuple or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise ParameterError(
                "cannot generate", "stop", "texts that are not empty", repr(self.stop)
            )

    @classmethod
    def of(cls, **given) -> "Options":
        """Options from keyword arguments; ParameterError names one that does not exist."""
        known = {field.name for field in fields(cls)}
        for name in given:
            if name not in known:
                raise ParameterError(
                    "cannot generate", name, f"one of {', '.join(sorted(known))}", "no such option"
                )
        return cls(**{name: tuple(value) if isinstance(value, list) else value
                      for name, value in given.items()})  # fmt: skip
