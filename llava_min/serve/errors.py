"""What a request is answered with when it cannot be answered: a status and OpenAI's error object.

in:  what went wrong
out: Refusal(status, message, param, code)

A client retries 408, 409, 429 and everything from 500 on, so that no mistake of its user may have
one of these. What can be well in a moment has them, and says when.
Read errors.py of the package first. Read next: serve/fields.py.
"""

import re
from collections.abc import Mapping

from ..errors import (
    CheckpointError,
    LlavaMinError,
    MemoryBudgetError,
    NumericsError,
    OutputError,
    ParameterError,
    PromptError,
    RankError,
)

PART = re.compile(r"messages\[\d+\](\.content\[\d+\])?")
OPTIONS = re.compile(r"\w+( and \w+)?")  # with which the message of a ParameterError begins
SERVER_ERRORS: dict[type[Exception], str] = {
    # an error that no request causes, and no other request mends -> its code
    CheckpointError: "checkpoint",
    OutputError: "output",
    NumericsError: "numerics",
    RankError: "rank",
}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class Refusal(Exception):
    """A request that is not answered, or not to its end.

    retry_after: seconds after which the same request may be answered; None: never.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else TYPES.get(self.status, usual)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, or that there is no use in it."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        return {"x-should-retry": "false"} if self.status >= 500 else {}


def wrong(param: str, expected: str, code: str | None = "invalid_value") -> Refusal:
    """The refusal of a field with a value that it cannot have."""
    return Refusal(400, f"{param} must be {expected}.", param, code)


def refusal_of(error: Exception, named: Mapping[str, str] | None = None) -> Refusal:
    """What an exception becomes on the wire. One of ours says what its user can do about it.

    named: the field of the request that each option came from.
    """
    if isinstance(error, Refusal):
        return error
    if type(error) in SERVER_ERRORS:
        return Refusal(500, str(error), code=SERVER_ERRORS[type(error)])
    if isinstance(error, MemoryBudgetError):
        return Refusal(400, str(error), code="out_of_memory")
    if isinstance(error, ParameterError):
        return of_fields(str(error), named or {})
    if isinstance(error, LlavaMinError):
        part = PART.search(str(error))
        param = "messages" if isinstance(error, PromptError) else None
        return Refusal(400, str(error), part[0] if part else param, "invalid_value")
    return Refusal(500, "The server made a mistake; its log says which.", code="internal_error")


def of_fields(message: str, named: Mapping[str, str]) -> Refusal:
    """The refusal of options, by the names of the fields that they came from.

    >>> of_fields("regex and seed cannot be used together.", {"regex": "guided_regex"}).message
    'guided_regex and seed cannot be used together.'
    """
    options = OPTIONS.match(message)
    names = options[0].split(" and ") if options else []
    fields = [named.get(name, name) for name in names]
    message = " and ".join(fields) + message[len(" and ".join(names)) :]
    param = next((field for name, field in zip(names, fields) if name in named), None)
    return Refusal(400, message, param, "invalid_value")


BUSY = Refusal(429, "The queue is full.", code="queue_full", retry_after=2)
LOADING = Refusal(503, "The model is being loaded.", code="loading", retry_after=2)
STUCK = Refusal(503, "The model does not answer.", code="stuck")
STOPPING = Refusal(503, "The server is being stopped.", code="stopping", retry_after=5)
