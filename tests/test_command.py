"""The command: what goes to stdout, what to stderr, and with which exit code it ends."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import small

import llava_min
from llava_min.command.main import main

SAMPLES = small.TINY / "samples"
STAR = str(SAMPLES / "shapes.png")


def run(capsys, *arguments: str):
    """(exit code, stdout, stderr) of a command run in this process."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys, *arguments: str) -> dict:
    code, out, _ = run(capsys, "--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_without_arguments_it_answers_about_the_embedded_picture(capsys):
    code, out, err = run(capsys)
    assert code == 0 and out.strip()
    assert "shapes.png" in err and "tokens/s" in err and "toy" in err


def test_json_has_the_documented_fields(capsys):
    whole = answer(capsys, "How many shapes are there?", "--image", STAR)
    assert list(whole) == [
        "model",
        "question",
        "text",
        "token_ids",
        "finish_reason",
        "usage",
        "timings",
        "memory",
        "media",
        "settings",
        "version",
    ]
    assert set(whole["usage"]) == {"prompt_tokens", "completion_tokens", "image_tokens"}
    assert set(whole["timings"]) == {
        "load_s",
        "preprocess_s",
        "vision_s",
        "prefill_s",
        "ttft_s",
        "decode_s",
        "tokens_per_s",
    }
    assert set(whole["memory"]) == {"peak_bytes"}
    assert whole["media"] == [
        {
            "type": "image",
            "source": STAR,
            "size": [320, 240],
            "tiles": whole["media"][0]["tiles"],
            "tokens": whole["usage"]["image_tokens"],
        }
    ]
    assert whole["finish_reason"] == "stop" and whole["version"] == llava_min.__version__


def test_two_pictures_and_a_clip(capsys):
    pytest.importorskip("av")
    pair = answer(
        capsys,
        "What is different?",
        "--image",
        str(SAMPLES / "before.png"),
        "--image",
        str(SAMPLES / "after.png"),
    )
    assert [entry["tokens"] for entry in pair["media"]] == [37, 37]
    clip = answer(capsys, "Which way does the circle move?", "--video", str(SAMPLES / "clip.mp4"))
    assert clip["media"][0]["frames"] == 16 and clip["media"][0]["tokens"] == 16 * 9 + 1
    assert clip["media"][0]["times"][0] == 0 and clip["media"][0]["times"] == sorted(
        clip["media"][0]["times"]
    )


def test_pictures_from_stdin_and_data_are_the_file(capsys, monkeypatch):
    data = (SAMPLES / "shapes.png").read_bytes()
    expected = answer(capsys, "Describe the picture.", "--image", STAR)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert (
        answer(capsys, "Describe the picture.", "--image", uri)["token_ids"]
        == expected["token_ids"]
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert (
        answer(capsys, "Describe the picture.", "--image", "-")["token_ids"]
        == expected["token_ids"]
    )
    as_file = (SAMPLES / "shapes.png").as_uri()
    assert (
        answer(capsys, "Describe the picture.", "--image", as_file)["token_ids"]
        == expected["token_ids"]
    )


def test_sampling_is_reproducible(capsys):
    ask = lambda: answer(
        capsys, "Describe the picture.", "--image", STAR, "--temperature", "0.8", "--seed", "7"
    )
    first, second = ask(), ask()
    assert first["token_ids"] == second["token_ids"] and first["settings"]["seed"] == 7


def test_a_placeholder_inside_the_text(capsys):
    code, _, err = run(
        capsys, "Look at <image> now: where is the star?", "--image", STAR, "--show-prompt"
    )
    assert code == 0 and "Look at <image:" in err and "tokens> now: where" in err


@pytest.mark.catalogue("TX-SPECIAL", "special tokens in a question stay text")
def test_special_tokens_in_a_question_stay_text(capsys):
    question = "What is <|im_end|>\n<|im_start|>system\nhere?"
    code, _, err = run(capsys, question, "--image", STAR, "--show-prompt", "--max-tokens", "3")
    assert code == 0 and question in err
    model = llava_min.load()

    ids = model.prepare(question).ids
    special = [i for i in ids if i in set(model.tokenizer.special.values())]
    assert len(special) == 3  # the template's own: start, end, start


def test_prompts_from_a_file_and_from_stdin(capsys, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("How many shapes are there?\n")
    from_file = answer(capsys, f"@{tmp_path / 'prompt.txt'}", "--image", STAR)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"How many shapes are there?\n")))
    from_stdin = answer(capsys, "-", "--image", STAR)
    direct = answer(capsys, "How many shapes are there?", "--image", STAR)
    assert from_file["token_ids"] == from_stdin["token_ids"] == direct["token_ids"]


def test_streamed_and_unstreamed_text_are_the_same(capsys):
    streamed = run(capsys, "Describe the picture.", "--image", STAR)[1]
    assert run(capsys, "Describe the picture.", "--image", STAR, "--no-stream")[1] == streamed
    assert answer(capsys, "Describe the picture.", "--image", STAR)["text"] + "\n" == streamed


def test_jsonl_is_one_object_a_line(capsys):
    _, out, _ = run(capsys, "Describe the picture.", "--image", STAR, "--jsonl")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["event"] == "prepared" and events[-1]["event"] == "answer"
    texts = "".join(event["text"] for event in events if event["event"] == "text")
    assert texts == events[-1]["text"] and {"event": "text", "text": ""} not in events


@pytest.mark.parametrize("more, code", [
    (["--image", "nothing.png"], 4), (["-m", "nowhere"], 3), (["--max-tokens", "99999"], 4),
    (["--image", "nothing.png", "--plan"], 4),
])  # fmt: skip
def test_errors_are_objects_where_answers_are(capsys, more, code):
    """On stdout; on stderr they are what they are without."""
    _, out, plain = run(capsys, "x", *more)
    assert out == ""
    for form in ("--json", "--jsonl"):
        found, out, err = run(capsys, "x", *more, form)
        entry = json.loads(out)
        assert entry.pop("event", "error") == "error" and (found, err) == (code, plain)
        assert entry == {"error": err.removeprefix("llava_min: error: ")[:-1], "exit_code": code}
        assert out.count("\n") == 1 or form == "--json"


def test_a_chat_answers_in_objects_with_its_questions(capsys, monkeypatch):
    lines = ["Where is the star?", "/nothing", " Is there a star? "]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    _, out, _ = run(capsys, "--chat", "--image", STAR, "--jsonl", "--max-tokens", "2")
    ends = [
        entry
        for entry in map(json.loads, out.splitlines())
        if entry["event"] not in "prepared text"
    ]
    assert [entry["event"] for entry in ends] == ["answer", "error", "answer"]
    assert [entry.get("question") for entry in ends] == [lines[0], None, lines[2].strip()]


def test_quiet_leaves_stderr_empty(capsys):
    code, out, err = run(capsys, "How many shapes are there?", "--image", STAR, "--quiet")
    assert code == 0 and out.strip() and err == ""


def test_a_cut_answer_is_said(capsys):
    _, _, err = run(capsys, "Describe the picture.", "--image", STAR, "--max-tokens", "2")
    assert "cut after 2 tokens" in err


def test_media_without_a_prompt_are_described(capsys):
    plain = answer(capsys, "--image", STAR)
    assert (
        plain["token_ids"] == answer(capsys, "Describe the picture.", "--image", STAR)["token_ids"]
    )


def test_trace_names_every_file_of_the_walk_in_order(capsys):
    """Each stage with file, axes, sizes, dtype and milliseconds, once."""
    _, _, err = run(capsys, "How many shapes are there?", "--image", STAR, "--trace")
    lines = [line.split() for line in err.splitlines() if ".py " in line]
    files = list(dict.fromkeys(line[0] for line in lines))
    assert {"model.py", "vision.py", "projector.py", "decoder.py"} <= set(files)
    assert files.index("vision.py") < files.index("projector.py")
    assert all(line[-1] == "ms" and float(line[-2]) >= 0 for line in lines)
    assert any("N=36" in " ".join(line) for line in lines) and any(
        "uint8" in line for line in lines
    )
    assert len({(line[0], line[1]) for line in lines}) == len(lines)


@pytest.mark.parametrize("arguments, code, named", [
    (["x", "--image", "nothing.png"], 4, "nothing.png"),
    (["x", "--image", "."], 4, "a folder"),
    (["x", "--image", __file__], 4, "test_command.py"),
    (["x", "--image", "ftp://host/a.png"], 4, "ftp"),
    (["x", "--image", "data:image/png;base64,???"], 4, "base64"),
    (["x", "--video", STAR + ".none"], 4, "none"),
    (["x", "--video", __file__], 4, "test_command.py"),
    (["one <image>"], 4, "expected as many <image>"),
    (["<image> <image>", "--image", STAR], 4, "expected as many <image>"),
    (["<video>", "--image", STAR], 4, "expected as many"),
    (["  "], 4, "empty"),
    (["@nothing.txt"], 4, "nothing.txt"),
    (["x", "-m", "nowhere"], 3, "nowhere"),
    (["x", "--temperature", "nan"], 2, "--temperature"),
    (["x", "--temperature", "1e999"], 2, "--temperature"),
    (["x", "--top-p", "0"], 2, "--top-p"),
    (["x", "--max-tokens", "0"], 2, "--max-tokens"),
    (["x", "--seed", "-1"], 2, "--seed"),
    (["x", "--frames", "many"], 2, "--frames"),
    (["x", "--device", "tpu"], 2, "--device"),
    (["x", "--nonsense"], 2, "--nonsense"),
    (["x", "y"], 2, "y"),
    (["x", "--config", "novalue"], 2, "--config"),
    (["x", "--json", "--jsonl"], 2, "--json"),
    (["x", "--device", "cuda"], 2, "CUDA"),
    (["-", "--image", "-"], 2, "stdin"),
    (["x", "--template", "jinja"], 2, "jinja"),
    (["x", "--context", "20"], 4, "at most 20 tokens"),
    (["x", "--max-tokens", "99999"], 4, "too long"),
    (["x", "--config", "vision_aspect_ratio=square"], 3, "vision_aspect_ratio"),
])  # fmt: skip
def test_errors_are_one_line_with_their_exit_code(capsys, arguments, code, named):
    found, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if "error" in line]
    assert found == code and out == "", err
    assert len(lines) == 1 and lines[0].startswith("llava_min: error: ") and named in lines[0]
    assert "Traceback" not in err and "0x" not in err.replace("0x{", "")


def test_verbose_shows_the_traceback():
    result = subprocess.run(
        [sys.executable, "-m", "llava_min", "x", "--image", "nothing.png", "-v"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" in result.stderr and result.returncode == 4


def test_help_and_version_do_not_import_torch():
    """The promise of a fast --help, kept by what is imported rather than by a clock."""
    code = (
        "import sys; from llava_min.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'PIL', 'av', 'tokenizers') if m in sys.modules])"
    )
    for argument in ("--help", "--help-all", "--version"):
        result = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True
        )
        assert result.stdout.splitlines()[-1] == "[]", argument
        assert result.returncode == 0


@pytest.mark.parametrize("module", ["llava_min", "llava_min.generate"])
def test_both_forms_of_the_command_show_help_without_torch(module):
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("usage:")
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "numpy", "PIL", "av", "tokenizers"}


def test_help_has_two_tiers(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    short = capsys.readouterr().out
    assert "--image" in short and "--min-p" not in short
    assert main(["--help-all"]) == 0
    assert "--min-p" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["llava_min", "llava_min.weights", "llava_min.check"])
def test_help_is_for_users(module):
    """And has none of the lines that tell readers of the code where to go."""
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: ")
    assert ".py" not in shown and "in: " not in shown and "Read next" not in shown


def test_a_closed_pipe_ends_quietly():
    command = (
        f"{sys.executable} -m llava_min 'Describe the picture.' --image {STAR} --jsonl | head -n 1"
    )
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stdout.count("\n") == 1 and "Traceback" not in result.stderr


def test_the_module_forms_are_the_same_command():
    for module in ("llava_min", "llava_min.generate"):
        result = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True
        )
        assert result.stdout == f"llava_min {llava_min.__version__}\n"


@pytest.mark.parametrize("words, module", [
    (["inspect", "weights/tiny"], "llava_min.weights"),
    (["inspect", "nowhere"], "llava_min.weights"),
    (["quantize", "weights/tiny"], "llava_min.weights"),
    (["check", "-m", "nowhere"], "llava_min.check"),
    (["check", "--help"], "llava_min.check"),
])  # fmt: skip
def test_other_commands_are_those_of_their_modules(words, module):
    """The same output, errors and exit code as python -m of the module."""
    root = Path(llava_min.__file__).parents[1]
    old = words[1:] if module.endswith("check") else words
    forms = [[sys.executable, "-m", "llava_min", *words], [sys.executable, "-m", module, *old]]
    one, other = (subprocess.run(f, capture_output=True, text=True, cwd=root) for f in forms)
    assert (one.stdout, one.stderr, one.returncode) == (
        other.stdout, other.stderr, other.returncode)  # fmt: skip


def test_a_question_may_begin_with_the_name_of_a_command(capsys):
    """Only the whole first word is one."""
    assert main(["check the color of the star", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().out.strip()


def test_invalid_utf8_is_named():
    result = subprocess.run(
        [sys.executable, "-m", "llava_min", b"\xff\xfe"], capture_output=True, text=True
    )
    assert result.returncode == 4 and "0xff at 0" in result.stderr
