"""Text never becomes a special token; ids come out as whole characters."""

import json
import shutil
import unicodedata

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import SENTENCES

from llava_min import prompt, tokenizer
from llava_min.errors import CheckpointError, PromptError
from llava_min.families import templates, vocabulary
from llava_min.prompt import Special, Visual

TOKENIZER = vocabulary.read_tokenizer(small.TINY)
SPECIAL = list(TOKENIZER.special)
text = st.text(st.characters(codec="utf-8"), max_size=40)
spiked = st.lists(st.one_of(text, st.sampled_from(SPECIAL)), max_size=6).map("".join)


@pytest.mark.catalogue("TX-SPECIAL", "no text becomes a special token")
@settings(max_examples=300, deadline=None)
@given(spiked)
def test_no_text_becomes_a_special_token(words):
    ids = TOKENIZER.encode([Special("<|im_start|>"), words, Special("<|im_end|>")])
    special = set(TOKENIZER.special.values())
    assert [i for i in ids if i in special] == [
        TOKENIZER.special["<|im_start|>"],
        TOKENIZER.special["<|im_end|>"],
    ]


@settings(max_examples=200, deadline=None)
@given(spiked)
def test_text_survives_the_round_trip(words):
    ids = TOKENIZER.encode_text(words)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", words)


@pytest.mark.catalogue("TX-STREAM", "text streamed token by token is the text at once")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 506), max_size=40))
def test_streamed_text_is_the_text_at_once(ids):
    """Any ids, broken characters included: pieces joined equal the whole, up to broken bytes at the
    end.
    """
    stream = tokenizer.CharacterStream(TOKENIZER)
    pieces = [stream.feed(i) for i in ids]
    joined, whole = "".join(pieces) + stream.finish(), TOKENIZER.decode(ids)
    strip = tokenizer.REPLACEMENT
    assert joined.rstrip(strip) == whole.rstrip(strip)
    assert len(joined) - len(joined.rstrip(strip)) <= max(1, len(whole) - len(whole.rstrip(strip)))


@pytest.mark.parametrize("words", ["🎈 and 🎉", "é" * 5, "👩‍👩‍👧", *SENTENCES.values()])
def test_a_character_is_shown_when_it_is_whole(words):
    """No piece ever ends inside a character, cut wherever it may be."""
    stream = tokenizer.CharacterStream(TOKENIZER)
    pieces = [stream.feed(i) for i in TOKENIZER.encode_text(words)]
    assert all(tokenizer.REPLACEMENT not in piece for piece in pieces)
    whole = TOKENIZER.decode(TOKENIZER.encode_text(words))
    assert "".join(pieces) + stream.finish() == whole == unicodedata.normalize("NFC", words)
    cut = tokenizer.CharacterStream(TOKENIZER)
    shown = [cut.feed(i) for i in TOKENIZER.encode_text(words)[:-1]]
    assert ("".join(shown) + cut.finish()).count(tokenizer.REPLACEMENT) <= 1


def test_visuals_and_neighbouring_texts():
    """Two texts side by side are one run, as the reference tokenises them; a visual parts them."""
    together = TOKENIZER.encode(["assistant\n", "A star"])
    assert together == TOKENIZER.encode_text("assistant\nA star")
    parted = TOKENIZER.encode(["A ", Visual("image", 0), " star"])
    assert parted == [
        *TOKENIZER.encode_text("A "),
        tokenizer.VISUAL,
        *TOKENIZER.encode_text(" star"),
    ]


def test_raw_prompts_are_split_at_special_tokens():
    pieces = tokenizer.split_specials("<|im_start|>user hi<|im_end|><|im_startx|>", TOKENIZER)
    assert pieces == [Special("<|im_start|>"), "user hi", Special("<|im_end|>"), "<|im_startx|>"]


def test_built_from_vocab_and_merges(tmp_path):
    """A folder without tokenizer.json: the same ids from vocab.json, merges.txt and
    added_tokens.json.
    """
    whole = json.loads((small.TINY / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [
        " ".join(pair) if isinstance(pair, list) else pair for pair in whole["model"]["merges"]
    ]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    added = {token["content"]: token["id"] for token in whole["added_tokens"]}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    built = vocabulary.read_tokenizer(tmp_path)
    for words in ("What color is the star?", "naïve ☕ 42\n\n x", "it's <|im_end|>"):
        pieces = [Special("<|im_start|>"), words, Special("<|im_end|>")]
        assert built.encode(pieces) == TOKENIZER.encode(pieces)
    assert vocabulary.read_tokenizer(tmp_path / "nothing") is None


def test_a_broken_tokenizer_is_refused(tmp_path):
    shutil.copy(small.TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    for text in (
        '{"model": {"type": "Nonsense"}}',
        '{"added_tokens": {}}',
        '{"added_tokens": [1]}',
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match="tokenizer.json"):
            vocabulary.read_tokenizer(tmp_path)
    lacking = tokenizer.Tokenizer(json.loads((small.TINY / "tokenizer.json").read_text()))
    del lacking.special["<|im_end|>"]
    with pytest.raises(CheckpointError, match=r"<\|im_end\|>"):
        lacking.encode(templates.onevision([prompt.Turn("user", (("hi",),))]))


def test_only_halves_of_characters_are_no_text():
    """Not line ends and other signs that are not printed."""
    for text in ("", "a\n\tb\0", "\u200b", "\ud7ff", "\ue000", "\U0001f600"):
        assert tokenizer.valid(text) == text
    for text in ("\ud800", "a\udfff", "\udabc\n"):
        with pytest.raises(PromptError, match="valid UTF-8"):
            tokenizer.valid(text)


def test_a_text_alone_gets_nothing_around_it():
    """Of a tokenizer that puts a token in front of each text, which a prompt does get."""
    description = json.loads((small.TINY / "tokenizer.json").read_text())
    begin, first = "<|im_start|>", TOKENIZER.special["<|im_start|>"]
    template = [
        {"SpecialToken": {"id": begin, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template,
        "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {begin: {"id": begin, "ids": [first], "tokens": [begin]}},
    }
    read = tokenizer.Tokenizer(description)
    assert read.first == first and TOKENIZER.first is None
    words = TOKENIZER.encode_text("A star")
    assert read.encode_text("A star") == words and read.encode_text("") == []
    assert read.encode(["A star"]) == [first, *words]
    assert read.encode([Special(begin), "A star"]) == [first, *words]
