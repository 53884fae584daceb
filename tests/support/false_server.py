"""A server that means ill: the chat page, and answers that a right one would never give."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llava_min.serve.page import chat_page

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> ![x](http://evil.test/?q=1) "
MARKUP += "[y](javascript:alert(3)) [z](https://good.test/a) **bold** `<b>`\n\n"
MARKUP += (
    "| a | b |\n|---|---|\n| <i>1</i> | 2 |\n\n```\n<svg onload=alert(4)>\n```\n\n1. one\n2. two"
)
LETTERS = "naïve 北京 🦙 done"
MANY = 100_000


def chunk(text: str = "", finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


class Handler(BaseHTTPRequestHandler):
    """Answers by what the question is: markup, letters, many, error, cut, nonsense."""

    protocol_version = "HTTP/1.0"
    bodies: list[dict] = []

    def log_message(self, *words) -> None:
        """Say nothing."""

    def give(self, body: bytes, kind: str = "application/json", headers=()) -> None:
        self.send_response(200)
        for name, value in (("content-type", kind), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/":
            page = chat_page()
            given = [
                (n, v)
                for n, v in page.headers.items()
                if n not in ("content-length", "content-type")
            ]
            self.give(page.body, "text/html; charset=utf-8", headers=given)
        elif self.path == "/v1/models":
            card = {"id": "<b>evil</b>", "max_model_len": 100}
            self.give(json.dumps({"data": [card]}).encode())
        else:
            self.give(b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.path.endswith("completions"):
            self.give(json.dumps({"input_tokens": MARKUP}).encode())
            return
        self.bodies.append(body)
        asked = body["messages"][-1]["content"][-1]["text"]
        self.give(b"", "text/event-stream")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, asked)()

    def end(self) -> None:
        self.wfile.write(chunk(finish="stop") + b"data: [DONE]\n\n")

    def markup(self) -> None:
        self.wfile.write(chunk(MARKUP))
        self.end()

    def letters(self) -> None:
        """Every byte on its own, so that each letter comes in parts."""
        for byte in chunk(LETTERS):
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
        self.end()

    def many(self) -> None:
        for start in range(0, MANY, 1000):
            self.wfile.write(b"".join(chunk(f"w{start + index} ") for index in range(1000)))
        self.end()

    def error(self) -> None:
        self.wfile.write(chunk("so far "))
        self.wfile.write(b'data: {"error": {"message": "<u>it broke</u>"}}\n\n')
        self.end()

    def cut(self) -> None:
        self.wfile.write(chunk("so far "))

    def nonsense(self) -> None:
        self.wfile.write(b"data: {no json}\n\n")


@contextlib.contextmanager
def false_server() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
