"""The life of a request: wherever it ends, its work ends, and the others have their own answers.

Clients leave at every stage, fail, stop reading, are killed; the model fails, its thread dies, the
server is stopped and killed. Afterwards no slot, thread, file or task is left.
"""

import contextlib
import gc
import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import hostile
import pytest
import serving
from hostile import SECONDS, SHAPES, answered, ask, dial, head, picture, question, sent, text_of

import llava_min
from llava_min.engine.answers import Reply
from llava_min.engine.rows import Contents
from llava_min.errors import NumericsError, ParameterError, RankError
from llava_min.serve import app
from llava_min.serve.errors import STOPPING
from llava_min.serve.worker import Job, Worker

STORM, WHOLE_STORM = 300, 1_000  # requests, of which 30% are killed
SOAK_SECONDS = 3_600.0
GROWTH = 1.05  # of memory, at most
LINUX = os.path.isdir("/proc/self/fd")


@pytest.fixture(scope="module")
def model():
    return llava_min.load()


@pytest.fixture
def server(model):
    with hostile.local(model, waiting=8) as running:
        yield running


class Rounds:
    """The rounds of a server, slow enough to act between them, and counted."""

    def __init__(self, running, monkeypatch, seconds: float = 0.01) -> None:
        self.count, self.inner, self.seconds = 0, running.service.slots.round, seconds
        monkeypatch.setattr(running.service.slots, "round", self.round)

    def round(self):
        self.count += 1
        time.sleep(self.seconds)
        return self.inner()


def long(**fields):
    """A question whose answer takes hundreds of rounds."""
    return question("Where is the star?", max_tokens=800, ignore_eos=True, **fields)


def short(**fields):
    """A question with an answer of some tokens."""
    return long(**fields) | {"max_tokens": 50}


def check_alive(running) -> None:
    """That nothing is left of what was, and that the next answer is right."""
    assert hostile.until(running.idle)
    assert hostile.until(lambda: running.server.config.app.held == 0)
    slots = running.service.slots
    assert slots.free == len(slots.questions) and not running.service.worker.jobs
    answer = ask(running.port, question("Where is the star?", picture(SHAPES.read_bytes())))
    expected = running.service.model.generate(
        "Where is the star?", images=[SHAPES.read_bytes()], max_tokens=4
    )
    assert (answer[0], text_of(answer[2])) == (200, expected.text)


# Clients that leave ------------------------------------------------------------


def leave(sock: socket.socket, abruptly: bool) -> None:
    """Close a socket, or let it end as that of a process that is killed with data unread."""
    if abruptly:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("abruptly", [False, True])
def test_gone_before_the_head_or_the_body_is_whole(server, abruptly):
    data = json.dumps(long()).encode()
    whole = head(len(data)) + data
    for count in (0, 5, len(head(len(data))) - 1, len(head(len(data))), len(whole) - 1):
        sock = dial(server.port)
        sock.sendall(whole[:count])
        time.sleep(0.02)
        leave(sock, abruptly)
    assert hostile.until(lambda: not server.server.server_state.connections)
    check_alive(server)


@pytest.mark.parametrize("stream", [False, True])
def test_gone_while_another_writes(server, monkeypatch, stream):
    """In mid-answer the work stops within a round or two, and the slot is free."""
    rounds = Rounds(server, monkeypatch, seconds=0.05)
    sock = sent(server.port, long(stream=stream))
    assert hostile.until(lambda: rounds.count > 20)
    leave(sock, True)
    at = rounds.count
    assert hostile.until(server.idle)
    assert rounds.count - at < 100  # of 800; a few pass until the loop sees the end
    check_alive(server)


@pytest.mark.parametrize("stream", [False, True])
def test_gone_before_the_first_token(server, monkeypatch, stream):
    """While the prompt is read, a portion at a time."""
    slots = server.service.slots
    monkeypatch.setattr(slots.pace, "tokens", lambda most: lambda: 4)
    rounds = Rounds(server, monkeypatch, seconds=0.05)
    sock = sent(server.port, question("Why? " * 150, max_tokens=4, stream=stream))
    assert hostile.until(lambda: rounds.count > 5)
    asked = next(row for row in slots.questions if row is not None)
    leave(sock, True)
    assert hostile.until(server.idle)
    assert 0 < asked.done < asked.prepared.plan.tokens - 40 and not asked.reply.new
    check_alive(server)


def test_gone_in_the_queue(server, monkeypatch):
    """It never gets a slot."""
    slots = server.service.slots
    begun, begin = [], slots.begin
    monkeypatch.setattr(slots, "begin", lambda asked: begun.append(asked) or begin(asked))
    Rounds(server, monkeypatch)
    writing = [sent(server.port, long()) for _ in slots.questions]
    assert hostile.until(lambda: slots.free == 0 and len(begun) == 2)
    waiting = [sent(server.port, long(stream=bool(n % 2))) for n in range(4)]
    assert hostile.until(lambda: len(slots.waiting) == 4)
    for sock in waiting:
        leave(sock, True)
    assert hostile.until(lambda: not slots.waiting)
    for sock in writing:
        leave(sock, True)
    assert hostile.until(server.idle)
    assert len(begun) == 2
    check_alive(server)


def test_gone_while_media_are_decoded(server, monkeypatch):
    """Its place is free at once; one that has not begun is not decoded at all."""
    prepare, held, count = server.service.prepare, threading.Event(), []

    def slowly(*given, **more):
        count.append(given)
        assert held.wait(SECONDS)
        return prepare(*given, **more)

    monkeypatch.setattr(server.service, "prepare", slowly)
    socks = [sent(server.port, long(stream=bool(n % 2))) for n in range(6)]
    assert hostile.until(lambda: server.site.open == 6 and len(count) == 2)
    for sock in socks:
        leave(sock, True)
    assert hostile.until(lambda: server.site.open == 0)
    held.set()
    assert hostile.until(lambda: not request_threads())
    assert len(count) == 4  # each of the two that had begun looks at the sizes first
    check_alive(server)


def request_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "request"]


def test_several_answers_to_a_client_that_leaves(server, monkeypatch):
    rounds = Rounds(server, monkeypatch)
    sock = sent(server.port, long(n=2, temperature=1, stream=True))
    assert hostile.until(lambda: rounds.count > 20)
    assert hostile.until(lambda: server.service.slots.free == 0)
    leave(sock, True)
    check_alive(server)


def test_clients_that_take_nothing_are_cut_off(model, monkeypatch):
    """A stream that nobody reads does not hold its slot for ever."""
    monkeypatch.setattr(app, "STALLED", 0.5)
    with hostile.local(model, waiting=8, tokens=16_000) as running:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", running.port))
        body = long(stream=True, logprobs=True, top_logprobs=20) | {"max_tokens": 15_000}
        data = json.dumps(body).encode()
        sock.sendall(head(len(data)) + data)
        text = partial(running.service.metrics.text, dict.fromkeys(GAUGES, 0))
        assert hostile.until(lambda: '{status="499"} 1' in text(), 5 * SECONDS)
        assert hostile.until(running.idle)
        sock.close()
        check_alive(running)


GAUGES = ("requests_processing", "requests_deferred", "slots")


@pytest.mark.skipif(not LINUX, reason="needs Linux")
def test_idle_streams_take_little_memory(model):
    """200 that are connected and read nothing; another is served next to them."""
    with hostile.local(model, waiting=300) as running:
        check_alive(running)
        before = hostile.memory()
        socks = [sent(running.port, question(f"{n}?", stream=True)) for n in range(200)]
        check_alive(running)
        assert hostile.memory() - before < 100 << 20
        for sock in socks:
            sock.close()
        assert hostile.until(lambda: not running.server.server_state.connections)


# Too many, too early, too late ---------------------------------------------------


def test_a_full_queue_says_when_to_come_again(model, monkeypatch):
    with hostile.local(model, slots=1, waiting=2) as running:
        Rounds(running, monkeypatch)
        socks = [sent(running.port, long()) for _ in range(3)]
        assert hostile.until(lambda: running.site.open == 3)
        for stream in (False, True):
            status, headers, answer = ask(running.port, long(stream=stream))
            assert (status, headers["retry-after"]) == (429, "2")
            assert answer["error"]["code"] == "queue_full"
            assert answer["error"]["type"] == "rate_limit_error"
        assert ask(running.port, None, "/health", "GET")[0] == 200
        for sock in socks:
            leave(sock, True)
        check_alive(running)


def test_while_the_model_is_loaded(model):
    with hostile.local(None) as running:
        for path, body in (
            ("/health", None),
            ("/ping", None),
            ("/metrics", None),
            (hostile.CHAT, question("hi")),
            ("/tokenize", {"content": "a"}),
        ):
            method = "GET" if body is None else "POST"
            status, headers, answer = ask(running.port, body, path, method)
            assert (status, headers["retry-after"]) == (503, "2")
            assert answer["error"]["code"] == "loading"
        assert ask(running.port, None, "/v1/models", "GET")[0] == 200
        running.server.load(lambda: model, running.listening)
        assert ask(running.port, None, "/health", "GET")[0] == 200
        check_alive(running)


def test_a_model_that_cannot_be_loaded_ends_the_server():
    def failing():
        raise NumericsError("NaN in the weights.")

    with hostile.local(None) as running:
        running.server.load(failing, running.listening)
        running.thread.join(SECONDS)
        assert not running.thread.is_alive()
        assert isinstance(running.server.failure, NumericsError)


# Failures ------------------------------------------------------------------------


def failing_take(error: Exception, at: int):
    """Reply.take that fails at the token with this number of answers with the seed 666."""
    take = Reply.take

    def failing(self, *given):
        if self.options.seed == 666 and len(self.new) == at:
            raise error
        return take(self, *given)

    return failing


FAILURES = {
    "NaN": (NumericsError("The logits are NaN."), 500, "numerics"),
    "a rank": (RankError("Another rank is gone."), 500, "rank"),
    "a mistake": (RuntimeError("secret 4711"), 500, "internal_error"),
    "memory": (MemoryError(), 500, "internal_error"),
}


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_ends_its_own_request_alone(server, monkeypatch, name, at):
    """With the first token or in mid-answer; the one next to it has its own answer."""
    error, status, code = FAILURES[name]
    expected = text_of(ask(server.port, short())[2])
    monkeypatch.setattr(Reply, "take", failing_take(error, at))
    for stream in (False, True):
        next_to_it = sent(server.port, short())
        found, headers, answer = ask(server.port, short(seed=666, stream=stream))
        if stream:
            assert found == 200
            *first, last, done = hostile.events(answer)
            assert done == "[DONE]" and len(first) >= 1 and "choices" in first[-1]
            failure = last["error"]
        else:
            assert (found, headers["x-should-retry"]) == (status, "false")
            failure = answer["error"]
        assert failure["code"] == code and "4711" not in failure["message"]
        assert text_of(answered(next_to_it)[1]) == expected
        next_to_it.close()
    check_alive(server)


def test_a_failure_in_the_tower(server, monkeypatch):
    """One picture cannot be looked at; others can, next to it and after it."""
    looks, inner = server.service.slots.looks, server.service.slots.looks.inner
    monkeypatch.setattr(looks, "inner", lambda *_: (_ for _ in ()).throw(RuntimeError("tower")))
    next_to_it = sent(server.port, short())
    status, headers, answer = ask(server.port, question("What?", picture(SHAPES.read_bytes())))
    assert (status, headers["x-should-retry"]) == (500, "false")
    assert answered(next_to_it)[0] == 200
    next_to_it.close()
    monkeypatch.setattr(looks, "inner", inner)
    check_alive(server)


def test_a_failure_before_the_prompt_is_read(server, monkeypatch):
    """When a row is chosen, and when the answer's rules are made."""
    for owner, name in ((Contents, "take"), (server.service.slots, "submit")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: (_ for _ in ()).throw(MemoryError()))
            assert ask(server.port, question("hi"))[0] == 500
            assert ask(server.port, None, "/health", "GET")[0] == 200
        check_alive(server)


def test_a_failure_where_a_request_is_read(server, monkeypatch):
    monkeypatch.setattr(server.service, "ready", lambda *_, **__: 1 / 0)
    status, headers, answer = ask(server.port, question("hi"))
    assert (status, headers["x-should-retry"]) == (500, "false")
    assert answer["error"]["code"] == "internal_error" and "zero" not in str(answer)
    monkeypatch.undo()
    check_alive(server)


def test_the_model_s_thread_dies(server, monkeypatch):
    """Every request ends, whatever it waits for, and /health tells."""
    Rounds(server, monkeypatch)
    worker = server.service.worker
    socks = [sent(server.port, long(stream=n % 2 == 0)) for n in range(4)]
    assert hostile.until(lambda: len(worker.jobs) == 4)
    monkeypatch.setattr(server.service.slots, "round", lambda: 1 / 0)
    for number, sock in enumerate(socks):
        status, answer = answered(sock)
        sock.close()
        if number % 2 == 0:
            *_, error, done = hostile.events(answer)
            assert (status, error["error"]["code"], done) == (200, "stuck", "[DONE]")
        else:
            assert (status, answer["error"]["code"]) == (503, "stuck")
    for path in ("/health", "/ping"):
        status, headers, answer = ask(server.port, None, path, "GET")
        assert (status, answer["error"]["code"]) == (503, "stuck")
    assert ask(server.port, question("hi"))[0] == 503
    assert hostile.until(lambda: server.site.open == 0 and not worker.jobs)


def test_a_round_that_does_not_end_is_told(server, monkeypatch):
    held = threading.Event()
    round_ = server.service.slots.round
    monkeypatch.setattr(server.service.slots, "round", lambda: held.wait(SECONDS) and round_())
    monkeypatch.setattr("llava_min.serve.worker.PATIENCE", 0.1)
    sock = sent(server.port, question("hi"))
    assert hostile.until(lambda: ask(server.port, None, "/health", "GET")[0] == 503)
    held.set()
    assert answered(sock)[0] == 200
    sock.close()
    assert hostile.until(lambda: ask(server.port, None, "/health", "GET")[0] == 200)


def test_a_round_may_take_as_long_as_patience_lasts(monkeypatch):
    """And a thread that has ended, or is about to, is not healthy, whatever its round."""
    monkeypatch.setattr("llava_min.serve.worker.time", SimpleNamespace(monotonic=lambda: 500.0))
    for began, well in ((None, True), (500.0, True), (380.1, True), (380.0, False), (0.0, False)):
        for alive, stopped in ((True, False), (True, True), (False, False)):
            one = SimpleNamespace(round_began=began, stopped=stopped, is_alive=lambda a=alive: a)
            assert Worker.healthy.fget(one) == (well and alive and not stopped)


# The worker by itself --------------------------------------------------------------


class Nothing:
    """A question in slots in which nothing happens."""

    reply = SimpleNamespace(eos=())


def idle_slots():
    """Slots in which nothing happens."""
    return SimpleNamespace(
        busy=False,
        round=list,
        cancel=lambda asked: None,
        submit=lambda *_: Nothing(),
    )


def job(ended: list) -> Job:
    prepared = SimpleNamespace(without_media=lambda: None)
    return Job(prepared, SimpleNamespace(ignore_eos=True), lambda event: None, ended.append)


def test_a_job_that_comes_in_the_last_round_ends():
    """It was submitted after the worker was told to stop, and before it stopped."""
    slots, begun, held, ended = idle_slots(), threading.Event(), threading.Event(), []
    slots.busy, slots.round = True, lambda: begun.set() or held.wait(SECONDS) and []
    worker = Worker(slots)
    worker.start()
    assert begun.wait(SECONDS)
    worker.stop()
    worker.submit(job(ended))
    held.set()
    worker.join(SECONDS)
    assert ended == [STOPPING]


def test_no_job_is_lost_when_the_worker_stops():
    """Whenever it comes: each ends exactly once."""
    for number in range(100):
        ended: list = []
        worker = Worker(idle_slots())
        worker.start()
        submits = [
            threading.Thread(target=worker.submit, args=(job(ended),), daemon=True)
            for _ in range(3)
        ]
        order = [*submits, threading.Thread(target=worker.stop, daemon=True)]
        random.Random(number).shuffle(order)
        for thread in order:
            thread.start()
        for thread in order:
            thread.join(SECONDS)
        worker.join(SECONDS)
        worker.submit(job(ended))
        assert ended == [STOPPING] * 4, number


def test_other_work_is_done_while_no_slot_is_busy():
    """In its order; no round is run for it."""
    slots, rounds, done, all_done = idle_slots(), [], [], threading.Event()
    slots.round = lambda: rounds.append(len(done)) or []
    worker = Worker(slots)
    for number in range(3):
        worker.when_idle(lambda number=number: done.append(number))
    worker.when_idle(all_done.set)
    worker.start()
    assert all_done.wait(SECONDS)
    worker.stop()
    worker.join(SECONDS)
    assert done == [0, 1, 2] and not rounds and not worker.is_alive()
    assert worker.daemon  # a process that ends waits for no round


@pytest.mark.parametrize(
    "error, logged",
    [(None, 0), (RuntimeError("secret"), 1), (ParameterError("top_p"), 0), (STOPPING, 0)],
)
def test_the_log_has_mistakes_of_ours_alone(error, logged, caplog):
    ended: list = []
    Worker(idle_slots()).tell(job(ended), error)
    assert ended == [error]
    assert [one.getMessage() for one in caplog.records] == ["a question failed"] * logged


# The end of the server --------------------------------------------------------------


def stream_of(running, tokens: int = 20_000):
    """A response whose stream has begun."""
    connection = http.client.HTTPConnection(running.address.removeprefix("http://"), timeout=60)
    body = json.dumps(long(stream=True) | {"max_tokens": tokens})
    connection.request("POST", hostile.CHAT, body, hostile.JSON)
    response = connection.getresponse()
    while b'"content": "' not in (line := response.readline()) or b'"content": ""' in line:
        assert line
    return connection, response


def is_open(running) -> bool:
    host, port = running.address.removeprefix("http://").split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
        return True
    return False


WORDS = "What colour has my grandmother's parrot"


def test_ctrl_c_and_what_the_log_has():
    """130 and no traceback. With -v the log has neither questions nor pictures nor answers."""
    with serving.process("-v", "--threads", "1", "--grace", "60") as running:
        port = int(running.address.rpartition(":")[2])
        part = picture(SHAPES.read_bytes())
        good = ask(port, question(WORDS, part, top_unknown=1, user="my name"))[2]
        ask(port, question(WORDS, picture(b"parrot"), WORDS))
        ask(port, b'{"messages": "' + WORDS.encode())
        ask(port, question(WORDS, picture("http://127.0.0.1/grandmother.png")))
        ask(port, question(WORDS, stream=True, stop=[WORDS], logit_bias={"parrot": 1}))
        ask(port, {"content": WORDS}, "/tokenize")
        start = time.monotonic()
        assert running.stop(signal.SIGINT) == 130
        assert time.monotonic() - start < 50  # nothing goes on: nothing is waited for
        assert "Traceback" not in running.log and "interrupted" in running.log
        encoded = part["image_url"]["url"].partition(",")[2]
        for secret in ("parrot", "grandmother", "my name", encoded[100:140], text_of(good)):
            assert secret not in running.log, running.log
        assert "top_unknown" in running.log and "200" in running.log and "400" in running.log


BUSY = """
import sys
import torch
from llava_min.command.main import run
from llava_min.engine import load

def busy(*given, **named):
    print("busy", file=sys.stderr, flush=True)
    while True:
        torch.randn(300, 300) @ torch.randn(300, 300)

load.load, sys.argv = busy, ["llava-min", "serve", "--port", "0"]
run()
"""


def test_ctrl_c_while_torch_is_busy_loading():
    """130 and a line, where Python's end under torch would abort the process."""
    words = [sys.executable, "-c", BUSY]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, preexec_fn=serving.hear_ctrl_c
    ) as child:
        assert child.stderr.readline() == "busy\n"
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=SECONDS)
    assert (child.returncode, said) == (130, "llava_min: interrupted\n")


def test_requests_are_in_the_log_that_asks_for_them(model, caplog):
    caplog.set_level("INFO", "llava_min")
    for wanted in (False, True):
        with hostile.local(model, log_requests=wanted) as running:
            ask(running.port, question(WORDS, picture(SHAPES.read_bytes())))
        assert (WORDS in caplog.text) == wanted


def test_sigterm_lets_answers_go_on_for_a_while():
    """Nothing new; a short answer is whole, and a long one ends with an error after --grace."""
    with serving.process("--threads", "1", "--grace", "5") as running:
        connection, response = stream_of(running)
        other, whole = stream_of(running, 60)
        start = time.monotonic()
        running.child.send_signal(signal.SIGTERM)
        assert hostile.until(lambda: not is_open(running))
        last = hostile.events(whole.read())
        assert last[-1] == "[DONE]" and last[-2]["choices"][0]["finish_reason"] == "length"
        *_, error, done = hostile.events(response.read())
        took = time.monotonic() - start
        assert (error["error"]["code"], done) == ("stopping", "[DONE]")
        assert 4.5 < took < SECONDS
        running.child.wait(SECONDS)
        assert "Traceback" not in running.log
        connection.close()
        other.close()


def test_an_answer_whose_round_outlives_the_grace_is_told_its_end(model, monkeypatch):
    """One round may take longer than the grace and what uvicorn adds to it, as on a slow CPU."""
    with hostile.local(model, grace=0.1) as running:
        inner, pause = running.service.slots.round, lambda: 4 if running.site.stopping else 0.01
        monkeypatch.setattr(running.service.slots, "round", lambda: time.sleep(pause()) or inner())
        sock = sent(running.port, long(stream=True))
        with sock.makefile("rb") as file:
            while b'"content": "' not in (line := file.readline()) or b'"content": ""' in line:
                assert line
            running.server.handle_exit(signal.SIGTERM, None)
            lines = file.read()
        sock.close()
    assert b'"code": "stopping"' in lines and b"data: [DONE]" in lines


@pytest.mark.skipif(not LINUX, reason="needs Linux")
def test_nothing_is_left_of_a_server_that_is_killed(tmp_path, monkeypatch):
    """Neither files nor processes, though it was in the middle of everything."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving.process("--threads", "1") as running:
        connection, _ = stream_of(running)
        port = int(running.address.rpartition(":")[2])
        clip = picture(hostile.CLIP.read_bytes(), "video_url")
        assert ask(port, question("What?", clip))[0] == 200
        half = dial(port)
        half.sendall(head(10_000_000) + bytes(9_000_000))
        child = running.child.pid
        with open(f"/proc/{child}/task/{child}/children") as file:
            assert file.read() == ""
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        assert list(tmp_path.iterdir()) == []
        half.close()
        connection.close()


# Many, of which some are killed --------------------------------------------------------

KINDS = 12  # different questions


def one_of(number: int):
    """A question of some kind; greedy or drawn, with a picture or without."""
    rng = random.Random(number)
    parts = ["Why? " * rng.randint(1, 30)]
    if number % 3 == 0:
        parts.append(picture(SHAPES.read_bytes()))
    fields = {"max_tokens": rng.randint(1, 24), "ignore_eos": True}
    if number % 2:
        fields |= {"temperature": 1.5, "seed": number}
    return question(*parts, **fields)


class Storm:
    """Clients of one server, 16 at a time; 30% of them are killed at any moment."""

    def __init__(self, running) -> None:
        self.running, self.right, self.killed, self.wrong = running, 0, 0, []
        self.expected = {}
        for number in range(KINDS):
            status, _, answer = ask(running.port, one_of(number))
            assert status == 200
            self.expected[number] = text_of(answer)

    def client(self, seed: int) -> None:
        """One request."""
        rng = random.Random(seed)
        number, stream = rng.randrange(KINDS), rng.random() < 0.5
        data = json.dumps(one_of(number) | {"stream": stream}).encode()
        whole = head(len(data)) + data
        with dial(self.running.port) as sock:
            if rng.random() < 0.3:
                sock.sendall(whole[: rng.choice([rng.randrange(len(whole)), len(whole)])])
                time.sleep(rng.random() * 0.05)
                leave(sock, rng.random() < 0.5)
                self.killed += 1
                return
            sock.sendall(whole)
            status, answer = answered(sock)
        if status == 200 and stream:
            chunks = hostile.events(answer)[:-1]
            answer = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
        elif status == 200:
            answer = text_of(answer)
        if answer != self.expected[number]:
            self.wrong.append((seed, number, status, answer))
        self.right += 1

    def run(self, first: int, count: int) -> None:
        """So many requests."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self.client, range(first, first + count)))
        assert not self.wrong, self.wrong[:3]
        assert hostile.until(self.running.idle)

    def state(self) -> tuple[int, int, int]:
        """(threads, files, bytes) when nothing goes on."""
        ask(self.running.port, None, "/health", "GET")  # whoever came before was let in
        assert hostile.until(lambda: not self.running.server.server_state.connections)
        assert hostile.until(lambda: not request_threads())
        gc.collect()
        return threading.active_count(), hostile.open_files(), hostile.memory()


def storm(model, count: int) -> Storm:
    """That after so many requests the server is as it was after a few."""
    with hostile.local(model, slots=4, waiting=64) as running:
        found = Storm(running)
        found.run(0, count // 3)
        threads, files, memory = found.state()
        found.run(count // 3, count - count // 3)
        assert hostile.until(lambda: found.state()[:2] == (threads, files))
        after = found.state()
        assert after[2] < memory * GROWTH, (after[2], memory)
        assert found.right + found.killed == count and 0.2 < found.killed / count < 0.4
        check_alive(running)
        print(f"{count} requests, {found.killed} killed; memory {memory} -> {after[2]}")
    return found


@pytest.mark.skipif(not LINUX, reason="needs Linux")
def test_many_requests_of_which_some_are_killed(model):
    storm(model, STORM)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="needs Linux")
def test_a_thousand_requests_of_which_some_are_killed(model):
    storm(model, WHOLE_STORM)


@pytest.mark.slow
@pytest.mark.skipif(not LINUX, reason="needs Linux")
def test_an_hour_of_everything(model):
    """Clients that are killed, hostile ones next to them, and always the same right answers."""
    bad = [
        b"{",
        b"[" * 10**5,
        json.dumps(question("hi", picture(b"\x89PNG\r\n\x1a\n"))).encode(),
        json.dumps(question("hi", picture("http://127.0.0.1/x"))).encode(),
        json.dumps(question("w" * 3000)).encode(),
        json.dumps(question("hi", n=99)).encode(),
        bytes(3 << 20),
    ]
    deadline, done = time.monotonic() + SOAK_SECONDS, 0
    with hostile.local(model, slots=4, waiting=64) as running:
        found, first = Storm(running), None
        while time.monotonic() < deadline:
            found.run(done, 300)
            done += 300
            for body in bad:
                assert 400 <= ask(running.port, body)[0] < 500
            for path in ("/metrics", "/v1/models", "/health", "/openapi.json"):
                assert ask(running.port, None, path, "GET")[0] == 200
            after = found.state()
            print(f"{done} requests, {found.killed} killed, {after[2] >> 20} MB")
            if done == 5 * 300:  # from here on nothing happens for the first time
                first = after
            if first is not None:
                assert after[:2] == first[:2]
                assert after[2] < first[2] * GROWTH
        check_alive(running)
