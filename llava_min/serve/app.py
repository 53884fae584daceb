"""The server's paths, and what each does with a request.

in:  HTTP requests, after serve/guard.py
out: responses in OpenAI's forms

Read serve/guard.py, serve/exchange.py first. Read next: serve/run.py.
Agrees with: OpenAI's API for chat completions and models; /ping and /invocations of SageMaker;
/health, /tokenize and /detokenize of llama-server; /v1/chat/completions/input_tokens of OpenAI.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .. import __version__
from ..errors import LlavaMinError, PromptError
from .errors import BUSY, LOADING, STOPPING, Refusal, refusal_of, wrong
from .exchange import Exchange
from .guard import App, Body, ClientGone, Guard, Receive, Rules, Scope, Send, refuse
from .openapi import document
from .service import Service, parsed

log = logging.getLogger("llava_min")
DECODERS = 2  # threads that decode media
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
    stopping: bool = False
    open: int = 0  # requests that have not ended
    created: int = 0

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(DECODERS, "media")
        self.created = int(time.time())

    def loaded(self) -> Service:
        """The service. Raises Refusal while it is being loaded, stopped or stuck."""
        if self.stopping:
            raise STOPPING
        if self.service is None:
            raise LOADING
        return self.service

    async def in_pool(self, work: Callable[[bytes], Any], body: Body) -> Any:
        """What `work` gives for a body, in a thread of the pool."""
        data = body.take()
        if self.log_requests:
            log.info("request: %s", data[:10_000].decode(errors="replace"))
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, data)


class ChatCompletions:
    """POST /v1/chat/completions, as ASGI: it must see when its client leaves."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        site, began, status = self.site, time.perf_counter(), 200
        site.open += 1
        try:
            service = site.loaded()
            if site.open > len(service.slots.rows) + site.waiting:
                raise BUSY
            ready = await site.in_pool(service.ready, scope["state"]["body"])
            exchange = Exchange(service, ready, receive, site.name)
            exchange.start()
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
            site.open -= 1
            if site.service is not None:
                site.service.metrics.outcome(status)
            log.debug("%s %d %.2f s", scope["path"], status, time.perf_counter() - began)

    async def stream(self, exchange: Exchange, send: Send) -> None:
        """Send the events of a stream as they come."""
        start = {"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)}
        await send(start)
        async for piece in exchange.stream():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


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
            raise Refusal(503, "The model does not answer.", code="stuck")
        return json_response({"status": "ok"})

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [card(site)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != site.name:
            raise Refusal(404, "No model of this name is served.", "model", "model_not_found")
        return json_response(card(site))

    async def input_tokens(request: Request) -> Response:
        service = site.loaded()
        return json_response(await site.in_pool(service.count, request.state.body))

    async def tokenize(request: Request) -> Response:
        body, texts = parsed(request.state.body.take()), site.loaded().texts
        content = body.get("content", body.get("prompt")) if isinstance(body, dict) else None
        if not isinstance(content, str):
            raise wrong("content", "a text")
        try:
            ids = texts.tokenizer.encode_text(content)
        except PromptError:
            raise wrong("content", "valid UTF-8") from None
        return json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(request: Request) -> Response:
        body, service = parsed(request.state.body.take()), site.loaded()
        ids = body.get("tokens") if isinstance(body, dict) else None
        known = service.model.known_ids
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < known for i in ids):
            raise wrong("tokens", f"a list of ids below {known}")
        text = service.texts.tokenizer.decode(ids, special=True)
        return json_response({"content": text, "prompt": text})

    async def metrics(request: Request) -> Response:
        service = site.loaded()
        rows = service.slots.rows
        busy = sum(row is not None for row in rows)
        gauges = {
            "requests_processing": busy,
            "requests_deferred": max(0, site.open - busy),
            "slots": len(rows),
        }
        text = service.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        return json_response(document())

    async def root(request: Request) -> Response:
        return json_response({"name": "llava_min", "version": __version__, "model": site.name})

    async def elsewhere(request: Request) -> Response:
        raise Refusal(404, "This path is not served; ask /v1/chat/completions.", code="not_found")

    chat = ChatCompletions(site)
    get: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": root,
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
            "slots": len(service.slots.rows),
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
