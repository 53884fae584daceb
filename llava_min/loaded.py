"""What load() gives: weights, tokenizer and preprocessing in one handle, which answers questions.

in:  a checkpoint folder; then prompts with pictures and videos      out: Answer, or pieces of text
Read next: generate.py.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from . import limits
from .budget import Plan, Storage, Text, portions
from .cache import Cache
from .config import LlavaConfig
from .errors import ParameterError
from .forecast import Forecast, free_bytes
from .generate import Finished, Options, Token, generate
from .kernels import onednn
from .model import Llava
from .prefix import Prefix, description
from .prepare import EMBEDDED, Encodable, Prepared, needed, prepare, settings_of
from .recording import RecordedTower
from .tokenizer import Tokenizer
from .tokenizer import read as read_tokenizer
from .weights import hub, packed, quantize
from .weights import load as weights
from .weights.checkpoint import Checkpoint

log = logging.getLogger("llava_min")
SMALL = 2**25  # weights that a CPU's caches hold: halving their bytes gains nothing
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
KV_DTYPES = {"auto": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Answer:
    """What a question got. Times in seconds; `media` says what became of each picture and video."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    memory: dict[str, int]
    media: list[dict]


@dataclass(frozen=True)
class Score:
    """An answer as the model sees it, teacher forced: for each token the natural logarithm of its
    probability behind those before it, and whether it is the most likely one.
    """

    token_ids: list[int]
    log_probabilities: list[float]
    matches: list[bool]


@dataclass
class Clock:
    """Seconds spent inside an iterator."""

    seconds: float = 0.0

    def around(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            self.seconds += time.perf_counter() - start
            if piece is None:
                return
            yield piece


@dataclass
class LoadedModel:
    """A checkpoint in memory. `generate` answers, `stream` answers piece by piece, `chat` keeps a
    conversation, `logits` and `embed` look inside.
    """

    name: str
    config: LlavaConfig
    network: Llava
    tokenizer: Tokenizer | None
    description: dict[str, object]  # what a prompt cache says it was made with
    load_seconds: float = 0.0
    details: tuple[str, ...] = ()  # keys of config.json that nothing reads
    kv_dtype: torch.dtype | None = None  # of every cache; None: that of the weights
    progress: Callable[[int, int], None] | None = None  # told (tokens read, tokens of the prompt)

    def generate(self, question=None, *, images=(), videos=(), **options) -> Answer:
        """Answer a question about pictures and videos.

        question: text (with <image> and <video> where they go, or without: then they come first),
        messages in OpenAI's style, or token ids with -200 where a visual goes. images: path, URL,
        bytes, PIL, or uint8 [H W 3], each; videos: path, URL, bytes, or uint8 [F H W 3]. options:
        the fields of Options, and prompt_cache: a file to take the beginning of the prompt from,
        or to write the prompt to where there is none. Raises LlavaMinError.
        """
        *_, answer = self.events(question, images=images, videos=videos, **options)
        return answer

    def stream(self, question=None, *, images=(), videos=(), **options) -> Iterator[str]:
        """The answer's text in pieces of whole characters, as they come."""
        for event in self.events(question, images=images, videos=videos, **options):
            if isinstance(event, Token | Finished) and event.text:
                yield event.text

    def chat(self, *, prompt_cache=None, **options):
        """A Chat, which keeps its cache from question to question; options are those of every
        answer.
        """
        from .chat import Chat

        return Chat(self, prompt_cache, **options)

    def events(
        self, question=None, *, images=(), videos=(), prefix=None, prompt_cache=None, **given
    ) -> Iterator[Prepared | Token | Finished | Answer]:
        """Everything that happens: Prepared, Tokens, Finished, and the Answer that sums it up.

        prefix: what earlier calls left in a cache; the part that this prompt shares is not computed
        again.
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
            self.network, self.tokenizer, logits[-1], cache, prepared.ids, options
        ):
            yield event
            text += event.text
            if isinstance(event, Token):
                ids.append(event.id)
            else:
                finished = event
        if prefix is not None:
            prefix.said(ids)
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
        """Answer many requests, each {"question", "images", "videos", options...}, with one forward
        a step.
        """
        from .batch import generate_batch

        return generate_batch(self, requests)

    def prepare(self, question, images=(), videos=(), **options) -> Prepared:
        """The prompt laid out and its visuals as tiles, before the model sees them."""
        return prepare(question, images, videos, Options.of(**options), self.config, self.tokenizer)

    @property
    def storage(self) -> Storage:
        """How its numbers are kept."""
        dtype = str(self.network.decoder.norm.weight.dtype).removeprefix("torch.")
        quantized = self.config.quantization
        kept = next(name for name, kind in KV_DTYPES.items() if kind == self.kv_dtype)
        return Storage(dtype, quantized and quantized.bits, kept)

    def forecast(self, prepared: Prepared, answer: int) -> Forecast:
        """What a prompt and an answer of up to so many tokens need, beside what is free."""
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

    @limits.memory("read the prompt")
    def prefilled(self, prepared: Prepared, more: int, vision: Clock | None = None,
                  keep: str = "last", prefix: Prefix | None = None):  # fmt: skip
        """(logits, the cache behind the prompt with room for `more` tokens)."""
        vision, capacity = vision or Clock(), prepared.plan.tokens + more
        if prefix is None:
            cache, plan, visuals = self.empty_cache(capacity), prepared.plan, prepared.visuals
        else:
            cache, (plan, visuals) = prefix.cache, prefix.turn_to(prepared, capacity)
        return self.read(plan, visuals, cache, vision, keep), cache

    def read(self, plan: Plan, visuals: list[Encodable], cache: Cache, vision: Clock,
             keep: str = "last") -> Tensor:  # fmt: skip
        """Run a prompt into a cache, a few tiles and tokens at a time, as the free memory allows;
        its logits.
        """
        network = self.network
        k, chunk = portions(self.config, self.storage, free_bytes(network.device.type))
        encoded = [vision.around(network.encode(v.tiles, v.is_clip, k)) for v in visuals]
        return network.prefill(plan, encoded, cache, chunk, keep, self.progress)

    def score(self, question, answer, *, images=(), videos=(), **options) -> Score:
        """How likely an answer (text, or token ids, which may end with an end token) is.

        Equal to what `generate` would choose from, token for token, had it chosen these.
        """
        ids = list(answer)
        if isinstance(answer, str):
            ids = needed(self.tokenizer).encode_text(answer)
        if not ids:
            raise ParameterError("cannot score", "answer", "at least one token", "none")
        prepared = self.prepare(question, images, videos, **options)
        prepared.plan.check_fits(len(ids))
        self.forecast(prepared, len(ids)).check_room()
        return self.forced(*self.prefilled(prepared, len(ids)), ids)

    def forced(self, logits: Tensor, cache: Cache, ids: list[int]) -> Score:
        """The score of ids behind a prefilled prompt of one row: logits [1 V] of its last token."""
        logits, chosen = self.before(logits, cache, ids), torch.tensor(ids, device=logits.device)
        logs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        return Score(ids, logs.tolist(), (logits.argmax(-1) == chosen).tolist())

    def before(self, logits: Tensor, cache: Cache, ids: list[int]) -> Tensor:
        """Logits [T V] from which each of T ids would be chosen, the prompt prefilled likewise."""
        if len(ids) == 1:
            return logits
        more = Plan((Text(tuple(ids[:-1])),), self.config.text.context)
        return torch.cat([logits, self.network.prefill(more, [], cache, keep="all")])

    def logits(self, question, *, images=(), videos=(), **options) -> Tensor:
        """Logits after every row of the prompt: [rows V] float32, on the CPU."""
        prepared = self.prepare(question, images, videos, **options)
        return self.prefilled(prepared, 0, keep="all")[0].cpu()

    @limits.memory("embed the prompt")
    def embed(self, question, *, images=(), videos=(), **options) -> Tensor:
        """The rows that enter the decoder, text and visuals alike: [rows W]."""
        prepared = self.prepare(question, images, videos, **options)
        visuals = [self.network.encode(v.tiles, v.is_clip) for v in prepared.visuals]
        return torch.cat(list(self.network.rows(prepared.plan, visuals)))


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU where the model lives there, otherwise of the process.

    0 on Windows, which does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Loading -----------------------------------------------------------------------


@limits.memory("load the model")
def load(
    folder=None, *, device="auto", dtype="auto", kv_dtype="auto", config=None, context=None,
    bits=None, progress=None
) -> LoadedModel:  # fmt: skip
    """Load a checkpoint folder, a hub name or the embedded checkpoint, ready to answer; with
    `bits`, 4 or 8, quantised on the way.
    """
    start = time.perf_counter()
    device, path = pick_device(device), EMBEDDED
    kept = pick_kv_dtype(kv_dtype, device)
    if folder is not None:  # embedding and tower keep 16 bits: a byte for each weight in all
        itemsize = pick_dtype(dtype, device, large=True).itemsize if bits is None else 1
        path = hub.find(folder, itemsize, free_bytes(device))
    if restriction := hub.restriction(path):
        log.warning(restriction)
    checkpoint = Checkpoint.open(path)
    tokenizer = read_tokenizer(path)
    settings = settings_of(path, config, context)
    if tokenizer is not None:
        tokenizer.check_rows(settings.text.vocab_size)
    convert = iter
    if bits is not None:
        settings = replace(settings, quantization=quantize.on_load(settings, bits))
        convert = partial(quantize.converted, config=settings)
    network = weights.on_meta(settings)
    large = sum(weight.numel() for weight in network.parameters()) > SMALL
    torch_dtype = pick_dtype(dtype, device, large)
    weights.fill(network, checkpoint, torch_dtype, device, progress, convert)
    made = description(network)
    packed.ready(network)
    if device == "cuda":
        network.vision = RecordedTower(network.vision)
    name = "llava_min embedded toy" if path == EMBEDDED else str(folder)
    seconds = time.perf_counter() - start
    return LoadedModel(name, settings, network, tokenizer, made, seconds, settings.ignored, kept)


def pick_device(device: str) -> str:
    """auto: a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise ParameterError("cannot load", "device", "auto, cpu, cuda or mps", repr(device))
    if device == "cuda" and not torch.cuda.is_available():
        raise ParameterError(
            "cannot load", "device", "a CUDA GPU that torch can use", "none", "Use --device cpu."
        )
    return device


def pick_dtype(dtype: str, device: str, large: bool) -> torch.dtype:
    """auto: bfloat16 on a GPU (float16 before sm_80, which has no arithmetic for it), and on a CPU
    that is faster with it where the model is large.
    """
    if dtype == "auto" and device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return torch.float16
    if dtype == "auto":
        wide = device == "cpu" and not (large and onednn.faster())
        return torch.float32 if wide else torch.bfloat16
    if dtype not in DTYPES:
        raise ParameterError("cannot load", "dtype", f"auto, {', '.join(DTYPES)}", repr(dtype))
    return DTYPES[dtype]


def pick_kv_dtype(kv_dtype: str, device: str) -> torch.dtype | None:
    """auto: the cache keeps the dtype of the weights. A GPU converts fp8 from sm_89 on."""
    if kv_dtype not in KV_DTYPES:
        raise ParameterError("cannot load", "kv_dtype", ", ".join(KV_DTYPES), repr(kv_dtype))
    old = device == "cuda" and torch.cuda.get_device_capability() < (8, 9)
    if kv_dtype == "fp8" and (old or device == "mps"):
        expected = "a GPU of compute capability 8.9 or newer, or a CPU, for fp8"
        raise ParameterError("cannot load", "kv_dtype", expected, device, "Use int8.")
    return KV_DTYPES[kv_dtype]
