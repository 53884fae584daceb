"""The server within the test's own process: requests as ASGI, without a socket."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llava_min.engine.slots import Slots
from llava_min.serve.app import Site, app
from llava_min.serve.guard import Rules
from llava_min.serve.parts import Borders
from llava_min.serve.service import Service

CHAT = "/v1/chat/completions"


@dataclass
class Got:
    """What came back: the status, the headers by their names, the body as it was sent."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.pieces))

    @property
    def error(self) -> dict:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The objects of a stream, which ends with [DONE]."""
        *events, last, end = b"".join(self.pieces).split(b"\n\n")
        assert (last, end) == (b"data: [DONE]", b"")
        events = [event for event in events if event != b": ping"]
        assert all(event.startswith(b"data: ") for event in events)
        return [json.loads(event.removeprefix(b"data: ")) for event in events]


class Local:
    """A server with a model; `ask` sends it one request, `chat` a chat completion."""

    def __init__(self, model, rows: int = 4, capacity: int = 700, rules: Rules | None = None):
        self.model = model
        self.service = Service(model, Slots(model, rows, capacity, looks=1 << 20), Borders())
        self.site = Site("served", waiting=32, service=self.service)
        self.app = app(self.site, rules or Rules(()))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Got:
        return asyncio.run(self.answer(method, path, body, headers))

    async def answer(self, method: str, path: str, body: bytes, headers: dict) -> Got:
        """One request of a client that waits for the end of its answer."""
        given = {"content-type": "application/json"} if body else {}
        pairs = [(k.encode(), v.encode()) for k, v in (given | headers).items()]
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
        scope |= {"headers": pairs, "query_string": b"", "scheme": "http", "root_path": ""}
        ended, sent = asyncio.Event(), []
        coming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            if not coming:
                await ended.wait()
                return {"type": "http.disconnect"}
            return coming.pop()

        async def send(message: dict) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        ended.set()
        start, *rest = sent
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return Got(start["status"], names, [message["body"] for message in rest])

    def post(self, path: str, body: Any) -> Got:
        """One request with an object, or with bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data)

    def chat(self, **fields: Any) -> Got:
        """A chat completion, with a short question unless there are messages."""
        question = [{"role": "user", "content": "What is this?"}]
        return self.post(CHAT, {"messages": question} | fields)

    def choices(self, **fields: Any) -> list[dict]:
        """The choices of a chat completion that is answered."""
        got = self.chat(**fields)
        assert got.status == 200, got.json
        return got.json["choices"]

    def text(self, **fields: Any) -> str:
        """The text of the only choice."""
        (choice,) = self.choices(**fields)
        return choice["message"]["content"]


@contextlib.contextmanager
def local(model, **given: Any) -> Iterator[Local]:
    """A server that is stopped in the end."""
    served = Local(model, **given)
    try:
        yield served
    finally:
        served.service.worker.stop()
        served.service.worker.join(30)
