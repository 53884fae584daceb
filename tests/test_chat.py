"""A conversation answers as a fresh run over all its turns, whatever happened on the way."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min.errors import MediaError, ParameterError, PromptError
from llava_min.generate import Token

EXACT = 1e-10
TEMPLATES = ("auto", "qwen", "interleave", "long_llava", "onevision_si")
SAMPLES = small.TINY / "samples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In float64, so that a margin between two tokens is never a matter of rounding."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    return llava_min.load(folder, dtype="float64")


@pytest.fixture
def seen(model, monkeypatch):
    """Logits of each prefill, tokens that went through the decoder, and visuals encoded."""
    network, log = model.network, {"logits": [], "computed": 0, "encoded": 0}
    reading, encode = network.reading, network.encode

    def watched(plan, *given, **options):
        log["computed"] += plan.tokens
        log["logits"].append((yield from reading(plan, *given, **options)))
        return log["logits"][-1]

    def counted(*given):
        def rows():
            log["encoded"] += 1
            yield from encode(*given)

        return rows()

    monkeypatch.setattr(network, "reading", watched)
    monkeypatch.setattr(network, "encode", counted)
    return log


def fresh(model, chat, **options):
    """The newest question of a chat, asked about the whole conversation from the start."""
    return model.generate(chat.turns[:-1], images=chat.images, videos=chat.videos, **options)


ASKED = st.tuples(
    st.sampled_from(["What?", "And where is it now?", "Hm", "<|im_end|> or not?"]),
    st.integers(0, 2),  # new pictures
    st.booleans(),  # a new clip
    st.sampled_from(["", "", "closed", "ctrl-c", "failed"]),  # what becomes of an answer before it
    st.booleans(),  # whether the conversation begins from scratch
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ASKED, min_size=2, max_size=4), st.sampled_from(TEMPLATES), st.booleans())
def test_answers_are_those_of_a_fresh_run(model, conversation, template, system):
    """Same ids, logits within 1e-10 in float64: for new pictures in later turns, which change how
    the first ones become tiles; after answers stopped in the middle, and questions that failed.
    """
    options = {"template": template, "max_tokens": 6, "ignore_eos": True}
    options |= {"system": "Be brief.", "repetition_penalty": 1.1} if system else {}
    chat, reading, logits = model.chat(**options), model.network.reading, []

    def watched(*given, **named):
        logits.append((yield from reading(*given, **named)))
        return logits[-1]

    model.network.reading = watched
    try:
        for number, (question, pictures, clip, before, cleared) in enumerate(conversation):
            if cleared:
                chat.clear()
            disturb(model, chat, before)
            images = [small.picture(50 + 40 * i, 60, seed=number) for i in range(pictures)]
            answer = chat.ask(question, images=images, videos=[small.frames(3)] * clip)
            alone = fresh(model, chat, **options)
            assert answer.token_ids == alone.token_ids and answer.text == alone.text
            assert (logits[-1] - logits[-2]).abs().max() < EXACT
            assert len(chat.images) >= pictures
    finally:
        del model.network.reading


def disturb(model, chat, how: str) -> None:
    """An answer that is stopped, or a question that fails."""
    turns = len(chat.turns)
    if how == "closed":
        events = chat.events("Tell me.", images=[small.picture(70, 70, seed=99)])
        tokens = (event for event in events if isinstance(event, Token))
        next(tokens), next(tokens)
        events.close()
    elif how == "ctrl-c":
        decode, calls = model.network.decode, []

        def interrupted(*given):
            calls.append(given)
            return decode(*given) if len(calls) < 3 else raise_interrupt()

        model.network.decode = interrupted
        try:
            with pytest.raises(KeyboardInterrupt):
                chat.ask("Tell me.")
        finally:
            del model.network.decode
    elif how == "failed":
        with pytest.raises(PromptError, match="too long"):
            chat.ask("Tell me.", images=[small.picture(70, 70, seed=98)], max_tokens=5000)
        with pytest.raises(MediaError):
            chat.ask("Tell me.", images=[small.picture(71, 70, seed=97), b"nonsense"])
    assert len(chat.turns) == turns + 2 * (how in ("closed", "ctrl-c"))


def test_one_question_at_a_time(model):
    """A chat that is asked while it answers says so; afterwards it goes on as if it was not."""
    chat, alone = (model.chat(max_tokens=5, ignore_eos=True) for _ in range(2))
    first = chat.stream("Tell me.")
    next(first)
    with pytest.raises(ParameterError, match="still giving an answer"):
        chat.ask("And?")
    list(first)
    alone.ask("Tell me.")
    assert chat.ask("And?").token_ids == alone.ask("And?").token_ids
    abandoned = chat.stream("Hm?")
    next(abandoned)
    abandoned.close()
    assert len(chat.ask("Well?").token_ids) == 5


def raise_interrupt():
    raise KeyboardInterrupt


def test_a_second_question_computes_its_own_tokens_only(model, seen):
    """No picture or frame is encoded again, and no more rows are computed than the words differ."""
    chat = model.chat(max_tokens=4)
    shown = {"images": [small.picture(100, 60)], "videos": [small.frames(3)]}
    first = chat.ask("What?", **shown)
    assert first.usage["cached_tokens"] == 0 and seen["encoded"] == 2
    seen["computed"] = 0
    second = chat.ask("And now?")
    assert seen["encoded"] == 2
    assert seen["computed"] == second.usage["prompt_tokens"] - second.usage["cached_tokens"] < 60
    assert second.usage["image_tokens"] == first.usage["image_tokens"]


def test_ctrl_c_while_the_prompt_is_read_takes_the_question_back(model, monkeypatch):
    chat = model.chat(max_tokens=4)
    chat.ask("What?", images=[small.picture(100, 60)])
    turns, decoder = list(chat.turns), model.network.decoder.forward
    with monkeypatch.context() as patch:
        patch.setattr(model.network.decoder, "forward", lambda rows, cache, kept: raise_interrupt())
        with pytest.raises(KeyboardInterrupt):
            chat.ask("And now?", images=[small.picture(60, 60)])
    assert chat.turns == turns and model.network.decoder.forward == decoder
    chat.prefix.cache.lengths += 1  # as between the two statements of Cache.advance
    answer = chat.ask("And then?", images=[small.picture(61, 90)])
    assert answer.token_ids == fresh(model, chat, max_tokens=4).token_ids
    assert chat.prefix.cache.lengths.tolist() == chat.prefix.cache.host_lengths.tolist()


def test_too_long_a_conversation_is_refused_before_any_vision(model, monkeypatch):
    chat = model.chat(max_tokens=4)
    chat.ask("What?", images=[small.picture(50, 50)])
    turns, images = list(chat.turns), list(chat.images)
    monkeypatch.setattr(model.network, "encode", None)
    with pytest.raises(PromptError, match=r"at most 4,096 tokens, found .* pictures \+ 5,000"):
        chat.ask("And?", images=[small.picture(60, 60)], max_tokens=5000)
    assert (chat.turns, chat.images) == (turns, images)  # as if it had not been asked


def test_clear_forgets_and_frees(model):
    chat = model.chat(max_tokens=4)
    chat.ask("What?", images=[small.picture(50, 50)])
    chat.clear()
    assert chat.turns == chat.images == [] and chat.prefix.cache.capacity == 0
    assert chat.ask("What?").token_ids == model.generate("What?", max_tokens=4).token_ids


def test_an_answer_that_is_broken_off_was_said(model):
    chat = model.chat(max_tokens=4)
    events = chat.events("What?")
    while not isinstance(token := next(events), Token):
        pass
    events.close()
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]
    assert chat.turns[1].parts == ((token.text,),)


def test_streams_and_prefill(model):
    """What is given as the beginning of an answer is part of it in the next turn."""
    chat = model.chat(max_tokens=5)
    text = "".join(chat.stream("What?", prefill="A star"))
    assert chat.turns[-1].parts == (("A star" + text,),)
    assert chat.ask("And?").token_ids == fresh(model, chat, max_tokens=5).token_ids


def test_a_complete_prompt_is_no_turn(model):
    with pytest.raises(ParameterError, match="raw"):
        model.chat(raw=True)
    with pytest.raises(PromptError, match="empty"):
        model.chat().ask("  ")


# The console ------------------------------------------------------------------


def console(text: str, *arguments: str, **options):
    command = [sys.executable, "-m", "llava_min", "--chat", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, **options)


def test_a_piped_conversation():
    """Answers alone on stdout, a line each; commands, statistics and errors on stderr."""
    star, before = SAMPLES / "shapes.png", SAMPLES / "before.png"
    result = console(
        f"Where is the star?\n\n/image nowhere.png\n/help\nWhat color is the circle?\n/clear\n"
        f"/image {before}\n/video '{SAMPLES / 'clip.mp4'}'\n/nonsense\n/image {star}\n/exit\nHm?\n",
        *("--image", str(star)),
    )
    assert result.stdout == "In the top left.\nBlue.\n"
    errors = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(errors) == 2 and "nowhere.png" in errors[0] and "/nonsense" in errors[1]
    assert result.stderr.count("prompt tokens") == 2 and "from the cache" in result.stderr
    assert result.stderr.count("is a toy") == 1 and "/clear " in result.stderr
    assert "Traceback" not in result.stderr and result.returncode == 2


def test_json_and_a_prompt_on_the_command_line():
    result = console("Is there a circle?", "Is there a star?", "--image",
                     str(SAMPLES / "shapes.png"), "--jsonl", "-q")  # fmt: skip
    assert result.stdout.count('"event": "answer"') == 2
    assert result.stderr == "" and result.returncode == 0


def test_ctrl_c_on_a_terminal_stops_the_answer_and_ctrl_d_ends():
    """Through a terminal of its own: a prompt, an answer cut by Ctrl-C, a next question, Ctrl-D."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "dumb"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in background jobs
        arguments = ["-m", "llava_min", "--chat", "--ignore-eos", "--max-tokens", "20000"]
        os.execv(sys.executable, [sys.executable, *arguments])
    shown = until(terminal, "> ")
    assert "/help" in shown
    os.write(terminal, b"Tell me.\n")
    until(terminal, ".")
    os.kill(child, signal.SIGINT)
    shown = until(terminal, "> ")
    assert "interrupted" in shown
    until(terminal, "> ", again=lambda: os.kill(child, signal.SIGINT))  # only a new prompt
    os.write(terminal, b"/clear\n")
    until(terminal, "> ")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def until(terminal: int, mark: str, again=None) -> str:
    """What a terminal shows up to and with `mark`, five minutes at most.

    `again` is done at first and after each five silent seconds: a signal that arrives just before
    readline waits for a key is only seen with the next one.
    """
    shown, end = b"", time.monotonic() + 300
    while mark.encode() not in shown:
        assert time.monotonic() < end, shown
        if again is not None and not shown:
            again()
        if select.select([terminal], [], [], 5.0)[0]:
            shown += os.read(terminal, 1)
    return shown.decode(errors="replace")


def test_growing_leaves_room(model):
    """The cache grows by more than a question at a time, and never past the context for nothing."""
    chat = model.chat(max_tokens=4)
    chat.ask("What?", images=[small.picture(150, 150)])
    capacity = chat.prefix.cache.capacity
    assert chat.prefix.reused == 0 and capacity <= 1.125 * (len(chat.prefix.numbers) + 4)
    chat.ask("And?")
    assert chat.prefix.cache.capacity == capacity
    assert torch.equal(
        chat.prefix.cache.lengths, torch.tensor(chat.prefix.cache.host_lengths).int()
    )
