"""Where a stranger's URL may lead: to public addresses, however it is spelt or redirected.

In these tests 127.0.0.1 is the public internet, on which a few hosts answer, and 127.0.0.2 is a
private network, on which a secret lies: whatever is asked, nobody may come to it.
"""

import contextlib
import gzip
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from llava_min.errors import MediaError
from llava_min.media import limits
from llava_min.serve import parts, public
from llava_min.serve.errors import Refusal
from llava_min.serve.public import fetch_public, is_public

SECONDS = 30  # for what should take a fraction of one, on a busy machine
INTERNET, PRIVATE = "127.0.0.1", "127.0.0.2"
LIMIT = 1 << 20
OPENSSL = shutil.which("openssl")


class Web:
    """A host that answers each request with what `pages` has for its path, and notes all it saw.

    A page is bytes as they are sent, or a function of the socket.
    """

    def __init__(self, address: str, port: int = 0, context=None) -> None:
        self.listener = socket.create_server((address, port))
        self.port, self.context = self.listener.getsockname()[1], context
        self.pages, self.seen, self.open = {}, [], 0
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        self.open += 1
        sock.settimeout(SECONDS)
        with contextlib.suppress(OSError):
            if self.context is not None:
                sock = self.context.wrap_socket(sock, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                request += sock.recv(4096) or b"\r\n\r\n"
            self.seen.append(request.decode("latin-1"))
            path = request.decode("latin-1").partition(" ")[2].partition(" ")[0]
            page = self.pages.get(path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
            if callable(page):
                page(sock)
            else:
                sock.sendall(page)
            sock.settimeout(SECONDS)
            while sock.recv(4096):  # until the client closes
                pass
        sock.close()
        self.open -= 1


def page(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def moved(where: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()


@pytest.fixture
def names(monkeypatch):
    """{host: its addresses, or a function that gives them}; `asked` has each name that was."""
    real, known = socket.getaddrinfo, {"good.example": [INTERNET], "inner.example": [PRIVATE]}

    def resolve(host, port, *args, **more):
        found = known.get(host)
        if found is None:
            flags = more.pop("flags", 0) | socket.AI_NUMERICHOST  # no test asks a real resolver
            return real(host, port, *args, flags=flags, **more)
        asked.append(host)
        addresses = found() if callable(found) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    asked: list[str] = []
    known["asked"] = asked
    monkeypatch.setattr(public.socket, "getaddrinfo", resolve)
    return known


@pytest.fixture
def web(monkeypatch, names):
    """The internet: its port is the usual one, and its address is public."""
    found = Web(INTERNET)
    real = public.is_public
    monkeypatch.setattr(public, "PORTS", {"http": found.port, "https": 443})
    monkeypatch.setattr(public, "is_public", lambda text: text == INTERNET or real(text))
    found.pages["/a.png"] = page(b"picture")
    yield found
    found.listener.close()


@pytest.fixture
def secret(web):
    """The private network, at the same port."""
    found = Web(PRIVATE, web.port)
    found.pages["/a.png"] = found.pages["/"] = page(b"secret")
    yield found
    found.listener.close()
    assert not found.seen


def refused(url: str, expected: str = "", **more) -> str:
    """The message of a URL that is refused."""
    with pytest.raises(MediaError) as caught:
        fetch_public(url, LIMIT, **more)
    message = str(caught.value)
    assert re.fullmatch(r"cannot fetch: .+: expected .+, found .+\.", message), message
    assert expected in message, message
    return message


# Addresses -------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.0.1
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.168.0.1 198.18.0.1
    198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
    ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::7f00:1
    64:ff9b:1::8.8.8.8 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2002:7f00:1::
    2002:a00:1:: 2002:a9fe:a9fe::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fe80::1%1
    fec0::1 ff02::1 ff0e::1 ::ffff:168.63.129.16 64:ff9b::168.63.129.16 2002:a83f:8110::""".split(),
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    """8.8.8.8 1.1.1.1 172.32.0.1 172.15.255.255 192.167.255.255 100.63.255.255 100.128.0.1
    169.253.1.1 11.0.0.1 126.255.255.255 128.0.0.1 223.255.255.255 2606:4700::1111 2a00:1450:4001::1
    ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::""".split(),
)
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    """127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 0x7f.0.0.0x1 0
    0.0 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:ffff:127.0.0.1] [64:ff9b::7f00:1]
    [2002:7f00:1::] [2001::1] [fe80::1%25lo] [fe80::1%lo] 169.254.169.254 2852039166 0xa9fea9fe
    0251.0376.0251.0376 \uff11\uff12\uff17.0.0.1 \u2460\u2461\u2466.0.0.1 127\u30020\u30020\u30021
    user@127.0.0.1 good.example@127.0.0.1 good.example:80@127.0.0.1 127.0.0.1#@good.example
    127.0.0.1?@good.example""".split(),
)
def test_spellings_of_private_addresses(names, host):
    """Whatever they are to a resolver, nobody is dialled, on any port that is usual."""
    for scheme in ("http", "HTTPS"):
        message = refused(f"{scheme}://{host}/a.png")
        assert "public address" in message or "host that is known" in message, message


@pytest.mark.parametrize(
    "host", ["good.example\\@127.0.0.2", "127.0.0.2\\.good.example", "good.example\t@127.0.0.2"]
)
def test_hosts_that_parsers_read_differently(web, secret, host):
    refused(f"http://{host}/a.png")


def test_every_address_of_a_host_must_be_public(web, secret, names):
    """One private one among public ones is enough to refuse it."""
    for addresses in ([INTERNET, PRIVATE], [PRIVATE, INTERNET], [INTERNET] * 5 + [PRIVATE], []):
        names["both.example"] = addresses
        refused("http://both.example/a.png", "public" if addresses else "known")
    assert not web.seen


def test_an_answer_that_changes_leads_nowhere_else(web, secret, names):
    """A name is resolved once, and the address that was looked at is the one that is dialled."""
    answers = iter([[INTERNET], [PRIVATE], [PRIVATE]])
    names["turning.example"] = lambda: next(answers)
    assert fetch_public("http://turning.example/a.png", LIMIT) == b"picture"
    assert names["asked"] == ["turning.example"]
    refused("http://turning.example/a.png", "public address")


def test_a_redirect_is_resolved_anew(web, secret, names):
    """A second visit to the same name is checked like the first."""
    answers = iter([[INTERNET], [PRIVATE]])
    names["turning.example"] = lambda: next(answers)
    web.pages["/again"] = moved("/a.png")
    refused("http://turning.example/again", "public address")
    assert names["asked"] == ["turning.example"] * 2


# Redirects -------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web, status):
    web.pages["/one"] = moved("two?x=1#end", status)
    web.pages["/two?x=1"] = moved("//good.example/a.png", status)
    assert fetch_public("http://good.example/one", LIMIT) == b"picture"


def test_what_leads_nowhere_is_no_redirect(web):
    """A page may say where it lies, and a redirect must say where it leads."""
    web.pages["/b.png"] = page(b"other", "Location: /a.png")
    assert fetch_public("http://good.example/b.png", LIMIT) == b"other"
    for status in (301, 308):
        web.pages["/c.png"] = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()
        refused("http://good.example/c.png", f"expected a file, found HTTP status {status}")


@pytest.mark.parametrize(
    "where",
    [
        "http://127.0.0.2/a.png",
        "http://inner.example/a.png",
        "//127.0.0.2/a.png",
        "http://0x7f000002/a.png",
        "http://[::ffff:127.0.0.2]/a.png",
        "file:///etc/passwd",
        "ftp://good.example/a.png",
        "gopher://good.example/a.png",
        "data:,a",
        "javascript:alert(1)",
        "http://good.example:22/a.png",
        "http://good.example:99999/a.png",
        "http://[",
        "\x01\x02",
    ],
)
def test_redirects_that_lead_astray(web, secret, where):
    """From the first visit or from a later one."""
    web.pages["/one"] = moved("/two")
    web.pages["/two"] = moved(where)
    refused("http://good.example/two")
    refused("http://good.example/one")


def test_loops_and_chains_end(web):
    web.pages["/loop"] = moved("/loop")
    refused("http://good.example/loop", "more redirects")
    assert len(web.seen) == limits.REDIRECTS + 1
    for number in range(limits.REDIRECTS):
        web.pages[f"/{number}"] = moved(f"/{number + 1}")
    web.pages[f"/{limits.REDIRECTS}"] = page(b"end")
    assert fetch_public("http://good.example/0", LIMIT) == b"end"
    web.pages[f"/{limits.REDIRECTS}"] = moved("/a.png")
    refused("http://good.example/0", "more redirects")


@pytest.mark.parametrize("status", [204, 206, 300, 304, 400, 401, 403, 404, 500, 503])
def test_other_answers_are_no_file(web, status):
    web.pages["/x"] = page(b"text").replace(b"200 OK", f"{status} X".encode())
    refused("http://good.example/x", f"HTTP status {status}")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_two_usual_ports_are_asked_for_an_address(names, scheme):
    """Of either scheme; any other port is refused before."""
    for port in (79, 80, 81, 442, 443, 444, 8080):
        usual = port in (80, 443)
        expected = "expected a public address" if usual else "expected port 80 or 443, found"
        refused(f"{scheme}://inner.example:{port}/a.png", expected)
    assert names["asked"] == ["inner.example"] * 2


@pytest.mark.parametrize(
    "url, found",
    [("ftp://good.example/a", "ftp"), ("http:///a", "http"), ("//good.example/a", "none")],
)
def test_a_scheme_that_is_not_followed_is_named(names, url, found):
    refused(url, f"expected http:// or https:// with a host, found {found}.")
    assert not names["asked"]


def test_other_ports_are_refused(web, secret, names):
    """They are open to those of --allow-host alone."""
    other = Web(INTERNET)
    other.pages["/a.png"] = page(b"other")
    url = f"http://good.example:{other.port}/a.png"
    refused(url, "port")
    assert not other.seen
    assert fetch_public(url, LIMIT, ["good.example"]) == b"other"
    other.listener.close()


def test_allowed_hosts(web, names):
    """By glob, in any case; a redirect from one of them to elsewhere is checked as usual."""
    inner = Web(PRIVATE, web.port)
    inner.pages |= {"/a.png": page(b"inner"), "/out": moved("http://127.0.0.2/a.png")}
    names["files.inner.example"] = names["FILES.inner.example"] = [PRIVATE]
    for pattern in ("*.inner.example", "FILES.Inner.*", "*", "files.inner.example"):
        assert fetch_public("http://FILES.inner.example/a.png", LIMIT, [pattern]) == b"inner"
    for pattern in ("inner.example", "files.inner.example:80", "*.inner", "http://files*", ""):
        refused("http://files.inner.example/a.png", "public", allowed=[pattern])
    count = len(inner.seen)
    refused("http://files.inner.example/out", "public address", allowed=["*.inner.example"])
    assert len(inner.seen) == count + 1
    inner.listener.close()


# What is sent and what comes --------------------------------------------------


def test_the_request_is_plain(web, monkeypatch):
    """No login, no proxy, no reference, and nothing that a URL smuggles in."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.2:1")
    fetch_public("http://user:word@good.example/a.png#part", LIMIT)
    lines = web.seen[0].strip().split("\r\n")
    assert lines[0] == "GET /a.png HTTP/1.1"
    assert {line.split(": ")[0] for line in lines[1:]} == {
        "Host",
        "User-Agent",
        "Accept",
        "Accept-Encoding",
    }
    assert "Host: good.example" in lines


@pytest.mark.parametrize(
    "path",
    [
        "/a b\r\nX-Evil: 1",
        "/a%0d%0aX-Evil: 1",
        "/\r\n\r\nGET /secret HTTP/1.1\r\nX-Evil: 1",
        "/a?b\r\nX-Evil: 1",
        "/\u0100\u010d\u010a X-Evil: 1",
        "/\x85X-Evil: 1",
        "\r\nX-Evil: 1",
    ],
)
def test_line_ends_in_urls_write_no_headers(web, path):
    """What a URL holds stays within its path and its host."""
    with contextlib.suppress(MediaError):
        fetch_public(f"http://good.example{path}", LIMIT)
    for request in web.seen:
        assert "\r\nX-Evil" not in request and request.count("\r\n\r\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example\r\nX: 1/a.png",
        "http://\u00fc\u00fc.example/a.png",
        "http://xn--/a.png",
        "http://" + "a" * 64 + ".example/a.png",
        "http://" + "a." * 300 + "example/a.png",
        "http://a..example/a.png",
        "http://.example/a.png",
        "http://\ud800/a.png",
        "http://\0good.example/a.png",
        "http://good.example%00.evil/a.png",
        "http://good.example:80:80/a.png",
        "http://good.example:\u0661/a.png",
        "http://good.example:-1/a.png",
        "http://[good.example]/a.png",
        "http://good.example]/a.png",
        "http://\u2100.example/a.png",
        "http:good.example/a.png",
        "http:/good.example/a.png",
        "https:///good.example",
        "://good.example",
        "",
        "http",
    ],
)
def test_urls_that_are_none(web, names, url):
    names["b\u00fccher.example"] = [INTERNET]
    refused(url)
    assert not web.seen


def test_hosts_in_other_scripts(web, names):
    """Their names are sent as DNS has them."""
    names["b\u00fccher.example"] = [INTERNET]
    assert fetch_public("http://B\u00dcCHER.example/a.png", LIMIT) == b"picture"
    assert "Host: xn--bcher-kva.example\r\n" in web.seen[0]


def test_blanks_around_a_url_are_left_out(web):
    assert fetch_public("  HTTP://GOOD.example/a.png \n", LIMIT) == b"picture"


def test_gzip_is_not_unpacked(web):
    """It is not asked for; a bomb stays small."""
    packed = gzip.compress(bytes(50 << 20))
    web.pages["/bomb"] = page(packed, "Content-Encoding: gzip")
    assert fetch_public("http://good.example/bomb", LIMIT) == packed


def test_long_bodies_are_cut_off(web):
    """Said or not, whole or in chunks: no more is read than a little beyond the limit."""
    sent = []

    def endless(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                sock.sendall(bytes(1 << 16))
                sent.append(1 << 16)

    def chunks(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                sock.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    web.pages |= {"/endless": endless, "/chunks": chunks, "/long": page(bytes(LIMIT + 1))}
    web.pages["/fits"] = page(bytes(LIMIT))
    for path in ("endless", "chunks", "long"):
        refused(f"http://good.example/{path}", f"at most {LIMIT} bytes")
    assert sum(sent) < 20 * LIMIT
    assert len(fetch_public("http://good.example/fits", LIMIT)) == LIMIT


@pytest.mark.parametrize("length", ["9", "1000000", "9" * 5000, "\u00b2", "-1", "5, 7", "x"])
def test_lengths_that_lie(web, length):
    """A file that ends early is none; one of which the length is nonsense has what came."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode(
        "latin-1"
    )

    def short(sock):
        sock.sendall(head + b"picture")
        sock.shutdown(socket.SHUT_WR)

    web.pages["/short"] = short
    if length in ("-1", "5, 7", "x"):
        assert fetch_public("http://good.example/short", LIMIT) == b"picture"
    else:
        refused("http://good.example/short")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 999999 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 302 X\r\nLocation: \r\n\r\n",
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_answers_that_are_none(web, answer):
    def broken(sock):
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)

    web.pages["/broken"] = broken
    refused("http://good.example/broken")


# Time ------------------------------------------------------------------------


def drip(start: bytes, each: bytes):
    """A page that begins with some bytes, and then has one little after another without end."""

    def answer(sock):
        sock.sendall(start)
        for _ in range(SECONDS * 20 if each else 0):
            sock.sendall(each)
            time.sleep(0.05)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
SLOW = {
    "silent": drip(b"", b""),
    "status": drip(b"", b"H"),
    "continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": drip(OK, b"a"),
    "stalled body": drip(OK + b"Content-Length: 99\r\n\r\nab", b""),
    "body": drip(OK + b"Content-Length: 9999\r\n\r\n", b"a"),
    "body to the end": drip(OK + b"Connection: close\r\n\r\n", b"a"),
    "stalled to the end": drip(OK + b"Connection: close\r\n\r\nab", b""),
    "chunk head": drip(OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunks": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailer": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a"),
    "redirects": drip(b"HTTP/1.1 302 X\r\nLocation: /redirects\r\n", b"a"),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_answers_end_in_time(web, name):
    """At the deadline, and then neither a thread nor a socket is left."""
    web.pages["/slow"] = SLOW[name]
    before, start = set(threading.enumerate()), time.monotonic()
    refused("http://good.example/slow", seconds=0.4)
    assert 0.3 < time.monotonic() - start < SECONDS / 2
    assert ended(before) and gone(web)


def ended(before) -> bool:
    """Whether the thread of the fetch ends soon."""
    deadline = time.monotonic() + SECONDS / 2
    while time.monotonic() < deadline:
        fetching = [t for t in set(threading.enumerate()) - before if t.name == "fetch"]
        if not fetching:
            return True
        time.sleep(0.01)
    return False


def gone(web) -> bool:
    """Whether all connections of the host end soon."""
    deadline = time.monotonic() + SECONDS / 2
    while web.open and time.monotonic() < deadline:
        time.sleep(0.01)
    return not web.open


def test_nothing_is_left_of_the_time_at_its_end(monkeypatch):
    monkeypatch.setattr(public, "time", SimpleNamespace(monotonic=lambda: 5.0))
    assert public.Dial((), 5.5).left() == 0.5
    for deadline in (5.0, 4.0):
        with pytest.raises(TimeoutError):
            public.Dial((), deadline).left()


def test_a_slow_resolver_does_not_hold_up_the_caller(web, names):
    """Nobody is dialled when its answer comes too late."""
    late = threading.Event()
    names["late.example"] = lambda: late.wait(SECONDS) and [INTERNET]
    before, start = set(threading.enumerate()), time.monotonic()
    refused("http://late.example/a.png", "within 0.3 seconds", seconds=0.3)
    assert time.monotonic() - start < SECONDS / 2
    late.set()
    assert ended(before) and not web.seen


def test_sockets_are_closed(web, secret):
    """After a file, an error, and a redirect."""
    web.pages["/moved"] = moved("http://127.0.0.2/a.png")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(20):
        assert fetch_public("http://good.example/a.png", LIMIT) == b"picture"
        refused("http://good.example/none")
        refused("http://good.example/moved")
    assert gone(web)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before


# Certificates ----------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of good.example that signs itself."""
    folder = tmp_path_factory.mktemp("certificate")
    command = [
        *f"{OPENSSL} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(),
        *f"-keyout {folder}/key -out {folder}/cert -subj /CN=good.example".split(),
        *"-addext subjectAltName=DNS:good.example".split(),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def https(monkeypatch, web, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    found = Web(INTERNET, context=context)
    monkeypatch.setattr(public, "PORTS", {"http": web.port, "https": found.port})
    found.pages["/a.png"] = page(b"picture")
    yield found
    found.listener.close()


needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="needs openssl")


@needs_openssl
def test_certificates_are_checked(https, names, certificate, monkeypatch):
    """One that nobody signed is refused, and a good one of another host is too."""
    names["other.example"] = [INTERNET]
    refused("https://good.example/a.png")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    assert fetch_public("https://good.example/a.png", LIMIT) == b"picture"
    refused("https://other.example/a.png")
    refused("https://127.0.0.1/a.png")
    assert fetch_public("https://GOOD.example/a.png", LIMIT, ["good.example"]) == b"picture"
    refused("https://other.example/a.png", allowed=["other.example"])
    assert len(https.seen) == 2


@needs_openssl
def test_redirects_from_http_to_https(https, web, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
    web.pages["/a"] = moved("https://good.example/a.png")
    assert fetch_public("http://good.example/a", LIMIT) == b"picture"


def test_a_handshake_that_does_not_come_ends_in_time(web, names, monkeypatch):
    monkeypatch.setattr(public, "PORTS", {"http": 80, "https": web.port})
    before = set(threading.enumerate())
    refused("https://good.example/a.png", seconds=0.3)
    assert ended(before) and gone(web)


# In requests -----------------------------------------------------------------


def part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def messages(*urls: str) -> list:
    return [{"role": "user", "content": [part(url) for url in urls]}]


def test_a_handshake_that_does_not_come_ends_when_it_is_closed(web, names, monkeypatch):
    """Long before its time is over."""
    found, dial = [], public.Dial((), time.monotonic() + 10 * SECONDS)
    thread = threading.Thread(
        target=lambda: found.append(dial.outcome("https://good.example/a.png", LIMIT)), daemon=True
    )
    with socket.create_server((INTERNET, 0)) as listener:
        listener.settimeout(SECONDS)
        monkeypatch.setattr(public, "PORTS", {"http": 80, "https": listener.getsockname()[1]})
        thread.start()
        sock, _ = listener.accept()
        with sock:
            assert sock.recv(1)  # it has begun
            dial.close()
            thread.join(SECONDS)
            assert isinstance(found[0], MediaError)


def test_media_of_a_request_share_their_time(web, monkeypatch):
    """Many slow hosts hold it up no longer than one."""
    web.pages["/slow"] = SLOW["silent"]
    monkeypatch.setattr(limits, "FETCH_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(Refusal, match="messages") as caught:
        parts.messages_of(messages(*["http://good.example/slow"] * 9), parts.Borders())
    assert time.monotonic() - start < SECONDS / 2
    assert caught.value.code == "media_unavailable"
    tally = parts.Tally(deadline=time.monotonic() - 1)
    with pytest.raises(Refusal, match="all the time") as caught:
        parts.fetched("messages[0].content[1]", "http://good.example/", parts.Borders(), tally)
    assert caught.value.param == "messages[0].content[1]"


def test_media_of_a_request_share_their_length(web, monkeypatch):
    """So many together as one may have."""
    web.pages["/a"] = page(bytes(600))
    monkeypatch.setattr(parts, "MEDIA_BYTES", 1000)
    assert parts.messages_of(messages("http://good.example/a"), parts.Borders())
    with pytest.raises(Refusal, match="at most 400 bytes") as caught:
        parts.messages_of(messages(*["http://good.example/a"] * 2), parts.Borders())
    assert caught.value.param == "messages[0].content[1]"


def test_without_fetching_nothing_is_resolved(names):
    borders = parts.Borders(fetching=False, hosts=("*",))
    with pytest.raises(Refusal, match="not fetched here"):
        parts.messages_of(messages("http://good.example/a.png"), borders)
    assert not names["asked"]
