"""What the server does with a question: from the body of a request to a prompt that is ready.

in:  bytes of JSON
out: Ready: the prompt, the options and the rules of its answers; or a Refusal

Every request has a thread for this, most of which wait for the web; the media of a few are decoded
at a time.
Sizes are looked at first: what cannot fit is refused before a pixel is decoded. Pictures that came
lately are kept as tiles, because a conversation sends its pictures again with each turn.
Read serve/parts.py, serve/worker.py first. Read next: serve/app.py.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..engine.grammar import grammar_rules
from ..engine.handle import Model
from ..engine.rules import Rule, at_least, bias, penalties
from ..engine.slots import Slots
from ..errors import LlavaMinError, MemoryBudgetError
from ..media.limits import PROMPT_BYTES
from ..options import Options
from ..request.prepare import Prepared, prepare, require_tokenizer
from ..request.visuals import Kept, Medium
from ..segments import Plan, Text
from .errors import Refusal, refusal_of, wrong
from .fields import Wanted, wanted_of
from .guard import ClientGone
from .metrics import Metrics
from .outbox import Outbox
from .parts import Borders, messages_of
from .protocol import TokenTexts
from .worker import Worker

log = logging.getLogger("llava_min")
DEFAULT_TOKENS = Options.max_tokens
TILE_BYTES = 64 << 20  # of pictures that may come again
ROW_BYTES = 256 << 20  # of their rows, at most
DECODERS = 2  # requests whose media are decoded at a time
SLOTS, LEAST_TOKENS = 4, 1024  # rows, unless told otherwise, and what each should have room for


@dataclass
class Ready:
    """A question that can be submitted, as often as it wants answers."""

    wanted: Wanted
    prepared: Prepared
    options: Options
    rules: list[list[Rule]]  # of each answer
    ends: tuple[int, ...]
    media_bytes: int

    def option(self, index: int) -> Options:
        """Those of one of its answers: each draws with a seed of its own."""
        plain = replace(self.options, json_schema=None, choices=(), regex=None)
        return replace(plain, seed=(plain.seed + index) % 2**63)


class Service:
    """A model behind a worker, and all that requests need to get there."""

    def __init__(self, model: Model, slots: Slots, borders: Borders) -> None:
        self.model, self.slots, self.borders = model, slots, borders
        self.worker, self.metrics = Worker(slots), Metrics()
        self.texts = TokenTexts(require_tokenizer(model.tokenizer))
        self.pictures = Pictures(TILE_BYTES)
        self.decoding = threading.Semaphore(DECODERS)
        self.named: set[str] = set()  # unknown fields that the log has named
        self.way: Outbox[Any] | None = None
        self.worker.start()

    def outbox(self) -> "Outbox[Any]":
        """What takes answers to the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self.way is None or self.way.loop is not loop:
            self.way = Outbox(loop)
        return self.way

    @property
    def fingerprint(self) -> str:
        """What tells the weights from others."""
        return str(self.model.description["checkpoint"])

    def ready(self, body: bytes, gone: Callable[[], bool] = lambda: False) -> Ready:
        """A question from the body of a request, its media decoded. Raises Refusal.

        gone: whether nobody waits for it any more.
        """
        wanted, unknown = wanted_of(parsed(body))
        self.name_once(unknown)
        try:
            return self.opened(wanted, gone)
        except LlavaMinError as error:
            raise refusal_of(error, wanted.named) from None

    def count(self, body: bytes) -> dict[str, Any]:
        """How many tokens a request has, by the sizes of its media alone. Raises Refusal."""
        wanted, _ = wanted_of(parsed(body))
        try:
            question, options = self.question_of(wanted)
            with self.decoding:
                found = self.prepare(question, options, {}, headers=True)
        except LlavaMinError as error:
            raise refusal_of(error, wanted.named) from None
        return {
            "object": "response.input_tokens",
            "input_tokens": found.plan.tokens,
            "image_tokens": found.visual_tokens,
            "max_model_len": self.slots.capacity,
        }

    def tokenize(self, body: bytes) -> dict[str, Any]:
        """The ids of a text. Raises Refusal."""
        given = parsed(body)
        content = given.get("content", given.get("prompt")) if isinstance(given, dict) else None
        if not isinstance(content, str) or len(content) > PROMPT_BYTES:
            raise wrong("content", f"a text of at most {PROMPT_BYTES:,} letters")
        try:
            ids = self.texts.tokenizer.encode_text(content)
        except LlavaMinError:
            raise wrong("content", "valid UTF-8") from None
        return {"tokens": ids, "count": len(ids)}

    def detokenize(self, body: bytes) -> dict[str, Any]:
        """The text of ids. Raises Refusal."""
        given, known = parsed(body), self.model.known_ids
        ids = given.get("tokens") if isinstance(given, dict) else None
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < known for i in ids):
            raise wrong("tokens", f"a list of ids below {known}")
        text = self.texts.tokenizer.decode(ids, special=True)
        return {"content": text, "prompt": text}

    def opened(self, wanted: Wanted, gone: Callable[[], bool]) -> Ready:
        """`ready`, of a request that was understood."""
        if wanted.n > len(self.slots.questions):
            raise wrong("n", f"at most {len(self.slots.questions)}, the number of slots")
        question, options = self.question_of(wanted)
        with self.decoding:
            if gone():
                raise ClientGone
            found = self.prepare(question, options, {}, headers=True)
            options = replace(options, max_tokens=self.room(found.plan.tokens, wanted))
            self.model.admission.admit(found, options.max_tokens, self.slots.cache)
            pictures = list(pictures_of(question))
            prepared = self.prepare(question, options, kept := self.pictures.known(pictures))
            self.pictures.keep(pictures, kept)
        eos = () if options.ignore_eos else self.model.config.text.eos_ids
        ends = (*eos, *wanted.stop_token_ids)
        rules = [self.rules(wanted, options, ends) for _ in range(wanted.n)]
        size = sum(len(p) for p in media_of(question) if isinstance(p, bytes))
        return Ready(replace(wanted, messages=[]), prepared, options, rules, ends, size)

    def question_of(self, wanted: Wanted) -> tuple[list[dict[str, Any]], Options]:
        """(messages with their media, options), the beginning of an answer taken from the first."""
        messages, options = messages_of(wanted.messages, self.borders), dict(wanted.options)
        if wanted.prefilled:
            last = messages.pop()
            texts = [part["text"] for part in last["content"] if part["type"] == "text"]
            if last["role"] != "assistant" or len(texts) < len(last["content"]):
                expected = "such that the last is a text of the assistant"
                raise wrong("messages", f"{expected}, with continue_final_message")
            options["prefill"] = "".join(texts)
        return messages, Options.of(**options)

    def prepare(
        self, question: list[dict[str, Any]], options: Options, kept: Kept, headers: bool = False
    ) -> Prepared:
        """A prompt of messages alone, as request/prepare.py makes it."""
        config, tokenizer = self.model.config, self.model.tokenizer
        return prepare(question, (), (), options, config, tokenizer, kept, headers)

    def room(self, prompt: int, wanted: Wanted) -> int:
        """Tokens that an answer may have: as asked for, or else by default as many as fit."""
        capacity, asked = self.slots.capacity, wanted.options.get("max_tokens")
        left = capacity - prompt
        if left < 1 or (asked is not None and asked > left):
            answer = f" and {asked} of the answer" if asked else ""
            raise Refusal(
                400,
                f"This server has room for {capacity} tokens; the prompt has {prompt}{answer}.",
                "messages" if left < 1 else wanted.named["max_tokens"],
                "context_length_exceeded",
            )
        return asked if asked is not None else min(DEFAULT_TOKENS, left)

    def rules(self, wanted: Wanted, options: Options, ends: tuple[int, ...]) -> list[Rule]:
        """The rules of one answer, which ends with one of `ends`."""
        known, found = self.model.known_ids, []
        if wanted.frequency_penalty or wanted.presence_penalty:
            found.append(penalties(wanted.frequency_penalty, wanted.presence_penalty))
        if wanted.logit_bias:
            if max(wanted.logit_bias) >= known:
                raise wrong("logit_bias", f"of token ids below {known}")
            found.append(bias(wanted.logit_bias))
        if wanted.min_tokens:
            found.append(at_least(wanted.min_tokens, tuple(n for n in ends if n < known)))
        eos = self.model.config.text.eos_ids
        made = self.model.vocabularies
        return [*found, *grammar_rules(options, self.model.tokenizer, eos, made)]

    def name_once(self, unknown: list[str]) -> None:
        """Name fields that nobody knows in the log, each once."""
        for name in unknown:
            if name not in self.named and len(self.named) < 100:
                self.named.add(name)
                log.info("ignored in requests: %r", name[:60])


def parsed(body: bytes) -> Any:
    """The JSON of a body. Raises Refusal."""
    try:
        return json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON.", code="invalid_json") from None


def refuse_constant(name: str) -> None:
    """Raise ValueError: NaN and Infinity are no JSON, though Python reads them."""
    raise ValueError(name)


def media_of(question: list[dict[str, Any]]) -> Iterator[Any]:
    """The sources of all media of messages."""
    for message in question:
        for part in message["content"]:
            if part["type"] != "text":
                yield part[part["type"]]


def pictures_of(question: list[dict[str, Any]]) -> Iterator[Any]:
    """The sources of the pictures of messages, in order."""
    for message in question:
        yield from (part["image"] for part in message["content"] if part["type"] == "image")


class Pictures:
    """Pictures as tiles, by what their files hold, those used last first to stay."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes, self.lock = limit, 0, threading.Lock()
        self.media: OrderedDict[tuple[object, ...], Medium] = OrderedDict()
        self.key = secrets.token_bytes(16)

    def digest(self, source: object) -> bytes | None:
        """What tells a file's bytes from all others; None for what is no bytes."""
        if not isinstance(source, bytes):
            return None
        return hashlib.blake2b(source, key=self.key).digest()

    def known(self, pictures: list[Any]) -> Kept:
        """Those that were opened before, as request/visuals.py keeps them."""
        digests = [self.digest(source) for source in pictures]
        found: Kept = {}
        with self.lock:
            for key, medium in self.media.items():
                for index, digest in enumerate(digests):
                    if digest == key[0]:
                        found["image", index, *key[1:]] = medium
        return found

    def keep(self, pictures: list[Any], opened: Kept) -> None:
        """Keep pictures for a while."""
        for key, medium in opened.items():
            kind, index, *how = key
            digest = self.digest(pictures[int(str(index))]) if kind == "image" else None
            if digest is not None:
                self.add((digest, *how), medium)

    def add(self, key: tuple[object, ...], medium: Medium) -> None:
        """Keep one picture, and let those go that were used longest ago until all fit."""
        with self.lock:
            if key not in self.media:
                self.bytes += size_of(medium)
            self.media[key] = medium
            self.media.move_to_end(key)
            while self.bytes > self.limit:
                self.bytes -= size_of(self.media.popitem(last=False)[1])


def size_of(medium: Medium) -> int:
    """Bytes of the tiles of a picture."""
    return sum(getattr(place.pixels, "nbytes", 0) for place in medium.places)


def slots_for(model: Model, rows: int | None, tokens: int | None) -> Slots:
    """Slots with as much room as memory allows, unless numbers are given. Raises LlavaMinError.

    rows: SLOTS where each can have LEAST_TOKENS, or fewer. tokens: of each, by default the context.
    """
    context = model.config.text.context
    capacity = min(tokens or context, context)
    wanted, least = rows or SLOTS, min(capacity, LEAST_TOKENS)

    def admit(count: int, room: int) -> None:
        model.admission.admit_together([(Plan((Text((0,) * room),), context), 0)] * count)

    def fit(count: int, room: int) -> bool:
        try:
            admit(count, room)
        except MemoryBudgetError:
            return False
        return True

    if tokens is None:
        while wanted > 1 and rows is None and not fit(wanted, least):
            wanted -= 1
        while capacity > least and not fit(wanted, capacity):
            capacity = max(least, capacity * 3 // 4)
    admit(wanted, capacity)
    return Slots(model, wanted, capacity, looks=ROW_BYTES)
