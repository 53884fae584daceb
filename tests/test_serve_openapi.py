"""The server keeps what its OpenAPI document says, and no request makes it fail: never a 5xx."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import asgi
import pytest
import small
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_grammar import sentence_piece

import llava_min
from llava_min.serve import service
from llava_min.serve.app import paths
from llava_min.serve.fields import FIELDS
from llava_min.serve.openapi import document
from llava_min.serve.protocol import TokenTexts, timings_of
from llava_min.tokenizer import Tokenizer

schemathesis = pytest.importorskip("schemathesis")
TEXT = [{"role": "user", "content": "What?"}]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Rows so short that an answer without an end is soon cut."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    with asgi.local(llava_min.load(folder, dtype="float64"), capacity=60) as server:
        yield server


@pytest.fixture(scope="module")
def pieces():
    return Tokenizer(sentence_piece())


def check(got: asgi.Got) -> None:
    """An answer, or an error in OpenAI's form whose status says that the client was wrong."""
    if got.status == 200:
        kinds = ("application/json", "text/event-stream; charset=utf-8", "text/plain; version")
        assert got.headers["content-type"].startswith(kinds)
        if got.headers["content-type"] == kinds[0]:
            json.dumps(got.json, allow_nan=False)
        return
    assert 400 <= got.status < 500 and got.status not in (408, 409, 429), got
    error = got.error
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and error["code"]
    assert error["param"] is None or isinstance(error["param"], str)
    assert got.headers["content-type"] == "application/json"


OPERATIONS = [
    found.ok() for found in schemathesis.openapi.from_dict(document()).get_all_operations()
]
MODES = [
    (operation, mode)
    for operation in OPERATIONS
    for mode in schemathesis.GenerationMode
    if operation.method == "post" or mode is schemathesis.GenerationMode.POSITIVE
]
NO_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
FAST = (Phase.explicit, Phase.generate)


def body_of(value) -> bytes:
    """What schemathesis would send: JSON, or bytes that are meant to be none."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize("operation, mode", MODES, ids=lambda one: getattr(one, "label", str(one)))
def test_no_request_makes_the_server_fail(served, operation, mode):
    """What the document allows, and what it forbids: 30 cases each of a path with a body."""
    count = 30 if operation.method == "post" else 5

    @settings(max_examples=count, deadline=None, suppress_health_check=NO_CHECKS, phases=FAST)
    @given(operation.as_strategy(generation_mode=mode))
    def run(case):
        body = b"" if operation.method == "get" else body_of(case.body)
        check(served.ask(operation.method.upper(), case.formatted_path, body))

    run()


def test_the_document_has_every_path_and_field(served):
    described = document()
    hidden = {"/", "/openapi.json", "/models", "/chat/completions"}  # and what is not served
    hidden |= {"/example.png", "/explanations/{name}"}  # pages
    told = {route.path.replace(":path", "") for route in paths(served.site)} - hidden
    elsewhere = {path for path in told if served.ask("POST", path, b"{}").status == 404}
    assert described["paths"].keys() == told - elsewhere
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"]["properties"].keys() == FIELDS.keys()
    got = served.ask("GET", "/openapi.json")
    assert got.json == described and got.status == 200


DEEP = ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900]
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"NaN",
    b'{"messages": NaN}',
    b'{"messages": [], "temperature": Infinity}',
    b"\xff\xfe",
    b"\x00" * 50,
    b"{}" * 2,
    "\ufeff{}".encode(),
    '{"messages": []}'.encode("utf-16"),
    b'{"messages": ' + b"9" * 10_000 + b"}",
    *(deep.encode() for deep in DEEP),
    *(b'{"messages": ' + deep.encode() + b"}" for deep in DEEP),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/detokenize"])
def test_bodies_that_ask_nothing(served, path):
    for body in BODIES:
        got = served.ask("POST", path, body, **{"content-type": "application/json"})
        check(got)
        assert got.status == 400, body[:40]


def nested(depth: int) -> dict:
    found: dict = {}
    for _ in range(depth):
        found = {"a": [found]}
    return found


@pytest.mark.parametrize("depth", [10, 100, 240, 400, 480])
@pytest.mark.parametrize("name", [*FIELDS, "unknown"])
def test_deep_values(served, name, depth):
    """As deep as the parser takes them, and deeper, in every field."""
    value = json.dumps(TEXT if name != "messages" else [{"role": "user", "content": "?"}])
    deep = json.dumps(nested(min(depth, 240)))
    deep = deep if depth <= 240 else deep.replace("{}", json.dumps(nested(depth - 240)))
    check(served.post(asgi.CHAT, f'{{"messages": {value}, "{name}": {deep}}}'.encode()))


def test_the_last_of_equal_keys_counts(served):
    body = b'{"messages": 3, "max_tokens": 9, "max_tokens": 2, "messages": %s}'
    got = served.post(asgi.CHAT, body % json.dumps(TEXT).encode())
    assert got.status == 200 and got.json["usage"]["completion_tokens"] == 2


SOME = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None), max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
URLS = st.sampled_from(
    [
        "",
        "data:",
        "data:,",
        "data:image/png;base64,!!!",
        "data:image/png;base64,AAAA",
        "data:video/mp4;base64,AAAA",
        "file:///etc/passwd",
        "file://",
        "file:\0",
        "file:///\ud800",
        "shapes.png",
        "ftp://example.com/a",
        "http://",
        "http://127.0.0.1/",
        "http://[::1",
        "http://localhost:99999/",
        "http://\ud800/",
        "HTTP://169.254.169.254/latest",
        "\0",
    ]
)
KINDS = ("text", "image_url", "video_url", "image", "video", "input_image", "input_text", "refusal")
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | SOME,
        "text": SOME,
        "image_url": URLS | st.fixed_dictionaries({"url": URLS | SOME}) | SOME,
        "video_url": st.fixed_dictionaries({"url": URLS | SOME}) | SOME,
        "url": URLS,
        "base64": SOME,
        "data": SOME,
        "detail": SOME,
    },
)
ROLES = st.sampled_from(["user", "system", "developer", "assistant", "tool", "function", ""])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES | SOME, "content": st.lists(PARTS | SOME, max_size=3) | SOME},
    optional={"name": SOME, "tool_calls": SOME, "refusal": SOME, "\ud800": SOME},
)


@settings(max_examples=150, deadline=None, suppress_health_check=NO_CHECKS)
@given(st.lists(MESSAGES, max_size=3), st.booleans())
def test_any_messages(served, messages, prefilled):
    """Parts that are empty, of no kind, of two kinds, with media that are none."""
    fields = {"messages": messages, "max_tokens": 1, "continue_final_message": prefilled}
    got = served.post(asgi.CHAT, fields)
    check(got)
    if got.status != 200:
        param = got.error["param"]
        assert param is not None and re.match(r"messages(\[\d\])?", param), got.error
    counted = served.post(f"{asgi.CHAT}/input_tokens", fields)
    check(counted)
    if got.status == 200:
        assert counted.json["input_tokens"] == got.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
def test_other_methods_and_paths(served, method):
    """In OpenAI's form too: 405 says so, 404 where there is nothing."""
    told = {route.path: route.methods for route in paths(served.site)}
    for path, methods in told.items():
        got = served.ask(method, path.replace("{name:path}", "served"), b"{}" * (method == "POST"))
        if method in (methods or {"POST"}):
            assert got.status in (200, 400, 404), (method, path)
        else:
            assert got.status == 405 and got.error["code"] == "method", (method, path)
            allowed = got.headers["allow"].split(", ")
            assert set(allowed) == (methods or {"POST"})
    for path in ("/v1", "/v2/models", "/v1/chat", "/v1/files", "/v1/models/other", "//", "/%00"):
        got = served.ask(method, path, b"{}" * (method == "POST"))
        assert got.status in (404, 405)
        if method != "HEAD":
            assert got.error["code"] in ("not_found", "method", "model_not_found")
    for name in ("completions", "responses", "embeddings", "messages"):
        assert "chat/completions" in served.post(f"/v1/{name}", {}).error["message"]


def test_ids_and_texts(served):
    tokenizer = served.model.tokenizer
    for text in ("What is it?", "", "ünïcödé 🎈", "<|im_end|>"):
        got = served.post("/tokenize", {"content": text}).json
        assert got == {"tokens": tokenizer.encode_text(text), "count": len(got["tokens"])}
        back = served.post("/detokenize", {"tokens": got["tokens"]}).json
        assert back["content"] == back["prompt"] == text
    assert (
        served.post("/tokenize", {"prompt": "a"}).json
        == served.post("/tokenize", {"content": "a"}).json
    )
    for content in (3, None, ["a"], "\ud800"):
        assert served.post("/tokenize", {"content": content}).error["param"] == "content"
    known = served.model.known_ids
    for tokens in (3, None, "1", [known], [-1], [True], [1.0], ["1"]):
        assert served.post("/detokenize", {"tokens": tokens}).error["param"] == "tokens"
    assert served.post("/detokenize", {"tokens": [known - 1, 0]}).status == 200


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(st.characters(max_codepoint=255)))
def test_the_bytes_of_tokens_are_those_of_the_text(served, text):
    """Of any character: those that byte-level BPE writes as they are, and those it moves."""
    tokenizer, texts = served.model.tokenizer, served.service.texts
    joined = b"".join(map(texts.bytes_of, tokenizer.encode_text(text)))
    expected = tokenizer.inner.normalizer
    normal = text if expected is None else expected.normalize_str(text)
    assert joined == normal.encode()


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_the_bytes_of_pieces_are_those_of_the_text(pieces, text):
    """SentencePiece's, whose words begin with a blank, and whose other characters are bytes."""
    tokenizer, texts = pieces, TokenTexts(pieces)
    joined = b"".join(map(texts.bytes_of, tokenizer.encode_text(text)))
    assert joined == (f" {text}" if text else "").encode()
    assert texts.entry(tokenizer.special["</s>"], float("-inf"))["logprob"] == -9999.0
    assert texts.bytes_of(tokenizer.special["</s>"]) == b"</s>"


def test_what_was_held_is_not_counted_as_read(served):
    asked = {"messages": [{"role": "user", "content": "What? " * 12}], "max_tokens": 2}
    for _ in range(2):
        begin = time.monotonic()
        got = served.post(asgi.CHAT, asked).json
        usage, timings = got["usage"], got["timings"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert timings["cache_n"] == cached
        assert timings["prompt_n"] == usage["prompt_tokens"] - cached
        assert timings["predicted_n"] == usage["completion_tokens"]
        taken = timings["prompt_ms"] + timings["predicted_ms"]
        assert 0 < timings["predicted_ms"] < taken < (time.monotonic() - begin) * 1000 + 0.1
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert cached > 0


SECONDS = st.floats(1e-4, 3600)


@given(SECONDS, SECONDS, SECONDS, st.integers(1, 10**6), st.integers(0, 9))
def test_timings_are_in_milliseconds_and_tokens_a_second(vision, prefill, decode, new, held):
    usage = {"prompt_tokens": new + held, "completion_tokens": 5, "cached_tokens": held}
    seconds = {"vision_s": vision, "prefill_s": prefill, "decode_s": decode, "tokens_per_s": 7.123}
    found = timings_of([SimpleNamespace(usage=usage, timings=seconds)])
    assert found["prompt_ms"] / 1000 == pytest.approx(vision + prefill, abs=1e-4)
    assert found["predicted_ms"] / 1000 == pytest.approx(decode, abs=1e-4)
    speed = new / (vision + prefill)
    assert found["prompt_per_second"] == pytest.approx(speed, abs=0.01)
    assert found["predicted_per_second"] == pytest.approx(7.123, abs=0.01)
    assert all(
        len(repr(number).partition(".")[2].partition("e")[0]) <= 2 for number in found.values()
    )


def test_the_help_says_how_many_are_answered_at_a_time():
    assert f"({service.SLOTS}, or what memory allows)" in (ROOT / "docs/cli.md").read_text()


LINE = re.compile(
    r'llava_min:(\w+?)(_bucket|_sum|_count)?(?:\{(\w+)="([^"]*)"\})? (\d+(?:\.\d+)?(?:e-?\d+)?)'
)


def test_metrics_are_what_prometheus_reads(served):
    """Each metric described before its lines; buckets that grow; counts of what was done."""
    before, begin = samples(served.ask("GET", "/metrics")), time.perf_counter()
    done = served.chat(messages=TEXT, max_tokens=5, ignore_eos=True).json["usage"]
    served.chat(messages=TEXT, max_tokens=5, ignore_eos=True, stream=True)
    served.chat(messages=[])
    after = samples(served.ask("GET", "/metrics"))
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["prompt_tokens_total", ""] == 2 * done["prompt_tokens"]
    assert grown["tokens_predicted_total", ""] == 10
    assert grown["requests_total", "200"] == 2 and grown["requests_total", "400"] == 1
    assert grown["time_to_first_token_seconds_count", ""] == 2
    assert grown["time_between_tokens_seconds_count", ""] == 8
    assert grown["request_seconds_count", ""] == 2
    elapsed = time.perf_counter() - begin
    for name in ("time_to_first_token", "time_between_tokens", "request"):
        assert 0 < grown[f"{name}_seconds_sum", ""] <= elapsed
    assert after["slots", ""] == 4 and after["requests_processing", ""] == 0
    assert after["requests_deferred", ""] == 0


def samples(got: asgi.Got) -> dict[tuple[str, str], float]:
    """{(name, label's value): number} of a text for Prometheus."""
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    found, described, kinds = {}, None, {}
    for line in b"".join(got.pieces).decode("ascii").splitlines():
        if line.startswith("# HELP "):
            described = line.split()[2]
            assert described not in kinds and line.endswith(".")
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == described and kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
        else:
            name, part, label, value, number = LINE.fullmatch(line).groups()
            assert f"llava_min:{name}" == described
            assert (part is not None) == (kinds[described] == "histogram")
            assert label == {"_bucket": "le"}.get(part, label and "status")
            key = (name + (part or ""), value or "")
            assert key not in found
            found[key] = float(number)
    for name in (name.partition(":")[2] for name, kind in kinds.items() if kind == "histogram"):
        buckets = [n for (key, _), n in found.items() if key == f"{name}_bucket"]
        assert buckets == sorted(buckets) and buckets[-1] == found[f"{name}_count", ""]
        assert found[f"{name}_sum", ""] >= 0
    return found
