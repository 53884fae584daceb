"""From the model's thread to the event loop: everything that came since the loop last looked.

in:  things for queues of the loop, from another thread
out: the same things in these queues, in order

To wake the loop costs more than what it then does for a token. So it is woken for the first thing,
and takes what comes for other requests until it looks: all tokens of a step, as a rule.
Read next: serve/exchange.py.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Outbox(Generic[Thing]):
    """Things on their way into queues of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.things: deque[tuple[asyncio.Queue[Thing], Thing]] = deque()
        self.woken = False  # the loop is going to look

    def put(self, queue: "asyncio.Queue[Thing]", thing: Thing) -> None:
        """Hand something over, from any thread."""
        self.things.append((queue, thing))
        if not self.woken:
            self.woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self.loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Put all that is there into its queue, in the loop."""
        self.woken = False  # before it looks: what comes after the last look wakes it again
        while self.things:
            queue, thing = self.things.popleft()
            queue.put_nowait(thing)
