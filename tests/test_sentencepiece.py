"""tokenizer.model, read by us, next to the sentencepiece package and the original code's prompts.

The models are trained here, in the way of LLaMA's: byte-pair encoding with a piece for each byte.
"""

import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import SENTENCES
from test_originals import Original

import llava_min
from llava_min.errors import CheckpointError
from llava_min.families import sentencepiece, templates, vocabulary
from llava_min.options import Options
from llava_min.prompt import Special, Turn, Visual
from llava_min.tokenizer import VISUAL
from llava_min.weights import hub

spm = pytest.importorskip("sentencepiece")
SPOKEN = [
    "USER: What is in the picture? ASSISTANT: A red star at the top left.",
    "A chat between a curious human and an artificial intelligence assistant.",
    "aaaa bbb   ccc [INST] and [/INST] 2,340 rows",
    "naïve café",
]


def trained(**changes) -> bytes:
    """A model of at most 420 pieces: 3 of use to the model, 256 bytes, characters and words."""
    written = io.BytesIO()
    how = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **changes,
    }
    spm.SentencePieceTrainer.train(sentence_iterator=iter(5 * SPOKEN), model_writer=written, **how)
    return written.getvalue()


MODEL = trained()
PLAIN = MODEL + bytes([26, 2, 24, 0])  # the same without a mark before the first word
SYMBOLS = trained(user_defined_symbols=["<box>"])


def theirs(data: bytes) -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_proto=data)


def folder_with(folder, data: bytes = MODEL, **settings):
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary.read_tokenizer(folder)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """{legacy or not: our tokenizer}."""
    return {
        legacy: folder_with(tmp_path_factory.mktemp("tokenizer"), legacy=legacy)
        for legacy in (True, False)
    }


some = st.sampled_from(
    [
        *SENTENCES.values(),
        *SPOKEN,
        " ",
        "  ",
        "\n",
        "\t",
        "▁",
        "aaaaa",
        "é☕",
        "<s>",
        "</s>",
        "<0x0A>",
    ]
)
texts = st.lists(st.one_of(some, st.text("ab \n▁é🎈s<>/", max_size=6)), max_size=5).map("".join)


@pytest.mark.parametrize("data", [MODEL, PLAIN, SYMBOLS], ids=["mark", "no mark", "symbols"])
@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_a_text_has_the_ids_of_the_package(tmp_path_factory, data, legacy, text):
    ours = folder_with(tmp_path_factory.mktemp("t"), data, legacy=legacy)
    ids = theirs(data).encode(text)
    assert ours.encode_text(text) == ids
    assert ours.decode(ids) == theirs(data).decode(ids)


@pytest.mark.parametrize("legacy", [True, False])
def test_29_languages(read, legacy):
    for sentence in SENTENCES.values():
        assert read[legacy].encode_text(sentence) == theirs(MODEL).encode(sentence)


def test_no_text_becomes_a_piece_of_use_to_the_model(tmp_path):
    """Whatever it spells: "he" is a control symbol here, of two letters that are pieces."""
    data = trained(control_symbols=["he"])
    ours = folder_with(tmp_path, data)
    assert theirs(data).piece_to_id("he") in ours.special.values()
    for text in ("he", "the picture of the cafe", "<s>he</s>"):
        assert ours.encode_text(text) == theirs(data).encode(text)


# The original code's prompts -----------------------------------------------------


def section_ids(section: str, legacy: bool, first: bool) -> list[int]:
    """A run of text between special tokens, by LlamaTokenizer's older way or its newer one.

    In the newer way only the first of a text begins with a mark.
    """
    if legacy or not section:
        return theirs(MODEL).encode(section)
    return theirs(PLAIN).encode("▁" + section if first else section)


def original_ids(pieces: list, legacy: bool) -> list[int]:
    """As tokenizer_image_token: what is between pictures is a text by itself, <s> begins the first.

    pieces: ours, after that <s>.
    """
    ids, first = [1], True
    text = ""
    for piece in [*pieces, None]:
        if isinstance(piece, str):
            text += piece
            continue
        ids += section_ids(text, legacy, first)
        first = first and not text
        text = ""
        if isinstance(piece, Visual):
            ids.append(VISUAL)
            first = True
        elif piece is not None:
            ids.append({"<s>": 1, "</s>": 2}[piece.token])
            first = False
    return ids


words = st.sampled_from(
    ["What is it?", " leading", "trailing ", "\nline", "", "a</s>b", "☕", "  "]
)
turns_of = st.lists(st.tuples(st.integers(0, 2), words), min_size=1, max_size=5)


@pytest.mark.parametrize("name", ["vicuna_v1", "mistral_instruct"])
@pytest.mark.parametrize("legacy", [True, False])
@settings(max_examples=100, deadline=None)
@given(said=turns_of)
def test_a_prompt_has_the_ids_of_the_original_code(read, name, legacy, said):
    turns, index = [], 0
    for number, (pictures, text) in enumerate(said):
        role = "assistant" if number % 2 else "user"
        visuals = [Visual("image", index + i) for i in range(0 if number % 2 else pictures)]
        index += len(visuals)
        turns.append(Turn(role, (*visuals, (text,))))
    pieces = list(templates.TEMPLATES[name](turns))
    assert read[legacy].encode(pieces) == original_ids(pieces[1:], legacy)


def test_the_known_ids_of_a_picture_in_a_prompt(read):
    """A mark, then the line break, after each picture: 28705 and 13 in the real vocabulary."""
    ids = theirs(MODEL)
    for legacy in (True, False):
        found = read[legacy].encode(["USER: ", Visual("image", 0), "\nWhat"])
        assert found[:1] == [1] and found[found.index(VISUAL) + 1] == ids.piece_to_id("▁")
        assert found[found.index(VISUAL) + 2] == ids.piece_to_id("<0x0A>")


@pytest.mark.parametrize("legacy", [True, False])
def test_an_empty_text_is_none(read, legacy):
    place, ours = Visual("image", 0), read[legacy]
    assert ours.encode(["", "a"]) == ours.encode(["a"])
    assert ours.encode([place, "", "a", ""]) == ours.encode([place, "a"])
    assert ours.encode([""]) == [1] and ours.encode([place, ""]) == [1, VISUAL]


def test_a_checkpoint_with_tokenizer_model_answers(tmp_path):
    family = Original("original_1_6", tmp_path / "original")
    (tmp_path / "original" / "tokenizer.json").unlink()
    (tmp_path / "original" / "tokenizer.model").write_bytes(MODEL)
    model = llava_min.load(tmp_path / "original", dtype="float32")
    from small import picture

    prepared = model.prepare("What is it?", images=[picture(60, 60)])
    text = f"{templates.CURIOUS} USER: <image>\nWhat is it? ASSISTANT:"
    chunks = [theirs(MODEL).encode(chunk) for chunk in text.split("<image>")]
    assert prepared.ids == [1, *chunks[0], *chunks[1]]
    answer = model.generate("What is it?", images=[picture(60, 60)], max_tokens=3, ignore_eos=True)
    assert len(answer.token_ids) == 3 and family.ours.config == model.config


@pytest.mark.parametrize(
    "options", [{"choices": ("A red star", "naïve ☕")}, {"regex": "[a-c]{3}"}]
)
def test_an_answer_can_follow_a_rule(read, options):
    pytest.importorskip("llguidance")
    from test_grammar import follow, grammar_rules

    ours = read[False]
    rules = grammar_rules(Options.of(**options), ours, (2,))
    text = ours.decode(follow(rules, ours, (2,), 0))
    assert text in options.get("choices", ()) or re.fullmatch(options.get("regex", "$"), text)


# What else a folder says ---------------------------------------------------------


def test_what_is_special_and_what_begins(tmp_path):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 420, "<box2>": 421}))
    ours = folder_with(
        tmp_path, SYMBOLS, bos_token={"content": "</s>"}, eos_token="<|im_end|>", legacy=False
    )
    assert ours.special == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 420}
    assert ours.first == 2 and len(ours) == 422
    box = theirs(SYMBOLS).piece_to_id("<box>")
    assert ours.encode_text("<box>") == theirs(SYMBOLS).encode("<box>") and box in (
        ours.encode_text("<box>")
    )
    assert ours.encode(["a", Special("<|im_end|>")])[-1] == 420
    assert folder_with(tmp_path, SYMBOLS, add_bos_token=False).first is None
    assert folder_with(tmp_path, SYMBOLS, bos_token="none such").first is None
    for wrong in ({"add_eos_token": True}, {"legacy": "yes"}, {"add_bos_token": 1}):
        with pytest.raises(CheckpointError, match=next(iter(wrong))):
            folder_with(tmp_path, **wrong)


def test_it_is_downloaded():
    assert "tokenizer.model" in hub.DESCRIPTION and "tokenizer.model" in hub.EVERYTHING


def test_tokenizer_json_comes_first(tmp_path):
    from small import TINY

    (tmp_path / "tokenizer.json").write_text((TINY / "tokenizer.json").read_text())
    ours = folder_with(tmp_path)
    assert not ours.blank_after and "<|im_start|>" in ours.special


# Damage --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "unigram", "vocab_size": 320}, "byte-pair encoding"),
        ({"byte_fallback": False, "vocab_size": 120}, "a piece for each byte"),
        ({"normalization_rule_name": "nmt_nfkc"}, "text that stays as it is"),
        ({"remove_extra_whitespaces": True}, "text that stays as it is"),
    ],
    ids=str,
)
def test_a_model_of_another_kind_is_refused_by_name(tmp_path, changes, named):
    with pytest.raises(CheckpointError, match=f"tokenizer.model: expected {named}"):
        folder_with(tmp_path, trained(**changes))


def test_a_model_with_bare_blanks_is_refused_by_name(tmp_path):
    """escape_whitespaces, field 5 of the normalizer, field 3 of the model; the trainer refuses."""
    with pytest.raises(CheckpointError, match="expected text that stays as it is"):
        folder_with(tmp_path, MODEL + b"\x1a\x02\x28\x00")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(MODEL) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_model_is_one_error_or_a_model(tmp_path_factory, place, byte, cut):
    """Cut short or changed anywhere: never another exception."""
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    path.write_bytes(MODEL[:place] if cut else MODEL[:place] + bytes([byte]) + MODEL[place + 1 :])
    try:
        vocabulary.read_tokenizer(path.parent)
    except CheckpointError as error:
        assert re.match("cannot read the tokenizer: tokenizer.(model|json)", str(error))


@pytest.mark.parametrize(
    "data",
    [
        bytes([18, 2, 104]),  # two bytes are promised, and one is there
        bytes([9, 0, 0, 0, 0, 0, 0, 0]),  # seven of eight
        bytes([13, 0, 0, 0]),  # three of four
        bytes([11]),  # the beginning of a group, which no such file has
        bytes([8, *[255] * 10, 1]),  # a number of more than 64 bits
    ],
    ids=str,
)
def test_a_message_that_ends_too_early(data):
    with pytest.raises(ValueError, match="at byte"):
        list(sentencepiece.fields(data))


def test_what_a_model_must_say(tmp_path):
    piece = bytes([10, 3, 10, 1, 97])
    rest = bytes([18, 5, 24, 2, 152, 2, 1, 26, 2, 32, 0])
    path = tmp_path / "tokenizer.model"
    path.write_bytes(piece + rest)
    assert sentencepiece.read(path).pieces == (("a", 0.0, 1),)
    for data, named in (
        (piece + piece + rest, "each of them once"),
        (rest, "each of them once"),
        (piece, "byte-pair encoding"),  # what a missing field means, from here on
        (piece + bytes([18, 2, 24, 2]), "a piece for each byte"),
        (piece + bytes([18, 5, 24, 2, 152, 2, 1]), "text that stays as it is"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=named):
            sentencepiece.read(path)
