"""64 questions over HTTP, 1 to 16 at a time: each gets the answer that it gets alone."""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import serving
import small
from test_serve_clients import post

import llava_min
from llava_min.engine.batch import ready_for
from llava_min.engine.slots import Slots
from llava_min.explain.forced import before

COUNT = 64
QUESTIONS = (
    "Where is the star?",
    "How many shapes are there?",
    "Describe the picture. " * 8,
    "Is there a circle?",
)


def data_uri(data: bytes) -> str:
    return f"data:;base64,{base64.b64encode(data).decode()}"


def picture(number: int) -> str:
    size = ((100, 80), (60, 150), (84, 84))[number]
    small.picture(*size, seed=number).save(file := io.BytesIO(), "PNG")
    return data_uri(file.getvalue())


def clip(number: int) -> str:
    """A few frames without loss, in a container."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = 60, 48, "bgr0"
        for pixels in small.frames(3 + number, seed=number):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    return data_uri(file.getvalue())


PICTURES, CLIPS = [picture(n) for n in range(3)], [clip(n) for n in range(2)]


def question(number: int) -> dict:
    """A text, a picture or two, or a clip; greedy or drawn; of some length."""
    rng = np.random.default_rng(number)
    media = []
    if number % 4 in (1, 2):
        chosen = rng.choice(3, size=number % 4, replace=False)
        media = [{"type": "image_url", "image_url": {"url": PICTURES[one]}} for one in chosen]
    elif number % 4 == 3:
        media = [{"type": "video_url", "video_url": {"url": CLIPS[number // 4 % 2]}}]
    words = {"type": "text", "text": QUESTIONS[int(rng.integers(4))]}
    found = {"messages": [{"role": "user", "content": [*media, words]}]}
    found |= {"max_tokens": int(rng.integers(1, 16)), "ignore_eos": bool(number % 2)}
    return found | ({"temperature": 1.0, "seed": number} if number % 3 == 0 else {})


@pytest.mark.parametrize("which", ["toy", "random"])
def test_each_gets_the_answer_that_it_gets_alone(tmp_path, which):
    """Ids, by the bytes of every token, and their probabilities, in float32."""
    folder = small.TINY if which == "toy" else small.small(tmp_path, seed=3)
    model = llava_min.load(folder, dtype="float32")
    alone = [answered(model, question(number)) for number in range(COUNT)]
    options = ("-m", str(folder), "--dtype", "float32", "--threads", "1")
    with serving.server(*options, "--slots", "8", "--slot-tokens", "1500") as address:

        def ask(number: int) -> tuple[str, list[float], str]:
            body = question(number) | {"logprobs": True}
            choice = post(address, body)["choices"][0]
            logs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
            return choice["message"]["content"], logs, choice["finish_reason"]

        for together in (1, 4, 8, 16):
            with ThreadPoolExecutor(together) as pool:
                found = list(pool.map(ask, range(COUNT)))
            for number, (text, logs, reason) in enumerate(found):
                answer, scored = alone[number]
                assert (text, reason) == (answer.text, answer.finish_reason), (together, number)
                assert np.allclose(logs, scored[: len(logs)], atol=1e-4), (together, number)
                assert len(scored) - len(logs) in (0, 1)  # an id that ends the answer is not told


def answered(model, given: dict):
    """(the answer alone, how likely its tokens are)."""
    options = {name: value for name, value in given.items() if name != "messages"}
    answer = model.generate(given["messages"], **options)
    return answer, model.score(given["messages"], answer.token_ids).log_probabilities


@pytest.mark.parametrize("rows", [1, 4, 8, 16])
def test_logits_are_those_of_one_alone(tmp_path, rows):
    """Within 5e-5 in float32 at every token of 64 answers, whatever is read and written beside."""
    model = llava_min.load(small.small(tmp_path, seed=3), dtype="float32")
    slots, worst = Slots(model, rows, 1500, looks=1 << 20), 0.0
    asked, seen = [], [[] for _ in range(COUNT)]
    for number in range(COUNT):
        given = question(number)
        request = {"question": given.pop("messages"), **given}
        one = slots.submit(*ready_for(model, "r", request), time.perf_counter())
        one.reply.rules.append(noting(seen[number]))
        asked.append(one)
    while slots.busy:
        slots.round()
    for number, one in enumerate(asked):
        prompt = model.prepare(question(number)["messages"])
        ids = one.answer.token_ids
        forced = before(model.network, *model.prefilled(prompt, len(ids)), ids)
        assert len(forced) == len(seen[number]) == len(ids)
        for logits, expected in zip(seen[number], forced):
            scale = max(1.0, float(expected.abs().max()) / 5)
            worst = max(worst, float((logits - expected).abs().max()) / scale)
    assert worst < 5e-5


def noting(seen: list):
    """A rule that changes nothing and notes the logits."""

    def rule(logits, new):
        seen.append(logits.clone())
        return logits

    return rule
