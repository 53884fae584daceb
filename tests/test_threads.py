"""Threads may share a model, and models a process: every question is answered as if alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import llava_min
from llava_min.weights.tiny import scenes

MODELS = {"float32": {}, "bfloat16": {"dtype": "bfloat16"},
          "int4": {"dtype": "bfloat16", "bits": 4}}  # fmt: skip


def asked(count: int) -> list[dict]:
    """So many questions about fresh pictures, four about each."""
    rng, drawn = np.random.default_rng(7), []
    while len(drawn) < count:
        scene = scenes.draw_scene(rng, (84, 84))
        picture, questions = scenes.render(scene), scenes.picture_questions(rng, scene)
        drawn += [{"question": text, "images": [picture]} for _, text, _ in questions[:4]]
    return drawn[:count]


def answer(model, question: dict) -> tuple[list[int], torch.Tensor]:
    """The ids of a short answer, and the logits after every row of its prompt."""
    ids = model.generate(**question, max_tokens=5).token_ids
    return ids, model.logits(**question)


def same(one, other) -> bool:
    return one[0] == other[0] and torch.equal(one[1], other[1])


@pytest.fixture(scope="module")
def models():
    return {name: llava_min.load(device="cpu", **given) for name, given in MODELS.items()}


def test_four_threads_get_the_answers_of_one(models):
    model, questions = models["float32"], asked(200)
    ask = lambda question: model.generate(**question, max_tokens=5).token_ids
    alone = [ask(question) for question in questions]
    assert len({tuple(ids) for ids in alone}) > 20
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, questions)) == alone


def test_models_do_not_disturb_each_other(models):
    """Two threads for each model, all at once, bit by bit; the models themselves differ."""
    work = [(name, question) for question in asked(16) for name in models]
    ask = lambda pair: answer(models[pair[0]], pair[1])
    alone = [ask(pair) for pair in work]
    assert not same(alone[0], alone[1]) and not same(alone[1], alone[2])
    with ThreadPoolExecutor(2 * len(models)) as threads:
        together = list(threads.map(ask, work))
    assert all(map(same, together, alone))
