"""What every request passes first: its Host, its key, the size and the time of its body.

in:  ASGI requests as they come
out: requests with their whole body in scope["state"]["body"], or a refusal

Nothing is read of a body that is said to be too long. Other web pages in a user's browser cannot
ask a server on the same machine: their requests have another Host, or need a preflight, which is
not answered.
Read serve/errors.py first. Read next: serve/app.py.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from .errors import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/ping", "/", "/example.png")  # without a key
UNGUESSED = "/explanations/"  # what follows cannot be guessed, and so is a key of its own
LOCAL = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = ("0.0.0.0", "::", "")
BODY_SECONDS = 30.0  # that any body may take
BODY_SPEED = 50_000  # bytes that give a body one second more
BODIES = 8  # longest bodies whose bytes may be in memory at a time


@dataclass(frozen=True)
class Rules:
    """What the guard lets in.

    names: what Host may be; empty: anything. key: of all but OPEN. longest: bytes of a body.
    """

    names: tuple[str, ...] = LOCAL
    key: str | None = None
    longest: int = 64 << 20

    @classmethod
    def of(cls, host: str, names: tuple[str, ...], key: str | None, longest: int) -> "Rules":
        """Those of a server that listens at `host` and is also called by `names`."""
        listens = f"[{host}]" if ":" in host else host
        known = () if host in EVERYWHERE else (*LOCAL, listens, *names)
        return cls(tuple(name.lower() for name in known), key, longest)


class Body:
    """The bytes of a request's body, which count as held until they are freed."""

    def __init__(self, guard: "Guard") -> None:
        self.guard, self.data = guard, bytearray()

    def add(self, some: bytes) -> None:
        """Append some; Refusal where it is too long, or too much is held for others."""
        self.data += some
        self.guard.held += len(some)
        if len(self.data) > self.guard.rules.longest:
            raise self.guard.too_long()
        if self.guard.held > BODIES * self.guard.rules.longest:
            raise Refusal(429, "Too many long requests at a time.", code="busy", retry_after=2)

    def take(self) -> bytes:
        """All of them. They still count: whoever takes them says when they are gone."""
        taken, self.data = bytes(self.data), bytearray()
        return taken

    def free(self, count: int) -> None:
        """So many of the bytes are not in memory any more."""
        self.guard.held -= count


class Guard:
    """ASGI around an app. `held`: bytes of bodies that are in memory."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules, self.held = app, rules, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        body = Body(self)
        try:
            self.check(scope, headers)
            if scope["method"] == "POST":
                await self.read(body, headers, receive)
            scope.setdefault("state", {})["body"] = body
            await self.app(scope, receive, send)
        except Refusal as refusal:
            await refuse(refusal, send)
        except ClientGone:
            return
        finally:
            body.free(len(body.take()))

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse another Host and a wrong key."""
        name = headers.get("host", "").lower()
        name = name.rpartition(":")[0] if name.rpartition(":")[2].isdecimal() else name
        if self.rules.names and name and name not in self.rules.names:
            raise Refusal(403, "The Host of this request is not one of this server.", code="host")
        key = self.rules.key
        if key is None or scope["path"] in OPEN or scope["path"].startswith(UNGUESSED):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")
        if not secrets.compare_digest(given.encode("latin-1"), key.encode()):
            raise Refusal(401, "The API key is missing or wrong.", code="invalid_api_key")

    async def read(self, body: Body, headers: Mapping[str, str], receive: Receive) -> None:
        """Read a body of JSON as fast as a client must send it."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "The content-type must be application/json.", code="content_type")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "No content-encoding is supported.", code="content_encoding")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.rules.longest:
            raise self.too_long()
        began = time.monotonic()
        while True:
            limit = BODY_SECONDS + len(body.data) / BODY_SPEED
            try:
                message = await asyncio.wait_for(receive(), began + limit - time.monotonic())
            except TimeoutError:
                raise Refusal(408, "The body came too slowly.", code="timeout") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            body.add(message.get("body", b""))
            if not message.get("more_body"):
                return

    def too_long(self) -> Refusal:
        """413, for a body of more bytes than the rules let in."""
        return Refusal(
            413, f"The body may have {self.rules.longest:,} bytes at most.", code="body_too_large"
        )


class ClientGone(Exception):
    """The client closed its connection."""


async def refuse(refusal: Refusal, send: Send) -> None:
    """Answer with a refusal."""
    headers = {"content-type": "application/json", **refusal.headers}
    if refusal.status == 408:
        headers["connection"] = "close"
    body = json.dumps(refusal.body).encode()
    headers["content-length"] = str(len(body))
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
