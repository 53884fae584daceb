"""The errors that a user can cause, and the exit code of each."""


class LlavaMinError(Exception):
    """One printable line: what failed and where, what was expected and what was found.

    `where` is a file, tensor or argument.

    >>> print(LlavaMinError("cannot load", "dtype", "float32", "int8", "Convert it."))
    cannot load: dtype: expected float32, found int8. Convert it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str, expected: str, found, hint: str = ""):
        line = f"{what}: {where}: expected {expected}, found {found}."
        line = f"{line} {hint}" if hint else line
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


class ParameterError(LlavaMinError):
    """An option or argument is out of range, or two do not go together."""

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


def shown(value, limit: int = 120) -> str:
    """A value from a file, escaped and shortened for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
