"""What load() gives: weights, tokenizer and preprocessing in one handle, which answers questions.

in:  a checkpoint folder; then prompts with pictures and videos
out: Answer, or pieces of text

Read engine/admission.py, request/prepare.py, generate.py first. Read next: engine/batch.py.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..base.habits import accepting
from ..base.memory import memory_guard
from ..cache import Cache
from ..config import LlavaConfig
from ..errors import OutputError, ParameterError
from ..explain.explanation import Explanation
from ..explain.forced import before, log_probabilities
from ..explain.gradients import gradient
from ..generate import Step, generate
from ..model import Network, Portion, finished
from ..options import Options
from ..planning.forecast import free_bytes
from ..planning.memory import Storage, logit_bytes, portions
from ..request.prepare import (
    Pictures,
    Prepared,
    Question,
    Videos,
    prepare,
)
from ..request.visuals import Encodable
from ..segments import TILES, Plan
from ..tokenizer import Tokenizer
from . import batch, chat, explaining
from .admission import Admission
from .answers import Answer, Asking, Clock, Event, Finished, Reply, Score, peak_bytes
from .compiled import Compiled
from .grammar import Vocabularies, grammar_rules
from .looks import Encode
from .lookup import Lookup
from .pace import Pace
from .prefix import Description, Prefix
from .rules import Rule
from .step import decoding
from .towers import SharedTower, looked_first

log = logging.getLogger("llava_min")
KV_DTYPES = {"auto": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass
class Model(Asking):
    """A checkpoint in memory.

    `generate` answers, `stream` answers piece by piece, `chat` keeps a conversation, `logits` and
    `embed` look inside.
    """

    name: str
    config: LlavaConfig
    network: Network
    tokenizer: Tokenizer | None
    description: Description  # what a prompt cache says it was made with
    load_seconds: float = 0.0
    details: tuple[str, ...] = ()  # keys of config.json that nothing reads
    kv_dtype: torch.dtype | None = None  # of every cache; None: that of the weights
    compiled: Compiled | None = None  # the decode step, where it was compiled for a CPU
    vocabularies: Vocabularies = field(default_factory=dict)  # of grammars (engine/grammar.py)

    def __repr__(self) -> str:
        """One line: the name, the family, how and where its numbers are stored."""
        stored = self.storage
        bits = "" if stored.bits is None else f", int{stored.bits}"
        return f"<Model {self.name}: {self.config.family}, {stored.dtype}{bits} on {stored.device}>"

    @accepting("self")
    def chat(self, *, prompt_cache: str | Path | None = None, **options: object) -> chat.Chat:
        """A Chat, which keeps its cache between questions; options apply to every answer."""
        return chat.Chat(self, prompt_cache, **options)

    @accepting("self", "question", "images", "videos")
    def events(
        self,
        question: Question = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        prefix: Prefix | None = None,
        prompt_cache: str | Path | None = None,
        interruptible: bool = False,
        **given: object,
    ) -> Generator[Event, None, None]:
        """Everything that happens: Prepared, Portions, Tokens, Finished, and the Answer.

        prefix: what earlier calls left in a cache; the part that this prompt shares is not computed
        again. interruptible: Ctrl-C ends the answer, for the reason "interrupted", instead of being
        raised. To close the iterator stops the work at the next event. Raises LlavaMinError.
        """
        options, began = Options.of(**given), time.perf_counter()
        if prompt_cache is not None and self.network.decoder.parts > 1:
            raise ParameterError("prompt_cache needs the whole model in one process and device.")
        if prefix is None and prompt_cache is not None:
            prefix = Prefix(self.empty_cache(0))
        opened = None if prefix is None else prefix.opened
        prepared = prepare(question, images, videos, options, self.config, self.tokenizer, opened)
        capacity = prepared.plan.tokens + options.max_tokens
        held = None if prefix is None else prefix.cache
        self.admission.admit(prepared, options.max_tokens, held)
        stored = False
        if prefix is not None and prompt_cache is not None:
            stored = prefix.load(prompt_cache, self.description, prepared, options.max_tokens)
        yield prepared
        reply = self.reply(prepared, options, began)
        if prefix is None:
            cache, plan, visuals = self.empty_cache(capacity), prepared.plan, prepared.visuals
        else:
            with memory_guard("allocate the cache"):
                cache, (plan, visuals) = prefix.cache, prefix.turn_to(prepared, capacity)
        portions = self.reading(plan, visuals, cache, reply.looking_clock)
        logits = yield from reply.reading_clock.around(portions)
        step, lookup = self.step(cache), None
        if options.lookup:
            common = self.network, cache, self.known_ids
            lookup = Lookup(*common, step, prepared.ids, options.lookup)
        try:
            yield from generate(reply, logits, lookup or step)
        except KeyboardInterrupt:
            if not interruptible:
                raise
            reply.reason = "interrupted"
        yield Finished(reply.reason, reply.finish())
        if prefix is not None:
            prefix.append(reply.new)
            if prompt_cache is not None and not stored:
                self.keep(prefix, prompt_cache, prepared)
        counts = None if lookup is None else lookup.usage
        yield self.answer(reply, None if prefix is None else prefix.reused, counts)

    def keep(self, prefix: Prefix, path: str | Path, prepared: Prepared) -> None:
        """Write a prompt cache; a failure costs the file, not the answer, and is a warning."""
        try:
            prefix.save(path, self.description, prepared)
        except OutputError as error:
            log.warning(str(error))

    def generate_batch(self, requests: list[dict[str, object]]) -> list[Answer]:
        """Answer many requests, decoded together with one forward a step.

        requests: each {"question", "images", "videos", options...}.
        """
        return batch.generate_batch(self, requests)

    @accepting("self", "question", "images", "videos")
    def prepare(
        self,
        question: Question,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Prepared:
        """The prompt laid out and its visuals as tiles, before the model sees them."""
        return prepare(question, images, videos, Options.of(**options), self.config, self.tokenizer)

    @property
    def storage(self) -> Storage:
        """The formats in which its numbers are stored."""
        dtype = str(self.network.decoder.norm.weight.dtype).removeprefix("torch.")
        quantized = self.config.quantization
        kept = next(name for name, kind in KV_DTYPES.items() if kind == self.kv_dtype)
        bits, tower = None if quantized is None else quantized.bits, self.network.vision
        towers = tower.team.parts if isinstance(tower, SharedTower) else 1
        return Storage(dtype, bits, kept, self.network.device.type, towers)

    @property
    def admission(self) -> Admission:
        """The questions that every way of asking asks first, of what this process holds."""
        here = replace(self.config, text=self.network.decoder.config)
        return Admission(self.name, here, self.storage)

    # What they share ------------------------------------------------------------

    @property
    def known_ids(self) -> int:
        """How many ids have a meaning: a head may have more rows than the tokenizer has tokens."""
        vocabulary = self.config.text.vocab_size
        return min(vocabulary, len(self.tokenizer)) if self.tokenizer else vocabulary

    @memory_guard("allocate the cache")
    def empty_cache(self, capacity: int, batch: int = 1) -> Cache:
        """A cache of `batch` rows."""
        weight = self.network.decoder.embedding.weight
        here = self.network.decoder.config  # of the layers and heads of this process
        return Cache.empty(here, batch, capacity, weight.dtype, self.kv_dtype, weight.device)

    def reading(
        self,
        plan: Plan,
        visuals: list[Encodable],
        cache: Cache,
        looking: Clock | None = None,
        keep: str = "last",
        pace: Pace | None = None,
        encode: Encode | None = None,
    ) -> Generator[Portion, None, Tensor]:
        """Network.reading, as many tiles and tokens at a time as memory allows.

        looking: counts the seconds in the vision tower. pace: of a reading for which others wait.
        encode: in place of `encode`.
        """
        looking, pace = looking or Clock(), pace or Pace()
        encode = encode or self.encode
        towers = self.storage.towers
        k, chunk = portions(self.config, self.storage, free_bytes(self.network.device.type))
        encoded = [looking.around(encode(visual, pace.tiles(k) * towers)) for visual in visuals]
        size = pace.tokens(chunk)
        with memory_guard("read the prompt"):
            rows: Sequence[Iterator[Tensor]] = encoded
            if towers > 1:
                rows = yield from looked_first(encoded, plan.tokens)
            return (yield from self.network.reading(plan, rows, cache, size, keep))

    def encode(self, visual: Encodable, k: int = TILES) -> Generator[Tensor, None, None]:
        """The rows [tokens W] of a visual, k tiles at a time: see Network.encode."""
        return self.network.encode(visual.segment, visual.pixels, k)

    def prefilled(self, prepared: Prepared, more: int, keep: str = "last") -> tuple[Tensor, Cache]:
        """(logits, the cache after the prompt with room for `more` tokens)."""
        cache = self.empty_cache(prepared.plan.tokens + more)
        portions = self.reading(prepared.plan, prepared.visuals, cache, keep=keep)
        return finished(portions), cache

    def step(self, cache: Cache, made: Callable[[Network, Cache, int], Step] = decoding) -> Step:
        """How tokens are made over a cache: compiled where that can be, otherwise as `made`."""
        if self.compiled is not None and self.compiled.takes(cache):
            made = self.compiled.step
        return made(self.network, cache, self.known_ids)

    def reply(
        self, prepared: Prepared, options: Options, began: float, rules: Iterable[Rule] = ()
    ) -> Reply:
        """An answer on its way to a prompt, by these rules and those that the options ask for."""
        eos = self.config.text.eos_ids
        rules = [*rules, *grammar_rules(options, self.tokenizer, eos, self.vocabularies)]
        return Reply(prepared, options, self.known_ids, eos, self.tokenizer, began, rules)

    def answer(
        self,
        reply: Reply,
        cached: int | None = None,
        more: Mapping[str, int] | None = None,
    ) -> Answer:
        """The Answer that a reply has become."""
        return reply.answer(self.load_seconds, peak_bytes(self.network.device), cached, more)

    # What looks inside ----------------------------------------------------------

    @accepting("self", "question", "answer", "images", "videos")
    def score(
        self,
        question: Question,
        answer: str | list[int],
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Score:
        """How likely an answer (text, or token ids, which may end with an end token) is.

        The probabilities are those from which `generate` would choose, had it chosen these tokens.
        """
        ids = explaining.ids_of(self, answer)
        prepared = self.prepare(question, images, videos, **options)
        self.admission.admit(prepared, len(ids), results=logit_bytes(self.config, len(ids)))
        return self.forced(*self.prefilled(prepared, len(ids)), ids)

    def forced(self, logits: Tensor, cache: Cache, ids: list[int]) -> Score:
        """The score of ids after a prefilled prompt of one row: logits [1 V] of its last token."""
        logits = before(self.network, logits, cache, ids)
        chosen = torch.tensor(ids, device=logits.device)
        matches = (logits.argmax(-1) == chosen).tolist()
        return Score(ids, log_probabilities(logits, ids).tolist(), matches)

    @accepting("self", "question", "answer", "images", "videos")
    def explain(
        self,
        question: Question = None,
        answer: Answer | str | list[int] | None = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        words: int = 64,
        alternatives: int = 5,
        occlusion: bool = False,
        prefix: Prefix | None = None,
        **options: object,
    ) -> Explanation:
        """What each word of an answer looked at, how likely it was, and what else it could be.

        answer: the one to explain, as generate() gives it, or as text or ids; without one, the
        question is answered first. words: explain so many tokens of it at most. alternatives: of
        each word. occlusion: also score the answer with parts of each picture and clip covered, one
        after another, which reads the prompt 51 times for a picture and at most 101 times for a
        clip. prefix, options: see events. It takes at most 64 MB besides what the answer takes.
        Raises LlavaMinError.
        """
        return explaining.explain(
            self, question, images, videos, answer, words, alternatives, occlusion, prefix, options
        )

    @accepting("self", "question", "answer", "images", "videos")
    def knock_out(
        self,
        question: Question,
        answer: Answer | str | list[int],
        *,
        images: Pictures = (),
        videos: Videos = (),
        patches: Sequence[int] = (),
        heads: Sequence[tuple[int, int]] = (),
        looking: bool = False,
        **options: object,
    ) -> tuple[Score, Score]:
        """The score of an answer, and that without some of what made it.

        patches: numbers of rows, as Explanation.rows.inside(box) gives them; each gets the mean of
        its visual. heads: pairs (layer, head), whose output is zero. looking: whether text loses
        its way to the pictures, in every layer. ParameterError: no such patch or head.
        """
        return explaining.knock_out(
            self, question, answer, images, videos, patches, heads, looking, options
        )

    @accepting("self", "question", "answer", "images", "videos")
    def gradient(
        self,
        question: Question,
        answer: Answer | str | list[int],
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Tensor:
        """How the answer's log-probability changes with each number of the prompt's rows: [rows W].

        The rows are those of embed(). It keeps what every layer made, so it is for prompts of a few
        thousand rows. ParameterError where weights are quantised, or bfloat16 on some CPUs.
        """
        rows = self.embed(question, images=images, videos=videos, **options)
        with memory_guard("differentiate the answer"):
            return gradient(self.network.decoder, rows, explaining.ids_of(self, answer))

    @accepting("self", "question", "images", "videos")
    def logits(
        self,
        question: Question,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Tensor:
        """Logits after every row of the prompt: [rows V] float32, on the CPU."""
        prepared = self.prepare(question, images, videos, **options)
        rows = prepared.plan.tokens
        self.admission.admit(prepared, 0, results=logit_bytes(self.config, rows))
        return self.prefilled(prepared, 0, keep="all")[0].cpu()

    @accepting("self", "question", "images", "videos")
    def embed(
        self,
        question: Question,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Tensor:
        """The rows that enter the decoder, text and visuals alike: [rows W]."""
        prepared = self.prepare(question, images, videos, **options)
        self.admission.admit_rows(prepared.plan)
        visuals = map(self.encode, prepared.visuals)
        with memory_guard("embed the prompt"):
            return torch.cat(list(self.network.rows(prepared.plan, visuals)))
