"""Habits from other programs and libraries: each means here what it meant there, or an error says
what does.
"""

import importlib.metadata
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import cli
import numpy as np
import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import llava_min
from llava_min.base import habits as names
from llava_min.base.habits import accepting
from llava_min.command import arguments, habits
from llava_min.command.flags import DAILY, DETAILS
from llava_min.command.main import TOOLS, main
from llava_min.engine.handle import Model
from llava_min.errors import CheckpointError, LlavaMinError, ParameterError
from llava_min.options import Options
from llava_min.serve.fields import Wanted

SAMPLES = small.TINY / "samples"
STAR, CLIP = str(SAMPLES / "shapes.png"), str(SAMPLES / "clip.mp4")
BEFORE, AFTER = str(SAMPLES / "before.png"), str(SAMPLES / "after.png")
SAME, ABSENT = habits.table(), habits.absent()
VALUES = {
    # an option here -> a value that it may have, which is not its default
    "--model": "folder",
    "--image": "a.png",
    "--video": "b.mp4",
    "--system": "Be brief.",
    "--stop": "end",
    "--dtype": "float16",
    "--device": "cpu",
    "--kv-dtype": "int8",
    "--temperature": "0.5",
    "--repetition-penalty": "1.5",
    habits.PROMPT: "What?",
}
KNOWN = [flag for flags, _, _ in (*DAILY, *DETAILS) for flag in flags.split()]


# The command line ----------------------------------------------------------------


@pytest.mark.parametrize("flag", SAME)
def test_an_option_from_elsewhere_is_the_one_here(flag):
    """Apart, joined by =, and with underscores for dashes: all give the same settings."""
    ours, rest = SAME[flag][1], ["--video", "x.mp4"]  # which the options about videos need
    written = [flag, *([flag.replace("-", "_").replace("__", "--", 1)] if "--" in flag else [])]
    if ours == habits.PROMPT or habits.known().get(ours):
        value = VALUES.get(ours, "7")
        meant = [value] if ours == habits.PROMPT else [ours, value]
        forms = [form for name in written for form in ([name, value], [f"{name}={value}"])]
    else:
        meant, forms = ours.split(), [[name] for name in written]
        for truth in ("True", "false"):
            for form in ([flag, truth], [f"{flag}={truth}"]):
                with pytest.raises(ParameterError, match="takes no value"):
                    arguments.parse(form)
    for form in forms:
        assert arguments.parse([*form, *rest]) == arguments.parse([*meant, *rest])
        assert arguments.parse([*rest, *form]) == arguments.parse([*rest, *meant])


@pytest.mark.parametrize("flag", ABSENT)
def test_an_option_that_is_only_elsewhere_is_answered_with_the_one_here(flag):
    with pytest.raises(ParameterError, match=rf"^No option is called {flag}\. .+\.$") as caught:
        arguments.parse([flag, "x", "y"])
    said = str(caught.value).removeprefix(f"No option is called {flag}.")
    named = re.findall(r"--?[a-z][\w-]*", said)
    assert set(named) <= set(KNOWN) and "{" not in said
    assert named or "@FILE" in said or flag in ("--trust-remote-code", "--gpu-memory-utilization")


def test_the_tables_hide_no_option_of_ours():
    assert not {*habits.FLAGS, *habits.ABSENT} & set(habits.known())
    for _, ours in SAME.values():
        assert ours == habits.PROMPT or set(re.findall(r"--[\w-]+", ours)) <= set(KNOWN)
    assert not SAME.keys() & ABSENT.keys()


def test_habits_are_not_in_help(capsys):
    assert main(["--help-all"]) == 0
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    assert not shown & {*SAME, *ABSENT}


@pytest.mark.parametrize("flag", [f for f in KNOWN if f.startswith("--") and f.count("-") > 2])
def test_underscores_are_dashes(flag):
    more = ["7"] if habits.known()[flag] else []
    other = "--" + flag[2:].replace("-", "_")
    outcomes = []
    for name in (flag, other):
        try:
            outcomes.append(arguments.parse([name, *more]))
        except ParameterError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("words, meant", [
    (["--top-kk", "5", "hi"], "--top-k"),
    (["hi", "--temprature", "1"], "--temperature"),
    (["hi", "--max_token=3"], "--max-tokens"),
    (["hi", "--nothing-like-it"], None),
])  # fmt: skip
def test_another_option_is_answered_with_the_nearest(words, meant):
    """The option is named, and never the innocent words around it."""
    with pytest.raises(ParameterError) as caught:
        arguments.parse(words)
    offered = re.search(r"did you mean (\S+)\?$", str(caught.value))
    assert (offered and offered[1]) == meant and "hi" not in str(caught.value).split()


PLACES = [
    # words -> prompt, images, videos
    (["--image", BEFORE, AFTER], None, [BEFORE, AFTER], []),
    (["--image", BEFORE, AFTER, "What?"], "What?", [BEFORE, AFTER], []),
    (["What?", "--image", BEFORE, AFTER], "What?", [BEFORE, AFTER], []),
    (["--image", BEFORE, "What?", AFTER], "What?", [BEFORE, AFTER], []),
    (["--image", "What?", "Why?"], "Why?", ["What?"], []),
    (["--image", "a.png", "b.png", "--image", "c.png"], None, ["a.png", "b.png", "c.png"], []),
    ([STAR], None, [STAR], []),
    ([CLIP, "What moves?"], "What moves?", [], [CLIP]),
    (["nosuch.png"], None, ["nosuch.png"], []),
    (["https://x.org/a.JPG?size=9", "Q"], "Q", ["https://x.org/a.JPG?size=9"], []),
    (["data:image/png;base64,AAAA", "Q"], "Q", ["data:image/png;base64,AAAA"], []),
    (["What is in a.png"], "What is in a.png", [], []),
    (["see https://x.org/a.png"], "see https://x.org/a.png", [], []),
    (["--", STAR], STAR, [], []),
    (["--prefill", "a.png", "Q"], "Q", [], []),
    (["-q", "-o", "a.png", "--batch", "b.png"], None, [], []),
    (["--prefill=--x", "- a list"], "- a list", [], []),
    (["-5"], "-5", [], []),
]


@pytest.mark.parametrize("words, prompt, images, videos", PLACES)
def test_pictures_and_videos_are_told_from_the_prompt(words, prompt, images, videos):
    found = arguments.parse(words)
    assert (found.prompt, found.images, found.videos) == (prompt, tuple(images), tuple(videos))


def test_a_file_with_a_space_in_its_name_is_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2)).save("a b.png")
    assert arguments.parse(["--image", STAR, "a b.png"]).images == (STAR, "a b.png")
    assert arguments.parse(["a c.png"]).prompt == "a c.png"


@given(st.lists(st.sampled_from(
    ["--json", "-q", "--image", "a.png", "--max-tokens", "3", "--prefill", "What?", "--temp", "-n"]
), max_size=6))  # fmt: skip
def test_every_word_has_one_place(words):
    """No word is lost or doubled, whatever the order: options, values, sources and prompts."""
    try:
        found = habits.Words(words)
    except ParameterError:
        return
    ours = [SAME[word][1] if word in SAME else word for word in words]
    added = found.options.count("--image") - ours.count("--image")
    assert sorted([*found.options, *found.prompts]) == sorted([*ours, *["--image"] * added])
    assert 0 <= added <= words.count("a.png")


@pytest.mark.parametrize("prompt, said", [
    (f"What is in {STAR}?", f"--image {STAR}"),
    (f"What is in '{STAR}'.", f"--image {STAR}"),
    (f"What moves in {CLIP}", f"--video {CLIP}"),
    (__file__, f"@{__file__}"),
    (str(SAMPLES), "--video"),
    ("What is in nosuch.png?", None),
    ("What is a .png?", None),
    ("@" + __file__, None),
])  # fmt: skip
def test_a_file_named_in_a_prompt_is_pointed_out(prompt, said):
    """A name in a text opens nothing, and nothing silently."""
    found = habits.notices(prompt, [])
    assert len(found) == (said is not None) and (said is None or said in found[0])
    assert not habits.notices(prompt, [STAR, CLIP]) or STAR not in prompt


def test_the_notice_is_on_stderr():
    words = [f"What is in {STAR}?", "--max-tokens", "1"]
    command = [sys.executable, "-m", "llava_min", *words]
    run = subprocess.run(command, capture_output=True, text=True)
    assert f"--image {STAR} shows it" in run.stderr and STAR not in run.stdout


@pytest.mark.parametrize("words, said", [
    (["--int4", "--int8"], "--int4 and --int8 cannot"),
    (["--load-in-4bit", "--int8"], "--int4 and --int8 cannot"),
    *((["x", name, value], f"{name} needs --video") for name, value in [
        ("--frames", "4"), ("--fps", "1"), ("--start", "1"), ("--end", "1"), ("--at", "1"),
        ("--subtitles", "s.srt")]),
    (["x", "--timestamps", "--image", STAR], "--timestamps needs --video"),
    (["--memory", "1"], "--memory needs --plan"),
    (["--batch-size", "2"], "--batch-size needs --batch"),
    (["--batch", "a", "-o", "b", "--plan"], "--plan and --batch cannot"),
    (["--chat", "--plan"], "--plan and --chat cannot"),
    (["--plan", "--trace"], "--plan and --trace cannot"),
    (["--batch", "a", "-o", "-", "--resume"], "--resume needs an --output file with a name"),
    (["--raw", "--system", "x", "y"], "raw and system cannot"),
    (["x", STAR, "y"], "only one PROMPT"),
    (["x", STAR, __file__], "--image or --video comes before each file"),
    (["--json", "True", "x"], "--json takes no value"),
    (["-p"], "-p needs a value"),
])  # fmt: skip
def test_options_that_cannot_act_are_refused(capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["x", "--video", CLIP, "--frames", "4"],
    ["--chat", "--frames", "4"],
    ["--batch", "a", "-o", "b", "--frames", "4", "--batch-size", "2"],
    ["--plan", "--memory", "1"],
    ["--int4", "--int4", "x"],
])  # fmt: skip
def test_options_that_can_act_are_not(words):
    assert arguments.parse(words)


@pytest.mark.parametrize("words, code", [
    (["--image", "nosuch", "hi"], 4), (["--foo"], 2), (["-m", "nowhere", "hi"], 3),
    (["--do-sample"], 2), (["completion", "tcsh"], 2),
])  # fmt: skip
def test_verbose_changes_no_exit_code(capsys, words, code):
    """The traceback comes first, and the line of the error last, as without it."""
    assert main(words) == code
    line = capsys.readouterr().err
    for verbose in ("-v", "--verbose"):
        assert main([*words, verbose]) == code or words[0] == "completion"
        err = capsys.readouterr().err
        assert err.startswith("Traceback") and "llava_min: error: " in err.splitlines()[-1]
        assert err.endswith(line) or words[0] == "completion"


@pytest.mark.parametrize("name, said", [
    ("README.md", "Give the folder that it lies in, '.'."), ("model.gguf", "GGUF"),
    ("llava:7b", "ollama"),
    ("Where is the star?", "question comes after"),
])  # fmt: skip
def test_what_is_no_checkpoint_is_said(capsys, monkeypatch, name, said):
    monkeypatch.chdir(Path(__file__).parents[1])
    for words in (["-m", name, "x"], ["-m", name, "x", "--plan"]):
        assert main(words) == 3
        assert said in capsys.readouterr().err
    for call in (llava_min.load, llava_min.plan):
        with pytest.raises(CheckpointError, match=said):
            call(name)


@pytest.mark.parametrize("end", ["exit", "quit", "/bye", "/quit", "/exit", "EXIT"])
def test_a_chat_ends_as_others_do(capsys, monkeypatch, end):
    """Nothing is asked after it, and it is no question."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{end}\nWhere is the star?\n"))
    assert main(["--chat"]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_a_chat_shows_a_file_that_is_named_alone(capsys, monkeypatch):
    lines = f"/image\n{STAR}\nWhere is the star?\nexit\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["--chat"]) == 2  # that of the error
    out, err = capsys.readouterr()
    assert out == "In the top left.\n" and "/image needs a path or URL" in err


# What a terminal is told -----------------------------------------------------------


def test_the_version_with_all_that_a_report_needs(capsys):
    assert main(["--version", "-v"]) == 0
    found = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"torch", "Python", "platform", "device", "triton", "tokenizers", "av"} <= found.keys()
    assert found["torch"] == torch.__version__ and found["llava_min"] == llava_min.__version__
    assert found["kernels"].split(":")[0] in ("cpu", "reference", "triton")
    assert found["transformers"] == importlib.metadata.version("transformers")
    assert "lmms_eval" not in found or found["lmms_eval"] != "not installed"


def script(shell: str) -> str:
    command = [sys.executable, "-m", "llava_min", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def in_bash() -> str:
    return script("bash")


@pytest.mark.parametrize("typed, expected", [
    (["--multi-image", ""], {"auto", "pad", "anyres"}),
    (["--multi-image", "p"], {"pad"}),
    (["--max-t"], {"--max-tokens", "--max-tiles"}),
    (["Q", "-m", "onevision-7"], {"onevision-7b", "onevision-72b"}),
    (["--image", "a p"], {"a picture.png"}),
    (["com"], {"completion"}),
    (["--seed", ""], set()),
    (["--timestamps", "--no-t"], {"--no-timestamps"}),
])  # fmt: skip
def test_bash_completes(tmp_path, in_bash, typed, expected):
    """What a tab key would offer, asked of bash itself."""
    (tmp_path / "a picture.png").touch()
    words = " ".join(f"'{word}'" for word in ["llava-min", *typed])
    ask = f"\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; _llava_min\n"
    ask += 'for reply in "${COMPREPLY[@]}"; do echo "$reply"; done'
    run = subprocess.run(
        ["bash", "-c", in_bash + ask], cwd=tmp_path, capture_output=True, text=True
    )
    assert set(run.stdout.splitlines()) == expected and run.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_hold_every_option(shell):
    """And the shell reads them without an error, where it is installed."""
    text = script(shell)
    for flag in {*KNOWN, "--no-timestamps", "--help"}:
        written = f"-l {flag[2:]} " if flag.startswith("--") else f"-s {flag[1:]} "
        assert (written if shell == "fish" else flag) in text, flag
    assert all(command in text for command in TOOLS)
    try:
        run = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        return
    assert run.returncode == 0 and run.stderr == ""


@pytest.mark.parametrize("name", sorted(set(TOOLS) - {"serve", "completion"}))
def test_the_page_has_the_options_of_the_other_commands(capsys, name):
    """Those that its --help shows, in the part with its name."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out.partition("\n\n")[2]  # after the usage
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown)) - {"-h", "--help"}
    part = cli.PAGE.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert part and {option for option in options if option not in part} == set()


def test_the_page_of_the_command_line_is_up_to_date():
    assert cli.PAGE.read_text() == cli.page(), "run python tests/cli.py"
    for flag in {*KNOWN, *SAME, *ABSENT}:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", cli.page()), flag
    codes = re.findall(r"^\| (\d+) \|", cli.page(), re.M)
    assert codes == ["0", "1", "2", "3", "4", "4", "5", "6", "7", "1", "130"]


# Python ----------------------------------------------------------------------------


@accepting("self", "question", "images", "videos")
def ask(self, question=None, *, images=(), videos=(), **options):
    """What a method that asks would get."""
    return {"question": question, "images": images, "videos": videos, **options}


@accepting("folder")
def load(folder=None, **given):
    """What load() would get."""
    return {"folder": folder, **given}


ASKED = [
    # positional and named arguments -> what they are here
    (("Q", ["a"]), {}, {"images": ["a"]}),
    (("Q", "a", "b"), {}, {"images": "a", "videos": "b"}),
    ((), {"prompt": "Q", "image": "a"}, {"images": "a"}),
    ((), {"messages": "Q", "video": "b"}, {"videos": "b"}),
    (("Q",), {"max_new_tokens": 5, "temp": 0.5}, {"max_tokens": 5, "temperature": 0.5}),
    (("Q",), {"do_sample": True, "temperature": 0.5}, {"temperature": 0.5}),
    (("Q",), {"do_sample": False}, {}),
    (("Q",), {"num_beams": 1, "trust_remote_code": None}, {}),
    (("Q",), {"images": (Path("a"), io.BytesIO(b"x"))}, {"images": [Path("a"), b"x"]}),
    (("Q",), {"images": io.BytesIO(b"x")}, {"images": b"x"}),
    ((np.array([1, 2]),), {}, {"question": [1, 2]}),
    ((torch.tensor([[1, 2]]),), {}, {"question": [1, 2]}),
    (([np.int64(1), np.int64(2)],), {}, {"question": [1, 2]}),
]


@pytest.mark.parametrize("given, named, expected", ASKED)
def test_arguments_of_a_question(given, named, expected):
    plain = {"question": "Q", "images": (), "videos": ()}
    assert ask(None, *given, **named) == plain | expected


LOADED = [
    ({"torch_dtype": torch.float16}, {"dtype": "float16"}),
    ({"dtype": "bf16"}, {"dtype": "bfloat16"}),
    ({"dtype": np.float32}, {"dtype": "float32"}),
    ({"dtype": np.dtype("float64")}, {"dtype": "float64"}),
    ({"device": "cuda:0"}, {"device": "cuda"}),
    ({"device_map": torch.device("cpu")}, {"device": "cpu"}),
    ({"kv_cache_dtype": torch.float8_e4m3fn}, {"kv_dtype": "fp8"}),
    ({"load_in_4bit": True}, {"bits": 4}),
    ({"load_in_4bit": False, "int8": True}, {"bits": 8}),
    ({"n_ctx": np.int64(9), "bits": None, "dtype": None}, {"context": 9}),
    ({"model_path": "x"}, {"folder": "x"}),
]


@pytest.mark.parametrize("named, expected", LOADED)
def test_arguments_of_loading(named, expected):
    assert load(**named) == {"folder": None} | expected


def test_a_context_is_what_the_lengths_of_a_cache_can_count():
    """They are int32 on the device."""
    most = torch.iinfo(torch.int32).max
    for context in (1, most):
        assert load(context=context) == {"folder": None, "context": context}
    for context in (0, most + 1):
        with pytest.raises(ParameterError, match=f"context must be .* 1 to {most}, not {context}"):
            load(context=context)


WRONG = [
    (ask, {"question": 5}, "question must be a text, messages or token ids, not 5"),
    (ask, {"question": b"hi"}, "question must be"),
    (ask, {"prompt": "a", "question": "b"}, "prompt and question cannot be used together"),
    (ask, {"max_new_tokens": 1, "max_tokens": 1}, "max_new_tokens and max_tokens cannot"),
    (ask, {"do_sample": True}, "do_sample=True needs a temperature that is above 0"),
    (ask, {"do_sample": False, "temperature": 1.0}, "do_sample=False needs"),
    (ask, {"num_beams": 4}, "There is no beam search; temperature"),
    (ask, {"max_length": 9}, "max_tokens limits"),
    (ask, {"images": torch.zeros(3)}, r"tensor.numpy\(\)"),
    (ask, {"images": io.StringIO("x")}, "opened for bytes"),
    (load, {"bits": "4"}, "bits must be 4 or 8, not '4'"),
    (load, {"bits": True}, "bits must be"),
    (load, {"context": "8k"}, "context must be a whole number"),
    (load, {"context": 0}, "context must be"),
    (load, {"config": "x"}, "config must be"),
    (load, {"config": {1: 2}}, "config must be"),
    (load, {"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
    (load, {"device": {"": 0}}, "device must be auto, cpu, cuda, mps or xpu"),
    (load, {"dtype": torch.int32}, "dtype must be"),
    (load, {"folder": 5}, "folder must be the path or name"),
    (load, {"folder": ""}, "folder must be"),
    (load, {"precision": 1}, "No option is called precision"),
    (load, {"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit cannot"),
    (load, {"trust_remote_code": True}, "No code of a checkpoint is ever run"),
    (llava_min.plan, {"memory": 0}, "memory must be"),
    (llava_min.plan, {"bits": 3}, "bits must be"),
    (llava_min.plan, {"kv_dtype": "x"}, "kv_dtype must be"),
    (llava_min.use_kernels, {"choice": "fast"}, "kernels must be"),
    (Options.of, {"device": "cpu"}, r"device is an argument of load\(\)"),
]


@pytest.mark.parametrize("call, given, said", WRONG)
def test_wrong_arguments_are_sentences(call, given, said):
    first = (None,) if call is ask else ()
    with pytest.raises(ParameterError, match=said):
        call(*first, **given)


def test_too_many_arguments_and_one_twice():
    with pytest.raises(ParameterError, match="only question, images, videos"):
        ask(None, "Q", "a", "b", "c")
    with pytest.raises(ParameterError, match="question is given twice"):
        ask(None, "Q", prompt="P")
    with pytest.raises(ParameterError, match="only folder"):
        llava_min.load(None, "cuda")


@pytest.mark.parametrize("name", ["num_beams", "max_length"])
def test_what_exists_elsewhere_only_may_ask_for_nothing(name):
    assert names.renamed({name: names.MISSING[name][1]}) == {}


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_that_the_server_counts_as_none_asks_for_nothing(name):
    """The server has penalties, and python has them not."""
    none = getattr(Wanted([]), name)
    assert names.renamed({name: none}) == {}
    with pytest.raises(ParameterError, match="repetition_penalty"):
        names.renamed({name: none + 1})


def test_open_files_are_the_files():
    """From where they stand, and refused when they are closed."""
    with open(STAR, "rb") as file:
        assert ask(None, "Q", file)["images"] == Path(STAR).read_bytes()
    with pytest.raises(ParameterError, match="closed"):
        ask(None, "Q", [file])


def test_a_key_of_config_that_nothing_reads_is_refused():
    ignored = ("config.json: nosuch", "config.json: text_config.hidden_size")
    names.refuse_unread(None, ignored)
    names.refuse_unread({"vision_aspect_ratio": "anyres_max_9"}, ignored)
    with pytest.raises(ParameterError, match=r"called nosuch\.$"):
        names.refuse_unread({"nosuch": 1}, ignored)
    with pytest.raises(ParameterError, match=r"replaced as a whole: text_config=\{"):
        names.refuse_unread({"text_config.hidden_size": 5}, ignored)


@settings(max_examples=30, deadline=None)
@given(st.none() | st.integers(1) | st.floats(0, exclude_min=True, allow_infinity=False))
def test_any_number_of_gigabytes_may_be_planned_for(gigabytes):
    assert names.memory(gigabytes) == gigabytes


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), True, False, "8", [8]])
def test_what_is_no_number_of_gigabytes_is_refused(given):
    with pytest.raises(ParameterError, match="memory must be"):
        names.memory(given)


def test_numbers_of_numpy_are_options():
    """The settings stay plain, so that --json and the batch can write them."""
    found = Options.of(temperature=np.float32(0.5), max_tokens=np.int64(5), at=np.array([1, 2.5]))
    assert found == Options(temperature=0.5, max_tokens=5, at=(1.0, 2.5))
    assert json.dumps([found.temperature, found.max_tokens, found.at])
    assert Options.of(seed=torch.tensor(3)).seed == 3


def test_none_is_the_default_of_every_option():
    assert Options.of(**dict.fromkeys(Options.__dataclass_fields__)) == Options()


@pytest.mark.parametrize("name, value", [
    ("system", "x"), ("template", "qwen"), ("prefill", "x"), ("timestamps", True),
])  # fmt: skip
def test_a_raw_prompt_is_complete(name, value):
    with pytest.raises(ParameterError, match=f"raw and {name} cannot be used together"):
        Options.of(raw=True, **{name: value})


def test_public_names_come_when_they_are_asked_for():
    """Importing the package imports neither torch nor what takes --help longer."""
    code = (
        "import sys, llava_min\n"
        "heavy = ('torch', 'numpy', 'typing', 'difflib', 'inspect', 'llava_min.options')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "print([getattr(llava_min, name).__name__ for name in llava_min.__all__])\n"
        "print(set(llava_min.__all__) <= set(dir(llava_min)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["[]", str(llava_min.__all__), "True"], run.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llava_min.nothing  # noqa: B018


def test_kernels_are_chosen_from_python():
    from llava_min.kernels import choose

    try:
        llava_min.use_kernels("reference")
        assert not choose.triton_for(torch.zeros(1))
    finally:
        llava_min.use_kernels("auto")


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**64),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([
        np.float32(0.5), np.int64(2), np.zeros(2), np.zeros((4, 4, 3), np.uint8), torch.zeros(2),
        torch.float16, torch.device("cpu"), object(), Path(STAR), STAR, CLIP, "auto", "float32",
        io.BytesIO(b"x"), ..., int, {1, 2}, range(3), 1j, "cuda:0",
    ]),
)  # fmt: skip
RIGHT = {
    # an argument -> values that it may have; FOLDERS never name anything on the network
    "temperature": [0, 0.5, np.float32(0.5)],
    "top_k": [3, np.int64(3)],
    "top_p": [0.5, np.float64(1)],
    "min_p": [0.1],
    "seed": [7, torch.tensor(7)],
    "stop": ["x", ["x", "y"], ()],
    "frames": [2],
    "at": [[0, 1], np.array([0.5]), (1,)],
    "max_tiles": [1],
    "template": ["auto", "qwen"],
    "raw": [False],
    "system": ["Be brief."],
    "question": [
        "Where is the star?",
        [1, 2],
        np.array([1, 2]),
        [{"role": "user", "content": "Q"}],
    ],
    "image": [STAR, [STAR], Image.new("RGB", (9, 9)), [np.zeros((9, 9, 3), np.uint8)], ()],
    "videos": [CLIP, np.zeros((2, 9, 9, 3), np.uint8), []],
    "do_sample": [False],
    "device": ["cpu", torch.device("cpu")],
    "dtype": ["float32", torch.bfloat16, "fp16"],
    "torch_dtype": [np.float32],
    "kv_dtype": ["int8", "auto"],
    "context": [999, np.int64(999)],
    "bits": [4],
    "config": [{}, {"vision_aspect_ratio": "anyres_max_4"}],
}
FOLDERS = [None, small.TINY, 5, "", b"x", "no such folder", "nowhere", [1], STAR]
LOADING = (*names.LOADED, "load_in_4bit", "torch_dtype", "n_ctx", "nonsense")
ASKING = (*Options.__dataclass_fields__, "question", "image", "videos", "do_sample", "nonsense")


def some_of(arguments: tuple[str, ...]) -> st.SearchStrategy[dict]:
    """Up to three of these arguments with anything as their values."""
    chosen = st.lists(st.sampled_from(arguments), max_size=3, unique=True)
    right = lambda name: st.sampled_from(RIGHT.get(name, [None]))
    value = lambda name: st.sampled_from(FOLDERS) if name == "folder" else right(name) | ANYTHING
    return chosen.flatmap(lambda some: st.fixed_dictionaries({name: value(name) for name in some}))


FEW = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(some_of(LOADING))
def test_any_arguments_of_load_give_a_model_or_one_of_our_errors(named):
    try:
        assert llava_min.load(**named).generate("What?", max_tokens=1).text
    except LlavaMinError as error:
        assert error.exit_code and str(error).isprintable()


@pytest.fixture(scope="module")
def model():
    return llava_min.load(device="cpu")


@FEW
@given(named=some_of(ASKING))
def test_any_arguments_of_generate_give_an_answer_or_one_of_our_errors(model, named):
    generate = accepting("self", "question", "images", "videos")(Model.generate)
    try:
        answer = generate(model, **{"question": "What?", "max_tokens": 2, **named})
        assert answer.finish_reason in ("stop", "length")
    except LlavaMinError as error:
        assert error.exit_code and str(error).isprintable()
