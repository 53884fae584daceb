"""The tokenizer of a checkpoint folder, from whichever of its files describes it.

in:  a folder
out: Tokenizer, or None where no file describes one

tokenizer.json comes first; then vocab.json with merges.txt, of Qwen2; then tokenizer.model, of
LLaMA and Mistral. As in transformers, tokenizer_config.json may describe further added tokens, or
tell which are special.
Read tokenizer.py, families/sentencepiece.py first.
Agrees with: the tokenizers of transformers on the same files.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ..base.files import read_json, regular
from ..errors import CheckpointError, shown
from ..prompt import Beginning, Piece, Special, Visual
from ..tokenizer import Added, Tokenizer, added_tokens
from . import sentencepiece
from .fields import Fields

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it has none."""
    blank_after: tuple[type[Piece], ...] = ()
    if (folder / "tokenizer.json").exists():
        description = read_json(folder / "tokenizer.json", "tokenizer")
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        description = from_slow_files(folder)
    elif regular(folder / "tokenizer.model"):
        description, blank_after = from_sentencepiece(folder)
    else:
        return None
    added = [asdict(token) for token in described(description, folder)]
    return Tokenizer({**description, "added_tokens": added}, blank_after)


def from_slow_files(folder: Path) -> dict[str, object]:
    """Qwen2's byte-level BPE described from vocab.json, merges.txt and added_tokens.json."""
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    inner = tokenizers.Tokenizer(BPE())
    inner.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_SPLIT), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    inner.decoder = decoders.ByteLevel()
    description = json.loads(inner.to_str()) | {"added_tokens": listed_tokens(folder)}
    vocabulary = read_json(folder / "vocab.json", "vocabulary")
    description["model"] |= {"vocab": vocabulary, "merges": merges}
    return description


def from_sentencepiece(folder: Path) -> tuple[dict[str, object], tuple[type[Piece], ...]]:
    """(LLaMA's BPE over characters and bytes, the pieces after which a text begins with a blank).

    The original code took what is between two pictures for a text by itself, and a text begins
    with a blank. In the older way of LlamaTokenizer ("legacy", and so without that key) so does
    what follows a special token.
    """
    model = sentencepiece.read(folder / "tokenizer.model")
    path = folder / "tokenizer_config.json"
    settings = read_json(path, "tokenizer") if regular(path) else {}
    given = Fields(settings, path.name)
    legacy = given.get("legacy", bool, None) is not False
    begun = given.get("add_bos_token", bool, None) is not False
    given.get("add_eos_token", bool, None, choices=(None, False))
    inner = tokenizers.Tokenizer(BPE(unk_token=model.unknown, fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", 1, 0)] if model.prefix else []
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    inner.decoder = decoders.Sequence(parts)
    first = begins_with(folder)
    if begun and first in model.ids:
        begin = [(first, model.ids[first])]
        inner.post_processor = processors.TemplateProcessing(f"{first} $A", None, begin)
    description = json.loads(inner.to_str())
    description["model"] |= {"vocab": model.ids, "merges": model.merges()}
    own = [
        {"id": number, "content": piece, "special": special}
        for piece, number, special in model.added()
    ]
    description["added_tokens"] = [*own, *listed_tokens(folder)]
    if not model.prefix:
        return description, ()
    return description, (Special if legacy else Beginning, Visual)


def begins_with(folder: Path) -> str:
    """The token that a folder's files name as the beginning of a text; <s> where none does."""
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        found = read_json(path, "tokenizer").get("bos_token") if regular(path) else None
        found = found.get("content") if isinstance(found, dict) else found
        if isinstance(found, str):
            return found
    return "<s>"


def listed_tokens(folder: Path) -> list[dict[str, object]]:
    """The tokens of added_tokens.json; special are those that another file names or lists so."""
    named = named_special(folder, lists=True)
    return [
        {"id": number, "content": token, "special": token in named}
        for token, number in added_ids(folder / "added_tokens.json").items()
    ]


def added_ids(path: Path) -> dict[str, int]:
    """{token: id} of an added_tokens.json, none where there is no such file."""
    ids: dict[str, int] = {}
    for token, number in (read_json(path, "added tokens") if path.exists() else {}).items():
        if type(number) is not int:
            what, found = "cannot read the tokenizer", f"{shown(number)} for {shown(token)}"
            raise CheckpointError(what, path.name, "a whole number for each token", found)
        ids[token] = number
    return ids


def described(description: Mapping[str, object], folder: Path) -> list[Added]:
    """The added tokens of a description, with what the folder's other files tell of them.

    added_tokens_decoder of tokenizer_config.json adds tokens, and its flags count. A token that
    a file names by its use (eos_token and the like) is special.
    """
    tokens = {token.content: token for token in added_tokens(description)}
    for token in from_decoder(folder / "tokenizer_config.json"):
        known = tokens.get(token.content, token)
        special = token.special or known.special
        tokens[token.content] = replace(token, id=known.id, special=special)
    for name in named_special(folder) & tokens.keys():
        tokens[name] = replace(tokens[name], special=True)
    return sorted(tokens.values(), key=lambda token: token.id)


def from_decoder(path: Path) -> list[Added]:
    """The tokens of the added_tokens_decoder, {id: token}, in a tokenizer_config.json."""
    found = read_json(path, "tokenizer").get("added_tokens_decoder") if regular(path) else None
    found = {} if found is None else found
    if not isinstance(found, dict) or not all(map(str.isdecimal, found)):
        what, expected = "cannot read the tokenizer", "added_tokens_decoder as {id: token}"
        raise CheckpointError(what, path.name, expected, shown(found))
    return [Added.of(token, int(number), path.name) for number, token in found.items()]


def named_special(folder: Path, lists: bool = False) -> set[str]:
    """The tokens that a folder's files name by their use; with `lists`, also those only listed."""
    keys = ("additional_special_tokens", "extra_special_tokens") if lists else ()
    values: list[object] = []
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        for key, value in (read_json(path, "tokenizer") if regular(path) else {}).items():
            if key.endswith("_token"):
                values.append(value)
            elif key in keys and isinstance(value, list):
                values += value
    contents = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {content for content in contents if isinstance(content, str)}
