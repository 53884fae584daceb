"""What real clients get from a server in a process of its own, and what is on the wire."""

import asyncio
import base64
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from functools import partial
from pathlib import Path

import hostile
import peers
import pytest
import serving
import small

import llava_min

openai = pytest.importorskip("openai")
ROOT = Path(__file__).parent.parent
SAMPLES = small.TINY / "samples"
STAR, CLIP = SAMPLES / "shapes.png", SAMPLES / "clip.mp4"
WHERE, WAY = "Where is the star?", "Which way does the circle move?"


def uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


PNG, MP4 = uri(STAR, "image/png"), uri(CLIP, "video/mp4")


def part(url: str, kind: str = "image_url", **more) -> dict:
    return {"type": kind, kind: {"url": url, **more}}


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def user(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


ABOUT_THE_STAR = user(part(PNG), words(WHERE))


@pytest.fixture(scope="module")
def files():
    """The address of a web server with the samples."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(SAMPLES))
    handler.func.log_message = lambda *given: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address():
    """The toy in float32, whose answers are those of `model`."""
    options = ("--dtype", "float32", "--threads", "1", "--slot-tokens", "4000")
    media = ("--media-path", str(SAMPLES), "--allow-host", "127.0.0.1")
    with serving.server(*options, *media, "--served-name", "llava") as found:
        yield found


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


@pytest.fixture(scope="module")
def where(model) -> str:
    """Where the star is, as the library answers."""
    return model.generate(WHERE, images=[str(STAR)], max_tokens=30).text


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="EMPTY")


def connection(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)


def call(address: str, method: str, path: str, body: object = None, **headers: str):
    """(status, headers, the bytes of the body) of a request without any client's help."""
    link = connection(address)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {} if data is None else {"content-type": "application/json"}
    link.request(method, path, data, kind | headers)
    response = link.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    link.close()
    return found


def post(address: str, body: object, path: str = "/v1/chat/completions", **headers: str) -> dict:
    status, _, data = call(address, "POST", path, body, **headers)
    assert status == 200, data
    return json.loads(data)


def counts(address: str) -> dict[str, int]:
    """Requests so far by status."""
    text = call(address, "GET", "/metrics")[2].decode()
    return {s: int(n) for s, n in re.findall(r'requests_total\{status="(\d+)"\} (\d+)', text)}


# OpenAI's package for Python ------------------------------------------------------------


def test_python_whole(client, model, where):
    answer = client.chat.completions.create(
        model="llava", messages=ABOUT_THE_STAR, max_tokens=30, extra_body={"top_k": 1}
    )
    (choice,) = answer.choices
    assert choice.message.content == where and choice.finish_reason == "stop"
    assert choice.message.role == "assistant" and choice.message.refusal is None
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60 and answer.model == "llava"
    prompt = model.prepare(WHERE, images=[str(STAR)])
    assert answer.usage.prompt_tokens == prompt.plan.tokens
    assert answer.usage.total_tokens == prompt.plan.tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.image_tokens == prompt.visual_tokens
    assert answer.system_fingerprint
    assert answer.timings["predicted_n"] == answer.usage.completion_tokens
    assert answer.timings["cache_n"] + answer.timings["prompt_n"] == prompt.plan.tokens


def test_python_stream(client, where):
    asked = dict(model="llava", messages=ABOUT_THE_STAR, max_tokens=30)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == where
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options=options)
    assert last.choices == [] and last.usage.completion_tokens > 1
    with client.chat.completions.stream(**asked) as events:
        kinds = [event.type for event in events]
        whole = events.get_final_completion()
    assert whole.choices[0].message.content == where
    assert kinds.count("content.delta") > 1 and kinds[-1] == "content.done"


def test_python_async(address, where):
    """Whole answers and a stream at the same time."""

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY") as client:
            asked = dict(model="llava", messages=ABOUT_THE_STAR, max_tokens=30)
            create = client.chat.completions.create

            async def streamed() -> str:
                chunks = await create(**asked, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in chunks])

            async def whole() -> str:
                return (await create(**asked)).choices[0].message.content

            models = [model.id async for model in client.models.list()]
            return models, await asyncio.gather(*(f() for f in (whole, streamed) * 3))

    models, texts = asyncio.run(all_of_them())
    assert models == ["llava"] and texts == [where] * 6


def test_python_raw(client, where):
    asked = dict(model="llava", messages=ABOUT_THE_STAR, max_tokens=30)
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == where
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as raw:
        assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert raw.headers["cache-control"] == "no-cache"
        lines = [line for line in raw.iter_lines() if line and line != ": ping"]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)


def test_python_structured(client):
    schema = {"type": "object", "properties": {"star": {"enum": ["yes", "no"]}}}
    schema |= {"required": ["star"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(
        model="llava", messages=ABOUT_THE_STAR, response_format=form
    )
    assert json.loads(answer.choices[0].message.content)["star"] in ("yes", "no")


def test_python_models(client, address):
    (listed,) = client.models.list()
    assert listed.id == "llava" and listed.object == "model" and listed.owned_by == "llava_min"
    assert listed.max_model_len == 4000
    assert listed.architecture["input_modalities"] == ["text", "image", "video"]
    assert client.models.retrieve("llava") == listed
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")
    for path in ("/v1/models", "/models"):
        status, _, body = call(address, "GET", path)
        assert status == 200 and [m["id"] for m in json.loads(body)["data"]] == ["llava"]


BAD_PICTURE = part("data:image/png;base64,AAAA")
WRONG = [
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"max_tokens": 10_000}, "max_tokens", "context_length_exceeded"),
    ({"messages": user(words("a"), BAD_PICTURE)}, "messages[0].content[1]", "invalid_value"),
    (
        {"messages": user(part("http://127.0.0.1:9/a.png"), words("a"))},
        "messages[0].content[0]",
        "media_unavailable",
    ),
]


@pytest.mark.parametrize("fields, param, code", WRONG, ids=lambda value: str(value)[:30])
def test_python_mistakes_are_told_once(client, address, fields, param, code):
    """BadRequestError with its fields; the package does not try again."""
    before = counts(address).get("400", 0)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "llava", "messages": ABOUT_THE_STAR} | fields)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (400, param, code)
    assert error.type == "invalid_request_error" and error.message
    assert counts(address)["400"] == before + 1


def test_python_errors_of_other_kinds(client, address):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="llava", prompt="a")
    assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="llava", input="a")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="llava", input="a")


def test_a_full_queue_and_a_key():
    """429 is tried again and then answered; 401 is not. The key comes in either header."""
    options = ("--slots", "1", "--queue", "0", "--slot-tokens", "9000", "--threads", "1")
    with serving.server(*options, "--api-key", "secret") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
        short = dict(model="llava", messages=user(words("Hello")), max_tokens=1)
        long = dict(short, max_tokens=8000, stream=True, extra_body={"ignore_eos": True})
        stream = client.chat.completions.create(**long)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).chat.completions.create(**short)
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "2"

        def refused_twice() -> bool:
            text = call(address, "GET", "/metrics", authorization="Bearer secret")[2].decode()
            return 'requests_total{status="429"} 2' in text

        def close_then() -> None:
            seen.append(hostile.until(refused_twice))
            stream.close()

        seen: list[bool] = []
        threading.Thread(target=close_then).start()
        patient = client.with_options(max_retries=9)
        assert patient.chat.completions.create(**short).usage.completion_tokens == 1
        assert seen == [True]
        for key in ("", "other", "secret2"):
            wrong = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "EMPTY")
            with pytest.raises(openai.AuthenticationError) as refused:
                wrong.models.list()
            assert refused.value.code == "invalid_api_key"
        for headers in ({"authorization": "Bearer secret"}, {"api-key": "secret"}):
            assert call(address, "GET", "/v1/models", **headers)[0] == 200
        for path, status in (("/health", 200), ("/ping", 200), ("/metrics", 401)):
            assert call(address, "GET", path)[0] == status
        assert call(address, "POST", "/invocations", short)[0] == 401


# The cards of the checkpoints, and node --------------------------------------------------


CARDS = (
    "awslabs/long-llava-qwen2-7b",
    "llava-hf/llava-interleave-qwen-0.5b-hf",
    "lmms-lab/LLaVA-NeXT-Video-7B-Qwen2",
    "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
)


@pytest.mark.parametrize("name", CARDS)
def test_cards(address, files, where, name):
    """vllm serve's snippets: curl's body, then the client with a URL and with base64."""
    question = {"role": "user", "content": [words(WHERE), part(f"{files}/shapes.png")]}
    found = post(address, {"model": name, "messages": [question]})
    assert found["choices"][0]["message"]["content"] == where
    client = openai.OpenAI(api_key="EMPTY", base_url=f"{address}/v1")
    model = client.models.list().data[0].id
    for url in (f"{files}/shapes.png", PNG):
        answer = client.chat.completions.create(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": WHERE},
                        {"type": "image_url", "image_url": {"url": url}},
                    ],
                }
            ],
            model=model,
            max_completion_tokens=64,
        )
        assert answer.choices[0].message.content == where


def test_node(address, model, where):
    if not shutil.which("node"):
        pytest.skip("needs node: run .ci/peers")
    environment = {**os.environ, "NODE_PATH": str(peers.node_package("openai").parent)}
    script = ROOT / "tests" / "support" / "client.cjs"
    command = ["node", str(script), address, PNG]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    tokens = model.prepare(WHERE, images=[str(STAR)]).plan.tokens
    assert json.loads(run.stdout) == {
        "models": ["llava"],
        "whole": [where, "stop", tokens],
        "streamed": where,
        "usage": tokens,
        "helper": where,
        "raw": [200, "application/json", "chatcmpl-"],
        "error": [True, 400, "temperature", "invalid_value", "invalid_request_error"],
        "none": [True, "model_not_found"],
    }


# What other clients send ----------------------------------------------------------------


def sent_by() -> dict[str, tuple[dict, dict, str]]:
    """{client: (body, headers, what it asks about)}."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    text_first = user(words(WHERE), part(PNG))
    clip = user(part(MP4, "video_url"), words(WAY))
    return {
        "llm": (
            {"model": "x", "messages": text_first, "max_tokens": 30, "temperature": 0.0} | usage,
            {"authorization": "Bearer DUMMY_KEY", "user-agent": "OpenAI/Python"},
            "star",
        ),
        "llm --no-stream": ({"model": "x", "stream": False, "messages": text_first}, {}, "star"),
        "langchain-openai": (
            {
                "messages": [{"content": [words(WHERE), part(PNG)], "role": "user"}],
                "model": "x",
                "max_completion_tokens": 30,
                "temperature": 0.0,
            },
            {},
            "star",
        ),
        "lmms-eval": (
            {"model": "x", "messages": text_first, "max_tokens": 30, "temperature": 0},
            {},
            "star",
        ),
        "lmms-eval, pass_video_url": (
            {
                "model": "x",
                "messages": user(part(f"file://{CLIP.resolve()}", "video_url"), words(WAY)),
                "max_tokens": 30,
                "temperature": 0,
                "media_io_kwargs": {"video": {"num_frames": 4}},
            },
            {},
            "four frames",
        ),
        "Open WebUI": (
            {
                "model": "x",
                "messages": [dict(text_first[0], cache_control={"type": "ephemeral"})],
                "logit_bias": {},
                "reasoning": {"effort": "low"},
                **usage,
            },
            {"X-OpenWebUI-User-Name": "a", "X-OpenWebUI-Chat-Id": "b"},
            "star",
        ),
        "Continue": (
            {
                "model": "x",
                "messages": user(part(PNG, detail="low"), words(WHERE)),
                "max_tokens": 30,
                "temperature": 0,
                "top_p": 1,
                "frequency_penalty": 0,
                "presence_penalty": 0,
                "stream": True,
                "stop": None,
            },
            {"api-key": "k", "authorization": "Bearer k"},
            "star",
        ),
        "LibreChat": (
            {
                "model": "x",
                "user": "u",
                "messages": user(words(WHERE), part(PNG, detail="auto")),
                "stream": True,
            },
            {},
            "star",
        ),
        "Dify": (
            {"model": "x", "messages": user(words(WAY), part(MP4, detail="high"))},
            {},
            "clip",
        ),
        "video_url": ({"model": "x", "messages": clip, "seed": None}, {}, "clip"),
        "clients of llama-server": (
            {
                "messages": user(
                    {"type": "input_video", "input_video": {"data": MP4.partition(",")[2]}},
                    words(WAY),
                ),
                "cache_prompt": True,
                "timings_per_token": True,
            },
            {},
            "clip",
        ),
    }


@pytest.mark.parametrize("name", sent_by())
def test_bodies_of_clients(address, model, where, name):
    """Each is answered as the library answers the same question."""
    body, headers, asked = sent_by()[name]
    expected = where
    if asked != "star":
        frames = {"frames": 4} if asked == "four frames" else {}
        expected = model.generate(WAY, videos=[str(CLIP)], max_tokens=30, **frames).text
    status, _, data = call(address, "POST", "/v1/chat/completions", body, **headers)
    assert status == 200, data
    if body.get("stream"):
        assert text_of(events_of(data)) == expected
    else:
        assert json.loads(data)["choices"][0]["message"]["content"] == expected


def test_a_conversation_that_clients_send_back(address, model):
    """With all that an earlier answer had in it; and a blank in place of an empty text."""
    first = post(address, {"messages": ABOUT_THE_STAR})["choices"][0]["message"]
    more = {"tool_calls": [], "function_call": None, "annotations": [], "audio": None}
    messages = [*ABOUT_THE_STAR, first | more, {"role": "user", "content": "Is there a circle?"}]
    plain = [*ABOUT_THE_STAR, {"role": "assistant", "content": first["content"]}, messages[-1]]
    found = post(address, {"messages": messages, "max_tokens": 20})
    assert found["choices"][0]["message"]["content"] == model.generate(plain, max_tokens=20).text
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert post(address, {"messages": user(words(" ")), "max_tokens": 1})["choices"]


def test_background_questions_keep_the_row_of_a_chat(address):
    """Titles and tags are asked for between two turns: the chat goes on from what it had."""
    first = post(address, {"messages": ABOUT_THE_STAR, "max_tokens": 20})
    answer = first["choices"][0]["message"]["content"]
    for task in ("Give it a title:", "Give it tags:"):
        post(address, {"messages": user(words(f"{task} {WHERE} {answer}")), "max_tokens": 5})
    again = [*ABOUT_THE_STAR, {"role": "assistant", "content": answer}, *user(words("Why?"))]
    usage = post(address, {"messages": again, "max_tokens": 1})["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    # all but the blank after "assistant", which this template writes as a line break to begin with
    assert cached >= first["usage"]["prompt_tokens"] - 1 > 100


# On the wire ----------------------------------------------------------------------------


def events_of(data: bytes) -> list[dict]:
    """The objects of a stream of events, which ends with [DONE] and a blank line."""
    assert data.isascii() and data.endswith(b"\n\n")
    *events, done = [one for one in data[:-2].split(b"\n\n") if one != b": ping"]
    assert done == b"data: [DONE]"
    assert all(one.startswith(b"data: {") and b"\n" not in one for one in events)
    return [json.loads(one.removeprefix(b"data: ")) for one in events]


def text_of(events: list[dict]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("probable", [False, True])
def test_the_bytes_of_a_stream(address, usage, probable):
    body = {"messages": ABOUT_THE_STAR, "max_tokens": 30, "stop": ["."]}
    body |= {"logprobs": True, "top_logprobs": 2} if probable else {}
    whole = post(address, body)["choices"][0]
    body |= {"stream": True, "stream_options": {"include_usage": usage}}
    status, headers, data = call(address, "POST", "/v1/chat/completions", body)
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    events = events_of(data)
    assert len({(e["id"], e["created"], e["model"], e["object"]) for e in events}) == 1
    assert events[0]["object"] == "chat.completion.chunk"
    if usage:
        *events, last = events
        assert last["choices"] == [] and last["usage"]["completion_tokens"] > 1
        assert all(event["usage"] is None for event in events)
    assert usage or not any("usage" in event for event in events)
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == whole["finish_reason"]
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert all(choice["delta"].keys() == {"content"} for choice in choices[1:-1])
    assert text_of(events) == whole["message"]["content"]
    entries = [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]]
    assert entries == (whole["logprobs"]["content"] if probable else [])
    assert probable or all(choice["logprobs"] is None for choice in choices)


def test_a_character_is_never_cut_in_two(address):
    """Answers of bytes that are parts of characters: as text, a stream is the whole answer."""
    body = {"messages": user(words("Say it")), "max_tokens": 60, "temperature": 50, "seed": 4}
    body |= {"ignore_eos": True}
    whole = post(address, body)["choices"][0]["message"]["content"]
    _, _, data = call(address, "POST", "/v1/chat/completions", body | {"stream": True})
    assert text_of(events_of(data)) == whole and not whole.isascii()


def test_sagemaker_and_the_shorter_paths(address, where):
    for path in ("/invocations", "/chat/completions"):
        found = post(address, {"messages": ABOUT_THE_STAR}, path)
        assert found["choices"][0]["message"]["content"] == where
    for path in ("/ping", "/health"):
        status, _, body = call(address, "GET", path)
        assert (status, json.loads(body)) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "messages",
    [ABOUT_THE_STAR, user(words(WHERE), part(PNG), part(PNG)), user(part(MP4), words(WAY))],
    ids=["a picture", "two pictures", "a clip"],
)
def test_counted_tokens_are_those_of_the_prompt(address, messages):
    counted = post(address, {"messages": messages}, "/v1/chat/completions/input_tokens")
    usage = post(address, {"messages": messages, "max_tokens": 1})["usage"]
    assert counted["input_tokens"] == usage["prompt_tokens"]
    assert counted["image_tokens"] == usage["prompt_tokens_details"]["image_tokens"]
    assert counted["max_model_len"] == 4000


# The container --------------------------------------------------------------------------


def words_of(name: str) -> list[str]:
    """ENTRYPOINT or CMD of the Dockerfile."""
    lines = (ROOT / "examples" / "Dockerfile").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    return json.loads(line.removeprefix(f"{name} "))


def test_the_container_serves_a_folder(tmp_path):
    """The same words without Docker, but for the port and the folder: up, asked, and stopped."""
    assert words_of("ENTRYPOINT") == ["llava-min"]
    assert "llava-min = llava_min.command.main:run" in (ROOT / "setup.py").read_text()
    word, *options = words_of("CMD")
    assert word == "serve" and {"8080", "/opt/ml/model"} < set(options)
    folder = shutil.copytree(small.TINY, tmp_path / "model")
    options = [{"8080": "0", "/opt/ml/model": str(folder)}.get(each, each) for each in options]
    with serving.process(*options) as running:
        address = running.address.replace("0.0.0.0", "127.0.0.1")
        assert call(address, "GET", "/ping", host="container:8080")[0] == 200
        found = post(address, {"messages": ABOUT_THE_STAR}, "/invocations", host="anything")
        assert found["choices"][0]["message"]["content"]
        assert running.stop() in (0, -signal.SIGTERM)
