"""What the server lets in: Host, key, size, speed, media, files; all else is refused, and how.

A refusal is a 4xx with OpenAI's error object, names the part that is wrong, and tells nothing of
this machine. Whatever a client does, a stream next to it gives the answer that it gives alone.
"""

import base64
import contextlib
import gc
import io
import json
import os
import re
import select
import struct
import threading
import time
import tracemalloc
import zlib

import hostile
import numpy as np
import pytest
from hostile import CHAT, CLIP, SECONDS, SHAPES, answered, ask, dial, head, picture, question
from PIL import Image

import llava_min
from llava_min.media import limits
from llava_min.serve import app, connection, guard, parts
from llava_min.serve.errors import Refusal
from llava_min.serve.guard import Rules
from llava_min.serve.parts import Borders

MACHINE = re.compile(r"/home|/tmp|/root|/usr|Traceback|site-packages|\.py\b|0x[0-9a-f]{6}|<_io")
LONGEST = 3 << 20  # bytes of a body, on the server that most of these tests ask


@pytest.fixture(scope="module")
def model():
    return llava_min.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that may be named, and around them such that may not."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(SHAPES.read_bytes())
    inside = outside / "media"
    (inside / "below").mkdir(parents=True)
    (inside / "shapes.png").write_bytes(SHAPES.read_bytes())
    (inside / "a b.png").write_bytes(SHAPES.read_bytes())
    (inside / "below" / "clip.mp4").write_bytes(CLIP.read_bytes())
    (inside / "damaged.png").write_bytes(SHAPES.read_bytes()[:200])
    (inside / "damaged.mp4").write_bytes(CLIP.read_bytes()[:200])
    (inside / "empty.png").write_bytes(b"")
    (inside / "inner.png").symlink_to("shapes.png")
    (inside / "outer.png").symlink_to(outside / "secret.png")
    (inside / "up").symlink_to("..")
    os.mkfifo(inside / "pipe")
    (outside / "media-too").mkdir()
    (outside / "media-too" / "shapes.png").write_bytes(SHAPES.read_bytes())
    return inside


@pytest.fixture(scope="module")
def server(model, folder):
    rules = Rules(longest=LONGEST)
    with hostile.local(model, rules=rules, borders=Borders(folder, fetching=False)) as running:
        yield running


STREAM = question("Where is the star?", max_tokens=40, ignore_eos=True, stream=True)


@pytest.fixture(scope="module")
def alone(server):
    """The answer to STREAM when nobody else asks."""
    found = asked_stream(server.port, STREAM)
    assert len(found) > 20
    return found


@pytest.fixture(autouse=True)
def undisturbed(request):
    """A stream that goes on next to each test, again and again, and is right each time."""
    if "server" not in request.fixturenames:
        yield
        return
    server, alone = request.getfixturevalue("server"), request.getfixturevalue("alone")
    over, heard = threading.Event(), []

    def go_on():
        while not over.is_set() or not heard:
            heard.append(asked_stream(server.port, STREAM))

    thread = threading.Thread(target=go_on)
    thread.start()
    yield
    over.set()
    thread.join(SECONDS)
    assert set(heard) == {alone}
    assert hostile.until(server.idle)


def asked_stream(port: int, body) -> str:
    """The text of a stream."""
    found = hostile.events(ask(port, body)[2])
    assert found.pop() == "[DONE]"
    return "".join(event["choices"][0]["delta"].get("content", "") for event in found)


def check_refusal(status: int, answer, expected: int = 400, param: str | None = None) -> None:
    """That a refusal has the form and the status that it must have."""
    assert status == expected, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    error = answer["error"]
    assert error["type"].endswith("_error") and error["message"].endswith("."), error
    assert not MACHINE.search(json.dumps(answer)), answer
    if param is not None:
        assert error["param"].startswith(param) and error["message"].startswith(
            (param, "cannot", "A request")
        ), error


def answered_once(sock):
    """The body of one response, of which no byte more is read."""
    data = b""
    while b"\r\n\r\n" not in data:
        byte = sock.recv(1)
        assert byte, data
        data += byte
    length = int(re.search(rb"content-length: (\d+)", data)[1])
    body = b""
    while len(body) < length:
        body += sock.recv(length - len(body))
    return json.loads(body)


# Host ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "localhost",
        "LOCALHOST:80",
        "[::1]",
        "[::1]:8000",
        "LocalHost",
    ],
)
def test_hosts_of_this_server(server, host):
    assert ask(server.port, None, "/health", "GET", host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "127.0.0.1:8000.evil.example",
        "127.0.0.1:evil",
        "127.0.0.1@evil.example",
        "localhost,evil.example",
        "[::2]",
        "192.168.0.1",
        "0.0.0.0",
    ],
)
def test_other_hosts_are_refused_at_every_path(server, host):
    """A name that an attacker made to lead here, as other web pages in a browser have it."""
    for path, method, body in (
        ("/health", "GET", None),
        ("/", "GET", None),
        (CHAT, "POST", question("hi")),
        (CHAT, "OPTIONS", None),
        ("/nowhere", "GET", None),
    ):
        status, headers, answer = ask(server.port, body, path, method, host=host)
        check_refusal(status, answer, 403)
        assert answer["error"]["code"] == "host"
        assert "access-control-allow-origin" not in headers


def test_two_hosts_or_none_in_http_1_1_are_no_http(server):
    """A second Host cannot be hidden next to a good one."""
    for hosts in ("", "Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        with dial(server.port) as sock:
            sock.sendall(f"GET /health HTTP/1.1\r\n{hosts}\r\n".encode())
            assert answered(sock)[0] == 400


def test_names_of_the_server():
    rules = Rules.of("::", (), None, 1)
    assert rules.names == ()
    rules = Rules.of("fd00::1", ("Box.Example",), None, 1)
    assert set(rules.names) == {"127.0.0.1", "localhost", "[::1]", "[fd00::1]", "box.example"}


def test_server_names_and_origins(model):
    """--server-name in any case; --cors-origin answers that web page's preflight and no other's."""
    rules = Rules.of("127.0.0.1", ("Box.Example",), None, 1 << 20)
    with hostile.local(model, rules=rules, origins=("https://page.example",)) as running:
        assert ask(running.port, None, "/health", "GET", host="BOX.example:1")[0] == 200
        wish = {"access_control_request_method": "POST"}
        for origin, status in (("https://page.example", 200), ("https://evil.example", 400)):
            found, headers, _ = ask(running.port, None, CHAT, "OPTIONS", origin=origin, **wish)
            allowed = headers.get("access-control-allow-origin")
            assert (found, allowed) == (status, origin if status == 200 else None)


# Key -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(model):
    rules = Rules(key="schlüssel-7")
    with hostile.local(model, rules=rules, borders=Borders(fetching=False)) as running:
        yield running


def bearer(key: str) -> str:
    return f"Bearer {key}".encode().decode("latin-1")


def test_the_key_opens(locked):
    key = bearer("schlüssel-7")
    for headers in (
        {"authorization": key},
        {"authorization": key.replace("Bearer", "bEARER  ")},
        {"api_key": key.removeprefix("Bearer ")},
    ):
        assert ask(locked.port, None, "/v1/models", "GET", **headers)[0] == 200
    for path in ("/health", "/ping", "/"):
        assert ask(locked.port, None, path, "GET")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": bearer("schlüssel-8")},
        {"authorization": bearer("schlüssel-")},
        {"authorization": bearer("schlüssel-77")},
        {"authorization": bearer("schlüssel-7").replace("Bearer", "Basic")},
        {"authorization": bearer("schlüssel-7").removeprefix("Bearer ")},
        {"api_key": "no"},
        {"x_api_key": bearer("schlüssel-7").removeprefix("Bearer ")},
    ],
)
def test_other_keys_do_not(locked, headers):
    for path, method in (("/v1/models", "GET"), (CHAT, "POST"), ("/metrics", "GET"), ("/x", "GET")):
        body = None if method == "GET" else question("hi")
        status, _, answer = ask(locked.port, body, path, method, **headers)
        check_refusal(status, answer, 401)
        assert "schl" not in json.dumps(answer)


def test_paths_that_only_look_open_need_the_key(locked):
    for path in ("//", "/health/", "/health/../metrics", "/%2e/metrics", "/HEALTH", "/ping?x"):
        expected = 200 if path == "/ping?x" else 401
        assert ask(locked.port, None, path, "GET")[0] == expected, path


def test_keys_are_compared_in_constant_time(locked, monkeypatch):
    compared = []
    monkeypatch.setattr(
        guard.secrets, "compare_digest", lambda *pair: compared.append(pair) or False
    )
    assert ask(locked.port, None, "/v1/models", "GET", authorization="Bearer x")[0] == 401
    assert compared == [(b"x", "schlüssel-7".encode())]


# Bodies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_bodies_that_need_no_preflight_are_refused(server, kind):
    status, _, answer = ask(server.port, question("hi"), content_type=kind)
    check_refusal(status, answer, 415)


def test_json_with_a_charset_is_json(server):
    kind = "Application/JSON; charset=utf-8"
    assert (
        ask(server.port, question("hi"), content_type=kind, content_encoding="identity")[0] == 200
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_packed_bodies_are_refused(server, encoding):
    packed = zlib.compress(b" " * 10**6)
    status, _, answer = ask(server.port, packed, content_encoding=encoding)
    check_refusal(status, answer, 415)


def test_a_body_that_is_said_to_be_too_long_is_not_waited_for(server):
    """The answer comes though not one byte of the body was sent."""
    for path in (CHAT, "/tokenize", "/nowhere"):
        with dial(server.port) as sock:
            sock.sendall(head(LONGEST + 1, path))
            check_refusal(*answered(sock), 413)


def test_the_longest_body_is_read(server):
    body = json.dumps(question("hi")).encode()
    assert ask(server.port, body + b" " * (LONGEST - len(body)))[0] == 200


def test_chunked_bodies_are_counted(server):
    """They have no length that could be looked at first."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with dial(server.port) as sock:
        sock.sendall(head(None, CHAT, "POST", "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(10 * LONGEST // 0x10000):
                sock.sendall(chunk)
        status, answer = answered(sock)
    check_refusal(status, answer, 413)
    body = json.dumps(question("hi")).encode()
    with dial(server.port) as sock:
        sock.sendall(head(None, CHAT, "POST", "Transfer-Encoding: chunked"))
        for byte in body[:40]:
            sock.sendall(b"1\r\n%c\r\n" % byte)
        sock.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body) - 40, body[40:]))
        assert answered(sock)[0] == 200


def test_a_client_that_sends_40_mb_reads_its_413(server):
    """Most clients send all before they read: the connection is not broken under them."""
    body = json.dumps(question("hi")).encode()
    for more in ({}, {"host": "evil.example"}, {"content_type": "text/plain"}):
        status, _, answer = ask(server.port, body + b" " * (40 << 20), **more)
        check_refusal(status, answer, 413 if not more else 403 if "host" in more else 415)
    with dial(server.port) as sock:
        sock.sendall(head(40 << 20) + bytes(40 << 20) + head(len(body)) + body)
        assert "error" in answered_once(sock) and "choices" in answered_once(sock)


def test_a_refused_body_without_end_is_cut_off(model, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    with hostile.local(model, rules=Rules(longest=1000)) as running, dial(running.port) as sock:
        sock.sendall(head(None, CHAT, "POST", "Transfer-Encoding: chunked"))
        with pytest.raises(ConnectionError):
            for _ in range(SECONDS * 100):
                sock.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
                time.sleep(0.01)


def test_bytes_are_held_up_to_the_limits_and_not_beyond(monkeypatch):
    """Of one body and of all; what is freed makes room."""
    monkeypatch.setattr(guard, "BODIES", 2)
    held = guard.Guard(None, Rules(longest=10))
    assert held.held == 0
    first, second, third = (guard.Body(held) for _ in range(3))
    first.add(bytes(4))
    first.add(bytes(6))
    second.add(bytes(10))
    assert held.held == 20
    with pytest.raises(Refusal) as caught:
        third.add(b"x")
    assert caught.value.status == 429 and caught.value.retry_after > 0
    third.free(len(third.take()))
    assert first.take() == bytes(10) and held.held == 20
    first.free(10)
    third.add(bytes(10))
    with pytest.raises(Refusal, match="at most") as caught:
        third.add(b"x")
    assert caught.value.status == 413 and held.held == 21


def test_too_many_bytes_at_a_time(model, monkeypatch):
    """Bodies on their way count together, and those that are being read; then all are freed."""
    monkeypatch.setattr(guard, "BODIES", 2)
    slow = threading.Event()
    with hostile.local(model, rules=Rules(longest=1 << 20), waiting=9) as running:
        ready = running.service.ready
        monkeypatch.setattr(
            running.service, "ready", lambda body, gone: slow.wait(SECONDS) and ready(body, gone)
        )
        body = json.dumps(question("hi")).encode()
        body += b" " * ((1 << 20) - len(body))
        taken = dial(running.port)
        taken.sendall(head(len(body)) + body)  # a request that a thread reads
        half = dial(running.port)
        half.sendall(head(len(body)) + body[: 900 << 10])  # and one that comes
        held = guard_of(running)
        assert hostile.until(lambda: held() == len(body) + (900 << 10))
        status, headers, answer = ask(running.port, body)
        check_refusal(status, answer, 429)
        assert headers["retry-after"] == "2" and answer["error"]["type"] == "rate_limit_error"
        slow.set()
        half.sendall(body[900 << 10 :])
        assert [answered(sock)[0] for sock in (taken, half)] == [200, 200]
        assert held() == 0
        taken.close()
        half.close()


def guard_of(running):
    """How many bytes of bodies a server says that it holds."""
    return lambda: running.server.config.app.held


@pytest.mark.parametrize("sent", [b"", b'{"messages": '])
def test_slow_bodies(model, monkeypatch, sent):
    """One that stops coming, and one that drips, are given up after the same time."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with hostile.local(model) as running:
        with dial(running.port) as sock:
            start = time.monotonic()
            sock.sendall(head(1000) + sent)
            check_refusal(*answered(sock), 408)
            assert 0.2 < time.monotonic() - start < SECONDS / 4
            assert hostile.rest(sock) == b""
        monkeypatch.setattr(guard, "BODY_SECONDS", 3.0)
        with dial(running.port) as sock:
            sock.sendall(head(1000))
            drops = 0
            while not select.select([sock], [], [], 0.02)[0] and drops < 500:
                sock.sendall(b" ")
                drops += 1
            assert 1 < drops < 500  # the answer came while the body did
            check_refusal(*answered(sock), 408)
        monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
        with dial(running.port) as sock:
            sock.sendall(head(1000))
            assert b"\r\nconnection: close\r\n" in hostile.rest(sock).lower()
        assert hostile.until(lambda: guard_of(running)() == 0)


def test_a_long_body_has_longer(model, monkeypatch):
    """A second more for so many bytes that came."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SPEED", 2_000)
    body = json.dumps(question("hi")).encode()
    body += b" " * (200_000 - len(body))
    with hostile.local(model) as running, dial(running.port) as sock:
        sock.sendall(head(len(body)) + body[:-1])
        time.sleep(1.0)
        sock.sendall(body[-1:])
        assert answered(sock)[0] == 200


# Connections -----------------------------------------------------------------


def test_clients_that_ask_nothing_are_cut_off(model, monkeypatch):
    """Those who say nothing, who drip a head, and who stop after a first request."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 3.0)
    with hostile.local(model) as running:
        silent, dripping, kept = dial(running.port), dial(running.port), dial(running.port)
        kept.sendall(head(None, "/health", "GET"))
        assert answered(kept)[0] == 200
        kept.sendall(b"GET /hea")
        with contextlib.suppress(ConnectionError):
            for byte in head(None, "/health", "GET")[:50]:
                dripping.sendall(bytes([byte]))
                time.sleep(0.1)
        for sock in (silent, dripping, kept):
            assert hostile.rest(sock) == b""
            sock.close()
        round_ = running.service.slots.round
        monkeypatch.setattr(running.service.slots, "round", lambda: time.sleep(0.005) or round_())
        slow = dial(running.port)  # a long answer is no silence
        long = json.dumps(question("hi", max_tokens=900, ignore_eos=True)).encode()
        slow.sendall(head(len(long)) + long)
        assert answered(slow)[0] == 200
        slow.close()
        assert hostile.until(lambda: not running.server.server_state.connections)


def test_half_closed_sockets(server):
    """A client that will send nothing more is gone, as uvicorn has it; nothing of it is left."""
    for sent in (b"", b"GET /hea", head(100), head(100) + b"{", head(None, "/health", "GET")):
        with dial(server.port) as sock:
            sock.sendall(sent)
            hostile.end(sock)
            assert hostile.rest(sock)[:5] in (b"", b"HTTP/")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),  # TLS
        b"\x00" * 1000,
        b"SSH-2.0-x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nbroken\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5, 6\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * 40_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\na: " + b"b" * 10**6 + b"\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:30]),
)
def test_what_is_no_http(server, sent):
    """It is answered 400 or not at all, and the connection ends."""
    with dial(server.port) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
        hostile.end(sock)
        found = hostile.rest(sock)
    assert re.match(rb"$|HTTP/1.1 4\d\d ", found), found[:200]
    assert not MACHINE.search(found.decode("latin-1"))


def test_a_wish_for_a_websocket_is_a_plain_request(server):
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with dial(server.port) as sock:
        sock.sendall(
            head(None, "/health", "GET", *lines, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
        )
        assert answered(sock)[0] == 200


def test_pipelined_requests_are_answered_in_order(server):
    bodies = [json.dumps(question("hi", max_tokens=n)).encode() for n in (1, 2, 3)]
    with dial(server.port) as sock:
        sock.sendall(b"".join(head(len(body)) + body for body in bodies))
        found = [answered_once(sock)["usage"]["completion_tokens"] for _ in bodies]
    assert found == [1, 2, 3]


def test_a_connection_goes_on_after_an_error(server):
    """Errors of a request that was read whole leave its connection as it is."""
    good, bad = json.dumps(question("hi")).encode(), b'{"messages": []}'
    with dial(server.port) as sock:
        for body, key in ((bad, "error"), (good, "choices"), (b"{", "error"), (good, "choices")):
            sock.sendall(head(len(body)) + body)
            assert key in answered_once(sock)
        sock.sendall(head(None, "/nowhere", "GET") + head(None, CHAT, "GET"))
        assert [answered_once(sock)["error"]["code"] for _ in range(2)] == ["not_found", "method"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "X"])
def test_other_methods(server, method):
    """With a body that nobody reads; the answer is 405 in the usual form."""
    status, _, answer = ask(server.port, bytes(1000), CHAT, method)
    check_refusal(status, answer, 405)


# JSON ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages":' + b"[" * 10**6 + b"]" * 10**6 + b"}",
        b'{"a":' * 5 * 10**5,
        b'{"max_tokens":' + b"9" * 10**6 + b"}",
        json.dumps({"messages": [{"role": "user", "content": "a"}] * 60_000}).encode(),
        json.dumps(question(*["a"] * 70_000)).encode(),
        json.dumps(question("w" * (2 << 20))).encode(),
        json.dumps(question(*["w" * 2000] * 600)).encode(),
        json.dumps(question("a\ud800")).encode(),
    ],
    ids=lambda body: repr(body[:24]) + str(len(body)),
)
def test_what_is_no_question(server, body):
    for path in (CHAT, "/v1/chat/completions/input_tokens", "/tokenize", "/detokenize"):
        start = time.monotonic()
        status, _, answer = ask(server.port, body, path)
        check_refusal(status, answer)
        assert time.monotonic() - start < SECONDS / 4


def test_depths_that_python_can_just_read(server):
    """Whatever reads them after the parser must not fail where the parser did not."""
    for depth in range(900, 1000, 3):
        deep = b"[" * depth + b"]" * depth
        for field in (b'"metadata": %s', b'"guided_json": %s', b'"stop": %s', b'"tools": %s'):
            body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, %s}'
            assert ask(server.port, body % (field % deep))[0] in (200, 400)


def test_tokens_of_a_long_text_do_not_stop_others(server, monkeypatch):
    """A text for /tokenize is read in a thread: /health answers in the meantime."""
    slow, began = threading.Event(), threading.Event()
    monkeypatch.setattr(
        server.service.texts.tokenizer,
        "encode_text",
        lambda text: began.set() or slow.wait(SECONDS) and [7],
    )
    found = []
    thread = threading.Thread(
        target=lambda: found.append(ask(server.port, {"content": "a"}, "/tokenize"))
    )
    thread.start()
    assert began.wait(SECONDS)
    assert ask(server.port, None, "/health", "GET")[0] == 200 and not found
    slow.set()
    thread.join(SECONDS)
    assert found[0][2] == {"tokens": [7], "count": 1}


# Media -----------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A whole black PNG of a bit for each pixel."""
    packer, packed = zlib.compressobj(1), b""
    rows = bytes(1000 * (1 + (side + 7) // 8))
    for _ in range(side // 1000):
        packed += packer.compress(rows)
    packed += packer.flush()
    start = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def gif_bomb() -> bytes:
    """A small picture on a screen of 65,535 x 65,535."""
    small = saved("GIF")
    return small[:6] + b"\xff\xff\xff\xff" + small[10:]


def tiff_bomb() -> bytes:
    """A header that tells of 60,000 x 60,000 pixels."""
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, 60_000), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\x00\x10\x00\x00\x00" + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(kind: str, size=(60, 40)) -> bytes:
    """A small picture as a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


BOMBS = {
    "png 40,000 x 40,000": lambda: png_bomb(40_000),
    "gif with a huge screen": gif_bomb,
    "tiff 60,000 x 60,000": tiff_bomb,
    "png of no width": lambda: saved("PNG")[:16] + bytes(4) + saved("PNG")[20:],
    "half a png": lambda: saved("PNG")[:-500],
    "half a jpeg": lambda: saved("JPEG")[:-500],
    "half a gif": lambda: saved("GIF")[:-500],
    "half a webp": lambda: saved("WEBP")[:-500],
    "half a tiff": lambda: saved("TIFF")[:-500],
    "a head of a png": lambda: b"\x89PNG\r\n\x1a\n",
    "heic": lambda: b"\x00\x00\x00\x18ftypheic" + bytes(100),
    "svg": lambda: (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    ),
    "zip": lambda: b"PK\x03\x04" + bytes(100),
    "pdf": lambda: b"%PDF-1.7\n",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "program": lambda: b"\x7fELF" + bytes(100),
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
    "concat": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 1234 RTP/AVP 96\n",
    "half a clip": lambda: CLIP.read_bytes()[:-2000],
    "head of a clip": lambda: CLIP.read_bytes()[:32],
    "noise in mp4": lambda: CLIP.read_bytes()[:32] + bytes(range(256)) * 40,
    "noise in matroska": lambda: b"\x1aE\xdf\xa3" + bytes(range(256)) * 40,
    "noise in avi": lambda: b"RIFF\xff\xff\xff\x7fAVI " + bytes(range(256)) * 40,
    "noise in mpeg": lambda: b"\x00\x00\x01\xba" + bytes(range(256)) * 40,
    "noise in ogg": lambda: b"OggS" + bytes(range(256)) * 40,
    "a pointer of git": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "one byte": lambda: b"\x00",
}


@pytest.mark.parametrize("name", BOMBS)
def test_media_that_cannot_be_read(server, name):
    """As a picture and as a video: refused by the part's name, and quickly."""
    data = BOMBS[name]()
    for kind in ("image_url", "video_url")[: 1 + (name != "half a gif")]:  # as a film it has frames
        start = time.monotonic()
        status, _, answer = ask(server.port, question("What?", picture(data, kind)))
        check_refusal(status, answer, 400, "messages[0].content[1]")
        assert time.monotonic() - start < SECONDS / 4
        status, _, answer = ask(
            server.port,
            question("What?", picture(data, kind)),
            "/v1/chat/completions/input_tokens",
        )
        assert status in (200, 400)  # by the header alone some look whole


@pytest.mark.parametrize("data, kind", [(SHAPES, "video_url"), (CLIP, "image_url")])
def test_a_medium_is_what_its_bytes_are(server, data, kind):
    """Clients put videos into image_url, and pictures into video_url."""
    if data == CLIP:
        pytest.importorskip("av")
    right = {"video_url": "image_url", "image_url": "video_url"}[kind]
    answers = [
        ask(server.port, question("What?", picture(data.read_bytes(), k))) for k in (kind, right)
    ]
    assert [status for status, _, _ in answers] == [200, 200]
    assert len({hostile.text_of(answer) for _, _, answer in answers}) == 1
    assert answers[0][2]["usage"]["prompt_tokens_details"]["image_tokens"] > 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:,",
        "data:;base64,",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        "data:image/png;base64,####",
        "data:image/png;base64,=",
        "data:image/png;base64,A",
        "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
        "data:image/png;base64,AAAA====AAAA",
        "data:,\ud800",
        "data:;base64,\ud800",
        "data:text/html,<script>alert(1)</script>",
        "data:" + ";base64" * 10_000 + ",!",
        "data:," + "%" * 10_000,
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "ftp://127.0.0.1/x.png",
        "javascript:alert(1)",
        "blob:http://127.0.0.1/1",
        "dict://127.0.0.1:11211/",
        "jar:http://127.0.0.1!/x",
        "http://127.0.0.1/x.png",  # --no-fetch
        "https://example.com/x.png",
        " HTTP://example.com/x.png",
        "//example.com/x.png",
        "/etc/passwd",
        "etc/passwd",
        "C:\\x.png",
        "\\\\host\\share\\x.png",
        "-",
        "\0",
        "shapes.png",
        "weights/tiny/samples/shapes.png",
    ],
    ids=lambda url: repr(url[:40]),
)
def test_urls_that_lead_nowhere(server, url):
    status, _, answer = ask(server.port, question("What?", picture(url)))
    check_refusal(status, answer, 400, "messages[0].content[1]")


def test_odd_data_uris_are_read(server):
    """As browsers read them."""
    data = base64.b64encode(SHAPES.read_bytes()).decode()
    expected = hostile.text_of(ask(server.port, question("What?", picture(SHAPES.read_bytes())))[2])
    for uri in (
        f"DATA:IMAGE/PNG;BASE64,{data}",
        f"data:text/plain;x=y; base64 ,{data.rstrip('=')}",
        f"data:;base64,{data[:10]}%0A {data[10:]}#end",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in SHAPES.read_bytes()),
    ):
        assert hostile.text_of(ask(server.port, question("What?", picture(uri)))[2]) == expected


def test_escapes_of_a_long_uri_take_little_memory():
    """urllib alone takes eighty times as much as the text has."""
    uri = "data:," + "%41" * (1 << 20)
    tracemalloc.start()
    assert len(parts.decode_data_uri(uri, 2 << 20)) == 1 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(uri)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": 7},
        {"type": "image_url", "image_url": {"url": 7}},
        {"type": "image_url", "image_url": {"url": {"url": "data:,"}}},
        {"type": "image_url"},
        {"type": "image", "data": 7},
        {"type": "image", "base64": "AA"},
        {"type": ["image"]},
        {"type": {"image": 1}},
        {"type": None},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "text", "text": None},
        {},
        [],
        None,
        7,
    ],
    ids=repr,
)
def test_parts_that_are_none(server, part):
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}
    check_refusal(*ask(server.port, body)[::2], 400, "messages[0].content[1]")


def test_as_many_media_as_are_let_in(server):
    """One more than 64 is refused before any is opened; 64 may not fit, but are counted."""
    small = picture(saved("PNG", (8, 8)))
    status, _, answer = ask(server.port, question("What?", *[small] * 65))
    check_refusal(status, answer, 400, "messages[0].content[65]")
    count = "/v1/chat/completions/input_tokens"
    assert ask(server.port, question("What?", *[small] * 64), count)[0] == 200


def test_pictures_that_cannot_fit_are_not_decoded(server, monkeypatch):
    """Their sizes are looked at first."""
    monkeypatch.setattr("llava_min.media.sources.open_picture", None)
    many = [picture(saved("PNG", (100, 100)))] * 30
    status, _, answer = ask(server.port, question("What?", *many))
    check_refusal(status, answer)
    assert answer["error"]["code"] == "context_length_exceeded"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_media_are_let_go_when_they_were_read(model):
    """Neither the body nor the bytes of a video live as long as the stream of its answer."""
    pytest.importorskip("av")
    clip = CLIP.read_bytes()
    small = question("What?", picture(clip), max_tokens=600, ignore_eos=True)
    size = 33 << 20  # blocks of this size go back to the system at once
    padded = picture(clip + struct.pack(">I", size) + b"free" + bytes(size - 8))
    data = json.dumps(
        question("What?", padded, max_tokens=15_000, ignore_eos=True, stream=True)
    ).encode()
    with hostile.local(model, rules=Rules(longest=128 << 20), tokens=16_000) as running:
        assert ask(running.port, small)[0] == 200
        sock, before = dial(running.port), hostile.memory()
        sock.sendall(head(len(data)))
        sock.sendall(data)
        with sock.makefile("rb") as file:
            while b'"content": "' not in (line := file.readline()) or b'"content": ""' in line:
                assert line
            gc.collect()  # PyAV's containers and streams name each other
            assert hostile.until(lambda: hostile.memory() - before < 20 << 20)
            assert not running.idle()
        sock.close()


# Files -----------------------------------------------------------------------


def test_files_of_the_folder(server, folder):
    pytest.importorskip("av")
    expected = hostile.text_of(ask(server.port, question("What?", picture(SHAPES.read_bytes())))[2])
    for name in ("shapes.png", "inner.png", "below/../shapes.png", "a%20b.png", "%73hapes.png"):
        for start in ("file://", "FILE://", "file://localhost"):
            found = ask(server.port, question("What?", picture(f"{start}{folder}/{name}")))
            assert (found[0], hostile.text_of(found[2])) == (200, expected), name
    film = picture(f"file://{folder}/below/clip.mp4")
    assert ask(server.port, question("What?", film))[2]["usage"]["prompt_tokens"] > 100


@pytest.mark.parametrize("name", ["damaged.png", "damaged.mp4", "empty.png"])
def test_damaged_files_are_named_by_their_part(server, folder, name):
    status, _, answer = ask(server.port, question("What?", picture(f"file://{folder}/{name}")))
    check_refusal(status, answer, 400, "messages[0].content[1]")
    assert str(folder) not in json.dumps(answer)


def test_other_files_are_not_told_from_such_that_are_not_there(server, folder):
    """One answer for all: whether a file outside the folder exists is not told."""
    messages = set()
    for url in (
        f"file://{folder}/../secret.png",
        f"file://{folder}/%2e%2e/secret.png",
        f"file://{folder}/%2e%2e%2fsecret.png",
        f"file://{folder}/up/secret.png",
        f"file://{folder}/outer.png",
        f"file://{folder}-too/shapes.png",
        f"file://{folder}",
        f"file://{folder}/",
        f"file://{folder}/pipe",
        f"file://{folder}/nothing.png",
        f"file://{folder}/shapes.png%00.jpg",
        f"file://{folder}/{'x' * 5000}",
        f"file://evil.example{folder}/shapes.png",
        f"file://127.0.0.1{folder}/shapes.png",
        f"file:{folder}/shapes.png",
        "file:///etc/passwd",
        "file:///dev/zero",
        "file:///dev/stdin",
        "file:///proc/self/environ",
        "file:///proc/self/fd/0",
        "file://",
        "file:shapes.png",
        "file:///\ud800",
        "file://[/x",
    ):
        status, _, answer = ask(server.port, question("What?", picture(url)))
        check_refusal(status, answer, 400, "messages[0].content[1]")
        messages.add(answer["error"]["message"])
    assert messages == {"messages[0].content[1]: this file is not offered here."}


def test_files_that_cannot_be_opened(server, folder, monkeypatch):
    """Such as one that another user owns."""
    monkeypatch.setattr(
        parts, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")), False
    )
    check_refusal(
        *ask(server.port, question("What?", picture(f"file://{folder}/shapes.png")))[::2],
        400,
        "messages[0].content[1]",
    )


def test_without_a_folder_there_are_no_files(locked):
    key = bearer("schlüssel-7")
    body = question("What?", picture(f"file://{SHAPES}"))
    check_refusal(*ask(locked.port, body, authorization=key)[::2], 400, "messages[0].content[1]")


def test_readers_are_few(model, monkeypatch):
    """So many requests are read at a time; others wait, and go on when there is room."""
    monkeypatch.setattr(app, "READERS", 2)
    with hostile.local(model, waiting=20) as running:
        ready, now, most = running.service.ready, [], []

        def slowly(body, gone):
            now.append(body)
            most.append(len(now))
            time.sleep(0.1)
            now.remove(body)
            return ready(body, gone)

        monkeypatch.setattr(running.service, "ready", slowly)
        socks = [hostile.sent(running.port, question(f"hi {n}")) for n in range(8)]
        assert [answered(sock)[0] for sock in socks] == [200] * 8
        for sock in socks:
            sock.close()
    assert max(most) == 2


# What a medium is, and what a message may have ---------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_picture_is_known_by_its_first_bytes(form):
    """Whatever the part is called; without its first byte it is what it is called."""
    file = io.BytesIO()
    if form == "AVIF":
        pytest.importorskip("PIL._avif")
    Image.new("RGB", (20, 20)).save(file, form)
    assert parts.kind_of(file.getvalue(), "video") == "image"
    for told in ("image", "video"):
        assert parts.kind_of(file.getvalue()[1:], told) == told


@pytest.mark.parametrize(
    "form, codec",
    [("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("flv", "flv"),
     ("mpeg", "mpeg2video"), ("asf", "mpeg4"), ("ogg", "libvpx"), ("mpegts", "mpeg4")],
)  # fmt: skip
def test_a_clip_is_known_by_its_first_bytes(form, codec):
    """But for MPEG-TS, which begins with no sign: it is what it is called."""
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    for told in ("image", "video"):
        expected = told if form == "mpegts" else "video"
        assert parts.kind_of(file.getvalue(), told) == expected
        assert parts.kind_of(file.getvalue()[1:], told) == told


@pytest.mark.parametrize("value", [None, [], {}, "", "x", 0, False])
def test_other_keys_of_a_message_must_say_nothing(value):
    """Those that clients know may say anything, and others what clients send back of an answer."""
    for key in parts.MESSAGE_KEYS[2:]:
        given = [{"role": "user", "content": "Hm", key: value}]
        assert parts.messages_of(given, Borders()) == [
            {"role": "user", "content": [{"type": "text", "text": "Hm"}]}
        ]
    given = [{"role": "user", "content": "Hm", "tool_calls": value}]
    if value in (None, [], {}, ""):
        assert len(parts.messages_of(given, Borders())) == 1
    else:
        with pytest.raises(Refusal, match="tool_calls is not supported"):
            parts.messages_of(given, Borders())


@pytest.mark.parametrize("name", ["parts", "media", "letters"])
def test_a_request_has_so_many_of_each_at_most(name):
    """Counted over all its messages; and as many of the others as before."""
    most = {"parts": parts.MOST_PARTS, "media": parts.MOST_MEDIA, "letters": limits.PROMPT_BYTES}
    tally = parts.Tally()
    tally.add("here", **{name: most[name] - 1})
    tally.add("here", **{name: 1})
    tally.add("here")
    with pytest.raises(Refusal, match=f"{most[name]:,} {name} at most") as caught:
        tally.add("there", **{name: 1})
    assert (caught.value.status, caught.value.param) == (400, "there")
    others = [other for other in most if other != name]
    assert [getattr(tally, other) for other in others] == [0, 0]


def test_media_from_the_web_share_the_time_and_the_length_of_a_request(monkeypatch):
    now, asked = [100.0], []

    def fetch(source, left, hosts, seconds):
        asked.append((left, seconds))
        return bytes(1000)

    monkeypatch.setattr(parts, "fetch_public", fetch)
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    tally, url = parts.Tally(), "http://host/a.png"
    for passed in (0, 1.5, limits.FETCH_SECONDS - 1):
        now[0] = 100 + passed
        assert len(parts.bytes_of("here", url, Borders(), tally)) == 1000
    assert asked == [
        (parts.MEDIA_BYTES - 1000 * number, limits.FETCH_SECONDS - passed)
        for number, passed in enumerate((0, 1.5, limits.FETCH_SECONDS - 1))
    ]
    for late in (0, 5):
        now[0] = 100 + limits.FETCH_SECONDS + late
        with pytest.raises(Refusal, match="took all the time") as caught:
            parts.bytes_of("here", url, Borders(), tally)
        assert caught.value.status == 400
    with pytest.raises(Refusal, match="not fetched here") as caught:
        parts.bytes_of("here", url, Borders(fetching=False), parts.Tally())
    assert caught.value.status == 400 and len(asked) == 3


@pytest.mark.parametrize("source", ["data:,", "x", "ftp://host/a", "data:image/png;base64,@@"])
def test_a_source_of_nothing_is_refused(source):
    with pytest.raises(Refusal) as caught:
        parts.bytes_of("here", source, Borders(), parts.Tally())
    assert (caught.value.status, caught.value.param) == (400, "here")
