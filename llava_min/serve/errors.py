"""What a request is answered with when it cannot be answered: a status and OpenAI's error object.

in:  what went wrong
out: Refusal(status, message, param, code)

A client retries 408, 409, 429 and everything from 500 on, so that no mistake of its user may have
one of these. What can be well in a moment has them, and says when.
Read errors.py of the package first. Read next: serve/fields.py.
"""

import re

from ..errors import LlavaMinError, MemoryBudgetError, NumericsError

PART = re.compile(r"messages\[\d+\](\.content\[\d+\])?")
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


def refusal_of(error: Exception) -> Refusal:
    """What an exception becomes on the wire. One of ours says what its user can do about it."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, NumericsError):
        return Refusal(500, str(error), code="numerics")
    if isinstance(error, MemoryBudgetError):
        return Refusal(400, str(error), code="out_of_memory")
    if isinstance(error, LlavaMinError):
        named = PART.search(str(error))
        return Refusal(400, str(error), named[0] if named else None, "invalid_value")
    return Refusal(500, "The server made a mistake; its log says which.", code="internal_error")


BUSY = Refusal(429, "The queue is full.", code="queue_full", retry_after=2)
LOADING = Refusal(503, "The model is being loaded.", code="loading", retry_after=2)
STOPPING = Refusal(503, "The server is being stopped.", code="stopping", retry_after=5)
