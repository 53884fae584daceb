"""The errors that a user can cause, and the exit code of each."""

import re
from collections.abc import Iterable


class LlavaMinError(Exception):
    """One printable line: what failed and where, what was expected and what was found.

    `where` is a file or tensor. Without it `what` is the whole line, a plain sentence.

    >>> print(LlavaMinError("cannot load", "head.weight", "float32", "int8", "Convert it."))
    cannot load: head.weight: expected float32, found int8. Convert it.
    >>> print(LlavaMinError("--json and --jsonl cannot be used together."))
    --json and --jsonl cannot be used together.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        where: str | None = None,
        expected: str = "",
        found: object = None,
        hint: str = "",
    ) -> None:
        line = what if where is None else f"{what}: {where}: expected {expected}, found {found}."
        line = f"{line} {hint}" if hint else line
        # one argument is left, the line: pickle and copy make the same error of it again
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class ParameterError(LlavaMinError):
    """An option or argument is out of range, or two do not go together: a sentence says which."""

    exit_code = 2


class CheckpointError(LlavaMinError):
    """A checkpoint folder is incomplete, contradictory or of a kind that is not supported."""

    exit_code = 3


class MediaError(LlavaMinError):
    """A picture or video cannot be read."""

    exit_code = 4


class PromptError(LlavaMinError):
    """The prompt is empty, too long, or does not fit its pictures."""

    exit_code = 4


class MemoryBudgetError(LlavaMinError):
    """What was asked for does not fit into memory."""

    exit_code = 5


class OutputError(LlavaMinError):
    """A result cannot be written."""

    exit_code = 6


class NumericsError(LlavaMinError):
    """NaN or infinity in weights or logits."""

    exit_code = 7


class RankError(LlavaMinError):
    """Another process that holds a part of the model does not answer any more."""


def wrong_value(name: str, expected: str, value: object) -> ParameterError:
    """The error for an option with a value that it cannot have.

    >>> print(wrong_value("max_tokens", "a whole number of at least 1", 0))
    max_tokens must be a whole number of at least 1, not 0.
    """
    return ParameterError(f"{name} must be {expected}, not {shown(value)}.")


def no_such_option(name: str, known: Iterable[str]) -> ParameterError:
    """The error for an option that does not exist, with the known one that is spelt most alike.

    >>> print(no_such_option("max_new_tokens", ["max_tokens", "seed"]))
    No option is called max_new_tokens; did you mean max_tokens?
    """
    from difflib import get_close_matches  # which --help does without

    near = get_close_matches(name, known, n=1, cutoff=0.7)
    written = name if re.fullmatch(r"[\w-]{1,60}", name) else shown(name)
    return ParameterError(
        f"No option is called {written}" + (f"; did you mean {near[0]}?" if near else ".")
    )


def shown(value: object, limit: int = 120) -> str:
    """A value from a file, escaped and shortened for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
