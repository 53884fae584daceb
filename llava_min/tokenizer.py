"""Text <-> ids: pieces of a prompt -> token ids, and ids -> whole characters while they stream.

in:  pieces (special tokens, text runs, visuals)
out: ids, VISUAL where a picture or clip goes

A prompt is encoded as one text, so the borders of its pieces are those that the tokenizer's own
rules see: where a blank is swallowed, and which word is the first. A special token comes only from
a `Special` piece: it enters that text under a second name, its twin, which no other text can spell,
and special tokens under their own names are off. So "<|im_end|>" typed by a user stays ten ordinary
characters. Which tokens are special, the checkpoint's files say; ordinary added tokens, such as
"<loc_12>", are words like any other.
families/vocabulary.py reads it from the files of a folder.
Read prompt.py first. Read next: segments.py.
Agrees with: transformers and the tokenizers library on the same files.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import tokenizers

from .errors import CheckpointError, PromptError, shown
from .prompt import Beginning, Piece, Special

VISUAL = -200  # the place of one picture or clip in a list of ids, as in the original code
PLACES = {"image": "<image>", "video": "<video>"}  # the tokens for it in transformers' prompts
# what templates write, and what takes the place of visuals: special, even if no file says so
ALWAYS_SPECIAL = ("<s>", "<|im_start|>", "<|im_end|>", *PLACES.values())
REPLACEMENT = "\ufffd"  # how the library shows bytes that are not yet a character


@dataclass(frozen=True)
class Added:
    """An added token as tokenizer.json describes it."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool

    @classmethod
    def of(cls, given: object, number: object, where: str = "tokenizer.json") -> "Added":
        """The token that a file describes, with transformers' defaults; else CheckpointError."""
        if isinstance(given, dict):
            special = given.get("special", False)
            defaults = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            token = {"special": special, **defaults, "normalized": not special, **given}
            flags = {key: token[key] for key in (*defaults, "special", "normalized")}
            content = token.get("content")
            if type(number) is int and isinstance(content, str):
                if all(type(flag) is bool for flag in flags.values()):
                    return cls(number, content, **flags)
        what, expected = "cannot read the tokenizer", "added tokens with id, content and flags"
        raise CheckpointError(what, where, expected, shown(given))


class Tokenizer:
    """The checkpoint's tokenizer, in which text can never become a special token.

    What a training run stored in the file is switched off: truncation, padding and dropout.
    blank_after: kinds of pieces after which a text gets a blank of its own, and so at the very
    beginning; none where the description says itself where words begin.
    """

    def __init__(
        self, description: Mapping[str, object], blank_after: tuple[type[Piece], ...] = ()
    ) -> None:
        self.blank_after = blank_after
        added = [
            replace(token, special=token.special or token.content in ALWAYS_SPECIAL)
            for token in added_tokens(description)
        ]
        stored: dict[str, object] = {"added_tokens": [asdict(token) for token in added]}
        stored |= {"truncation": None, "padding": None}
        model = description.get("model")
        if isinstance(model, dict) and "dropout" in model:
            stored["model"] = {**model, "dropout": None}
        try:
            self.inner = tokenizers.Tokenizer.from_str(json.dumps({**description, **stored}))
        except Exception as error:
            if type(error) is not Exception:  # the library raises the bare base class
                raise
            raise unreadable("what the tokenizers library reads", str(error)) from None
        for token in added:
            found = self.inner.token_to_id(token.content)
            if found != token.id:  # the library numbers them by itself
                raise unreadable(f"the id {found} for the token {shown(token.content)}", token.id)
        self.special = {token.content: token.id for token in added if token.special}
        self.size = max(self.inner.get_vocab(with_added_tokens=True).values()) + 1
        sample = self.inner.encode("a")
        # the id that the tokenizer by itself puts before every text, or None
        self.first = sample.ids[0] if sample.special_tokens_mask[:1] == [1] else None
        self.inner.encode_special_tokens = True
        self.add_twins({token.content: token for token in added})

    def add_twins(self, added: Mapping[str, Added]) -> None:
        """Give each special token, and each place of a visual, two twins.

        A twin takes the blanks next to it as its token does (lstrip, rstrip). Where the token is
        looked for in normalized text, so is the first twin; the second is found wherever it is.
        """
        self.mark = "\ue000" + os.urandom(16).hex()  # random, so that no text can hold it
        self.twins: dict[str, tuple[str, str]] = {}
        twins = []
        for name in dict.fromkeys([*self.special, *PLACES.values()]):
            self.twins[name] = first, second = self.mark + name, f"{self.mark}!{name}"
            token, normalizer = added.get(name), self.inner.normalizer
            strip = {"lstrip": token.lstrip, "rstrip": token.rstrip} if token else {}
            normalized = token is not None and token.normalized
            if normalizer is not None and self.mark not in normalizer.normalize_str(first):
                normalized = False
            twins.append(tokenizers.AddedToken(first, normalized=normalized, **strip))
            twins.append(tokenizers.AddedToken(second, normalized=False, **strip))
        self.inner.add_tokens(twins)
        if any(self.twin_id(twin.content) < self.size for twin in twins):
            raise unreadable(f"ids from 0 to {self.size - 1}", "ids with gaps")

    def twin_id(self, twin: str) -> int:
        number = self.inner.token_to_id(twin)
        assert number is not None
        return number

    def __len__(self) -> int:
        """One more than the largest id that has a meaning."""
        return self.size

    def check_rows(self, rows: int) -> None:
        """CheckpointError where there are more tokens than an embedding has rows."""
        if len(self) > rows:
            token = shown(self.inner.id_to_token(len(self) - 1))
            raise unreadable(f"ids below vocab_size {rows}", f"{len(self) - 1} for {token}")

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text alone, never of a special token, whatever it spells."""
        blank = " " if text and self.blank_after else ""
        return self.inner.encode(blank + valid(text), add_special_tokens=False).ids

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a rendered prompt, with VISUAL for each picture or clip.

        As transformers' processors do, it adds what the tokenizer by itself puts around a text,
        such as <s>, unless the prompt begins with that token already.
        """
        pieces = list(pieces)
        first = pieces[0] if pieces else None
        begun = isinstance(first, Special) and self.special_id(first.token) == self.first
        if begun and isinstance(first, Beginning):
            pieces, begun = pieces[1:], False
        spelled = (self.spelled(pieces, spelling, begun) for spelling in (0, 1))
        return next(ids for ids in spelled if ids is not None)

    def spelled(self, pieces: list[Piece], spelling: int, begun: bool) -> list[int] | None:
        """Ids of pieces, by the first or second twins; None where not every twin was found."""
        text, twins, meanings = "", [], []
        blank = " " if self.blank_after else ""
        for piece in pieces:
            if isinstance(piece, str):
                if piece:
                    text, blank = text + blank + valid(piece), ""
                continue
            blank = " " if isinstance(piece, self.blank_after) else ""
            if isinstance(piece, Special):
                name, meaning = piece.token, self.special_id(piece.token)
            else:
                name, meaning = PLACES["image" if piece.frame is not None else piece.kind], VISUAL
            text += self.twins[name][spelling]
            twins.append(self.twin_id(self.twins[name][spelling]))
            meanings.append(meaning)
        assert text.count(self.mark) == len(twins)
        ids = self.inner.encode(text, add_special_tokens=not begun).ids
        if [number for number in ids if number >= self.size] != twins:
            return None
        remaining = iter(meanings)
        return [number if number < self.size else next(remaining) for number in ids]

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

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Text of ids; special tokens are shown or left out."""
        known = [number for number in ids if number < self.size]
        return self.inner.decode(known, skip_special_tokens=not special)


def valid(text: str) -> str:
    """The text; PromptError where it cannot be written in UTF-8."""
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        raise PromptError("cannot ask", "text", "valid UTF-8", "bytes that are none")
    return text


def unreadable(expected: str, found: object) -> CheckpointError:
    return CheckpointError("cannot read the tokenizer", "tokenizer.json", expected, shown(found))


def added_tokens(description: Mapping[str, object]) -> list[Added]:
    """The added tokens of a tokenizer.json."""
    added = description.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise unreadable("a list of added_tokens", added)
    return [Added.of(token, token.get("id")) for token in added]


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
