"""The embedded checkpoint: its world is certain, its training sees what inference sees, and it can
be trusted a little.
"""

import json
import shutil

import numpy as np
import pytest
import small
import torch

import llava_min
from llava_min.weights.tiny import exam, files, lessons, samples, scenes, train


@pytest.fixture(scope="module")
def model():
    return llava_min.load(dtype="float32")


@pytest.fixture(scope="module")
def teacher(model):
    return lessons.Teacher(
        model.config, model.tokenizer.inner.__class__.from_file(str(small.TINY / "tokenizer.json"))
    )


def test_places_keep_their_margin_and_shapes_stay_apart():
    """No centre within MARGIN of a border between two places; no two shapes touch; all inside."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        size = tuple(int(x) for x in rng.integers(64, 400, 2))
        scene = scenes.draw_scene(rng, size)
        things = [*scene.shapes, *([scene.number] if scene.number else [])]
        assert 1 <= len(scene.shapes) <= 5 and len({thing.kind for thing in things}) == len(things)
        assert len({thing.place for thing in things}) == len(things)
        for thing in things:
            for value, side in zip(thing.center, size):
                assert all(abs(value - border) >= scenes.MARGIN - 1e-9 for border in (1 / 3, 2 / 3))
                assert (
                    thing.radius <= value * side + 1e-6
                    and thing.radius <= (1 - value) * side + 1e-6
                )
        centers = [np.multiply(thing.center, size) for thing in things]
        for i, first in enumerate(things):
            for j in range(i):
                assert np.linalg.norm(centers[i] - centers[j]) > first.radius + things[j].radius


def test_scenes_depend_on_the_generator_alone():
    draw = lambda: scenes.render(scenes.draw_scene(np.random.default_rng(3), (90, 70)))
    assert np.array_equal(np.asarray(draw()), np.asarray(draw()))


def test_a_pair_differs_just_as_it_is_said():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        first, second, sentence = scenes.differing(rng, scenes.draw_scene(rng, (96, 96), most=4))
        before, after = ({s.kind: s.color for s in scene.shapes} for scene in (first, second))
        changed = {
            kind for kind in before.keys() | after.keys() if before.get(kind) != after.get(kind)
        }
        assert len(changed) == 1
        kind = changed.pop()
        expected = (
            f"The {kind} is gone."
            if kind not in after
            else f"There is a new {kind}."
            if kind not in before
            else f"The {kind} turned {after[kind]}."
        )
        assert sentence == expected
        seen.add(expected.split()[-2])
    assert len(seen) == 3


def test_clips_show_what_they_say():
    rng = np.random.default_rng(1)
    for _ in range(200):
        count = int(rng.integers(4, 17))
        clip = scenes.draw_clip(rng, (100, 80), count)
        centers = [frame.shapes[0].center for frame in clip.frames if frame.shapes]
        moved = np.subtract(centers[-1], centers[0])
        if clip.direction:
            assert np.argmax(np.abs(moved)) == int(scenes.DIRECTIONS[clip.direction][0] == 0)
            assert np.dot(moved, scenes.DIRECTIONS[clip.direction]) > 0.1
        else:
            assert np.allclose(moved, 0)
        flashes = [index for index, frame in enumerate(clip.frames) if frame.number]
        assert len(flashes) == (clip.number is not None)
        if flashes:
            low, high = scenes.MOMENTS[clip.moment]
            assert low <= (flashes[0] + 0.5) / count <= high


def test_lessons_are_the_prompts_of_inference(model, teacher):
    """Every packed question's logits equal those of asking it alone: same ids, positions, pictures,
    mask.
    """
    for kind in ("picture", "pair", "clip", "large"):
        batch = teacher.draw(np.random.default_rng(4), kind, 2, exam=True)
        with torch.no_grad():
            logits, targets = train.answer_logits(model.network, batch)
        start = 0
        for row, sample in enumerate(batch.visuals):
            segments = batch.segments[row]
            for number in range(len(batch.tasks[row])):
                ids = batch.ids[row][segments == number].tolist()
                wanted = batch.targets[row][segments == number]
                count = int((wanted != lessons.IGNORED).sum())
                if number < 2:
                    alone = logits_alone(model, batch, sample, ids)
                    answer = alone[len(alone) - len(ids) :][wanted != lessons.IGNORED]
                    assert (answer - logits[start : start + count]).abs().max() < 2e-4
                start += count
        assert start == len(targets)


def logits_alone(model, batch, sample, ids) -> torch.Tensor:
    """The model's own prefill of one question, from the same tiles."""
    from llava_min import segments as plans
    from llava_min.cache import Cache

    network, config = model.network, model.config
    segments = [segment for segment, _ in sample]
    plan = plans.Plan(
        (plans.Text(tuple(batch.prefix)), *segments, plans.Text(tuple(ids))), config.text.context
    )
    visuals = [network.encode(segment, tiles) for segment, tiles in sample]
    cache = Cache.empty(config.text, 1, plan.tokens)
    return network.prefill(plan, visuals, cache, keep="all")


def test_the_template_of_the_lessons_is_the_renderer_s(model, teacher):
    from llava_min import prompt
    from llava_min.families import templates

    pieces = list(templates.onevision([prompt.user_turn("Where is the star?", 1, 0)]))
    ids = model.tokenizer.encode(pieces)
    prefix, _, asked, _ = lessons.TURNS["onevision"]
    parts = teacher.encode(prefix), teacher.encode("\nWhere is the star?") + teacher.encode(asked)
    assert ids == [*parts[0], -200, *parts[1]]


def test_text_files_are_what_their_code_writes(tmp_path):
    """The committed configuration comes from files.py, not from a hand."""
    shutil.copy(small.TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    files.write(tmp_path)
    for path in tmp_path.iterdir():
        assert json.loads(path.read_text()) == json.loads((small.TINY / path.name).read_text())


def test_the_vocabulary_knows_the_words_of_the_world(model):
    """512 ids: every byte, the words of the scenes as one token each, special tokens last."""
    tokenizer = model.tokenizer
    assert len(tokenizer) == model.config.text.vocab_size == files.WORDS + len(files.SPECIAL)
    assert [tokenizer.special[token] for token in files.SPECIAL] == list(range(files.WORDS, 512))
    for word in (*scenes.KINDS, *scenes.COLORS, "left", "right", "top", "bottom", "center"):
        assert len(tokenizer.encode_text(f" {word}")) == 1, word
    assert tokenizer.decode(tokenizer.encode_text("\x00\x7fé☕")) == "\x00\x7fé☕"


def test_sample_pictures_are_what_their_code_draws():
    from PIL import Image

    for name, scene in samples.pictures().items():
        assert np.array_equal(
            np.asarray(Image.open(samples.SAMPLES / name)), np.asarray(scenes.render(scene))
        )


def test_an_exam_can_be_failed(model, teacher):
    """Blank and exchanged pictures bring the verdicts down; a model of noise fails everything."""
    marks = exam.take(model.network, teacher, train.answer_logits, 20, seed=5)
    looked = np.mean([np.mean(m.right) for m in marks.values()])
    blind = np.mean([np.mean(m.blank) for m in marks.values()])
    other = np.mean([np.mean(m.other) for m in marks.values()])
    assert looked > blind + 0.2 and looked > other + 0.2
    noise = exam.take(
        train.fresh(model.config), teacher, train.answer_logits, 5, seed=5, controls=False
    )
    assert max(np.mean(m.right) for m in noise.values()) < 0.2


def test_greedy_answers_are_what_the_exam_marks(model, teacher):
    """A verdict counts as right exactly when generate() prints the answer."""
    from PIL import Image

    rng = np.random.default_rng(9)
    scene = scenes.draw_scene(rng, (120, 90))
    picture = scenes.render(scene)
    assert isinstance(picture, Image.Image)
    lesson = scenes.picture_questions(rng, scene)
    visuals = teacher.tiles([scene], "picture", picture.size)
    batch = teacher.pack("picture", "onevision", [visuals], [lesson], False)
    with torch.no_grad():
        verdicts = exam.verdicts(batch, *train.answer_logits(model.network, batch))
    for (_, question, answer), right in zip(lesson, verdicts):
        assert (model.generate(question, images=[picture], max_tokens=80).text == answer) == right


def test_training_resumes_where_it_was(tmp_path, monkeypatch):
    """Three steps in one go, and two then one: the same numbers."""
    monkeypatch.setattr(train, "PLAN", {"picture": 2, "clip": 1, "reading": 1})
    monkeypatch.setattr(train, "export", lambda model, folder: None)
    monkeypatch.setattr(train, "rate", lambda step, steps: 1.0)
    monkeypatch.setattr(train.exam, "take", lambda *args, **kwargs: {})
    states = []
    for name, stops in (("once", [3]), ("twice", [2, 3])):
        path = tmp_path / f"{name}.pt"
        for steps in stops:
            options = train.parser().parse_args(
                [
                    "--steps",
                    str(steps),
                    "--sight-steps",
                    "1",
                    "--workers",
                    "1",
                    "--state",
                    str(path),
                ]
            )
            train.work(0, options, "")
        states.append(torch.load(path)["model"])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
