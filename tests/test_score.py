"""Scores of answers, and the needle benchmark that stands on them."""

import argparse
import json

import numpy as np
import pytest
import small
import torch

import llava_min
from bench import ask, niah
from llava_min.errors import MediaError
from llava_min.media import video

STAR = str(small.TINY / "samples" / "shapes.png")


@pytest.fixture(scope="module")
def model():
    return llava_min.load(device="cpu", dtype="float64")


def test_a_score_is_read_from_the_logits_of_the_whole(model):
    """Prompt and answer as one list of ids, at once: log-softmax one row before each token."""
    ids = model.tokenizer.encode_text("In the top left.")
    found = model.score("Where is the star?", ids, images=[STAR])
    assert found == model.score("Where is the star?", "In the top left.", images=[STAR])
    prompt = model.prepare("Where is the star?", [STAR]).plan.segments
    whole = [*prompt[0].ids, -200, *prompt[2].ids, *ids]
    logs = model.logits(whole, images=[STAR]).double().log_softmax(-1)[-len(ids) - 1 : -1]
    exact = logs.gather(1, torch.tensor(ids)[:, None])[:, 0]
    np.testing.assert_allclose(found.log_probabilities, exact, atol=1e-5)
    assert found.matches == (logs.argmax(-1) == torch.tensor(ids)).tolist()


def test_greedy_answers_match_themselves_and_others_do_not(model):
    answer = model.generate("Where is the star?", images=[STAR])
    assert all(model.score("Where is the star?", answer.token_ids, images=[STAR]).matches)
    assert not all(model.score("Where is the star?", "Purple.", images=[STAR]).matches)
    with pytest.raises(llava_min.ParameterError):
        model.score("Where is the star?", "", images=[STAR])


def test_a_case_of_the_haystack_is_the_clip_with_the_needle_in_it(model):
    """Cached features and a rewound cache give what asking about the whole clip gives."""
    film, needles = niah.drawn(6, 1)
    frames, needle = niah.encoded(model, film), np.asarray(needles[0]["image"])
    question, answer = needles[0]["question"], needles[0]["answer"]
    asked = model.prepare(question, videos=[np.stack(film)]).plan.segments[-1]
    haystack = niah.Haystack(model, frames, 400)
    ids = model.tokenizer.encode_text(answer)
    hidden = niah.encoded(model, [needle])[0]
    for place, length in ((6, 6), (3, 6), (3, 4), (0, 2)):
        found, tokens = haystack.score(place, length, hidden, asked, ids)
        clip = np.stack([*film[:place], needle, *film[place:length]])
        whole = model.score(question, answer, videos=[clip], frames=9)
        np.testing.assert_allclose(found.log_probabilities, whole.log_probabilities, atol=1e-6)
        assert found.matches == whole.matches
        assert tokens == model.prepare(question, videos=[clip], frames=9).plan.tokens


def test_an_interrupted_search_goes_on(tmp_path):
    settings = argparse.Namespace(model=None, frames=[4, 6], depths=2, needles=1, haystack=None,
                                  asked=None, out=tmp_path, dry_run=False)  # fmt: skip
    rows, drawing = niah.run(settings)
    first = rows.read_text().splitlines()
    assert len(first) == 4 and "dasharray" in drawing.read_text()
    rows.write_text("\n".join(first[:3]) + "\n")
    niah.run(settings)
    again = [json.loads(line) for line in rows.read_text().splitlines()]
    assert again == [json.loads(line) for line in first]


def test_needles_of_a_folder_and_a_frame_a_second(tmp_path):
    """As V-NIAH is published: pictures next to their list, the film from its beginning."""
    samples = small.TINY / "samples"
    (tmp_path / "shapes.png").write_bytes((samples / "shapes.png").read_bytes())
    listed = [{"image": "shapes.png", "question": "What number flashed up?", "answer": "42."}]
    (tmp_path / "needles.json").write_text(json.dumps(listed))
    for path in (tmp_path, tmp_path / "needles.json"):
        (needle,) = niah.stored(path)
        assert needle["image"].size == (320, 240) and needle["answer"] == "42."
    film = ask.write_clip(tmp_path / "film.mp4", 130)
    frames = niah.filmed(str(film), 4)
    own = list(video.sample_clip(str(film), video.Choice(at=(0.0, 1.0, 2.0, 3.0))))
    assert len(frames) == 4 and all((a == b).all() for a, b in zip(frames, own))
    with pytest.raises(MediaError, match="60 seconds"):
        niah.filmed(str(film), 60)
    settings = argparse.Namespace(model=None, frames=[2, 4], depths=2, needles=1,
                                  haystack=str(film), asked=tmp_path, out=tmp_path,
                                  dry_run=False)  # fmt: skip
    rows, _ = niah.run(settings)
    assert len(rows.read_text().splitlines()) == 4
