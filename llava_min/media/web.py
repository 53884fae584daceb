"""What a URL leads to: http and https only, into memory, with limits on size, time and redirects.

in:  a URL
out: the bytes of its body, or MediaError

This and the hub are the package's only network access.
Read media/sources.py first.
"""

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

from ..errors import MediaError, shown
from . import limits


class Redirects(urllib.request.HTTPRedirectHandler):
    """A few redirects, and only to http, https or ftp, of which the last has no handler here."""

    max_redirections = limits.REDIRECTS


HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    Redirects,
)


def fetch(url: str, limit: int) -> bytes:
    """The body of a URL."""
    return in_time(url, lambda: outcome(url, limit), limits.FETCH_SECONDS)


def in_time(
    url: str,
    work: Callable[[], bytes | MediaError],
    seconds: float,
    close: Callable[[], None] = lambda: None,
) -> bytes:
    """What fetching a URL gives, or raises; MediaError after `seconds`, when `close` is called.

    A thread does the work, so that no slow host can hold the caller beyond the time limit. Its
    sockets have the same limit, and a TimeoutError of one may come first by a hair.
    """
    done: list[bytes | MediaError] = []

    def run() -> None:
        with suppress(TimeoutError):
            done.append(work())

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        close()
        expected = f"an answer within {seconds:g} seconds"
        raise MediaError("cannot fetch", shown(url), expected, "none")
    if isinstance(done[0], MediaError):
        raise done[0]
    return done[0]


def outcome(url: str, limit: int) -> bytes | MediaError:
    """The body of a URL, or what is wrong; TimeoutError where a socket waited too long."""
    opener = urllib.request.OpenerDirector()
    for kind in HANDLERS:
        opener.add_handler(kind())
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "llava_min"})
        with opener.open(request, timeout=limits.FETCH_SECONDS) as response:
            body = bytearray()
            while len(body) <= limit and (block := response.read(1 << 16)):
                body += block
            length = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        found = (
            "a redirect that is not followed" if error.code < 400 else f"HTTP status {error.code}"
        )
        return MediaError("cannot fetch", shown(url), "a file", found)
    except (OSError, ValueError, MemoryError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):  # as URLError holds it
            raise TimeoutError from error
        return MediaError("cannot fetch", shown(url), "an answer", "none that can be read")
    if len(body) > limit:
        return MediaError("cannot fetch", shown(url), f"at most {limit} bytes", "more")
    if length.isdigit() and int(length) != len(body):
        return MediaError("cannot fetch", shown(url), f"{length} bytes", len(body))
    return bytes(body)
