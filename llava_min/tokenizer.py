"""Text <-> ids: pieces of a prompt -> token ids, and ids -> whole characters while they stream.

in:  pieces (special tokens, text runs, visuals)
out: ids, VISUAL where a picture or clip goes

A special token comes only from a `Special` piece. Every added token is marked special when the
tokenizer is loaded, and special tokens in text are off. So "<|im_end|>" typed by a user stays ten
ordinary characters.
Read prompt.py first. Read next: segments.py.
Agrees with: the tokenizers library on the same files.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from .base.files import read_json
from .errors import CheckpointError, PromptError, shown
from .prompt import Piece, Special, Visual

VISUAL = -200  # the place of one picture or clip in a list of ids, as in the original code
REPLACEMENT = "\ufffd"  # how the library shows bytes that are not yet a character
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


class Tokenizer:
    """The checkpoint's tokenizer, in which text can never become a special token."""

    def __init__(self, description: Mapping[str, object]) -> None:
        added = description.get("added_tokens", [])
        if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
            raise unreadable("a list of added_tokens", added)
        for token in added:
            token["special"] = True
        try:
            self.inner = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Exception as error:
            if type(error) is not Exception:  # the library raises the bare base class
                raise
            raise unreadable("what the tokenizers library reads", str(error)) from None
        self.inner.encode_special_tokens = True
        self.special = {token["content"]: token["id"] for token in added}
        for token, number in self.special.items():
            if self.inner.token_to_id(token) != number:  # the library numbers them by itself
                found = self.inner.token_to_id(token)
                raise unreadable(f"the id {found} for the token {shown(token)}", number)

    def __len__(self) -> int:
        """One more than the largest id that has a meaning."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def check_rows(self, rows: int) -> None:
        """CheckpointError where there are more tokens than an embedding has rows."""
        if len(self) > rows:
            token = shown(self.inner.id_to_token(len(self) - 1))
            raise unreadable(f"ids below vocab_size {rows}", f"{len(self) - 1} for {token}")

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text run, never of a special token, whatever it spells."""
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise PromptError("cannot ask", "text", "valid UTF-8", "bytes that are none")
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a rendered prompt, with VISUAL for each picture or clip.

        Neighbouring texts are encoded together.
        """
        ids: list[int] = []
        run = ""
        for piece in [*pieces, None]:
            if isinstance(piece, str):
                run += piece
                continue
            if run:
                ids += self.encode_text(run)
                run = ""
            if isinstance(piece, Visual):
                ids.append(VISUAL)
            elif isinstance(piece, Special):
                ids.append(self.special_id(piece.token))
        return ids

    def special_id(self, token: str) -> int:
        if token not in self.special:
            raise CheckpointError(
                "cannot render the prompt",
                "tokenizer.json",
                f"the special token {token!r}",
                "none",
                "Does the template fit this checkpoint? See --template.",
            )
        return self.special[token]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.inner.decode(ids, skip_special_tokens=True)


def unreadable(expected: str, found: object) -> CheckpointError:
    return CheckpointError("cannot read the tokenizer", "tokenizer.json", expected, shown(found))


class CharacterStream:
    """Ids one by one -> text in whole characters; a character may need several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        # ids[start:shown] are out; decoding begins a little before what is new
        self.start = self.shown = 0

    def feed(self, token_id: int) -> str:
        """The text that this id completes, perhaps none."""
        self.ids.append(token_id)
        return self._new(final=False)

    def finish(self) -> str:
        """What is left at the end: at most one replacement character for an incomplete one."""
        return self._new(final=True)

    def _new(self, final: bool) -> str:
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        now = self.tokenizer.decode(self.ids[self.start :])
        if now.endswith(REPLACEMENT):
            if not final:
                return ""
            now = now.rstrip(REPLACEMENT) + REPLACEMENT
        self.start, self.shown = self.shown, len(self.ids)
        return now[len(before) :]


def split_specials(text: str, tokenizer: Tokenizer) -> list[Piece]:
    """A complete prompt (--raw) as pieces: Special for its special tokens, text for the rest."""
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or "(?!)"  # which never matches
    parts = re.split(f"({pattern})", text)
    return [Special(part) if part in tokenizer.special else part for part in parts if part]


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where it has none.

    It is read from tokenizer.json, or from vocab.json and merges.txt.
    """
    if (folder / "tokenizer.json").exists():
        return Tokenizer(read_json(folder / "tokenizer.json", "tokenizer"))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return Tokenizer(from_slow_files(folder))
    return None


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
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ids = added_ids(folder / "added_tokens.json")
    tokens = [
        {"id": ids[token], "content": token, "special": True, **flags}
        for token in sorted(ids, key=lambda token: ids[token])
    ]
    description = json.loads(inner.to_str()) | {"added_tokens": tokens}
    vocabulary = read_json(folder / "vocab.json", "vocabulary")
    description["model"] |= {"vocab": vocabulary, "merges": merges}
    return description


def added_ids(path: Path) -> dict[str, int]:
    """{token: id} of an added_tokens.json, none where there is no such file."""
    ids: dict[str, int] = {}
    for token, number in (read_json(path, "added tokens") if path.exists() else {}).items():
        if type(number) is not int:
            what, found = "cannot read the tokenizer", f"{shown(number)} for {shown(token)}"
            raise CheckpointError(what, path.name, "a whole number for each token", found)
        ids[token] = number
    return ids
