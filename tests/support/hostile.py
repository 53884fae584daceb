"""A server in this process, and clients that misbehave, for the tests of the server's borders."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llava_min
from llava_min.serve.guard import Rules
from llava_min.serve.parts import Borders
from llava_min.serve.run import Listening, Server, server_of

SHAPES = Path(llava_min.__file__).parent / "weights" / "tiny" / "samples" / "shapes.png"
CLIP = SHAPES.with_name("clip.mp4")
SECONDS = 60  # for what should take a fraction of one, on a busy machine
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


class Local:
    """A server in threads of this process, with a model that is loaded already or None."""

    def __init__(self, model: llava_min.Model | None, **given: Any) -> None:
        usual = {"host": "127.0.0.1", "port": 0, "rules": Rules(), "borders": Borders()}
        self.listening = Listening(**usual | {"slots": 2, "tokens": 1024, "grace": 1.0} | given)
        self.server: Server = server_of("toy", self.listening)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        self.port = int(self.server.address.rpartition(":")[2])
        if model is not None:
            self.server.load(lambda: model, self.listening)
            assert self.server.failure is None, self.server.failure

    def run(self) -> None:
        asyncio.run(self.server.serve())

    @property
    def site(self):
        return self.server.site

    @property
    def service(self):
        return self.server.site.service

    def idle(self) -> bool:
        """Whether no request is anywhere: no slot busy, none waiting, none open."""
        slots, worker = self.service.slots, self.service.worker
        busy = [one for one in slots.questions if one is not None]
        return not (busy or slots.waiting or worker.jobs or self.site.open)

    def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        if self.service is not None:
            self.service.worker.stop()
            self.service.worker.join(SECONDS)


@contextlib.contextmanager
def local(model: llava_min.Model | None, **given: Any) -> Iterator[Local]:
    """A server that is stopped in the end."""
    running = Local(model, **given)
    try:
        yield running
    finally:
        running.stop()


def until(true: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Whether something became true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def question(*parts: Any, **fields: Any) -> dict[str, Any]:
    """The body of a request. parts: texts, or parts as they are sent."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


def picture(data: bytes | str, kind: str = "image_url") -> dict[str, Any]:
    """A part with bytes as a data: URI, or with a URL."""
    if isinstance(data, bytes):
        data = "data:;base64," + base64.b64encode(data).decode()
    return {"type": kind, kind: {"url": data}}


def ask(port: int, body: Any, path: str = CHAT, method: str = "POST", **headers: str):
    """(status, headers, parsed or plain body) of an answer. body: JSON, or bytes as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, JSON | named)
        response = connection.getresponse()
        found = response.read()
        kind = response.getheader("content-type", "")
        answer = json.loads(found) if kind.startswith("application/json") else found
        return response.status, {k.lower(): v for k, v in response.getheaders()}, answer
    finally:
        connection.close()


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def head(length: int | None, path: str = CHAT, method: str = "POST", *lines: str) -> bytes:
    """The head of a request, with a content-length unless it is None."""
    found = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    found += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*found, *lines, "", ""]).encode()


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def sent(port: int, body: dict[str, Any], path: str = CHAT) -> socket.socket:
    """A socket that sent a question and has read nothing."""
    data = json.dumps(body).encode()
    sock = dial(port)
    sock.sendall(head(len(data), path) + data)
    return sock


def end(sock: socket.socket) -> None:
    """Say that nothing more will be sent, to a side that may have closed already."""
    with contextlib.suppress(OSError):  # not connected is no ConnectionError
        sock.shutdown(socket.SHUT_WR)


def rest(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while block := sock.recv(1 << 16):
            found += block
    return bytes(found)


def answered(sock: socket.socket) -> tuple[int, Any]:
    """(status, body) of the response that comes on a socket."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    data = response.read()
    kind = response.getheader("content-type", "")
    return response.status, json.loads(data) if kind.startswith("application/json") else data


def events(data: bytes) -> list[Any]:
    """The objects of a stream of server-sent events, with "[DONE]" as it is."""
    lines = [line[6:] for line in data.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
