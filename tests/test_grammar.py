"""Answers in a form: every one is what its schema, choices or regular expression says."""

import json
import re
import sys

import asgi
import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer_agrees import described

import llava_min
from llava_min.command.main import main
from llava_min.engine.grammar import grammar_rules
from llava_min.engine.rules import BANNED, at_least, bias, penalties
from llava_min.errors import ParameterError
from llava_min.options import Options
from llava_min.tokenizer import Tokenizer

pytest.importorskip("llguidance")
jsonschema_rs = pytest.importorskip("jsonschema_rs")
TEXT = [{"role": "user", "content": "What is this?"}]
TEMPERATURES = st.sampled_from([0.0, 1.5])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model, which by itself would never write JSON."""
    return llava_min.load(small.small(tmp_path_factory.mktemp("model"), seed=3), dtype="float32")


NAMES = st.sampled_from(["a", "b", "color", "ünï", 'quo"ted', "with blank", "0"])
SCALARS = st.one_of(
    st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 5)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
            {"const": {"fixed": [1, "two"]}},
            {"type": ["boolean", "null"]},
        ]
    ),
    st.lists(
        st.integers(-9, 999) | st.text("abü\n\"'", max_size=4) | st.booleans() | st.none(),
        min_size=1,
        max_size=4,
        unique_by=repr,
    ).map(lambda values: {"enum": values}),
)


def objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    """Objects of a few properties, some of which may be left out."""

    def of(properties: dict, optional: set) -> dict:
        required = [name for name in properties if name not in optional]
        closed = {"additionalProperties": False}
        return {"type": "object", "properties": properties, "required": required, **closed}

    return st.builds(of, st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES, max_size=2))


def arrays(inner: st.SearchStrategy) -> st.SearchStrategy:
    def of(items: dict, least: int, more: int) -> dict:
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

    return st.builds(of, inner, st.integers(0, 2), st.integers(0, 1))


def either(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: objects(inner) | arrays(inner) | either(inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, TEMPERATURES, st.integers(0, 99))
def test_json_of_any_schema_parses_and_is_valid(model, schema, temperature, seed):
    given = {"temperature": temperature, "seed": seed, "max_tokens": 400}
    answer = model.generate(TEXT, json_schema=schema, **given)
    assert answer.finish_reason == "stop"
    jsonschema_rs.validate(schema, json.loads(answer.text))


WORDS = st.text("abcdef \n.|*+?()[]{}^$\\ü🎈", min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5), TEMPERATURES)
def test_a_choice_is_one_of_the_texts(model, choices, temperature):
    """Whatever characters they have that mean something in a regular expression."""
    answer = model.generate(TEXT, choices=choices, temperature=temperature, max_tokens=60)
    assert answer.text in choices and answer.finish_reason == "stop"


EXPRESSIONS = ["[0-9]{3}-[0-9]{2}", "(yes|no)( maybe){0,2}", "a|bb|ccc", "[^x]{4}", r"\w{1,5}\."]
EXPRESSIONS.append("ü+")  # which has no longest text


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_matches_the_whole_expression(model, expression, temperature):
    for seed in range(3):
        given = {"temperature": temperature, "seed": seed, "max_tokens": 30}
        answer = model.generate(TEXT, regex=expression, **given)
        if answer.finish_reason == "stop":
            assert re.fullmatch(expression, answer.text)
        else:
            assert expression == "ü+" and re.fullmatch("ü*", answer.text.rstrip("\ufffd"))


def test_forms_do_not_fit_each_answer_by_chance(model):
    """Without them the model writes something else: the tests above can fail."""
    plain = model.generate(TEXT, max_tokens=30).text
    assert not re.search("yes|no|^a$|[0-9]{3}", plain)
    with pytest.raises(ValueError):
        json.loads(plain)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_answer_that_is_cut_says_so(model, count):
    answer = model.generate(TEXT, regex="[0-9]{3}-[0-9]{9}", max_tokens=count)
    assert answer.finish_reason == "length" and len(answer.token_ids) == count
    assert re.fullmatch("[0-9]{0,3}-?[0-9]*", answer.text)


@pytest.mark.parametrize(
    "options",
    [
        {"regex": "("},
        {"regex": "a(?=b)"},
        {"regex": r"\ud800"},
        {"json_schema": {"type": "nothing"}},
        {"json_schema": {"$ref": "https://example.com/schema"}},
        {"json_schema": {"type": "string", "pattern": "("}},
        {"json_schema": {"type": "integer", "minimum": 5, "maximum": 1}},
        {"choices": ["\ud800"]},
    ],
    ids=str,
)
def test_a_form_that_cannot_be_followed_is_refused_by_name(model, options):
    (name,) = options
    with pytest.raises(ParameterError, match=f"^{name} cannot be followed: ") as caught:
        model.generate(TEXT, **options)
    assert str(caught.value).isprintable()


def test_without_the_package_a_form_is_refused_by_name(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for name, value in (("regex", "a"), ("choices", ["a"]), ("json_schema", {})):
        needs = rf"^{name} needs the package llguidance: pip install 'llava_min\[grammar\]'"
        with pytest.raises(ParameterError, match=needs):
            model.generate(TEXT, **{name: value})
    assert model.generate(TEXT, max_tokens=1).token_ids


# Rules together -------------------------------------------------------------------------


def follow(rules, tokenizer: Tokenizer, ends: tuple[int, ...], seed: int) -> list[int]:
    """Ids drawn from random logits under rules, until one that ends an answer."""
    generator, new = torch.Generator().manual_seed(seed), []
    while len(new) < 100:
        logits = 3 * torch.randn(len(tokenizer), generator=generator)
        for rule in rules:
            logits = rule(logits, new)
        new.append(int(logits.argmax()))
        if new[-1] in ends:
            return new[:-1]
    raise AssertionError(new)


SENTENCES = {"choices": ("What", "a", "ASSISTANT: ü"), "regex": r"(What|seg) ?[abcü]{1,3}\?"}


def sentence_piece() -> dict:
    """A tokenizer.json as LLaMA's is: words begin with a mark, other characters are bytes."""
    found = described("legacy", {}, begins=True)
    vocab = found["model"]["vocab"]
    count = len(vocab)
    vocab |= {f"<0x{byte:02X}>": count + byte for byte in range(256)}
    for token in found["added_tokens"]:
        token["id"] += 256 if token["id"] >= count else 0
    found["model"]["byte_fallback"] = True
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    parts = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    found["decoder"] = {"type": "Sequence", "decoders": parts}
    return found


@pytest.mark.parametrize("form", ["byte level", "sentence piece"])
@pytest.mark.parametrize("name", SENTENCES)
def test_tokenizers_of_bytes_and_of_words(form, name):
    """SentencePiece's, whose words begin with a mark, as well as those of bytes."""
    pieces = form == "sentence piece"
    tokenizer = Tokenizer(sentence_piece() if pieces else described(form, {}, begins=False))
    end = tokenizer.special["</s>"]
    for seed in range(10):
        options = Options.of(**{name: SENTENCES[name]})
        rules = grammar_rules(options, tokenizer, (end,))
        text = tokenizer.decode(follow(rules, tokenizer, (end,), seed))
        if name == "choices":
            assert text in SENTENCES[name]
        else:
            assert re.fullmatch(SENTENCES[name], text)


def test_a_tokenizer_that_cannot_be_followed_is_refused_by_name():
    tokenizer = Tokenizer(described("first", {}, begins=False))
    with pytest.raises(ParameterError, match="^regex cannot be used with this tokenizer: "):
        grammar_rules(Options.of(regex="a"), tokenizer, (2,))


@settings(max_examples=30, deadline=None)
@given(SCHEMAS, st.integers(0, 999), st.floats(-2, 2), st.floats(-2, 2))
def test_other_rules_do_not_lead_out_of_the_form(model, schema, seed, frequency, presence):
    """Penalties and biases choose among what may come; an answer is valid all the same."""
    tokenizer, ends = model.tokenizer, model.config.text.eos_ids
    form = grammar_rules(Options.of(json_schema=schema), tokenizer, ends)
    rules = [penalties(frequency, presence), bias({seed % 500: 100.0}), *form]
    ids = follow(rules, tokenizer, ends, seed)
    jsonschema_rs.validate(schema, json.loads(tokenizer.decode(ids)))


def test_a_least_length_beyond_the_form_is_an_error(model):
    """No token may come: neither an end nor anything else."""
    ends = model.config.text.eos_ids
    rules = [at_least(9, ends), *grammar_rules(Options.of(choices=["a"]), model.tokenizer, ends)]
    with pytest.raises(ParameterError, match="^choices cannot be followed"):
        follow(rules, model.tokenizer, ends, 0)
    assert BANNED < -1e6  # far below any logit
    with asgi.local(model, rows=1, capacity=200) as served:
        got = served.chat(guided_choice=["a"], min_tokens=9)
        assert got.status == 400 and "cannot be followed" in got.error["message"]
        assert served.text(guided_choice=["a"]) == "a"


# The command ---------------------------------------------------------------------------


COLOR = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}}
COLOR |= {"required": ["color"], "additionalProperties": False}


def test_the_command_answers_in_a_form(capsys, tmp_path):
    (tmp_path / "color.json").write_text(json.dumps(COLOR))
    for flag, value, expected in (
        ("--json-schema", json.dumps(COLOR), r'\{"color":"(red|blue)"\}'),
        ("--json-schema", f"@{tmp_path}/color.json", r'\{"color":"(red|blue)"\}'),
        ("--choices", "crimson|teal", "crimson|teal"),
        ("--regex", "[A-Z]{3}[0-9]", "[A-Z]{3}[0-9]"),
    ):
        code = main(["What color is the star?", flag, value, "-q"])
        assert code == 0 and re.fullmatch(expected, capsys.readouterr().out.strip())
    for words in (
        ["--json-schema", "no JSON"],
        ["--json-schema", f"@{tmp_path}/none.json"],
        ["--choices", "a||b"],
        ["--regex", "("],
        ["--regex", "a", "--choices", "a|b"],
        ["--regex", "a", "--ignore-eos"],
    ):
        assert main(["What?", *words]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words[0].strip("-").replace("-", "_") in error.replace("-", "_")
