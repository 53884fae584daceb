"""The server's paths, and what each does with a request.

in:  HTTP requests, after serve/guard.py
out: responses in OpenAI's forms

Read serve/guard.py, serve/exchange.py, serve/page.py first. Read next: serve/run.py.
Agrees with: OpenAI's API for chat completions and models; /ping and /invocations of SageMaker;
/health, /tokenize and /detokenize of llama-server; /v1/chat/completions/input_tokens of OpenAI.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import LlavaMinError
from .errors import BUSY, LOADING, STOPPING, STUCK, Refusal, refusal_of
from .exchange import Exchange
from .explanations import Explanations
from .guard import App, Body, ClientGone, Guard, Receive, Rules, Scope, Send, refuse
from .openapi import document
from .page import chat_page, example, explanation, wants_page
from .service import Service
from .threads import in_thread

log = logging.getLogger("llava_min")
READERS = 64  # requests that are read at a time, of which most wait for the web
STALLED = 120.0  # seconds after which a client that takes nothing of its stream is gone
GONE = 499  # the status of a request whose client left, in the metrics
ELSEWHERE = ("completions", "responses", "embeddings", "messages", "images/generations", "audio")
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


@dataclass
class Site:
    """What the paths share: the service once it is loaded, and how much may wait.

    name: of the model. waiting: requests that may wait for a slot.
    """

    name: str
    waiting: int
    log_requests: bool = False
    service: Service | None = None
    explanations: Explanations | None = None
    stopping: bool = False
    open: int = 0  # requests that have not ended
    created: int = field(default_factory=lambda: int(time.time()))
    readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))

    def explaining(self) -> Explanations:
        """What makes explanations. Raises Refusal as `loaded` does."""
        service = self.loaded()
        if self.explanations is None:
            self.explanations = Explanations(service)
        return self.explanations

    def loaded(self) -> Service:
        """The service. Raises Refusal while it is being loaded, stopped or stuck."""
        if self.stopping:
            raise STOPPING
        if self.service is None:
            raise LOADING
        return self.service

    async def read(self, work: Callable[[bytes], Any], body: Body) -> Any:
        """What `work` gives for a body, in a thread. The body counts as held until then.

        The thread goes on where nobody waits for it any more.
        """
        await self.readers.acquire()
        data = body.take()
        count = len(data)

        def over(_: object) -> None:
            body.free(count)
            self.readers.release()

        if self.log_requests:
            log.info("request: %s", data[:10_000].decode(errors="replace"))
        found = in_thread(partial(work, data))
        found.add_done_callback(over)
        return await asyncio.shield(found)


class ChatCompletions:
    """POST /v1/chat/completions, as ASGI: it must see when its client leaves."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        site, began, status = self.site, time.perf_counter(), 200
        gone = asyncio.create_task(disconnected(receive))
        site.open += 1
        try:
            service = site.loaded()
            if site.open > len(service.slots.questions) + site.waiting:
                raise BUSY
            read = partial(service.ready, gone=gone.done)
            ready = await unless(gone, site.read(read, scope["state"]["body"]))
            exchange = Exchange(service, ready, gone, site.name)
            if ready.wanted.stream:
                await self.stream(exchange, send)
            else:
                await send_json(send, await exchange.whole())
        except ClientGone:
            status = GONE
        except Exception as error:  # whatever it is, it is told to the client, and to no other
            refusal = refusal_of(error)
            if refusal.code == "internal_error":
                log.error("a request failed", exc_info=error)
            status = refusal.status
            await refuse(refusal, send)
        finally:
            gone.cancel()
            site.open -= 1
            if site.service is not None:
                site.service.metrics.outcome(status)
            log.debug("%s %d %.2f s", scope["path"], status, time.perf_counter() - began)

    async def stream(self, exchange: Exchange, send: Send) -> None:
        """Send the events of a stream as they come. Raises ClientGone where nobody takes them."""
        start = {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
        await send(start)
        try:
            async with aclosing(exchange.stream()) as pieces:
                async for piece in pieces:
                    part = {"type": "http.response.body", "body": piece, "more_body": True}
                    async with asyncio.timeout(STALLED):
                        await send(part)
        except TimeoutError:
            raise ClientGone from None
        await send({"type": "http.response.body", "body": b""})


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless(gone: "asyncio.Task[None]", work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` gives. Raises ClientGone, and does not wait for it, once the client is gone."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()


async def send_json(send: Send, value: dict[str, Any]) -> None:
    """Answer with an object."""
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def json_response(
    value: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An object as a response; in ASCII, which half a surrogate pair can be written in."""
    return Response(json.dumps(value), status, headers, "application/json")


def paths(site: Site) -> list[Route]:
    """Every path of the server."""

    async def health(request: Request) -> Response:
        service = site.loaded()
        if not service.worker.healthy:
            raise STUCK
        return json_response({"status": "ok"})

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [card(site)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != site.name:
            raise Refusal(404, "No model of this name is served.", "model", "model_not_found")
        return json_response(card(site))

    async def input_tokens(request: Request) -> Response:
        service = site.loaded()
        return json_response(await site.read(service.count, request.state.body))

    async def tokenize(request: Request) -> Response:
        service = site.loaded()
        return json_response(await site.read(service.tokenize, request.state.body))

    async def detokenize(request: Request) -> Response:
        service = site.loaded()
        return json_response(await site.read(service.detokenize, request.state.body))

    async def metrics(request: Request) -> Response:
        service = site.loaded()
        questions = service.slots.questions
        busy = sum(question is not None for question in questions)
        gauges = {
            "requests_processing": busy,
            "requests_deferred": max(0, site.open - busy),
            "slots": len(questions),
        }
        text = service.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        return json_response(document())

    async def root(request: Request) -> Response:
        if wants_page(request):
            return chat_page()
        return json_response({"name": "llava_min", "version": __version__, "model": site.name})

    async def picture(request: Request) -> Response:
        return example()

    async def explain(request: Request) -> Response:
        made = await site.read(site.explaining().make, request.state.body)
        return json_response({"id": made, "url": f"explanations/{made}"})

    async def explained(request: Request) -> Response:
        return explanation(site.explaining().get(request.path_params["name"]))

    async def elsewhere(request: Request) -> Response:
        raise Refusal(404, "This path is not served; ask /v1/chat/completions.", code="not_found")

    chat = ChatCompletions(site)
    get: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": root,
        "/example.png": picture,
        "/explanations/{name}": explained,
        "/health": health,
        "/ping": health,
        "/metrics": metrics,
        "/openapi.json": openapi,
        "/v1/models": models,
        "/models": models,
        "/v1/models/{name:path}": model,
    }
    post: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/v1/chat/completions/input_tokens": input_tokens,
        "/explanations": explain,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
        **{f"/v1/{name}": elsewhere for name in ELSEWHERE},
    }
    chats = ("/v1/chat/completions", "/chat/completions", "/invocations")
    return [
        *(Route(path, chat, methods=["POST"]) for path in chats),
        *(Route(path, work, methods=["GET"]) for path, work in get.items()),
        *(Route(path, work, methods=["POST"]) for path, work in post.items()),
    ]


def card(site: Site) -> dict[str, Any]:
    """The model, as /v1/models describes it."""
    kinds = ["text", "image", "video"]
    found: dict[str, Any] = {
        "id": site.name,
        "object": "model",
        "created": site.created,
        "owned_by": "llava_min",
        "architecture": {"input_modalities": kinds, "output_modalities": ["text"]},
    }
    service = site.service
    if service is not None:
        found["max_model_len"] = service.slots.capacity
        storage, config = service.model.storage, service.model.config
        found["meta"] = {
            "family": config.family,
            "dtype": storage.dtype,
            "bits": storage.bits,
            "n_ctx_train": config.text.context,
            "slots": len(service.slots.questions),
        }
    return found


def app(site: Site, rules: Rules, origins: tuple[str, ...] = ()) -> App:
    """The whole server as ASGI. origins: web pages that may ask it from a browser."""

    async def failed(request: Request, error: Exception) -> Response:
        headers: Mapping[str, str] = {}
        if isinstance(error, HTTPException):
            code = "not_found" if error.status_code == 404 else "method"
            headers = error.headers or {}
            error = Refusal(error.status_code, f"{error.detail}.", code=code)
        refusal = refusal_of(error)
        return json_response(refusal.body, refusal.status, {**headers, **refusal.headers})

    kinds = (HTTPException, Refusal, LlavaMinError, Exception)
    handlers: dict[Any, Any] = dict.fromkeys(kinds, failed)
    inner: App = Starlette(routes=paths(site), exception_handlers=handlers)
    guarded: App = Guard(inner, rules)
    if origins:
        methods = ["GET", "POST"]
        return CORSMiddleware(guarded, list(origins), methods, ["*"])
    return guarded
