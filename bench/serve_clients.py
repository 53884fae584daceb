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
    """What one request heard: seconds to its first token, between tokens, and counts of tokens."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt: int = 0


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


def picture_part(path: Path) -> dict:
    """A picture or a video as a data: URI."""
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}}


def body_of(parts: list[dict], tokens: int, **more: object) -> bytes:
    """A request for a stream of exactly so many tokens."""
    asked = {"messages": [{"role": "user", "content": parts}], "max_tokens": tokens}
    stream = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    return json.dumps(asked | stream | {"ignore_eos": True} | more).encode()


async def ask_once(address: str, body: bytes, heard: Heard | None = None) -> Heard:
    """Ask, and listen to the end. Every token has its entry of logprobs, also one without text."""
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
        newest = 0.0
        async for line in reader:
            count = line.count(b'"top_logprobs"')
            now = time.perf_counter()
            if count and not heard.tokens:
                heard.first = now - start
            elif count:
                heard.gaps += [(now - newest) / count] * count
            if count:
                heard.tokens, newest = heard.tokens + count, now
            if b'"usage": {' in line:
                heard.prompt = json.loads(line[6:])["usage"]["prompt_tokens"]
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
