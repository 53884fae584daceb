"""How to answer: what the user chooses besides the question, with its limits.

in:  keyword arguments
out: Options, or ParameterError

No torch here: planning reads these too (segments.py, planning/forecast.py).
Read sampling.py, generate.py first.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any

from .base.habits import LOADED, plain, renamed
from .errors import ParameterError, no_such_option, wrong_value

LIMITS: dict[str, tuple[float, float]] = {
    # option: the least and the most that it may be; whole numbers stand for whole numbers
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "seed": (0, 2**63 - 1),
}
TYPES: dict[str, tuple[type | UnionType, str]] = {
    # option: its type, and how a message calls that
    "system": (str | None, "a text"),
    "prefill": (str, "a text"),
    "template": (str, "the name of a template"),
    "raw": (bool, "True or False"),
    "ignore_eos": (bool, "True or False"),
    "timestamps": (bool | None, "True, False or None"),
    "at": (tuple, "a list of times in seconds"),
    "subtitles": (str | Path | None, "the path of an .srt file"),
}
MOST_DRAFTED = 7  # tokens: decoder.py has the newest one and these in one forward
NOT_IN_A_RAW_PROMPT = ("system", "template", "prefill", "timestamps")  # which is complete


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

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value, whole = getattr(self, name), type(low) is int
            right_type = type(value) in ((int,) if whole else (int, float))
            if not right_type or not low <= value <= high:  # NaN is in no range
                expected = f"a whole number from {low} to {high}"
                if not whole:
                    expected = f"a number from {low:g} to {high:g}"
                raise wrong_value(name, expected, value)
        if self.top_p == 0:
            raise wrong_value("top_p", "above 0", self.top_p)


@dataclass(frozen=True)
class Options(Sampling):
    """How to answer: sampling, when to stop, how prompt and visuals are prepared."""

    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None
    lookup: int = 0
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "frames", "max_tiles"):
            value = getattr(self, name)
            if value is None and name != "max_tokens":
                continue
            if type(value) is not int or value < 1:
                raise wrong_value(name, "a whole number of at least 1", value)
        for name, (kind, words) in TYPES.items():
            if not isinstance(getattr(self, name), kind):
                raise wrong_value(name, words, getattr(self, name))
        if type(self.lookup) is not int or not 0 <= self.lookup <= MOST_DRAFTED:
            expected = f"a whole number from 0 to {MOST_DRAFTED}"
            raise wrong_value("lookup", expected, self.lookup)
        self.check_times()
        for name in NOT_IN_A_RAW_PROMPT if self.raw else ():
            if getattr(self, name) != getattr(Options, name):
                raise ParameterError(f"raw and {name} cannot be used together.")
        if self.multi_image not in ("auto", "pad", "anyres"):
            raise wrong_value("multi_image", "auto, pad or anyres", self.multi_image)
        for name in ("stop", "choices"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, value := (value,))
            if type(value) is not tuple or not all(isinstance(t, str) and t for t in value):
                raise wrong_value(name, "a text that is not empty, or a list of such", value)
        self.check_form()

    def check_times(self) -> None:
        """ParameterError unless the options that choose frames are times, and go together."""
        for name in ("fps", "start", "end"):
            value = getattr(self, name)
            if value is not None and not is_time(value):
                raise wrong_value(name, "a number of at least 0", value)
            if value is not None and self.at:
                raise ParameterError(f"at and {name} cannot be used together.")
        if self.at and self.frames is not None:
            raise ParameterError("at and frames cannot be used together.")
        if not all(map(is_time, self.at)):
            raise wrong_value("at", "a list of times in seconds, each at least 0", self.at)
        if self.fps == 0:
            raise wrong_value("fps", "above 0", self.fps)

    def check_form(self) -> None:
        """ParameterError unless the options for the form of the answer go together."""
        forms = [name for name in ("json_schema", "choices", "regex") if getattr(self, name)]
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        if self.json_schema is not None and not is_schema(self.json_schema):
            raise wrong_value("json_schema", "a JSON schema, which is an object", self.json_schema)
        if self.regex is not None and (not isinstance(self.regex, str) or not self.regex):
            raise wrong_value("regex", "a regular expression", self.regex)
        if len(forms) > 1:
            raise ParameterError(f"{forms[0]} and {forms[1]} cannot be used together.")
        if forms and self.ignore_eos:
            raise ParameterError(f"{forms[0]} and ignore_eos cannot be used together.")

    @classmethod
    def of(cls, **given: object) -> "Options":
        """Options from keyword arguments: lists are tuples, and None is the default.

        Names and numbers may be those of other libraries (base/habits.py). ParameterError names an
        option that does not exist or has a wrong value.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in renamed(given).items():
            if name in LOADED:
                raise ParameterError(f"{name} is an argument of load(), not of a question.")
            if name not in known:
                raise no_such_option(name, sorted(known))
            value = plain(value)
            if value is not None:
                values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def is_schema(text: object) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def is_time(value: object) -> bool:
    """Whether a value is a finite number of at least 0, and not a truth value."""
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value < math.inf
