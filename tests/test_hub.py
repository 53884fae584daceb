"""Hub names, against a small stand-in of the hub on the loopback; and licenses, and aliases."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import small

import llava_min
from llava_min.errors import CheckpointError, MemoryBudgetError
from llava_min.weights import hub

MAIN, PINNED = "a" * 40, "b" * 40
# seconds that its client waits for the stand-in, on a busy machine
PATIENT = {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
CARD = "---\nlicense: cc-by-nc-4.0\nlanguage:\n- en\n---\n# A model\nlicense: mit\n"


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, for the repositories in server.repositories."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", **headers) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        server, path = self.server, self.path.split("?")[0]
        server.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/(\w+/[\w.-]+?)(?:/(revision|tree)/(\w+))?", path)
        file = re.fullmatch(r"/(\w+/[\w.-]+?)/resolve/(\w+)/(.+)", path)
        if not api and not file:
            return self.reply(404)
        name = (api or file)[1]
        revision = {"main": MAIN, None: MAIN}.get((api[3] if api else file[2]), None)
        revision = revision or (api[3] if api else file[2])
        if name not in server.repositories:
            return self.reply(404, X_Error_Code="RepoNotFound")
        if name == "org/gated" and self.headers.get("Authorization") != "Bearer secret":
            return self.reply(401, X_Error_Code="GatedRepo")
        files = server.repositories[name].get(revision)
        if files is None:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if file:
            return self.send_file(files[file[3]], revision)
        listing = [
            {"type": "file", "path": p, "rfilename": p, "size": len(b), "oid": etag(b)}
            for p, b in files.items()
        ]
        info = {
            "id": name,
            "sha": revision,
            "siblings": listing,
            "tags": [],
            "private": False,
            "cardData": {"license": "cc-by-nc-4.0"},
        }
        self.reply(200, json.dumps(listing if api[2] == "tree" else info).encode())

    do_HEAD = do_GET

    def send_file(self, body: bytes, revision: str) -> None:
        headers = {"ETag": f'"{etag(body)}"', "X_Repo_Commit": revision, "Accept_Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if body in self.server.broken:
            return self.reply(403)
        part = body[start:]
        if self.command == "GET" and body in self.server.cut:  # break off in the middle
            self.server.cut.remove(body)
            self.close_connection, part = True, part[:1000]
        length = {"Content_Length": len(body) - start}
        self.reply(206 if start else 200, part, **length, **headers)


def etag(body: bytes) -> str:
    import hashlib

    return hashlib.sha1(body).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = small.small(tmp_path_factory.mktemp("checkpoint"), shards=2)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    extra = {"README.md": CARD.encode(), "evil.py": b"x", "model.bin": b"y", "onnx/a.json": b"z"}
    return found | extra


@pytest.fixture
def server(files):
    """The stand-in. Files in `cut` break off once each time they stand there, those in `broken`
    always.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests, server.cut, server.broken = [], [], []
    older = files | {"README.md": b"older"}
    server.repositories = {"org/name": {MAIN: files, PINNED: older}, "org/gated": {MAIN: files}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(server, tmp_path):
    """Runs code or a command in a process of its own, whose hub is the stand-in; (code, output)."""

    def run(*command: str, **environment) -> tuple[int, str]:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        kept |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "home"),
            **PATIENT,
            **environment,
        }
        result = subprocess.run(
            [sys.executable, *command],
            env=kept,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return result.returncode, result.stdout

    return run


FIND = """
import logging, sys
from llava_min.errors import LlavaMinError
from llava_min.weights import hub
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 500  # what is kept of a broken connection
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger("httpx").setLevel(logging.ERROR)
try:
    print("folder", hub.find(sys.argv[1], *map(int, sys.argv[2:])))
except LlavaMinError as error:
    print("error", error.exit_code, error)
print("torch" in sys.modules)
"""


def found(run, *arguments: str, **environment) -> str:
    """What find() says of a name."""
    code, output = run("-c", FIND, *arguments, **environment)
    assert code == 0 and output.endswith("False\n"), output
    return output


def folder_of(output: str) -> Path:
    return Path(re.search(r"^folder (.+)$", output, re.MULTILINE)[1])


def gets(server, name: str) -> list:
    return [r for r in server.requests if r[0] == "GET" and r[1].endswith(name)]


def test_a_repository_is_downloaded_and_answers(run, server, files):
    """The whole command: size and license said, only harmless files taken, nothing asked twice."""
    command = ("-m", "llava_min", "What?", "-m", "org/name", "--max-tokens", "3", "--json")
    code, output = run(*command)
    assert code == 0, output
    assert f"downloading org/name at {MAIN[:7]}" in output and "license cc-by-nc-4.0" in output
    assert "the license of this checkpoint is cc-by-nc-4.0: non-commercial use only" in output
    first = json.loads(output[output.index("{\n") : output.rindex("}") + 1])
    assert len(first["token_ids"]) == 3 and first["model"] == "org/name"
    taken = {r[1].rpartition("/")[2] for r in server.requests if "/resolve/" in r[1]}
    assert taken == files.keys() - {"evil.py", "model.bin", "onnx/a.json"}
    server.requests.clear()
    code, output = run(*command, "--quiet")
    assert code == 0 and json.loads(output)["token_ids"] == first["token_ids"]
    assert not [r for r in server.requests if "/resolve/" in r[1]]
    code, output = run(*command, "--quiet", HF_HUB_OFFLINE="1")
    assert code == 0 and json.loads(output)["token_ids"] == first["token_ids"]


def test_a_plan_takes_no_weights(run, server, files):
    """config.json and the tokenizer are enough; then the command still gets the rest."""
    command = ("-m", "llava_min", "What?", "-m", "org/name", "--max-tokens", "3", "--json")
    code, output = run(*command, "--plan")
    assert code == 0, output
    plan = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert plan["model"] == "org/name" and plan["tokens"]["text"] > 0 and plan["memory"]
    taken = {r[1].rpartition("/")[2] for r in server.requests if "/resolve/" in r[1]}
    assert "config.json" in taken and not any(name.endswith(".safetensors") for name in taken)
    assert taken <= files.keys() - {"evil.py", "model.bin", "onnx/a.json"}
    code, output = run(*command, HF_HUB_OFFLINE="1")
    assert code == 3 and "Traceback" not in output
    code, output = run(*command)
    assert code == 0, output


def test_a_broken_connection_goes_on_where_it_broke(run, server, files):
    name = "model-00002-of-00002.safetensors"
    server.cut = [files[name]] * 2
    folder = folder_of(found(run, "org/name"))
    assert (folder / name).read_bytes() == files[name]
    assert [r[2] for r in gets(server, name)] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_download_that_was_given_up_keeps_the_files_that_are_whole(run, server, files, tmp_path):
    name = "model-00002-of-00002.safetensors"
    server.broken.append(files[name])
    output = found(run, "org/name")
    assert "error 3 cannot download: org/name" in output and "Run it again" in output
    assert "error 3" in found(run, "org/name", HF_HUB_OFFLINE="1")  # half of it is no checkpoint
    kept = {path.name for path in (tmp_path / "home").glob("hub/*/snapshots/*/*")}
    assert kept and name not in kept
    server.broken.clear()
    server.requests.clear()
    folder = folder_of(found(run, "org/name"))
    assert (folder / name).read_bytes() == files[name]
    fetched = {r[1].rpartition("/")[2] for r in server.requests if "/resolve/" in r[1]}
    assert name in fetched and not fetched & kept


def test_a_pinned_revision(run, server):
    folder = folder_of(found(run, f"org/name@{PINNED}"))
    assert (folder / "README.md").read_text() == "older"
    assert not hub.restriction(folder)
    assert "the revision cccc" in found(run, "org/name@cccc")


@pytest.mark.parametrize(
    "name, environment, says",
    [
        ("org/missing", {}, "a folder, a repository on the hub"),
        ("org/gated", {}, "a gated repository"),
        ("org/gated", {"HF_TOKEN": "wrong"}, "set HF_TOKEN"),
        ("org/name", {"HF_HUB_OFFLINE": "1"}, "a whole copy in its cache"),
        ("org/name", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "a whole copy in its cache"),
        ("org/a..b", {}, "a folder, a repository on the hub"),
    ],
)
def test_what_cannot_be_had_is_one_line(run, name, environment, says):
    output = found(run, name, **environment)
    error = [line for line in output.splitlines() if line.startswith("error 3 ")]
    assert len(error) == 1 and says in error[0] and name.split("@")[0] in error[0]
    assert "0x" not in error[0]


def test_a_gated_repository_with_its_token(run):
    assert (folder_of(found(run, "org/gated", HF_TOKEN="secret")) / "config.json").exists()


def test_too_large_is_refused_before_the_download(run, server):
    output = found(run, "org/name", "4", "1000")
    assert "error 5 cannot load: org/name" in output and "none that is known" in output
    assert not [r for r in server.requests if "/resolve/" in r[1]]


def test_what_would_fit_is_named():
    from types import SimpleNamespace

    seven = [SimpleNamespace(rfilename="model.safetensors", size=16_100_000_000)]
    for room, itemsize, named in (
        (20e9, 4, "-m onevision-0.5b or --dtype bfloat16"),
        (3.5e9, 4, "-m interleave-0.5b."),
        (10e9, 2, "-m onevision-0.5b."),
        (1e9, 2, "none that is known"),
    ):
        with pytest.raises(MemoryBudgetError, match=re.escape(named)):
            hub.check_room("org/seven", seven, itemsize, int(room))
    hub.check_room("org/seven", seven, 4, 33_000_000_000)
    hub.check_room("org/seven", seven, 4, None)


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "onevision-0.5b").mkdir()
    for name in ("org/name", "onevision-0.5b"):
        assert hub.find(name) == Path(name)


@pytest.mark.parametrize("name", ["nowhere", "onevision", "nowhere@main"])
def test_a_name_that_is_neither_says_what_there_is(name):
    with pytest.raises(CheckpointError) as error:
        llava_min.load(name)
    assert "a folder" in str(error.value)
    assert "onevision-0.5b" in str(error.value) and "org/name" in str(error.value)


@pytest.mark.parametrize(
    "card, words",
    [
        ("---\nlicense: apache-2.0\n---\n", None),
        ("---\nlicense: llama2\n---\n", "Llama community"),
        ("---\nlicense: cc-by-nc-sa-4.0\n---\n", "non-commercial"),
        ("---\nlicense: other\nlicense_name: tongyi-qianwen-research\n---\n", "research"),
        ("---\nlanguage: en\n---\nlicense: llama2\n", None),
        ("license: llama2\n", None),
        (None, None),
    ],
)
def test_restrictive_licenses_are_said(tmp_path, card, words):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    said = hub.restriction(tmp_path)
    assert said is None if words is None else words in said


def test_aliases_are_in_the_order_of_their_size_and_complete():
    sizes = [size for _, size in hub.ALIASES.values()]
    assert sizes == sorted(sizes)
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", name) for name, _ in hub.ALIASES.values())
    assert {
        "onevision-0.5b",
        "onevision-7b",
        "llava-video-7b",
        "interleave-0.5b",
        "long-llava-7b",
    } <= hub.ALIASES.keys()
