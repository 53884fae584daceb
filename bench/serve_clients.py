"""Clients of a server that take little from what they measure: sockets, and lines that are counted.

in:  an address, bodies of requests
out: Heard: when the first token came, the seconds between tokens, how many there were

Read next: serve.py.
"""

import asyncio
import base64
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Heard:
    """What one request heard: seconds to its first text and between texts, and the usage."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt: int = 0
    newest: float = 0.0  # when the last text came, in seconds after the question

    def text(self, seconds: float) -> None:
        """Some text came, so many seconds after the question."""
        if not self.first:
            self.first = seconds
        else:
            self.gaps.append(seconds - self.newest)
        self.newest = seconds


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def picture_part(path: Path) -> dict:
    """A picture or a video as a data: URI."""
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}}


def body_of(parts: list[dict], tokens: int, **more: object) -> bytes:
    """A request for a stream of exactly so many tokens."""
    asked = {"messages": [{"role": "user", "content": parts}], "max_tokens": tokens}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked | stream | {"ignore_eos": True} | more).encode()


async def ask_once(address: str, body: bytes, heard: Heard | None = None) -> Heard:
    """Ask, and listen to the end; tokens are counted by the server, or else texts are counted."""
    heard = heard or Heard()
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    start = time.perf_counter()
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {await reader.read()!r}")
        async for line in reader:
            seconds = time.perf_counter() - start
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                heard.text(seconds)
            if usage := chunk.get("usage"):
                heard.tokens, heard.prompt = usage["completion_tokens"], usage["prompt_tokens"]
        heard.tokens = heard.tokens or len(heard.gaps) + bool(heard.first)
    finally:
        writer.close()
    return heard


async def closed(address: str, bodies: list[bytes], clients: int) -> list[Heard]:
    """All requests, by so many clients, each of which has one at a time."""
    waiting, found = list(reversed(bodies)), []

    async def client() -> None:
        while waiting:
            found.append(await ask_once(address, waiting.pop()))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def open_loop(address: str, bodies: list[bytes], rate: float) -> list[Heard]:
    """All requests, each on its own after a time that is drawn, `rate` a second on average."""
    rng, tasks = random.Random(1), []
    for body in bodies:
        tasks.append(asyncio.create_task(ask_once(address, body)))
        await asyncio.sleep(rng.expovariate(rate))
    return list(await asyncio.gather(*tasks))
