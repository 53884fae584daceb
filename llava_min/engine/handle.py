"""What load() gives: weights, tokenizer and preprocessing in one handle, which answers questions.

in:  a checkpoint folder; then prompts with pictures and videos
out: Answer, or pieces of text

Read request/prepare.py, generate.py first. Read next: engine/batch.py.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base import memory as memory_errors
from ..cache import Cache
from ..config import LlavaConfig
from ..errors import ParameterError
from ..generate import Finished, Options, Token, generate
from ..model import Network
from ..planning.forecast import Forecast, free_bytes
from ..planning.memory import Storage, portions
from ..request.prepare import Prepared, prepare, require_tokenizer
from ..request.visuals import Encodable
from ..segments import Plan, Text
from ..tokenizer import Tokenizer
from . import batch, chat
from .answers import Answer, Asking, Clock, Score, peak_bytes
from .prefix import Prefix
from .step import decoding

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
    description: dict[str, object]  # what a prompt cache says it was made with
    load_seconds: float = 0.0
    details: tuple[str, ...] = ()  # keys of config.json that nothing reads
    kv_dtype: torch.dtype | None = None  # of every cache; None: that of the weights
    progress: Callable[[int, int], None] | None = None  # gets (tokens read, tokens of the prompt)

    def chat(self, *, prompt_cache=None, **options):
        """A Chat, which keeps its cache between questions; options apply to every answer."""
        return chat.Chat(self, prompt_cache, **options)

    def events(
        self, question=None, *, images=(), videos=(), prefix=None, prompt_cache=None, **given
    ) -> Iterator[Prepared | Token | Finished | Answer]:
        """Everything that happens: Prepared, Tokens, Finished, and the Answer that sums it up.

        prefix: what earlier calls left in a cache; the part that this prompt shares is not computed
        again. Raises LlavaMinError.
        """
        options, began = Options.of(**given), time.perf_counter()
        if prefix is None and prompt_cache is not None:
            prefix = Prefix(self.empty_cache(0))
        kept = prefix and prefix.opened
        prepared = prepare(question, images, videos, options, self.config, self.tokenizer, kept)
        prepared.plan.check_fits(options.max_tokens)
        self.forecast(prepared, options.max_tokens).check_room()
        stored = prompt_cache is not None and prefix.read(
            prompt_cache, self.description, prepared, options.max_tokens
        )
        yield prepared
        vision, start = Clock(), time.perf_counter()
        logits, cache = self.prefilled(prepared, options.max_tokens, vision, prefix=prefix)
        prefilled = time.perf_counter()
        ids, text = [], ""
        for event in generate(
            self.network, self.tokenizer, logits[-1], cache, prepared.ids, options, decoding
        ):
            yield event
            text += event.text
            if isinstance(event, Token):
                ids.append(event.id)
            else:
                finished = event
        if prefix is not None:
            prefix.append(ids)
        if prompt_cache is not None and not stored:
            prefix.write(prompt_cache, self.description, prepared)
        decode = finished.last - finished.first if ids else 0.0
        timings = {
            "load_s": self.load_seconds,
            "preprocess_s": prepared.seconds,
            "vision_s": vision.seconds,
            "prefill_s": prefilled - start - vision.seconds,
            "ttft_s": finished.first - began if ids else 0.0,
            "decode_s": decode,
            "tokens_per_s": (len(ids) - 1) / decode if len(ids) > 1 else 0.0,
        }
        usage = {"prompt_tokens": prepared.plan.tokens, "completion_tokens": len(ids),
                 "image_tokens": prepared.visual_tokens}  # fmt: skip
        if prefix is not None:
            usage["cached_tokens"] = prefix.reused
        yield Answer(
            text,
            ids,
            finished.reason,
            usage,
            {name: round(s, 4) for name, s in timings.items()},
            {"peak_bytes": peak_bytes(self.network.device)},
            prepared.media,
        )

    def generate_batch(self, requests: list[dict]) -> list[Answer]:
        """Answer many requests, decoded together with one forward a step.

        requests: each {"question", "images", "videos", options...}.
        """
        return batch.generate_batch(self, requests)

    def prepare(self, question, images=(), videos=(), **options) -> Prepared:
        """The prompt laid out and its visuals as tiles, before the model sees them."""
        return prepare(question, images, videos, Options.of(**options), self.config, self.tokenizer)

    @property
    def storage(self) -> Storage:
        """The formats in which its numbers are stored."""
        dtype = str(self.network.decoder.norm.weight.dtype).removeprefix("torch.")
        quantized = self.config.quantization
        kept = next(name for name, kind in KV_DTYPES.items() if kind == self.kv_dtype)
        return Storage(dtype, quantized and quantized.bits, kept)

    def forecast(self, prepared: Prepared, answer: int) -> Forecast:
        """What a prompt and an answer of up to `answer` tokens need, compared with what is free."""
        found = Forecast(self.name, self.config, prepared.plan, prepared.media, answer,
                         self.storage, free_bytes(self.network.device.type))  # fmt: skip
        held = found.memory().weights  # they are there already
        return replace(found, room=found.room and found.room + held)

    def empty_cache(self, capacity: int, batch: int = 1) -> Cache:
        """A cache of `batch` rows."""
        weight = self.network.decoder.embedding.weight
        return Cache.empty(
            self.config.text, batch, capacity, weight.dtype, self.kv_dtype, weight.device
        )

    @memory_errors.memory("read the prompt")
    def prefilled(
        self,
        prepared: Prepared,
        more: int,
        vision: Clock | None = None,
        keep: str = "last",
        prefix: Prefix | None = None,
    ):
        """(logits, the cache after the prompt with room for `more` tokens)."""
        vision, capacity = vision or Clock(), prepared.plan.tokens + more
        if prefix is None:
            cache, plan, visuals = self.empty_cache(capacity), prepared.plan, prepared.visuals
        else:
            cache, (plan, visuals) = prefix.cache, prefix.turn_to(prepared, capacity)
        return self.read(plan, visuals, cache, vision, keep), cache

    def read(
        self, plan: Plan, visuals: list[Encodable], cache: Cache, vision: Clock, keep: str = "last"
    ) -> Tensor:
        """Run a prompt into a cache, as many tiles and tokens at a time as memory allows.

        Returns its logits.
        """
        network = self.network
        k, chunk = portions(self.config, self.storage, free_bytes(network.device.type))
        encoded = [vision.around(network.encode(v.tiles, v.is_clip, k)) for v in visuals]
        return network.prefill(plan, encoded, cache, chunk, keep, self.progress)

    def score(self, question, answer, *, images=(), videos=(), **options) -> Score:
        """How likely an answer (text, or token ids, which may end with an end token) is.

        The probabilities are those from which `generate` would choose, had it chosen these tokens.
        """
        ids = list(answer)
        if isinstance(answer, str):
            ids = require_tokenizer(self.tokenizer).encode_text(answer)
        if not ids:
            raise ParameterError("cannot score", "answer", "at least one token", "none")
        prepared = self.prepare(question, images, videos, **options)
        prepared.plan.check_fits(len(ids))
        self.forecast(prepared, len(ids)).check_room()
        return self.forced(*self.prefilled(prepared, len(ids)), ids)

    def forced(self, logits: Tensor, cache: Cache, ids: list[int]) -> Score:
        """The score of ids after a prefilled prompt of one row: logits [1 V] of its last token."""
        logits, chosen = self.before(logits, cache, ids), torch.tensor(ids, device=logits.device)
        logs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        return Score(ids, logs.tolist(), (logits.argmax(-1) == chosen).tolist())

    def before(self, logits: Tensor, cache: Cache, ids: list[int]) -> Tensor:
        """Logits [T V] from which T ids would be chosen, one by one, after a prompt of one row."""
        if len(ids) == 1:
            return logits
        more = Plan((Text(tuple(ids[:-1])),), self.config.text.context)
        return torch.cat([logits, self.network.prefill(more, [], cache, keep="all")])

    def logits(self, question, *, images=(), videos=(), **options) -> Tensor:
        """Logits after every row of the prompt: [rows V] float32, on the CPU."""
        prepared = self.prepare(question, images, videos, **options)
        return self.prefilled(prepared, 0, keep="all")[0].cpu()

    @memory_errors.memory("embed the prompt")
    def embed(self, question, *, images=(), videos=(), **options) -> Tensor:
        """The rows that enter the decoder, text and visuals alike: [rows W]."""
        prepared = self.prepare(question, images, videos, **options)
        visuals = [self.network.encode(v.tiles, v.is_clip) for v in prepared.visuals]
        return torch.cat(list(self.network.rows(prepared.plan, visuals)))
