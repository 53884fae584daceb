"""One request on its way: its answers' events, whole or as a stream, until all end or nobody waits.

in:  Ready questions, the worker
out: a completion, or the bytes of server-sent events

While it waits, it listens for the client's going, which ends the work within one portion. The
prompt of a request for several answers is read once: the others begin when the first has a token.
Read serve/service.py, serve/protocol.py, serve/outbox.py first. Read next: serve/app.py.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from ..engine.answers import Answer, Event, Finished
from ..engine.rules import Likelihoods
from ..generate import Token
from ..model import Portion
from .errors import Refusal, refusal_of
from .guard import ClientGone
from .protocol import DONE, PING, Envelope, event
from .service import Ready, Service
from .worker import Job

PING_SECONDS = 10.0
Entries = list[dict[str, Any]]
Heard = tuple["Choice", Event | Exception | None, Entries]


class Choice:
    """One of the answers to a request: a job, and what its tokens were."""

    def __init__(self, exchange: "Exchange", index: int) -> None:
        ready, service = exchange.ready, exchange.service
        self.exchange, self.index = exchange, index
        self.answer: Answer | None = None
        self.entries: Entries = []  # of `logprobs`, as far as they were heard and not sent
        self.ids: list[int] = []
        self.newest = 0.0  # when its newest token came
        rules, top = ready.rules[index], ready.wanted.top
        self.likelihoods = None if top is None else Likelihoods(top, service.model.known_ids)
        if self.likelihoods is not None:
            rules = [self.likelihoods, *rules]
        self.job = Job(
            ready.prepared, ready.option(index), self.hear, self.end, rules, ends=ready.ends
        )

    def hear(self, event: Event) -> None:
        """Take an event, in the worker's thread."""
        entries: Entries = []
        if isinstance(event, Token):
            self.measure()
            self.ids.append(event.id)
            if self.likelihoods is not None and event.id not in self.job.ends:
                found = self.likelihoods.settle(self.ids)[-1:]
                entries = self.exchange.service.texts.entries(found)
        self.exchange.put(self, event, entries)

    def measure(self) -> None:
        """Count the seconds since the token before, or since the request."""
        now, metrics = time.perf_counter(), self.exchange.service.metrics
        if self.ids:
            metrics.observe("time_between_tokens_seconds", now - self.newest)
        else:
            metrics.observe("time_to_first_token_seconds", now - self.exchange.began)
        self.newest = now

    def end(self, error: Exception | None) -> None:
        """Take the end, in the worker's thread."""
        self.exchange.put(self, error, [])

    def take_entries(self) -> Entries | None:
        """The entries that were not sent yet; None where none are asked for."""
        if self.likelihoods is None:
            return None
        taken, self.entries = self.entries, []
        return taken


class Exchange:
    """A request and its choices. gone: is done when the client is gone."""

    def __init__(
        self, service: Service, ready: Ready, gone: "asyncio.Task[None]", name: str
    ) -> None:
        self.service, self.ready = service, ready
        self.began, self.outbox = time.perf_counter(), service.outbox()
        self.queue: asyncio.Queue[Heard | None] = asyncio.Queue()  # None: the client is gone
        gone.add_done_callback(lambda _: self.queue.put_nowait(None))
        self.choices = [Choice(self, index) for index in range(ready.wanted.n)]
        ready.prepared = ready.prepared.without_media()  # each job has them until it is read
        self.envelope = Envelope(name, service.fingerprint)
        service.metrics.count("media_bytes_total", ready.media_bytes)

    def put(self, choice: Choice, event: Event | Exception | None, entries: Entries) -> None:
        """Hand something over from the worker's thread."""
        self.outbox.put(self.queue, (choice, event, entries))

    async def events(self) -> AsyncGenerator[tuple[Choice, Event] | None, None]:
        """Every event of every choice; None where nothing came for a while.

        Raises what went wrong, and ClientGone. However it ends, no work is left.
        """
        ended, begun = 0, 1
        self.service.worker.submit(self.choices[0].job)
        try:
            while ended < len(self.choices):
                found = await self.next()
                if found is None:
                    yield None
                    continue
                choice, event, entries = found
                choice.entries += entries
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    ended += 1
                    continue
                if isinstance(event, Token):
                    for other in self.choices[begun:]:
                        self.service.worker.submit(other.job)
                    begun = len(self.choices)
                if isinstance(event, Answer):
                    choice.answer = event
                yield choice, event
            self.count()
        finally:
            for choice in self.choices:
                self.service.worker.cancel(choice.job)

    async def next(self) -> Heard | None:
        """What comes next, or None after a while without; ClientGone."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                found = await self.queue.get()
        except TimeoutError:
            return None
        if found is None:
            raise ClientGone
        return found

    def count(self) -> None:
        """Add the answers to the metrics."""
        metrics, answers = self.service.metrics, self.answers
        usage = answers[0].usage
        metrics.count("prompt_tokens_total", usage["prompt_tokens"])
        metrics.count("cached_tokens_total", usage.get("cached_tokens", 0))
        written = sum(answer.usage["completion_tokens"] for answer in answers)
        metrics.count("tokens_predicted_total", written)
        metrics.observe("request_seconds", time.perf_counter() - self.began)

    @property
    def answers(self) -> list[Answer]:
        """The answers, once all are there."""
        return [choice.answer for choice in self.choices if choice.answer is not None]

    async def whole(self) -> dict[str, Any]:
        """The completion, when all is there."""
        async for _ in self.events():
            pass
        return self.envelope.completion(self.answers, [c.take_entries() for c in self.choices])

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream; one that fails ends with an error."""
        usage, chunk = self.ready.wanted.include_usage, self.envelope.chunk
        for choice in self.choices:
            yield chunk(choice.index, {"role": "assistant", "content": ""}, usage=usage)
        try:
            async with aclosing(self.events()) as events:
                async for found in events:
                    if found is None:
                        yield PING
                        continue
                    choice, event = found
                    for piece in self.pieces(choice, event):
                        yield piece
            if usage:
                yield self.envelope.last(self.answers)
        except ClientGone:
            raise
        except Exception as error:  # the status is sent: it is told in the stream
            yield event_of(refusal_of(error))
        yield DONE

    def pieces(self, choice: Choice, event: Event) -> Iterator[bytes]:
        """What a stream holds for an event."""
        wanted, chunk, index = self.ready.wanted, self.envelope.chunk, choice.index
        usage = wanted.include_usage
        if isinstance(event, Portion) and wanted.progress and index == 0:
            yield chunk(index, {}, usage=usage, prompt_progress=self.progress(event))
        elif isinstance(event, Token | Finished) and event.text:
            yield chunk(index, {"content": event.text}, choice.take_entries(), usage=usage)
        if isinstance(event, Answer):
            if choice.entries:
                yield chunk(index, {"content": ""}, choice.take_entries(), usage=usage)
            yield chunk(index, {}, None, event.finish_reason, usage)

    def progress(self, portion: Portion) -> dict[str, Any]:
        """How much of the prompt was read, as llama-server says it."""
        asked = self.choices[0].job.asked
        assert asked is not None  # a portion of its prompt was read
        seconds = time.perf_counter() - self.began
        total = self.ready.prepared.plan.tokens
        return {
            "total": total,
            "cache": asked.cached,
            "processed": asked.cached + portion.done,
            "time_ms": round(seconds * 1000),
        }


def event_of(refusal: Refusal) -> bytes:
    """A refusal in the middle of a stream."""
    return event(refusal.body)
