"""Exercise 7, half an hour: a stream that never shows half a character.

Tokens are runs of bytes, not of characters. A letter such as "e" with an accent takes two bytes, an
emoji four, and they may come with two or more tokens. Decoded too early, they become the sign for
"unreadable". Write `Characters`: `feed` takes the next id and returns the text that is complete by
now, perhaps none; `finish` returns what is still held back when the answer ends.

Everything complete must be shown at once, and nothing twice.

Read: llava_min/tokenizer.py, `CharacterStream`.
Check yourself: python examples/exercises/07_characters.py
"""

from collections.abc import Callable

import llava_min

UNREADABLE = "\ufffd"  # what a decoder writes for bytes that are no character


class Characters:
    """Ids one by one -> text in whole characters; decode makes text of a list of ids."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that this id completes, perhaps none."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left at the end: "" if the last character is whole, otherwise UNREADABLE."""
        raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------

TEXTS = ("plain", "na\u00efve caf\u00e9", "\u4f60\u597d, star \u2605!", "\U0001f600\U0001f680 go")


def test():
    tokenizer = llava_min.load().tokenizer
    decode = tokenizer.decode
    for text in TEXTS:
        ids = tokenizer.encode_text(text)
        stream, shown = Characters(decode), ""
        for count, token_id in enumerate(ids, start=1):
            piece = stream.feed(token_id)
            assert UNREADABLE not in piece, f"of {text!r} half a character is shown after {shown!r}"
            shown += piece
            complete = decode(ids[:count]).rstrip(UNREADABLE)
            assert shown == complete, f"of {text!r}, {complete!r} is complete, and {shown!r} shown"
        rest = stream.finish()
        assert shown + rest == text, f"{text!r} ends as {shown + rest!r}"
        cut = Characters(decode)
        shown = "".join([*map(cut.feed, ids[:-1]), cut.finish()])
        if decode(ids[:-1]).endswith(UNREADABLE):
            expected = decode(ids[:-1]).rstrip(UNREADABLE) + UNREADABLE
            assert shown == expected, f"cut inside a character, it is {expected!r}, not {shown!r}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
