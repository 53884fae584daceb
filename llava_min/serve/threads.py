"""Work in a thread of its own, for which the end of the process does not wait.

in:  a function without arguments
out: a future of what it gives or raises

The threads of concurrent.futures are joined when Python ends: a host that answers slowly would hold
up the end of the server.
Read next: serve/app.py.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")


def in_thread(work: Callable[[], Result]) -> "asyncio.Future[Result]":
    """What `work` gives, in a thread."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            settle = partial(found.set_result, work())
        except Exception as error:  # whatever it is, it is raised where somebody waits for it
            settle = partial(found.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=run, name="request", daemon=True).start()
    return found
