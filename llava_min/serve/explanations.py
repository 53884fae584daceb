"""What an answer's words looked at, asked over HTTP: made when no answer is being written.

in:  the body of a request for a completion, with the answer to it
out: a page of explain/page.py, kept for a while under a name that cannot be guessed

An explanation takes the model for about as long as its answer took, and all wait for it meanwhile.
So there is one at a time, and it begins when no slot is busy.
Read serve/service.py, serve/worker.py first. Read next: serve/app.py.
"""

import secrets
import threading
from collections import OrderedDict
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLong

from ..errors import LlavaMinError
from ..explain.page import page
from .errors import BUSY, Refusal, refusal_of, wrong
from .fields import wanted_of
from .service import Service, parsed

KEPT = 8  # pages of at most 8 MB each
PATIENCE = 600.0  # seconds


class Explanations:
    """The pages by name; one is made at a time."""

    def __init__(self, service: Service) -> None:
        self.service, self.one_at_a_time = service, threading.Lock()
        self.pages: OrderedDict[str, str] = OrderedDict()

    def make(self, body: bytes) -> str:
        """The name of a new explanation. Raises Refusal."""
        if not self.one_at_a_time.acquire(blocking=False):
            raise BUSY
        try:
            text = self.made(body)
        finally:
            self.one_at_a_time.release()
        name = secrets.token_hex(16)
        self.pages[name] = text
        while len(self.pages) > KEPT:
            self.pages.popitem(last=False)
        return name

    def made(self, body: bytes) -> str:
        """The page of an explanation, made in the model's thread."""
        given = parsed(body)
        answer = given.pop("answer", None) if isinstance(given, dict) else None
        if not isinstance(answer, str) or not answer.strip():
            raise wrong("answer", "the text of an answer")
        wanted, _ = wanted_of(given)
        messages, _ = self.service.question_of(wanted)
        done: Future[str] = Future()

        def work() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                model = self.service.model
                options = {**wanted.options, "max_tokens": 1}
                done.set_result(page(model.explain(messages, answer, **options)))
            except Exception as error:  # whatever it is, it is told to the client
                done.set_exception(error)

        self.service.worker.when_idle(work)
        try:
            return done.result(PATIENCE)
        except TooLong:
            done.cancel()
            raise BUSY from None
        except LlavaMinError as error:
            raise refusal_of(error, wanted.named) from None

    def get(self, name: str) -> str:
        """A page by its name. Raises Refusal."""
        if name not in self.pages:
            message = "This explanation is not kept any more; ask again."
            raise Refusal(404, message, code="not_found")
        return self.pages[name]
