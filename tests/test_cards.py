"""The prompts and conversations that the five published model cards print: each runs, as written.

On small random models of each family; what is asserted is the rendered prompt and that an answer
comes. Questions and their order are the cards'; pictures and clips are ours.
"""

import re

import pytest
import small
from test_families import Family

import llava_min

pytest.importorskip("transformers")
PICTURE, OTHER, CLIP = small.picture(90, 60), small.picture(40, 70), small.frames(3)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: Family(name, folder / name).ours
        for name in ("long_llava", "interleave", "next_video")
    }
    made["onevision"] = llava_min.load(small.small(folder / "hf"), dtype="float32")
    original = small.small(folder / "original", "original")
    made["original"] = llava_min.load(original, dtype="float32")
    timed = {"add_time_instruction": True, "mm_newline_position": "grid"}
    made["video"] = llava_min.load(original, dtype="float32", config=timed)
    for name in ("original", "video"):  # these folders hold no chat template
        object.__setattr__(made[name].config, "template", "qwen")
    return made


def said(model, question, **media) -> str:
    """The rendered prompt with <image> and <video> for the visuals; and an answer comes."""
    text = model.prepare(question, **media).text()
    answer = model.generate(question, max_tokens=2, ignore_eos=True, **media)
    assert len(answer.token_ids) == 2
    return re.sub(r"<(image|video): \d+ tokens>", r"<\1>", text)


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def test_long_llava_frames_as_pictures(models):
    """(a) A clip as n entries, or as n times <image> in front of the question."""
    frames, question = list(CLIP), "Please provide a detailed description of the video."
    expected = (
        f"{SYSTEM}<|im_start|>user\n<image> <image> <image>\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    model = models["long_llava"]
    assert said(model, user(*[IMAGE] * 3, text(question)), images=frames) == expected
    assert said(model, "<image>" * 3 + "\n" + question, images=frames) == expected
    assert said(model, "<image>" * 3 + "\n" + question, videos=[CLIP]) == expected


def test_interleave_conversation_and_hand_written_prompt(models):
    """(b) The chat template, and the card's ChatML, whose end token is misspelt."""
    model = models["interleave"]
    found = said(model, user(IMAGE, text("What are these?")), images=[PICTURE])
    assert found == (
        "<|im_start|>user\n<image>\nWhat are these?<|im_end|>\n<|im_start|>assistant\n"
    )
    raw = "<|im_start|>user <image>\nWhat are these?|im_end|><|im_start|>assistant"
    assert said(model, raw, images=[PICTURE], raw=True) == raw
    several = (
        "<|im_start|>user <image><image>\nWhat is the difference?<|im_end|><|im_start|>assistant"
    )
    assert said(model, several, images=[PICTURE, OTHER], raw=True) == several


def test_llava_video_with_the_times_told(models):
    """(c) One <image> stands for the clip; the sentence about its times is written by hand, or by
    us.
    """
    from llava_min import prompt

    times = prompt.time_instruction((0.0, 1.0, 2.0), 3.0)
    question = "Please describe this video in detail."
    expected = (
        f"{SYSTEM}<|im_start|>user\n<video>\n{times}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    model = models["video"]
    by_hand = f"<image>\n{times}\n{question}"
    assert said(model, by_hand, videos=[CLIP], timestamps=False) == expected
    found = said(model, f"<image>\n{question}", videos=[CLIP])
    pattern = re.escape(expected).replace(re.escape(times), r"The video lasts for [\d.]+ seconds.+")
    assert re.fullmatch(pattern, found)
    untold = said(model, f"<image>\n{question}", videos=[CLIP], timestamps=False)
    assert untold == expected.replace(times + "\n", "")


def test_next_video_conversations(models):
    """(d) A clip; two clips in one prompt; several turns."""
    model = models["next_video"]
    question = "Why is this video funny?"
    funny = f"<s>USER: <video>\n{question} ASSISTANT:"
    assert said(model, user(VIDEO, text(question)), videos=[CLIP]) == funny
    after = f"<s>USER: {question} <video>\nASSISTANT:"  # parts keep the order that they came in
    assert said(model, user(text(question), VIDEO), videos=[CLIP]) == after
    assert said(model, funny[3:], videos=[CLIP], raw=True) == funny[3:]
    two = "USER: <video>\nWhat is happening in the first? And in the second <video>? ASSISTANT:"
    assert said(model, two, videos=[CLIP, CLIP[:2]], raw=True) == two
    answer = {"role": "assistant", "content": [text("A baby reads.")]}
    turns = [*user(VIDEO, text(question)), answer, *user(text("What is it wearing?"))]
    whole = f"{funny} A baby reads. USER: What is it wearing? ASSISTANT:"
    assert said(model, turns, videos=[CLIP]) == whole


def test_next_video_batch_of_a_picture_and_a_clip(models):
    """(d) Two prompts at once, one about a picture, one about a clip: each as alone."""
    model = models["next_video"]
    requests = [
        {
            "question": "USER: <image>\nHow many cats are there in the image? ASSISTANT:",
            "images": [PICTURE],
            "raw": True,
            "max_tokens": 4,
        },
        {
            "question": "USER: <video>\nWhy is this video funny? ASSISTANT:",
            "videos": [CLIP],
            "raw": True,
            "max_tokens": 4,
        },
    ]
    together = model.generate_batch(requests)
    for request, answer in zip(requests, together):
        given = dict(request)
        assert answer.token_ids == model.generate(given.pop("question"), **given).token_ids


def test_onevision_conversation_and_hand_written_prompt(models):
    """(e) HF: the chat template and the card's ChatML."""
    model = models["onevision"]
    question = "What does the label 15 represent? (1) lava (2) core (3) tunnel (4) ash cloud"
    expected = f"<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant\n"
    assert said(model, user(IMAGE, text(question)), images=[PICTURE]) == expected
    assert said(model, question, images=[PICTURE]) == expected
    raw = "<|im_start|>user <image>\nWhat are these?|im_end|><|im_start|>assistant"
    assert said(model, raw, images=[PICTURE], raw=True) == raw


def test_onevision_original_prompts(models):
    """(e) Original: a picture, two with words between them, and a clip under one <image>."""
    model = models["original"]
    ending = "<|im_end|>\n<|im_start|>assistant\n"
    one = "<image>\nWhat is shown in this image?"
    assert said(model, one, images=[PICTURE]) == f"{SYSTEM}<|im_start|>user\n{one}{ending}"
    two = "<image> This is the first image. Can you describe this image?\n\nNow, let's look at "
    two += "another image: <image>\nWhat's the difference between these two images?"
    found = said(model, two, images=[PICTURE, OTHER])
    assert found.count("<image>") == 2 and "another image: <image>\nWhat's the" in found
    film = "<image>\nDescribe what's happening in this video."
    assert said(model, film, videos=[CLIP]) == (
        f"{SYSTEM}<|im_start|>user\n{film.replace('image', 'video', 1)}{ending}"
    )
