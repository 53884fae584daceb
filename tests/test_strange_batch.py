"""A batch as it goes in life: broken lines, killed again and again, its files edited in between.

At the end each answer is the one that its line gets alone from the files as they are now.
"""

import base64
import gc
import json
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import small

import llava_min
from llava_min.command import batch_file
from llava_min.command.main import main

BROKEN = {
    # a line that has no answer: what its error names
    b"where is the star?": "JSON",
    b'{"question": "a"': "JSON",
    b"{'question': 'a'}": "JSON",
    b'{"question": "a",}': "JSON",
    b'{"question": "a"} {"question": "b"}': "JSON",
    b'{"question": "\\ud800"}': "JSON",
    b'{"question": "\xff\xfe"}': "JSON",
    b"\x89PNG\r\x1a\x00\x00\x00\x0d": "JSON",
    b"[" * 5000: "nested",
    b'["question", "a"]': "an object",
    b"null": "an object",
    b"7": "an object",
    b'{"id": NaN, "question": "a"}': "NaN",
    b'{"id": 1e999, "question": "a"}': "JSON",
    b'{"id": {"a": 1}, "question": "a"}': "id",
    b'{"id": "twice", "question": "b"}': "that of line",
    b'{"question": "a", "question": "b"}': "twice",
    b'{"question": "a", "prompt": "b"}': "question and prompt",
    b'{"question": "a", "temperatur": 1}': "temperatur",
    b'{"question": "a", "images": ["gone.png"]}': "gone.png",
    b'{"question": "a", "images": ["notes.txt"]}': "notes.txt",
    b'{"question": "a", "images": [{"path": "0.png"}]}': "images",
    b'{"question": "a", "videos": ["0.png", null]}': "videos",
    b'{"question": "a", "images": "file://[/0.png"}': "file://[",
    b'{"question": 5}': "question",
    b'{"question": ""}': "a question",
    b'{"id": "no question"}': "a question",
    b'{"messages": [{"role": "system", "content": "Be brief."}]}': "user",
    b'{"question": "a", "max_tokens": 0}': "max_tokens",
    b'{"question": "a", "max_tokens": 90000}': "too long",
}
LINES = 200
MOST = 0.4  # of the lines without an answer, answered before it is killed


def request(number: int) -> dict:
    """A line that has an answer, in one of the ways in which people write one."""
    rng = np.random.default_rng(number)
    picture = f"{rng.integers(12)}.png"
    found = {"question": f"What is number {number}?", "temperature": 1.0, "seed": number}
    match number % 7:
        case 0:
            found["images"] = [picture]
        case 1:
            found["images"] = f"file://{os.getcwd()}/{picture}"
        case 2:
            content = [{"type": "image", "url": picture}, {"type": "text", "text": f"{number}?"}]
            found["messages"] = [{"role": "user", "content": content}]
            del found["question"]
        case 3:
            found["prompt"], found["image"] = found.pop("question"), picture
        case 4:
            found["images"], found["id"] = None, float(number)
        case 5:
            data = base64.b64encode(open(picture, "rb").read()).decode()
            found["images"] = [f"data:image/png;base64,{data}"]
        case 6:
            found |= {"videos": ["frames"], "frames": 2}
    found["max_new_tokens" if number % 2 else "max_tokens"] = int(rng.integers(2, 9))
    if number % 3 == 0:
        found["id"] = f"é {number}" if number % 2 else number
    return found


def draw(name: str, seed: int) -> None:
    """A picture in a file, which is as long whatever the seed."""
    small.picture(60, 60, seed).save(name, "BMP")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with pictures, a clip of frames, and a text."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        draw(f"{number}.png", number)
    (tmp_path / "frames").mkdir()
    for number in range(3):
        draw(f"frames/{number}.png", number)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


class Batch:
    """Lines that are edited, the command that answers them, and the ends that it comes to."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        good = [request(number) for number in range(LINES - len(BROKEN))]
        good[0]["id"], good[1]["id"], good[2]["id"], good[3]["id"] = 1, True, "1", "twice"
        good[10] = dict(good[9])  # the same without an id: each has an answer of its own
        del good[9]["id"], good[10]["id"]
        self.lines: list[dict | bytes] = [*good, *BROKEN]
        order = [3, *self.rng.permutation([i for i in range(LINES) if i != 3])]
        self.lines = [self.lines[index] for index in order]
        self.options = {"system": "Be brief."}

    def good(self) -> list[dict]:
        """The lines that have answers."""
        return [line for line in self.lines if isinstance(line, dict)]

    def write(self) -> None:
        """The input file, with the byte order mark and the line ends of another system."""
        texts = (
            line if isinstance(line, bytes) else json.dumps(line).encode() for line in self.lines
        )
        with open("in.jsonl", "wb") as file:
            file.write(b"\xef\xbb\xbf" + b"\r\n".join(texts))

    def run(self) -> int:
        """The command to its end, or until this process is killed; the exit code."""
        more = [word for name, value in self.options.items() for word in (f"--{name}", value)]
        words = ["--batch", "in.jsonl", "-o", "out.jsonl", "--resume", "-q", "--dtype", "float64"]
        return main([*words, "--max-tokens", "9", *more])

    def killed(self, name: str) -> int:
        """Run it in a process that gets a signal after some answers; how that ended."""
        errors = sum(isinstance(line, bytes) for line in self.lines)
        there = len(answers()) if os.path.exists("out.jsonl") else 0
        left = len(self.lines) - errors - there
        enough = errors + there + int(self.rng.integers(1, max(2, int(MOST * left))))
        running = multiprocessing.get_context("fork").Process(target=self.in_child, args=(enough,))
        running.start()
        while running.is_alive() and count_of("out.jsonl") < enough:
            time.sleep(0.001)
        time.sleep(self.rng.random() * 0.02)
        os.kill(running.pid, getattr(signal, name))
        running.join()
        if name == "SIGKILL":  # and what it wrote last did not all get to the disk
            size = os.path.getsize("out.jsonl")
            os.truncate("out.jsonl", size - min(size, int(self.rng.integers(40))))
        return running.exitcode

    def in_child(self, enough: int) -> None:
        """The child's side; what the parent made is not freed here.

        A little after `enough` lines it waits, so that it never ends before the signal.
        """
        inner = batch_file.written

        def written(*given):
            if count_of("out.jsonl") > enough + 5:
                time.sleep(600)
            return inner(*given)

        batch_file.written = written
        gc.freeze()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.exit(self.run())


def count_of(name: str) -> int:
    """Lines of a file that may not be there yet."""
    try:
        with open(name, "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def answers() -> list[dict]:
    """The whole lines of the output that are no errors."""
    with open("out.jsonl", "rb") as file:
        texts = [text for text in file if text.endswith(b"\n")]
    return [entry for entry in map(json.loads, texts) if "error" not in entry]


# What somebody changes before the next try -------------------------------------------


def another_setting(batch: Batch) -> None:
    """Of all lines; and another picture of the same name."""
    batch.options["system"] = "Speak."
    draw("5.png", 77)


def lines_in_front(batch: Batch) -> None:
    """With an id and without, one of them broken, and one with the id of a line that goes."""
    batch.lines = [line for line in batch.lines if line_id(line) != "true"]
    new = {"id": True, "question": "Hi", "max_tokens": 1}
    batch.lines[:0] = [request(1000), b"{", request(1002), new]


def other_questions(batch: Batch) -> None:
    """Under the same ids; and other pictures and frames under their names."""
    for line in [line for line in batch.good() if "id" in line and "question" in line][:5]:
        line["question"] += " And why?"
    for number in range(8):
        draw(f"{number}.png", 90 + number)
    draw("frames/0.png", 99)


def lines_taken_out(batch: Batch) -> None:
    """Also some that had answers; and the others, but the first, in the order turned round."""
    gone = {json.dumps(entry.get("id")) for entry in answers()[:9]} - {"null", '"twice"'}
    left = [line for line in batch.lines if line_id(line) not in gone]
    first = next(line for line in left if line_id(line) == '"twice"')
    batch.lines = [first, *(line for line in left[3:][::-1] if line is not first)]


def options_of_lines(batch: Batch) -> None:
    """Of some; and the picture that was missing is there."""
    for line in batch.good()[::40]:
        line["max_tokens"] = line.pop("max_new_tokens", 0) % 3 + 1
    draw("gone.png", 55)


EDITS = {
    another_setting: "SIGKILL",
    lines_in_front: "SIGKILL",
    other_questions: "SIGINT",
    lines_taken_out: "SIGKILL",
    options_of_lines: "SIGKILL",
}


def line_id(line: dict | bytes) -> str:
    """The id of a line that has an answer, as JSON."""
    return json.dumps(line.get("id")) if isinstance(line, dict) else ""


def test_two_hundred_lines(folder):
    """30 of them broken; killed five times and edited each time. Bugs that it catches: an answer
    that stays under another line, of another picture or setting; one lost, or there twice.
    """
    batch = Batch(seed=18)
    for edit, name in EDITS.items():
        batch.write()
        assert batch.killed(name) == (130 if name == "SIGINT" else -signal.SIGKILL)
        edit(batch)
    batch.write()
    before = {json.dumps(entry["timings"]) for entry in answers()}
    assert batch.run() in (2, 4)  # the code of the first line in error
    with open("out.jsonl", "rb") as file:
        after = [json.loads(text) for text in file]
    again = before - {json.dumps(entry.get("timings")) for entry in after}
    assert len(again) < 20 < 60 < len(before), "what is still right is not asked again"
    check(after, batch, llava_min.load(dtype="float64"))
    assert not [name for name in os.listdir() if name.endswith(".part")]


def check(after: list[dict], batch: Batch, model) -> None:
    """Each line has one answer, in its place, and it is the one that it gets alone."""
    assert [entry["line"] for entry in after] == list(range(1, len(batch.lines) + 1))
    errors = 0
    for entry, line in zip(after, batch.lines):
        if isinstance(line, bytes) and "gone.png" not in line.decode(errors="replace"):
            assert BROKEN.get(line, "JSON") in entry["error"], entry
            errors += 1
            continue
        given = dict(json.loads(line) if isinstance(line, bytes) else line)
        mark = given.pop("id", None)
        assert type(entry.get("id")) is type(mark) and entry.get("id") == mark
        own = {"max_tokens": 9, **batch.options, **given}
        own = {k: v for k, v in own.items() if k != "max_tokens" or "max_new_tokens" not in own}
        alone = model.generate(**own)
        assert entry["token_ids"] == alone.token_ids and entry["text"] == alone.text, (entry, line)
        assert entry["usage"].items() >= alone.usage.items() and entry["media"] == alone.media
        asked = given.get("question") or given.get("prompt") or f"{given['seed']}?"
        assert entry["question"] == asked
        assert entry["settings"]["max_tokens"] == own.get("max_tokens", own.get("max_new_tokens"))
    assert errors >= len(BROKEN) - 3
