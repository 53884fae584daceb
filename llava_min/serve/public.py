"""What a stranger's URL leads to: public addresses only, however it is spelt or redirected.

in:  a URL from a request, patterns of hosts that may be elsewhere too
out: the bytes of its body, or MediaError

A host's name is resolved once, every address that it has must be public, and one of these is
dialled: an answer that changes between the check and the call cannot lead elsewhere. Each redirect
is checked the same way. Proxies of the environment are not asked.
Read media/web.py first. Read next: serve/parts.py.
"""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch

from ..errors import MediaError, shown
from ..media import limits
from ..media.web import in_time

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address within IPv6
UNICAST = ipaddress.ip_network("2000::/3")  # of IPv6; nothing else of it is public
WITHIN = tuple(
    # within a provider's network, though public by their numbers
    ipaddress.ip_network(text)
    for text in ("168.63.129.16/32", "192.0.0.0/24")  # Azure's and Oracle's, with secrets
)


def fetch_public(url: str, limit: int, allowed: Sequence[str] = (), seconds: float = 0) -> bytes:
    """The body of a URL: at most `limit` bytes, and within `seconds` (0: those of media/limits.py).

    allowed: hosts, with * for any letters, that may have any address and port.
    """
    seconds = seconds or limits.FETCH_SECONDS
    dial = Dial(allowed, time.monotonic() + seconds)
    return in_time(url, lambda: dial.outcome(url, limit), seconds, dial.close)


class Dial:
    """One fetch with its redirects; `close` ends it from another thread."""

    def __init__(self, allowed: Sequence[str], deadline: float) -> None:
        self.allowed, self.deadline = allowed, deadline
        self.sock: socket.socket | None = None  # the connection forgets its own before the end

    def close(self) -> None:
        """End the connection, whatever it waits for."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def outcome(self, url: str, limit: int) -> bytes | MediaError:
        """The body, or what is wrong; TimeoutError after the deadline."""
        try:
            for _ in range(limits.REDIRECTS + 1):
                found = self.visit(url, limit)
                if not isinstance(found, str):
                    return found
                url = urllib.parse.urljoin(url, found)
            return refused(url, "a file", "more redirects than are followed")
        except MediaError as error:
            return error
        except TimeoutError:
            raise
        except (OSError, ValueError, MemoryError, http.client.HTTPException):
            return refused(url, "an answer", "none that can be read")

    def visit(self, url: str, limit: int) -> bytes | str | MediaError:
        """The body, or where a redirect leads."""
        parts = urllib.parse.urlsplit(url.strip())
        scheme, host = parts.scheme.lower(), parts.hostname or ""
        if scheme not in PORTS or not host:
            return refused(url, "http:// or https:// with a host", scheme or "none")
        port, open_host = parts.port or PORTS[scheme], self.is_allowed(host)
        if port not in PORTS.values() and not open_host:
            return refused(url, "port 80 or 443", str(port))
        address = public_address(url, host, port, open_host)
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        headers = {"User-Agent": "llava_min", "Accept": "*/*", "Accept-Encoding": "identity"}
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = PORTS[scheme]  # which Host does not name
        try:
            connection.sock = self.connect(scheme, host, port, address)
            connection.request("GET", f"{target}?{query}" if query else target, None, headers)
            with connection.getresponse() as response:
                return self.answer(url, response, limit)
        finally:
            connection.close()
            if self.sock is not None:
                self.sock.close()

    def connect(self, scheme: str, host: str, port: int, address: str) -> socket.socket:
        """Dial an address of a host. Certificates are checked for the host's name."""
        self.sock = socket.create_connection((address, port), timeout=self.left())
        if scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(
                self.sock, server_hostname=host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
        self.left()  # `close` may have come before there was a socket
        return self.sock

    def answer(
        self, url: str, response: http.client.HTTPResponse, limit: int
    ) -> bytes | str | MediaError:
        """What a response says: its body, where it leads, or why neither."""
        where = response.getheader("Location")
        if response.status in REDIRECTS and where:
            return where
        if response.status != 200:
            return refused(url, "a file", f"HTTP status {response.status}")
        body = bytearray()
        while len(body) <= limit and (block := response.read1(1 << 16)):
            body += block
            self.left()
        length = response.getheader("Content-Length") or ""
        if len(body) > limit:
            return refused(url, f"at most {limit} bytes", "more")
        if length.isdigit() and int(length) != len(body):
            return refused(url, f"{length} bytes", str(len(body)))
        return bytes(body)

    def left(self) -> float:
        """Seconds until the deadline; TimeoutError after it."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def is_allowed(self, host: str) -> bool:
        """Whether a host may be anywhere."""
        return any(fnmatch(host.lower(), pattern.lower()) for pattern in self.allowed)


def public_address(url: str, host: str, port: int, anywhere: bool) -> str:
    """An address of a host; MediaError unless all that it has are public, or `anywhere`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise refused(url, "a host that is known", "none") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses:
        raise refused(url, "a host that is known", "none")
    if not anywhere and not all(map(is_public, addresses)):
        raise refused(url, "a public address", "one of a private network")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "10.1.2.3", "169.254.169.254", "::1")]
    [True, False, False, False, False]
    >>> [is_public(a) for a in ("::ffff:127.0.0.1", "64:ff9b::7f00:1", "224.0.0.1", "fe80::1%eth0")]
    [False, False, False, False]
    >>> [is_public(a) for a in ("::127.0.0.1", "fec0::1", "168.63.129.16")]
    [False, False, False]
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in TRANSLATED:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None or address.teredo is not None:
            return inner is not None and is_public(str(inner))
        if address not in UNICAST:
            return False
    within = any(address in network for network in WITHIN)
    return address.is_global and not address.is_multicast and not within


def refused(url: str, expected: str, found: str) -> MediaError:
    """The error of a URL that is not fetched."""
    return MediaError("cannot fetch", shown(url), expected, found)
