"""Places where tensors are watched and edited: an edit that changes nothing changes no bit, a watch
sees all that passes, and nothing is left behind.
"""

import ast
import contextlib
import io
import re
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from test_house import ROOT
from tokenizers import Tokenizer

import llava_min
from llava_min import trace
from llava_min.engine.recording import RecordedTower, Recording
from llava_min.errors import ParameterError
from llava_min.kernels import norm
from llava_min.trace import PLACES, edit, see, watch
from llava_min.weights.tiny import exam, lessons, train

SAMPLES = ROOT / "weights" / "tiny" / "samples"
PICTURE, BEFORE, AFTER = (str(SAMPLES / f"{name}.png") for name in ("shapes", "before", "after"))
FRAMES = np.random.default_rng(1).integers(0, 256, (3, 84, 84, 3), dtype=np.uint8)
ANSWER = {"max_tokens": 4}


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


def picture(model) -> list:
    answer = model.generate("Where is the star?", images=[PICTURE], **ANSWER)
    return [model.logits("Where is the star?", images=[PICTURE]), answer.token_ids]


def clip(model) -> list:
    answer = model.generate("Describe the video.", videos=[FRAMES], **ANSWER)
    return [model.logits("Describe the video.", videos=[FRAMES]), answer.token_ids]


def batch(model) -> list:
    requests = [
        {"question": "Where is the star?", "images": [BEFORE], **ANSWER},
        {"question": "What is different?", "images": [BEFORE, AFTER], **ANSWER},
    ]
    return [answer.token_ids for answer in model.generate_batch(requests)]


def chunks(model) -> list:
    """2,500 tokens, of which at most 2,048 pass at a time."""
    ids = np.random.default_rng(2).integers(0, 300, 2500).tolist()
    return [model.generate(ids, ignore_eos=True, max_tokens=2).token_ids]


CASES = {case.__name__: case for case in (picture, clip, batch, chunks)}


@pytest.fixture(scope="module")
def plain(model):
    """{case: (its results when nobody looks, the names of the places that it passes)}."""
    found = {}
    for name, case in CASES.items():
        passed = set()
        with trace.observing(lambda place, layer, tensor, seen=passed: seen.add(place) or tensor):
            case(model)
        found[name] = case(model), passed
    return found


def same(some: list, other: list) -> bool:
    return all(
        torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
        for one, two in zip(some, other, strict=True)
    )


def calls_of_see() -> list[tuple]:
    """(name, file, axes, whether it has a layer) of every call of see() in the package."""
    found = []
    for path in sorted((ROOT / "llava_min").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "see":
                name, _, axes, *layer = node.args
                found.append((name.value, path.name, axes.value, bool(layer)))
    return found


def test_places_are_the_calls_of_see():
    calls = calls_of_see()
    assert {(name, *place[:3]) for name, place in PLACES.items()} == set(calls)
    several = {name for name, count in Counter(name for name, *_ in calls).items() if count > 1}
    assert several == {"visual_rows"}  # of a grid, of one tile, of frames, and a clip's end


def test_the_page_lists_all_places():
    text = (ROOT / "docs" / "looking-inside.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+?) \| (yes|no) \| (.+?) \|$", text, re.M)
    listed = {name: (file, axes, each == "yes", what) for name, file, axes, each, what in rows}
    assert list(listed.items()) == [(name, tuple(place)) for name, place in PLACES.items()]


def test_the_examples_of_the_page_print_what_it_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "looking-inside.md").read_text()
    examples = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(examples) == text.count("```python") == 6
    for code, shown in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        assert printed.getvalue() == shown


def test_looking_needs_no_torch():
    code = "import sys, llava_min.trace; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


@pytest.mark.parametrize("place", PLACES)
def test_an_edit_that_changes_nothing_changes_no_bit(place, model, plain):
    """Though a copy takes each tensor's place, and the norm of a stream is taken again."""
    cases = [name for name in CASES if place in plain[name][1]]
    assert cases
    for name in cases:
        with edit(place, None, lambda tensor: tensor):
            assert same(CASES[name](model), plain[name][0]), name


def test_so_in_16_bits():
    model = llava_min.load(dtype="bfloat16")
    expected = picture(model)
    with contextlib.ExitStack() as stack:
        for place in PLACES.keys() - {"pooled"}:  # a clip's
            stack.enter_context(edit(place, None, lambda tensor: tensor))
        assert same(picture(model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_kernel_that_adds_norms_the_rounded_sum(dtype):
    """So the norm of the sum, taken again, is the same to the last bit."""
    rows, update = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.linspace(-2, 2, 48, dtype=dtype)
    total, normed = norm.rms_norm_triton(rows, update, weight, 1e-6)
    assert torch.equal(total, rows + update)
    assert torch.equal(norm.rms_norm_triton(total, None, weight, 1e-6)[1], normed)


CUTS = [  # everything that a picture changes passes these, or each layer of these
    *((name, None) for name in ("tiles", "pixels", "patch_embedding", "features", "projected")),
    *(("tower.stream", layer) for layer in range(4)),
    ("visual_rows", None),
    *(("stream", layer) for layer in range(5)),
    *((name, None) for name in ("hidden", "logits")),
]


@pytest.mark.parametrize("place, layer", CUTS)
def test_what_is_put_in_takes_over(place, layer, model):
    """With what passed for another picture, the logits are the other's to the last bit."""
    question = "What color is the circle?"
    with watch(place, layer) as passed:
        other = model.logits(question, images=[AFTER])
    waiting = iter(passed)
    with edit(place, layer, lambda own: next(waiting)):
        found = model.logits(question, images=[BEFORE])
    assert torch.equal(found, other)
    assert not torch.equal(model.logits(question, images=[BEFORE]), other)


@pytest.mark.parametrize("place", [name for name, place in PLACES.items() if place.layered])
def test_an_edit_in_a_layer_is_seen_by_the_later_ones(place, model):
    """And by no earlier one."""
    tower = "tower." if place.startswith("tower.") else ""

    def streams() -> list:
        with watch(f"{tower}stream") as passed, watch("features") as last:
            model.logits("Where is the star?", images=[FRAMES[0]])  # all tiles in one pass
        return passed + last if tower else passed

    plain = streams()
    for layer in range(4):
        with edit(place, layer, torch.zeros_like):
            found = streams()
        first = layer + (not place.endswith("stream"))
        alike = [torch.equal(one, two) for one, two in zip(plain, found, strict=True)]
        assert alike == [True] * first + [False] * (5 - first)


def without_head(mixed):
    mixed[:, :, 1] = 0
    return mixed


def test_a_head_of_zeros_changes_later_layers_alone(model):
    question = dict(images=[PICTURE])
    with watch("mixed") as whole:
        logits = model.logits("Where is the star?", **question)
    with edit("mixed", 1, without_head), watch("mixed") as cut:
        changed = model.logits("Where is the star?", **question)
    assert (logits - changed).abs().max() > 0.1
    assert [torch.equal(a, b) for a, b in zip(whole, cut)] == [True, False, False, False]
    assert not cut[1][:, :, 1].any() and torch.equal(cut[1][:, :, 2], whole[1][:, :, 2])


SIZES = {  # of the embedded checkpoint, by file and letter
    "model.py": {"S": 84, "3": 3},
    "vision.py": {"S": 84, "3": 3, "N": 36, "D": 128, "H": 2, "E": 64},
    "projector.py": {"W": 256},
    "decoder.py": {"D": 256, "H": 4, "E": 64, "V": 512},
}


@contextlib.contextmanager
def watching_all():
    with contextlib.ExitStack() as stack:
        yield {place: stack.enter_context(watch(place)) for place in PLACES}


@pytest.mark.parametrize("media", [{"images": [PICTURE]}, {"videos": [FRAMES]}], ids=list)
def test_a_watch_sees_every_layer_once_in_each_pass(media, model):
    """Reading the prompt is a pass of the decoder, and so is every new token but the last."""
    with watching_all() as passed:
        answer = model.generate("Where?", **media, ignore_eos=True, max_tokens=3)
    lengths = [answer.usage["prompt_tokens"], 1, 1]
    for place, (file, axes, layered, _) in PLACES.items():
        for tensor in passed[place]:
            sizes = dict(zip(axes.split(), tensor.shape, strict=True))
            assert {
                letter: SIZES[file].get(letter, size) for letter, size in sizes.items()
            } == sizes
        if layered and file == "decoder.py":
            count = model.config.text.num_layers + (place == "stream")  # which enters the last norm
            assert [rows.shape[1] for rows in passed[place]] == [
                n for n in lengths for _ in range(count)
            ]
        elif layered:
            count = model.config.vision.num_layers
            assert len(passed[place]) == count * len(passed["features"]) > 0


def test_one_layer_is_that_layer(model):
    with watch("query", 2) as one, watch("query") as every:
        model.generate("Where is the star?", images=[PICTURE], **ANSWER)
    assert len(one) == 4 and same(one, every[2::4])


def test_rows_of_visuals_are_what_enters_the_decoder(model):
    for media in ({"images": [PICTURE, AFTER]}, {"videos": [FRAMES]}):
        with watch("visual_rows") as rows:
            embedded = model.embed("Where?", **media)
        rows = torch.cat(rows)
        places = embedded.unfold(0, len(rows), 1)  # [starts W rows]
        assert any(torch.equal(place.T, rows) for place in places)


def check_sums(streams, attention, mlp) -> None:
    """Each stream is the one before it and its two updates, added in this order."""
    assert len(streams) == len(attention) + 1 == len(mlp) + 1
    for before, first, second, after in zip(streams, attention, mlp, streams[1:]):
        assert torch.equal(before + first + second, after)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_is_the_sum_of_the_updates(dtype):
    """To the last bit; and the logits are of the last one."""
    model = llava_min.load(dtype=dtype)
    with watching_all() as passed:
        logits = model.logits("Where is the star?", images=[PICTURE])
    names = ("stream", "attention_update", "mlp_update")
    check_sums(*(passed[name] for name in names))
    blocks = model.config.vision.num_layers
    for index, features in enumerate(passed["features"]):  # of some tiles of the picture
        own = slice(index * blocks, (index + 1) * blocks)
        streams, *updates = (passed[f"tower.{name}"][own] for name in names)
        check_sums([*streams, features], *updates)
    decoder = model.network.decoder
    assert torch.equal(decoder.norm(passed["stream"][-1]), passed["hidden"][0])
    assert torch.equal(passed["logits"][0][0], logits)


def test_heads_make_the_update(model):
    """`mixed` is what the output matrix reads."""
    with watch("mixed", 1) as mixed, watch("attention_update", 1) as update:
        model.logits("Where is the star?", images=[PICTURE])
    output = model.network.decoder.blocks[1].output
    assert torch.equal(output(mixed[0].flatten(2)), update[0])


def test_a_copy_stays_as_it_was():
    rows = torch.ones(1, 2, 3)
    with watch("hidden") as passed:
        assert see("hidden", rows, "B T D") is rows
    rows.zero_()
    assert passed[0].all()


def test_writing_into_what_is_given_changes_nothing_else(model):
    """The newline that closes a clip is a weight, and passes as a row."""
    newline = model.network.newline.clone()
    with edit("visual_rows", None, lambda rows: rows.zero_()), watch("visual_rows") as passed:
        model.embed("Where?", videos=[FRAMES])
    assert passed[-1].shape == (1, 256) and not any(rows.any() for rows in passed)
    assert torch.equal(model.network.newline, newline) and newline.any()


def test_several_follow_each_other():
    rows = torch.ones(1, 2, 3)
    with (
        watch("hidden") as first,
        edit("hidden", None, lambda tensor: tensor + 1),
        watch("hidden") as second,
        edit("hidden", None, lambda tensor: tensor * 3),
    ):
        assert torch.equal(see("hidden", rows, "B T D"), 3 * (rows + 1))
    assert torch.equal(first[0], rows) and torch.equal(second[0], rows + 1)
    assert see("hidden", rows, "B T D") is rows


def test_a_thread_sees_its_own_tensors(model):
    """Two threads run one model at the same time, each watching; a third edits."""
    questions = {"Where is the star?": PICTURE, "Describe the picture.": AFTER}
    expected, found, start = {}, {}, threading.Barrier(3)
    for question, image in questions.items():
        with watch("stream") as expected[question]:
            model.generate(question, images=[image], **ANSWER)

    def watcher(question: str, image: str) -> None:
        start.wait()
        with watch("stream") as found[question]:
            model.generate(question, images=[image], **ANSWER)

    def editor() -> None:
        with edit("stream", None, torch.zeros_like):
            start.wait()
            model.generate("Where is the star?", images=[PICTURE], **ANSWER)

    threads = [threading.Thread(target=watcher, args=pair) for pair in questions.items()]
    threads.append(threading.Thread(target=editor))
    with watch("stream") as mine:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert mine == [] and not trace.observed()
    assert all(same(found[question], expected[question]) for question in questions)


def test_no_such_place():
    for look in (lambda: watch("steam"), lambda: edit("steam", None, torch.zeros_like)):
        with pytest.raises(ParameterError, match="'steam'.*tiles, pixels.*stream.*logits"):
            with look():
                pass
    with pytest.raises(ParameterError, match="tiles is not inside a layer.*not 2"):
        with watch("tiles", 2):
            pass
    assert not trace.observed()


WRONG = {
    "None": lambda tensor: None,
    r"float32 \[1, 2, 2\] on cpu": lambda tensor: tensor[..., :2],
    r"float64 \[1, 2, 3\] on cpu": lambda tensor: tensor.double(),
    r"float32 \[1, 2, 3\] on meta": lambda tensor: tensor.to("meta"),
    r"float32 \[1, 2, 3\]": lambda tensor: tensor.numpy(),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_refused(said):
    kind = r"must return float32 \[1, 2, 3\] on cpu, not "
    with pytest.raises(ParameterError, match=f"stream in layer 3 {kind}{said}"):
        with edit("stream", 3, WRONG[said]):
            see("stream", torch.ones(1, 2, 3), "B T D", 3)
    assert not trace.observed()


def test_an_edit_of_nothing_is_refused(model):
    """A layer that is not there, or an iterator that is used after the block."""
    with pytest.raises(ParameterError, match="no mixed in layer 4 passed"):
        with edit("mixed", 4, without_head):
            model.generate("Where is the star?", images=[PICTURE], max_tokens=1)
    with pytest.raises(ParameterError, match="no mixed passed"):
        with edit("mixed", None, without_head):
            pieces = model.stream("Where is the star?", images=[PICTURE], max_tokens=1)
    assert next(pieces) == "In"


def test_an_error_inside_leaves_nothing(model, plain):
    def stumble(tensor):
        raise RuntimeError("stumbled")

    with watch("hidden") as outer:
        with pytest.raises(RuntimeError, match="stumbled"):
            with watch("stream"), edit("mixed", 2, stumble), trace.tracing(io.StringIO()):
                picture(model)
        assert trace.observed()
        see("hidden", torch.ones(1, 2, 3), "B T D")
    assert len(outer) == 1 and not trace.observed()
    assert same(picture(model), plain["picture"][0])


def test_a_trace_beside_a_watch(model):
    """--trace is an observer like any other: each place once, in order, whoever else looks."""
    stream = io.StringIO()
    with watch("logits") as logits, trace.tracing(stream):
        model.generate("Where is the star?", images=[PICTURE], **ANSWER)
    lines = [line.split()[:2] for line in stream.getvalue().splitlines()]
    assert len(logits) == 4 and ["decoder.py", "logits"] in lines
    assert sorted(lines) == sorted(
        [place.file, name] for name, place in PLACES.items() if name != "pooled"
    )


def test_a_line_of_a_trace_tells_sizes_and_the_time_since_the_tensor_before(monkeypatch):
    """Milliseconds of the clock, here 0.25 s, 3 s and 40 s; a second time a place has no line, and
    its time is nobody's.
    """
    clock, stream = iter([10.0, 10.25, 13.25, 53.25]), io.StringIO()
    monkeypatch.setattr(trace.time, "perf_counter", lambda: next(clock))
    with trace.tracing(stream):
        see("pixels", torch.ones(2, 3, 5, 4), "B 3 S S")
        see("pixels", torch.ones(2, 3, 5, 4), "B 3 S S")
        see("hidden", torch.ones(1, 6, 7, dtype=torch.float16), "B T D")
    assert [line.split() for line in stream.getvalue().splitlines()] == [
        ["vision.py", "pixels", "B=2,", "3,", "S=5,", "S=4", "float32", "250.00", "ms"],
        ["decoder.py", "hidden", "B=1,", "T=6,", "D=7", "float16", "40000.00", "ms"],
    ]


class Graph:
    """Stands for a recorded pass, and counts its replays."""

    def __init__(self):
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_a_recorded_pass_is_not_replayed_while_somebody_looks():
    """And what a replay leaves is not taken from the pass that was watched."""
    made = []

    def work() -> torch.Tensor:
        made.append(see("hidden", torch.full((1, 1, 1), float(len(made))), "B T D"))
        return made[-1]

    recording = Recording(work, torch.device("cpu"))
    recording.graph, recording.results = Graph(), work()
    assert recording() is made[0] and recording.graph.replays == 1
    with watch("hidden") as passed:
        assert recording() is made[1] and len(passed) == 1
    with edit("hidden", None, torch.ones_like), trace.tracing(io.StringIO()):
        assert recording() is made[2] and made[2].item() == 1
    assert recording() is made[0] and recording.graph.replays == 2


def test_a_recorded_tower_is_watched(model):
    tower = model.network.vision
    tiles = torch.from_numpy(FRAMES)
    recorded = RecordedTower(tower)
    with torch.inference_mode():
        for _ in range(3):  # an ordinary pass, one that is recorded, one repeated
            with watch("tower.mixed") as found, watch("features") as features:
                result = recorded(tiles)
            assert torch.equal(torch.cat(features), result)
            assert len(found) == len(features) * tower.config.num_layers


def test_what_warms_up_is_not_observed():
    """The passes of a recording that is made are nobody's answer."""
    with watch("hidden") as passed, edit("hidden", None, torch.zeros_like):
        with trace.unobserved():
            assert see("hidden", torch.ones(1, 1, 1), "B T D").item() == 1 and not trace.observed()
        assert see("hidden", torch.ones(1, 1, 1), "B T D").item() == 0
    assert len(passed) == 1


def test_without_its_rows_a_picture_tells_nothing(model):
    """With rows of zeros two pictures get the same logits, and the exam's marks fall from nearly
    all to what a blank picture leaves, in each task of 30 questions or more.

    "number" may fall further: the toy says "There is number." of zeros, where "There is no number."
    is right for two pictures of three.
    """
    with edit("visual_rows", None, torch.zeros_like):
        one, other = (
            model.logits("What color is the circle?", images=[x]) for x in (BEFORE, AFTER)
        )
        words = model.generate("What number is written?", images=[BEFORE]).text
    assert torch.equal(one, other) and words == "There is number."
    teacher = lessons.Teacher(
        model.config, Tokenizer.from_file(str(train.FOLDER / "tokenizer.json"))
    )
    draw, marks = np.random.default_rng(5), {}
    for kind in ("picture", "picture", "pair"):
        questions = teacher.draw(draw, kind, 12, exam=True)
        found = [verdicts(model, questions), verdicts(model, exam.blanked(questions))]
        with edit("visual_rows", None, torch.zeros_like):
            found.append(verdicts(model, questions))
        tasks = [task for lesson in questions.tasks for task in lesson]
        for task, *one in zip(tasks, *found, strict=True):
            marks.setdefault(task, []).append(one)
    marks = {task: np.array(rows) for task, rows in marks.items() if len(rows) >= 30}
    assert marks.keys() >= {"color", "where", "at", "exists", "which"}
    right, blank, zeros = np.concatenate(list(marks.values())).mean(axis=0)
    assert right > 0.95 and zeros < blank + 0.02 < 0.35
    for task, rows in marks.items():
        low, high = exam.interval(rows[:, 1].tolist())
        assert rows[:, 2].mean() <= high and (
            task == "number" or rows[:, 2].mean() >= low - 0.05
        ), task


def verdicts(model, questions: lessons.Batch) -> list[bool]:
    with torch.no_grad():
        return exam.verdicts(questions, *train.answer_logits(model.network, questions))
