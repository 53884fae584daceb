"""--batch: a file of questions becomes a file of answers, in order, and can be gone on with."""

import io
import json
import os
import subprocess
import sys

import pytest
import small

import llava_min
from llava_min.command import batch_file, report
from llava_min.command.main import main

STAR = str(small.TINY / "samples" / "shapes.png")
LINES = [
    {"question": "Where is the star?", "images": [STAR]},
    {"id": "count", "prompt": "How many shapes are there?", "images": STAR, "max_tokens": 2},
    {"question": "What color is the circle?", "images": [STAR], "temperature": 1.0, "seed": 4},
    {"id": 9, "messages": [{"role": "user", "content": [
        {"type": "image", "image": STAR}, {"type": "text", "text": "Is there a star?"}]}]},
    {"question": "What shape is in the top left?", "images": [STAR], "stop": ["a"]},
]  # fmt: skip
BAD = {
    "nonsense": "expected JSON",
    "[1]": "an object",
    '{"question": "\\ud800"}': "expected JSON",
    '{"question": "a", "prompt": "b"}': "question and prompt cannot",
    '{"id": [1], "question": "a"}': "id: expected a text or number",
    '{"question": "a", "images": [7]}': "images: expected a list of texts",
    '{"question": "a", "images": ["none.png"]}': "none.png",
    '{"question": " "}': "a question",
    '{"question": "a", "temperatur": 1}': "temperatur",
    '{"question": "a", "temperature": "hot"}': "temperature",
    '{"question": "a", "stop": 3}': "stop",
    '{"question": "a", "system": 3}': "system",
    '{"question": "a", "raw": "yes"}': "raw",
    '{"question": "a", "max_tokens": 99999}': "too long",
    '{"messages": [{"role": "user", "content": 5}]}': "content",
    '{"messages": [{"role": "user", "content": ["x"]}]}': "content",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "type",
    '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}': (
        "beside"
    ),
}


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return source, target


def run(files, *more: str) -> int:
    return main(["--batch", str(files[0]), "-o", str(files[1]), "--quiet", *more])


def entries(target) -> list[dict]:
    return [json.loads(line) for line in target.read_text().splitlines()]


def without_times(entry: dict) -> dict:
    own = ("timings", "memory", "line", "id", "model", "digest")
    kept = {k: v for k, v in entry.items() if k not in own}
    kept.get("usage", {}).pop("cached_tokens", None)
    return kept


@pytest.mark.parametrize("size", ["1", "2", "10"])
def test_each_line_is_answered_as_by_its_own_command(files, size, capsys):
    assert run(files, "--batch-size", size, "--max-tokens", "20") == 0
    found = entries(files[1])
    assert [(e["line"], e.get("id")) for e in found] == [
        (1, None), (2, "count"), (3, None), (4, 9), (5, None)]  # fmt: skip
    model = llava_min.load(dtype="float32")
    for entry, line in zip(found, LINES):
        own = {k: v for k, v in line.items() if k not in ("id", "prompt", "question", "messages")}
        asked = line.get("question") or line.get("prompt") or line["messages"]
        alone = model.generate(asked, **{"max_tokens": 20, **own})
        alone = report.whole(alone, "", asked, entry["settings"])
        assert without_times(entry) == without_times(alone)
        assert entry["timings"].keys() == alone["timings"].keys()
        assert all(seconds >= 0 for seconds in entry["timings"].values())
    assert [e["settings"]["max_tokens"] for e in found] == [20, 2, 20, 20, 20]
    assert capsys.readouterr() == ("", "")


def test_bad_lines_become_errors_in_their_place(files, capsys):
    text = ["", *BAD, json.dumps(LINES[0])]
    files[0].write_text("\n".join(text))
    assert run(files, "--max-tokens", "9") == 4  # the code of the first one
    found = entries(files[1])
    assert [e["line"] for e in found] == list(range(2, len(BAD) + 3))
    for entry, (line, named) in zip(found, BAD.items()):
        assert named in entry["error"] and "\n" not in entry["error"], line
    assert found[-1]["text"] == "In the top left."


def test_an_id_names_one_line(files):
    files[0].write_text('{"id": 1, "question": "a"}\n{"id": 1, "question": "b"}\n')
    assert run(files, "--max-tokens", "1") == 4
    assert "text" in entries(files[1])[0] and "that of line 1" in entries(files[1])[1]["error"]


@pytest.mark.parametrize(
    "names", [[1, "1", True, 1.0, 1.5, "true", ""], [False, 0, -0.0, "0", "é"]]
)
def test_ids_are_told_apart_as_json_tells_them(files, names):
    """A number is not a text and true is not 1, though Python's dictionaries take them for one."""
    lines = [{"id": name, "question": f"{place}?"} for place, name in enumerate(names)]
    files[0].write_text("".join(json.dumps(line) + "\n" for line in lines))
    for more in ((), ("--resume",)):
        assert run(files, "--max-tokens", "1", *more) == 0
        found = [(entry["id"], entry["question"]) for entry in entries(files[1])]
        assert repr(found) == repr([(line["id"], line["question"]) for line in lines])


@pytest.mark.parametrize("given, meant", [
    ({"max_new_tokens": 3, "temp": 0.5}, {"max_tokens": 3, "temperature": 0.5}),
    ({"images": None, "seed": None, "id": None}, {}),
    ({"image": STAR}, {}),
])  # fmt: skip
def test_a_line_may_have_names_of_elsewhere(files, given, meant):
    """Its settings are then by the names here, and null is what the command line says."""
    files[0].write_text(json.dumps({"question": "a", **given}) + "\n")
    assert run(files, "--max-tokens", "2", "--seed", "4") == 0
    (entry,) = entries(files[1])
    assert entry["settings"].items() >= {"max_tokens": 2, "seed": 4, **meant}.items()
    assert not entry["settings"].keys() & {"id", "image", "images", "max_new_tokens", "question"}


FORMATS = {
    # a file in which no line is an object: what the one error says of it
    '[{"question": "a"},\n{"question": "b"}]\n': "found one JSON array. jq -c '.[]' makes",
    '[{"question": "a"}]': "found one JSON array",
    '{\n"question":\n"a"}': "found one JSON value. jq -c '.' makes",
    "question,image\nWhat?,a.png\n": "found the line 'question,image'",
    "\nWhere is the star?": "found the line",
    "\ufffe": "found the line",
}


@pytest.mark.parametrize("text, said", FORMATS.items())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_in_another_format_is_one_error(files, text, said, encoding, capsys):
    """Before anything is loaded, and not an error for each of its lines."""
    files[0].write_text(text, encoding=encoding)
    assert run(files, "-m", "nowhere") == 4 and not files[1].exists()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "expected JSON Lines in UTF-8, an object a line" in err
    assert said in err or encoding == "utf-16"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs /proc")
def test_a_file_that_cannot_be_read(files, capsys):
    assert run(("/proc/self/mem", files[1])) == 4
    assert "'/proc/self/mem': expected a plain file that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1", "3"])
def test_from_stdin_to_stdout(files, size, monkeypatch, capfdbinary):
    """The same lines as in a file, in order, and nothing else on stdout."""
    lines = [{**line, "max_tokens": 9 - 4 * (place % 3)} for place, line in enumerate(LINES)]
    data = "".join(json.dumps(line) + "\n" for line in [*lines, "nonsense"]).encode()
    files[0].write_bytes(data)
    assert run(files) == 4
    capfdbinary.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(("-", "-"), "--batch-size", size) == 4
    out, err = capfdbinary.readouterr()
    assert [without_times(json.loads(line)) for line in out.splitlines()] == [
        without_times(entry) for entry in entries(files[1])
    ]
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 2, 3, 4, 5, 6]
    assert err.count(b"\n") == 1 and b"line 6" in err


def test_a_reader_of_stdout_that_leaves(files):
    command = f"{sys.executable} -m llava_min --batch {files[0]} -o - --max-tokens 2 | head -n 1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.stdout.count("\n") == 1 and "Traceback" not in ended.stderr
    assert "error" not in ended.stderr


def test_notices_of_many_lines_are_said_once(files, capfd):
    line = json.dumps({"question": "a", "images": [STAR, STAR], "max_tokens": 1}) + "\n"
    files[0].write_text(3 * line)
    command = [sys.executable, "-m", "llava_min", "--batch", str(files[0]), "-o", str(files[1])]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.count("2 pictures: each padded") == 1 and len(entries(files[1])) == 3


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("cut", [0, 30])
def test_resume_asks_only_what_has_no_answer(files, monkeypatch, keep, cut):
    assert run(files, "--max-tokens", "5") == 0
    whole = files[1].read_bytes()
    lines = whole.splitlines(keepends=True)
    half = b"".join(lines[keep : keep + 1])[:cut]
    files[1].write_bytes(b"".join(lines[:keep]) + half)
    asked, outcomes = [], batch_file.outcomes

    def watched(model, todo, settings):
        asked.extend(todo.values())
        return outcomes(model, todo, settings)

    monkeypatch.setattr(batch_file, "outcomes", watched)
    assert run(files, "--resume", "--max-tokens", "5") == 0
    assert [line.number for line in asked] == list(range(keep + 1, 6))
    assert files[1].read_bytes().startswith(b"".join(lines[:keep]))
    assert [without_times(e) for e in entries(files[1])] == [
        without_times(json.loads(line)) for line in lines
    ]


def test_resume_tries_errors_again_and_puts_them_in_their_place(files, tmp_path):
    picture = tmp_path / "late.png"
    lines = [{"question": "Where is the star?", "images": [str(picture)]}, *LINES]
    files[0].write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(files, "--max-tokens", "9") == 4 and "error" in entries(files[1])[0]
    picture.write_bytes((small.TINY / "samples" / "shapes.png").read_bytes())
    assert run(files, "--max-tokens", "9", "--resume") == 0
    assert [e["line"] for e in entries(files[1])] == [1, 2, 3, 4, 5, 6]
    assert entries(files[1])[0]["text"] == "In the top left."


def named(lines, names) -> str:
    return "".join(json.dumps({**line, "id": name}) + "\n" for line, name in zip(lines, names))


@pytest.mark.parametrize("names", ["abcde", None])
def test_resume_knows_a_line_wherever_it_is(files, names):
    """A line put in front moves the numbers; with an id or without, answers stay theirs."""
    twice = json.dumps(LINES[0]) + "\n"
    files[0].write_text(named(LINES, names) if names else files[0].read_text() + twice)
    assert run(files, "--max-tokens", "5") == 0
    before = entries(files[1])
    files[0].write_text('{"question": "Hi"}\n' + files[0].read_text())
    assert run(files, "--max-tokens", "5", "--resume") == 0
    new, *after = entries(files[1])
    assert new["line"] == 1 and "text" in new
    for old, moved in zip(before, after, strict=True):
        assert moved == {**old, "line": old["line"] + 1}


@pytest.mark.parametrize("change", ["question", "picture", "settings", "options"])
def test_what_asks_something_else_is_answered_again(files, tmp_path, change):
    """The same id with another question, picture or setting gets no stale answer."""
    picture = tmp_path / "a.png"
    picture.write_bytes((small.TINY / "samples" / "before.png").read_bytes())
    line = {"id": "a", "question": "What color is the circle?", "images": [str(picture)]}
    other = {"question": "What color is the circle?", "images": [STAR]}
    write = lambda *lines: files[0].write_text("".join(json.dumps(x) + "\n" for x in lines))
    write(line, other)
    assert run(files, "--max-tokens", "5") == 0
    first, kept = entries(files[1])
    more, asked = ["--max-tokens", "5"], line
    if change == "question":
        asked = {**line, "question": "Is there a star?"}
    elif change == "picture":
        picture.write_bytes((small.TINY / "samples" / "after.png").read_bytes())
    elif change == "settings":
        more = ["--max-tokens", "1"]
    else:
        asked = {**line, "max_tokens": 1}
    write(asked, other)
    assert run(files, *more, "--resume") == 0
    again, stayed = entries(files[1])
    fresh = llava_min.load(dtype="float32")
    alone = fresh.generate(
        asked["question"], images=asked["images"], max_tokens=asked.get("max_tokens", int(more[1]))
    )
    assert again["text"] == alone.text and again["digest"] != first["digest"]
    assert (stayed == kept) == (change != "settings")


def test_a_picture_that_changes_while_the_batch_runs(files, tmp_path, monkeypatch):
    """Its answer is of the picture before or after; the next run answers of what is there now."""
    picture, outcomes = tmp_path / "a.png", batch_file.outcomes
    picture.write_bytes((small.TINY / "samples" / "before.png").read_bytes())
    files[0].write_text(json.dumps({"question": "a", "images": [str(picture)]}) + "\n")

    def changing(*given):
        for outcome in outcomes(*given):
            picture.write_bytes((small.TINY / "samples" / "after.png").read_bytes())
            yield outcome

    monkeypatch.setattr(batch_file, "outcomes", changing)
    assert run(files, "--max-tokens", "1") == 0
    stale = entries(files[1])[0]["digest"]
    monkeypatch.undo()
    assert run(files, "--max-tokens", "1", "--resume") == 0
    assert entries(files[1])[0]["digest"] != stale


@pytest.mark.parametrize("where", ["line", "command"])
def test_subtitles_that_changed_are_told_again(files, tmp_path, where):
    pytest.importorskip("av")
    subtitles = tmp_path / "a.srt"
    write = lambda text: subtitles.write_text(f"1\n00:00:00,000 --> 00:00:09,000\n{text}\n")
    write("one")
    line = {"question": "a", "videos": [str(small.TINY / "samples" / "clip.mp4")], "max_tokens": 1}
    line |= {"subtitles": str(subtitles)} if where == "line" else {}
    more = ["--subtitles", str(subtitles)] if where == "command" else []
    files[0].write_text(json.dumps(line) + "\n")
    assert run(files, *more) == 0
    (first,) = entries(files[1])
    write("four")
    assert run(files, "--resume", *more) == 0
    (again,) = entries(files[1])
    assert again["digest"] != first["digest"]


def test_answers_to_lines_that_are_gone_are_left_out(files, capsys):
    """If another answer shows that the file is one of this batch; else it is not touched."""
    files[0].write_text(named(LINES, "abcde"))
    assert run(files, "--max-tokens", "1") == 0
    whole = entries(files[1])
    files[0].write_text(named(LINES[2:4], "cd"))
    assert run(files, "--max-tokens", "1", "--resume") == 0
    assert entries(files[1]) == [{**entry, "line": entry["line"] - 2} for entry in whole[2:4]]
    files[0].write_text(named(LINES[:2], "ab"))
    before = files[1].read_bytes()
    assert run(files, "--max-tokens", "1", "--resume") == 6
    assert 'found one to id "c"' in capsys.readouterr().err and files[1].read_bytes() == before


def test_answers_are_on_the_disk_when_they_end(files, monkeypatch):
    """Interrupted before the fourth answer: three are there, whole, and can be gone on with."""
    write, seen = batch_file.written, []

    def fourth(*given):
        seen.append(files[1].read_bytes().count(b"\n"))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(batch_file, "written", fourth)
    assert run(files, "--batch-size", "2", "--max-tokens", "5") == 130
    assert seen == [0, 1, 2, 3] and len(entries(files[1])) == 3
    monkeypatch.undo()
    assert run(files, "--resume", "--max-tokens", "5") == 0 and len(entries(files[1])) == 5


@pytest.mark.parametrize(
    "content, named",
    [
        ("my notes\n", "an answer"),
        ("my notes", "an answer"),
        ('{"line": [9]}\n', "an answer"),
        ('{"line": 99, "text": ""}\n', "99"),
    ],
)
def test_a_file_that_is_no_output_is_left_alone(files, content, named, capsys):
    files[1].write_text(content)
    for more, code in ((("--resume",), named), ((), "--resume")):
        assert run(files, *more) == 6
        assert code in capsys.readouterr().err and files[1].read_text() == content


@pytest.mark.parametrize(
    "arguments, code, named",
    [
        (["--batch", "in.jsonl"], 2, "-o OUT.JSONL"),
        (["-o", "out.jsonl"], 2, "--batch"),
        (["--resume"], 2, "--batch"),
        (["x", "--batch", "a", "-o", "b"], 2, "PROMPT"),
        (["--batch", "a", "-o", "b", "--image", STAR], 2, "--image"),
        (["--batch", "a", "-o", "b", "--no-stream"], 2, "--no-stream"),
        (["--batch", "a", "-o", "b", "--batch-size", "0"], 2, "--batch-size"),
        (["--batch", "nowhere.jsonl", "-o", "b", "-m", "nowhere"], 4, "nowhere.jsonl"),
    ],
)
def test_what_does_not_go_together(arguments, code, named, capsys):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and named in err


def test_a_folder_that_cannot_be_written(files, tmp_path, capsys):
    assert run((files[0], tmp_path / "none" / "out.jsonl")) == 6
    assert "cannot write the answers" in capsys.readouterr().err


def test_the_summary_counts(files, capsys):
    assert main(["--batch", str(files[0]), "-o", str(files[1]), "--max-tokens", "2"]) == 0
    assert "[5 answered, 0 before, 0 in error" in capsys.readouterr().err
