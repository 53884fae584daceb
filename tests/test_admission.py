"""Every way of asking asks the same questions first: does it fit the context, and into memory?"""

import json
import re
from dataclasses import replace

import pytest
import small

import llava_min
from llava_min.cache import Cache
from llava_min.check import compare
from llava_min.command import main
from llava_min.engine import admission, batch
from llava_min.engine.answers import Reply
from llava_min.errors import MemoryBudgetError, NumericsError, PromptError
from llava_min.planning import memory as needs

PICTURE = small.picture(120, 90)
GB = r"[\d.,]+ [GM]B"
ARITHMETIC = rf"at most {GB}, found [\d.]+ weights \+ [\d.]+ cache \+ [\d.]+ activations = {GB}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.small(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def model(folder):
    return llava_min.load(folder)


def logits(model, **options):
    return model.logits("What?", images=[PICTURE], **options)


def answers_of(model, count: int, **options):
    requests = [{"question": "What?", "images": [PICTURE], **options} for _ in range(count)]
    return model.generate_batch(requests)


WAYS = {
    "generate": lambda model, **options: model.generate("What?", images=[PICTURE], **options),
    "stream": lambda model, **options: list(model.stream("What?", images=[PICTURE], **options)),
    "chat": lambda model, **options: model.chat().ask("What?", images=[PICTURE], **options),
    "batch": lambda model, **options: answers_of(model, 1, **options),
    "logits": logits,
    "embed": lambda model, **options: model.embed("What?", images=[PICTURE], **options),
    "score": lambda model, **options: model.score("What?", [5, 6], images=[PICTURE], **options),
}


@pytest.mark.parametrize("way", WAYS)
def test_beyond_memory_is_refused_before_anything_is_allocated(model, monkeypatch, way):
    """With no byte free, each says what it needs and what there is."""
    monkeypatch.setattr(admission, "free_bytes", lambda device: 0)
    monkeypatch.setattr(model.network, "encode", None)
    empty, made = Cache.empty, []
    watched = lambda config, batch, capacity, *rest: (
        made.append(capacity) or empty(config, batch, 0, *rest)
    )
    monkeypatch.setattr(Cache, "empty", watched)
    with pytest.raises(MemoryBudgetError, match=ARITHMETIC):
        WAYS[way](model)
    assert not any(made)


def test_with_a_prompt_cache_too(model, monkeypatch, tmp_path):
    monkeypatch.setattr(admission, "free_bytes", lambda device: 0)
    with pytest.raises(MemoryBudgetError, match=ARITHMETIC):
        model.generate("What?", prompt_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_check_too(folder, monkeypatch):
    monkeypatch.setattr(admission, "free_bytes", lambda device: 0)
    with pytest.raises(MemoryBudgetError, match=ARITHMETIC):
        compare.ours(folder)


@pytest.mark.parametrize("way", WAYS)
def test_beyond_the_context_is_refused(folder, way):
    model = llava_min.load(folder, context=30)
    with pytest.raises(PromptError, match=r"at most 30 tokens, found \d+ text \+ \d+ pictures"):
        WAYS[way](model)


@pytest.mark.parametrize("way, kept", [("logits", needs.logit_bytes), ("score", None)])
def test_what_is_kept_for_the_caller_counts(model, monkeypatch, way, kept):
    """Logits of a whole prompt take far more than its cache: room for an answer is not enough."""
    plan = model.prepare("What?", images=[PICTURE]).plan
    tokens = plan.tokens if kept else 2
    alone = needs.alone(model.config, plan, 0 if kept else 2, model.storage)
    enough = alone.cache + alone.activations + needs.logit_bytes(model.config, tokens)
    for free, fits in ((enough, True), (enough - 1, False)):
        monkeypatch.setattr(admission, "free_bytes", lambda device, free=free: free)
        if fits:
            WAYS[way](model)
        else:
            with pytest.raises(MemoryBudgetError, match=ARITHMETIC):
                WAYS[way](model)


def room_for(model, rows: int, **request) -> int:
    """Free bytes that are enough for so many rows, and not for one more."""
    prepared, options = batch.ready_for(model, "request", {"question": "What?", **request})
    prompts = [(prepared.plan, options.max_tokens)] * rows
    need = needs.together(model.config, prompts, model.storage)
    return need.cache + need.activations


def test_a_batch_that_cannot_fit_is_told_how_many_rows_would(model, monkeypatch):
    request = {"images": [PICTURE], "max_tokens": 4}
    free = room_for(model, 3, **request)
    monkeypatch.setattr(admission, "free_bytes", lambda device: free)
    with pytest.raises(MemoryBudgetError, match=ARITHMETIC + r".*3 of these 5 at a time"):
        answers_of(model, 5, max_tokens=4)
    assert len(answers_of(model, 3, max_tokens=4)) == 3


def test_rows_that_fit_are_counted_by_the_longest(model, monkeypatch):
    """Each row has room for the longest: one long line among short ones makes all of them long."""
    plans = [model.prepare("What?").plan] * 4 + [model.prepare("What?", [PICTURE]).plan]
    prompts = [(plan, 3) for plan in plans]
    each = [needs.alone(model.config, plan, 3, model.storage) for plan in plans]
    need = needs.together(model.config, prompts, model.storage)
    assert need.cache == 5 * each[4].cache > sum(one.cache for one in each)
    monkeypatch.setattr(admission, "free_bytes", lambda device: need.cache + need.activations - 1)
    assert (
        model.admission.rows_that_fit(prompts) == 4
        and model.admission.rows_that_fit(prompts[:1]) == 1
    )
    assert model.admission.rows_that_fit([]) == 0


def batch_file(tmp_path, folder, lines, *words) -> list[dict]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = main.main(["-m", str(folder), "--batch", str(source), "-o", str(target), *words])
    return code, [json.loads(line) for line in target.read_text().splitlines()]


def test_a_batch_file_is_answered_in_portions_that_fit(folder, monkeypatch, tmp_path, caplog):
    """Five lines with room for two: all are answered, as alone, and a word says so."""
    model = llava_min.load(folder)
    lines = [{"question": f"What is {number}?", "max_tokens": 3} for number in range(5)]
    alone = [model.generate(**line).text for line in lines]
    free = room_for(model, 2, question="What is 0?", max_tokens=3)
    monkeypatch.setattr(admission, "free_bytes", lambda device: free)
    with caplog.at_level("INFO", logger="llava_min"):
        code, answers = batch_file(tmp_path, folder, lines)
    assert code == 0 and [answer["text"] for answer in answers] == alone
    assert "2 of 4 requests at a time fit into memory" in caplog.text


def test_a_plan_that_does_not_fit_is_told_and_no_error(capsys):
    """docs/serving.md says what does not fit in each way of asking."""
    assert main.main(["--plan", "What?", "--memory", "0.001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is False


def test_a_server_whose_slots_do_not_fit_ends_with_the_exit_code_of_memory(monkeypatch, capsys):
    monkeypatch.setattr(admission, "free_bytes", lambda device: 10**6)
    assert main.main(["serve", "--port", "0", "--slots", "4", "-q"]) == 5
    assert re.search(ARITHMETIC, capsys.readouterr().err)


def test_a_line_that_cannot_fit_leaves_the_others(folder, monkeypatch, tmp_path):
    lines = [{"question": "What?", "max_tokens": 3}, {"question": "What?", "max_tokens": 3000}]
    model = llava_min.load(folder)
    free = room_for(model, 1, max_tokens=10)
    monkeypatch.setattr(admission, "free_bytes", lambda device: free)
    code, (good, bad) = batch_file(tmp_path, folder, lines)
    assert code == 5 and "text" in good and re.search(ARITHMETIC, bad["error"])


def test_numbers_that_fail_in_one_line_leave_the_others(folder, monkeypatch, tmp_path):
    """A NaN in the logits of one row ends the batch; its lines are asked again one by one."""
    take = Reply.take

    def failing(self, logits, likely=None):
        if self.prepared.plan.tokens > 30:
            raise NumericsError("cannot choose the next token", "logits", "numbers", "NaN")
        return take(self, logits, likely)

    monkeypatch.setattr(Reply, "take", failing)
    lines = [{"question": text, "max_tokens": 2} for text in ("Hm?", "Oh " * 20 + "?", "Well?")]
    code, answers = batch_file(tmp_path, folder, lines)
    assert code == 7 and ["error" in answer for answer in answers] == [False, True, False]


def test_a_cache_that_is_there_already_is_not_counted_twice(model, monkeypatch):
    """The second question of a chat goes on in the cache of the first, which is not free memory."""
    chat = model.chat(max_tokens=3)
    chat.ask("What?", images=[PICTURE])
    plan = model.prepare("What? " * 20, images=[PICTURE]).plan
    need = needs.alone(model.config, plan, 3, model.storage)
    monkeypatch.setattr(admission, "free_bytes", lambda device: need.activations + need.cache // 2)
    chat.prefix.cache.grow(plan.tokens + 100)
    assert chat.ask("And?").usage["cached_tokens"] > 10
    with pytest.raises(MemoryBudgetError, match=ARITHMETIC):
        model.generate("What? " * 20, images=[PICTURE])


def test_an_unknown_room_refuses_nothing(model, monkeypatch):
    monkeypatch.setattr(admission, "free_bytes", lambda device: None)
    assert len(answers_of(model, 3, max_tokens=2)) == 3 and len(logits(model)) > 20


def test_forecasts_differ_by_results_alone(model):
    prepared = model.prepare("What?")
    plain, kept = (model.admission.forecast(prepared, 5, results) for results in (0, 1000))
    assert kept.memory() == replace(plain.memory(), activations=plain.memory().activations + 1000)
