"""A published tokenizer, reduced to what some texts can use: the same ids for these, in a few KB.

A merge of byte-pair encoding acts inside one word, and what it makes is a part of that word. So
entries that are part of no word of the texts do nothing to them, and ids stay as they are.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer


def words_of(described: dict, texts: Iterable[str]) -> list[str]:
    """What the tokenizer makes of texts before any merge, in its own alphabet."""
    whole = Tokenizer.from_str(json.dumps(described))
    words: list[str] = []
    for text in texts:
        if whole.normalizer is not None:
            text = whole.normalizer.normalize_str(text)
        if whole.pre_tokenizer is None:
            words.append(text)
        else:
            words += [word for word, _ in whole.pre_tokenizer.pre_tokenize_str(text)]
    return words


def reduced(described: dict, texts: Iterable[str]) -> dict:
    """The contents of tokenizer.json without entries that no word of the texts can use."""
    words = set(words_of(described, texts))
    model = described["model"]
    pairs = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    used = lambda piece: any(piece in word for word in words)
    merges = [pair for pair in pairs if used("".join(pair))]
    single = lambda piece: piece.startswith("<") or (len(piece) == 1 and ord(piece) < 512)
    vocabulary = {
        piece: number for piece, number in model["vocab"].items() if single(piece) or used(piece)
    }
    # the library numbers added tokens on from the vocabulary's size, but for those that it holds
    vocabulary |= {added["content"]: added["id"] for added in described["added_tokens"]}
    return described | {"model": model | {"vocab": vocabulary, "merges": merges}}
