"""A connection that must ask something soon.

in:  bytes of a client
out: as uvicorn has it; or the end, where no head of a request comes

uvicorn waits without end for the head of a request, so that some hundred clients that say nothing
would keep all others out. It also waits for the rest of a body that was refused, which is good for
a while: most clients send all before they read an answer, and would only see a broken connection.
Read next: serve/run.py.
Agrees with: uvicorn's protocol for h11, of which it is one.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # for the head of a request, or for the rest of a body that nobody wants


class Connection(H11Protocol):
    """One client. timer: ends the connection, while it waits for a request."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.wait()

    def handle_events(self) -> None:
        super().handle_events()
        self.wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.forget()

    def wait(self) -> None:
        """Start the timer where no request is being answered, and stop it where one is."""
        coming = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        answering = self.cycle is not None and not self.cycle.response_complete
        if not coming or answering or self.transport.is_closing():
            self.forget()
        elif self.timer is None:
            self.timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def forget(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
