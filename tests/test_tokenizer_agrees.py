"""The ids of whole prompts, next to transformers on the same tokenizer.json, of every form."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Inner

from llava_min import tokenizer
from llava_min.errors import CheckpointError
from llava_min.families import templates, vocabulary
from llava_min.generate import StopTexts
from llava_min.prompt import Beginning, Special, Turn, Visual
from llava_min.request.prepare import raw_pieces

transformers = pytest.importorskip("transformers")
SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
ORDINARY = ("<loc_12>", "[SEG]", "seg")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
WORDS = ("USER", "What", "ASSISTANT", "seg")


def in_bytes(prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(vocabulary.QWEN2_SPLIT), "isolated")
    mapped = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    return pre_tokenizers.Sequence([split, mapped])


def metaspace(scheme: str, split: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
FORMS = {
    # name: (normalizer, pre-tokenizer), of a BPE over bytes or over characters
    "byte level": (normalizers.NFC(), in_bytes()),
    "byte level, lower case": (normalizers.Lowercase(), in_bytes()),
    "byte level, prefix": (None, in_bytes(prefix=True)),
    "first": (None, metaspace("first")),
    "always": (None, metaspace("always")),
    "never": (None, metaspace("never")),
    "first, split": (None, metaspace("first", split=True)),
    "legacy": (PREPEND, None),
}


def described(form: str, flags: dict[str, dict[str, bool]], begins: bool) -> dict:
    """A tokenizer.json of a form; flags: those of its added tokens that are not all false.

    begins: whether it puts <s> before each text by itself.
    """
    normalizer, pre_tokenizer = FORMS[form]
    if form.startswith("byte level"):
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        inner = Inner(models.BPE(vocab=vocab, merges=[]))
        inner.decoder = decoders.ByteLevel()
    else:
        merges, vocab = [], {"<unk>": 0, "<s>": 1, "</s>": 2}
        for character in "▁ \n:?.<>|_[]{}" + "".join(sorted(set("".join(WORDS) + "abc"))):
            vocab[character] = len(vocab)
        for word in WORDS:
            for end in range(1, len(word)):
                merges.append((word[:end], word[end]))
                vocab.setdefault(word[: end + 1], len(vocab))
        for word in (*WORDS, "a"):
            merges.append(("▁", word))
            vocab["▁" + word] = len(vocab)
        inner = Inner(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    if pre_tokenizer is not None:
        inner.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_special_tokens(list(SPECIALS))
    inner.add_tokens(list(ORDINARY))
    if begins:
        number = inner.token_to_id("<s>")
        inner.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", number)])
    description = json.loads(inner.to_str())
    for token in description["added_tokens"]:
        token |= {"normalized": False, **flags.get(token["content"], {})}
    return description


class Reference:
    """transformers on a tokenizer.json."""

    def __init__(self, description: dict, folder) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(description))
        self.inner = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        self.places = [self.inner.convert_tokens_to_ids(name) for name in ("<image>", "<video>")]

    def ids(self, text: str, begin: bool) -> list[int]:
        """Ids of a text with special tokens in it, -200 for a visual."""
        ids = self.inner.encode(text, add_special_tokens=begin)
        return [tokenizer.VISUAL if number in self.places else number for number in ids]


def written(pieces) -> str:
    shown = []
    for piece in pieces:
        if isinstance(piece, Visual):
            shown.append(f"<{piece.kind}>")
        else:
            shown.append(piece.token if isinstance(piece, Special) else piece)
    return "".join(shown)


flags_of_tokens = st.fixed_dictionaries(
    {name: st.fixed_dictionaries(dict.fromkeys(FLAGS, st.booleans())) for name in ORDINARY}
    | {
        name: st.fixed_dictionaries(
            dict.fromkeys(("lstrip", "rstrip", "normalized"), st.booleans())
        )
        for name in SPECIALS[1:]
    }
)
run = st.lists(
    st.sampled_from([" ", "\n", "  ", "a", "What", "?", "é", *ORDINARY, "Seg", "x <"]), max_size=6
).map("".join)
special = st.sampled_from([Special("<s>"), Special("<|im_start|>"), Special("<|im_end|>")])
visual = st.sampled_from([Visual("image", 0), Visual("video", 0)])
prompts = st.lists(st.one_of(run, run, special, visual), max_size=8)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(flags=flags_of_tokens, pieces=prompts, begins=st.booleans())
def test_ids_of_pieces_are_those_of_the_whole_text(tmp_path, form, flags, pieces, begins):
    """Whatever stands next to a visual or special token, whatever it swallows, and after <s>."""
    description = described(form, flags, begins)
    ours, reference = tokenizer.Tokenizer(description), Reference(description, tmp_path)
    expected = reference.ids(written(pieces), begin=pieces[:1] != [Special("<s>")])
    special = set(ours.special.values()) - {ours.special["<unk>"]} | {tokenizer.VISUAL}
    wanted = sum(not isinstance(piece, str) for piece in pieces)
    found = sum(number in special for number in expected)
    begun = begins and pieces[:1] != [Special("<s>")]
    if found == wanted + begun:
        assert ours.encode(pieces) == expected
    else:  # the reference lost a token next to others: here it is one always
        assert sum(number in special for number in ours.encode(pieces)) == wanted + begun


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(flags=flags_of_tokens, words=st.lists(st.sampled_from([*SPECIALS, "a", " ", "[SEG]"])))
def test_no_text_becomes_a_special_token_in_any_form(tmp_path, form, flags, words):
    ours = tokenizer.Tokenizer(described(form, flags, begins=False))
    special = set(ours.special.values()) - {ours.special["<unk>"]} | {tokenizer.VISUAL}
    text = "".join(words)
    ids = ours.encode([Special("<|im_start|>"), text, Visual("image", 0)])
    marks = [ours.special["<|im_start|>"], tokenizer.VISUAL]
    assert [number for number in ids if number in special] == marks
    assert not special & set(ours.encode_text(text))


@pytest.mark.parametrize("form", FORMS)
def test_the_tokenizer_begins_a_prompt_itself_or_the_template_does(tmp_path, form):
    """Vicuna's prompt: what transformers' processor makes of it, and <s> in any case."""
    turn = Turn("user", (Visual("image", 0), ("What?",)))
    text = "USER: <image>\nWhat? ASSISTANT:"
    for begins in (True, False):
        description = described(form, {}, begins)
        ours, reference = tokenizer.Tokenizer(description), Reference(description, tmp_path)
        expected = reference.ids(text if begins else "<s>" + text, begin=begins)
        assert ours.encode(templates.vicuna([turn])) == expected
        assert expected[0] == ours.special["<s>"] and expected.count(expected[0]) == 1
        raw = tokenizer.split_specials("<s>USER: What?", ours)
        assert ours.encode(raw) == reference.ids("<s>USER: What?", begin=False)
        assert ours.encode(["USER: What?"]) == reference.ids("USER: What?", begin=True)
        assert ours.encode([Beginning("<s>"), "USER"])[0] == expected[0]
        for complete in (text, "<s>" + text, "USER: <image> What?  ASSISTANT:"):  # each blank
            ids = reference.ids(complete, begin=not complete.startswith("<s>"))
            assert ours.encode(raw_pieces(complete, ours)) == ids


def test_next_video_s_published_ids(tmp_path):
    """No prefix after a picture: transformers publishes such ids for LLaVA-NeXT-Video-7B-hf."""
    ours = tokenizer.Tokenizer(described("first", {}, begins=True))
    ids = ours.encode(templates.vicuna([Turn("user", (Visual("image", 0), ("What",)))]))
    tokens = [None if i == tokenizer.VISUAL else ours.inner.id_to_token(i) for i in ids]
    assert tokens == ["<s>", "▁USER", ":", "▁", None, "\n", "What", "▁ASSISTANT", ":"]


TRUNCATION = [
    {"max_length": 4, "stride": 0, "strategy": strategy, "direction": direction}
    for strategy in ("LongestFirst", "OnlyFirst", "OnlySecond")
    for direction in ("Left", "Right")
]
PADDING = [
    {"strategy": strategy, "direction": direction, "pad_to_multiple_of": multiple}
    | {"pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"}
    for strategy in ("BatchLongest", {"Fixed": 32})
    for direction in ("Left", "Right")
    for multiple in (None, 8)
]


@pytest.mark.parametrize(
    "truncation, padding",
    [*itertools.product(TRUNCATION, [None]), *itertools.product([None, TRUNCATION[0]], PADDING)],
    ids=str,
)
def test_what_a_training_run_stored_is_off(tmp_path, truncation, padding):
    description = described("byte level", {}, begins=False)
    stored = {**description, "truncation": truncation, "padding": padding}
    ours, plain = tokenizer.Tokenizer(stored), tokenizer.Tokenizer(description)
    for pieces in (["What is it?"], ["What", Visual("image", 0), " is it there?"], [""]):
        assert (
            ours.encode(pieces)
            == plain.encode(pieces)
            == Reference(stored, tmp_path).ids(written(pieces), begin=True)
        )
    assert ours.encode_text("one two three four") == plain.encode_text("one two three four")


def test_a_stored_dropout_is_off():
    """It would leave out merges at random."""
    description = described("always", {}, begins=False)
    expected = tokenizer.Tokenizer(description).encode_text("What USER")
    description["model"]["dropout"] = 0.9
    ours = tokenizer.Tokenizer(description)
    assert all(ours.encode_text("What USER") == expected for _ in range(20))


@pytest.mark.parametrize("form", FORMS)
def test_ordinary_added_tokens_are_words(tmp_path, form):
    """One id in, text out, known to --stop; special ones are left out of answers."""
    description = described(form, {}, begins=False)
    ours, reference = tokenizer.Tokenizer(description), Reference(description, tmp_path)
    number = reference.inner.convert_tokens_to_ids("<loc_12>")
    assert ours.encode_text("What <loc_12>?").count(number) == 1
    ids = [*ours.encode_text("a"), number, ours.special["</s>"], *ours.encode_text("What")]
    assert ours.decode(ids) == reference.inner.decode(ids, skip_special_tokens=True)
    assert "<loc_12>" in ours.decode(ids) and "</s>" not in ours.decode(ids)
    assert "</s>" in ours.decode(ids, special=True)
    assert ours.decode([len(ours), len(ours) + 40], special=True) == ""  # rows without a meaning
    assert ours.decode([len(ours), len(ours) + 40], special=True) == ""  # rows without a meaning
    assert ours.decode([len(ours), len(ours) + 40], special=True) == ""  # rows without a meaning
    stream, stop = tokenizer.CharacterStream(ours), StopTexts(("<loc_12>",))
    for each in ids:
        stop.feed(stream.feed(each))
    assert stop.found


# The other files of a folder ---------------------------------------------------


def decoder_of(description: dict) -> dict:
    """added_tokens_decoder of a tokenizer_config.json."""
    keys = ("content", "special", *FLAGS)
    return {
        str(token["id"]): {key: token[key] for key in keys} for token in description["added_tokens"]
    }


def slow_files(folder, description: dict) -> None:
    (folder / "vocab.json").write_text(json.dumps(description["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")


@pytest.mark.parametrize("listed", [(), ("<|im_end|>",), SPECIALS], ids=str)
def test_added_tokens_of_tokenizer_config(tmp_path, listed):
    """vocab.json and merges.txt, and added_tokens.json that knows none, few or more of them."""
    description = described("byte level", {"[SEG]": {"rstrip": True}}, begins=False)
    slow_files(tmp_path, description)
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder_of(description)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    if listed:
        (tmp_path / "added_tokens.json").write_text(
            json.dumps({name: ids[name] for name in listed})
        )
    ours = vocabulary.read_tokenizer(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    pieces = [Special("<|im_start|>"), "Where [SEG]  is <loc_12>?", Special("<|im_end|>")]
    assert ours.encode(pieces) == reference.encode(written(pieces))
    assert ours.special.keys() == set(SPECIALS)
    assert not set(ours.special.values()) & set(ours.encode_text("<unk> <|im_end|>"))


def test_added_tokens_decoder_next_to_tokenizer_json(tmp_path):
    """It adds a token and changes flags, as in transformers; another id is refused."""
    description = described("byte level", {}, begins=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    found, size = decoder_of(description), 256 + len(description["added_tokens"])
    seg = next(each for each in found.values() if each["content"] == "[SEG]")
    seg["rstrip"] = True
    found[str(size)] = {**seg, "content": "[NEW]"}
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"added_tokens_decoder": found}))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a [SEG]  is [NEW]  <loc_12> <image_>"
    ids = vocabulary.read_tokenizer(tmp_path).encode_text(text)
    assert ids == reference.encode(text) and size in ids
    found[str(size + 1)] = found.pop(str(size))
    config.write_text(json.dumps({"added_tokens_decoder": found}))
    with pytest.raises(CheckpointError, match=rf"the id {size} for the token '\[NEW\]'"):
        vocabulary.read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["eos_token", "pad_token", "additional_special_tokens"])
def test_tokens_that_a_file_names_are_special(tmp_path, name, key):
    """Named by its use it is special, whatever its flags say; only listed it is as they say."""
    description = described("byte level", {}, begins=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    named = "[SEG]" if key.endswith("_token") else ["[SEG]"]
    (tmp_path / name).write_text(json.dumps({key: named, "add_bos_token": False}))
    ours = vocabulary.read_tokenizer(tmp_path)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = [0, reference.convert_tokens_to_ids("[SEG]"), 1]
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert ("[SEG]" in ours.special) == key.endswith("_token")


@pytest.mark.parametrize("listed", [(), ("[SEG]",)], ids=str)
def test_added_tokens_json_alone(tmp_path, listed):
    """Its tokens are ordinary but those that a file names or lists, and the templates' own."""
    description = described("byte level", {}, begins=False)
    slow_files(tmp_path, description)
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    named = {"eos_token": "</s>", "unk_token": {"content": "<unk>"}}
    named["additional_special_tokens"] = list(listed)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    assert vocabulary.read_tokenizer(tmp_path).special.keys() == {*SPECIALS, *listed}


@pytest.mark.parametrize(
    "value", ["[]", '{"x": {}}', '{"256": {"content": 1}}', '{"256": "<unk>"}']
)
def test_added_tokens_that_cannot_be_read(tmp_path, value):
    slow_files(tmp_path, described("byte level", {}, begins=False))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {value}}}')
    with pytest.raises(CheckpointError, match="tokenizer_config.json"):
        vocabulary.read_tokenizer(tmp_path)
