"""From a command line to a server that listens, and to its graceful end.

in:  how to load the model, where to listen, what to let in
out: nothing, until the server is stopped

It listens while the model is still being loaded, and answers 503 until it is there. On SIGTERM or
Ctrl-C it takes nothing new, lets answers go on for a while, and then ends them with an error.
Read serve/app.py first. Read next: command/serve.py.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from ..engine.handle import Model
from ..errors import OutputError
from .app import Site, app
from .connection import Connection
from .guard import Rules
from .parts import Borders
from .service import Service, slots_for

log = logging.getLogger("llava_min")
CONNECTIONS = 900  # fewer than the 1,024 files that a process may usually open
ENDING = 5.0  # seconds that the end waits for a portion that runs


@dataclass(frozen=True)
class Listening:
    """Where to listen and what to let in.

    origins: web pages that may ask it. slots, tokens: see slots_for. waiting: requests that may
    wait. grace: seconds that answers go on for when the server is stopped.
    """

    host: str
    port: int
    rules: Rules
    borders: Borders
    origins: tuple[str, ...] = ()
    slots: int | None = None
    tokens: int | None = None
    waiting: int = 32
    grace: float = 10.0
    log_requests: bool = False


class Server(uvicorn.Server):
    """uvicorn's server, which tells the site when it is to stop."""

    def __init__(self, config: uvicorn.Config, site: Site, grace: float) -> None:
        super().__init__(config)
        self.site, self.grace = site, grace
        self.failure: Exception | None = None  # of loading the model

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.site.stopping = True
        service = self.site.service
        if service is not None:
            timer = threading.Timer(self.grace, service.worker.stop)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)

    @property
    def address(self) -> str:
        """Where it listens, once it does; waits until then."""
        while not self.started and not self.should_exit:
            time.sleep(0.01)
        host, port = self.config.host, self.config.port
        for server in getattr(self, "servers", []):
            port = server.sockets[0].getsockname()[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def load(self, load: Callable[[], Model], listening: Listening) -> None:
        """Load the model, in a thread of its own; where that fails, the server ends."""
        try:
            model = load()
            slots = slots_for(model, listening.slots, listening.tokens)
            self.site.service = Service(model, slots, listening.borders)
            room = f"{len(slots.questions)} slots of {slots.capacity:,} tokens"
            log.info(f"{room}; ready at {self.address}/v1")
        except Exception as error:  # of the loading thread; the main thread raises it
            self.failure = error
            self.should_exit = True


def server_of(name: str, listening: Listening) -> Server:
    """A server that does not listen yet and has no model."""
    site = Site(name, listening.waiting, listening.log_requests)
    config = uvicorn.Config(
        app(site, listening.rules, listening.origins),
        host=listening.host,
        port=listening.port,
        log_config=None,
        access_log=False,
        lifespan="off",
        http=Connection,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(listening.grace + ENDING + 2),
        limit_concurrency=CONNECTIONS,
    )
    return Server(config, site, listening.grace)


def serve(load: Callable[[], Model], name: str, listening: Listening) -> None:
    """Serve until a signal comes. Raises LlavaMinError where loading or listening fails."""
    server = server_of(name, listening)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    threading.Thread(target=server.load, args=(load, listening), daemon=True).start()
    try:
        asyncio.run(server.serve())
    except SystemExit:  # uvicorn cannot listen; its log line says why
        where, expected = f"{listening.host}:{listening.port}", "an address that is free"
        raise OutputError("cannot listen", where, expected, "one in use, or none here") from None
    finally:
        if server.site.service is not None:
            server.site.service.worker.stop()
            server.site.service.worker.join(ENDING)
    if server.failure is not None:
        raise server.failure
