"""The objects that clients read: completions, chunks of streams, probabilities, usage, timings.

in:  Answers and pieces of text
out: dictionaries, as JSON has them

Read serve/fields.py first. Read next: serve/exchange.py.
Agrees with: chat.completion and chat.completion.chunk of OpenAI's API; `timings` of llama-server.
"""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from ..engine.answers import Answer
from ..engine.rules import Likelihood
from ..tokenizer import Tokenizer

SPACE = "\u2581"  # how SentencePiece writes a blank
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones as they are.

    >>> [byte_alphabet()[c] for c in ("a", "\u0120", "\u010a")]
    [97, 32, 10]
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    moved = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


class TokenTexts:
    """The text and the bytes of single tokens, which may be parts of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.alphabet = tokenizer, byte_alphabet()
        self.special = {number: name for name, number in tokenizer.special.items()}
        pieces = map(tokenizer.inner.id_to_token, tokenizer.encode_text("a b"))
        self.sentence_piece = any(SPACE in (piece or "") for piece in pieces)

    def bytes_of(self, number: int) -> bytes:
        """The bytes of a token in a text."""
        if number in self.special:
            return self.special[number].encode()
        written = self.tokenizer.inner.id_to_token(number) or ""
        if self.sentence_piece:
            if len(written) == 6 and written.startswith("<0x"):
                return bytes([int(written[3:5], 16)])
            return written.replace(SPACE, " ").encode()
        if all(character in self.alphabet for character in written):
            return bytes(self.alphabet[character] for character in written)
        return written.encode()

    def entry(self, number: int, log_probability: float) -> dict[str, Any]:
        """A token with its log-probability; -9999 stands for minus infinity, as elsewhere."""
        data = self.bytes_of(number)
        return {
            "token": data.decode(errors="replace"),
            "logprob": max(log_probability, -9999.0),
            "bytes": list(data),
        }

    def entries(self, found: list[Likelihood]) -> list[dict[str, Any]]:
        """What `logprobs.content` holds for these tokens."""
        return [
            self.entry(one.id, one.log_probability)
            | {"top_logprobs": [self.entry(*likely) for likely in one.top]}
            for one in found
        ]


@dataclass(frozen=True)
class Envelope:
    """What all objects of one completion have in common."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, kind: str, **values: Any) -> dict[str, Any]:
        """An object of a kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **values,
        }

    def completion(
        self, answers: list[Answer], logprobs: list[list[dict[str, Any]] | None]
    ) -> dict[str, Any]:
        """A whole completion, with an answer or several to the same messages."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None if entries is None else {"content": entries, "refusal": None},
                "finish_reason": answer.finish_reason,
            }
            for index, (answer, entries) in enumerate(zip(answers, logprobs))
        ]
        return self.around(
            "chat.completion", choices=choices, usage=usage_of(answers), timings=timings_of(answers)
        )

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: list[dict[str, Any]] | None = None,
        finish_reason: str | None = None,
        usage: bool = False,
        **more: Any,
    ) -> bytes:
        """A chunk of a stream; usage: whether the last one of all will hold the usage."""
        held = None if logprobs is None else {"content": logprobs, "refusal": None}
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": held,
            "finish_reason": finish_reason,
        }
        rest = {"usage": None} if usage else {}
        return event(self.around("chat.completion.chunk", choices=[choice], **rest, **more))

    def last(self, answers: list[Answer]) -> bytes:
        """The chunk that holds nothing but the usage."""
        usage, timings = usage_of(answers), timings_of(answers)
        return event(self.around("chat.completion.chunk", choices=[], usage=usage, timings=timings))


def event(value: dict[str, Any]) -> bytes:
    """An object as a server-sent event; in ASCII, so that nothing can cut a character in two."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def usage_of(answers: list[Answer]) -> dict[str, Any]:
    """Tokens of a prompt, which counts once, and of its answers."""
    first = answers[0].usage
    written = sum(answer.usage["completion_tokens"] for answer in answers)
    return {
        "prompt_tokens": first["prompt_tokens"],
        "completion_tokens": written,
        "total_tokens": first["prompt_tokens"] + written,
        "prompt_tokens_details": {
            "cached_tokens": first.get("cached_tokens", 0),
            "image_tokens": first["image_tokens"],
        },
    }


def timings_of(answers: list[Answer]) -> dict[str, Any]:
    """Milliseconds and speeds of the first answer, by the names of llama-server."""
    usage, seconds = answers[0].usage, answers[0].timings
    new = usage["prompt_tokens"] - usage.get("cached_tokens", 0)
    reading = seconds["vision_s"] + seconds["prefill_s"]
    return {
        "cache_n": usage.get("cached_tokens", 0),
        "prompt_n": new,
        "prompt_ms": round(reading * 1000, 1),
        "prompt_per_second": round(new / reading, 2) if reading else 0.0,
        "predicted_n": usage["completion_tokens"],
        "predicted_ms": round(seconds["decode_s"] * 1000, 1),
        "predicted_per_second": round(seconds["tokens_per_s"], 2),
    }
