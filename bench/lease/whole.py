"""Whole models with weights drawn on the device: tokens, prompts, frames, and a peer.

in:  a Place      out: rows {what, model, format, size, ms or seconds, tokens_per_s, ...}
Everything runs as the product runs it: its recorded step and choice of a token, its chunks of a
prompt, its portions of a clip's frames, its packed layers. Speed does not need trained weights.
Where a prompt is read, the most memory that it took is beside what `--plan` says of it.
Read ../models.py, ../generate.py first. Agrees with: llava_min/engine/handle.py, which this calls.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from llava_min import segments as plans
from llava_min.config import LlavaConfig
from llava_min.engine.handle import Model
from llava_min.engine.recording import RecordedTower, recorded
from llava_min.model import finished
from llava_min.options import Sampling
from llava_min.planning import memory as needs
from llava_min.request.visuals import Encodable
from llava_min.sampling import next_id
from llava_min.segments import Plan, Text

from .. import generate, ledger, shapes
from ..models import cost, full_cache, model_of, onevision, size_of, token_after_token
from .place import Place
from .trace import bytes_of

SECONDS = 150
FORMATS = {"bf16": None, "int4": 4}  # format -> bits of the decoder
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LONG, LONG_CLIP = 2**17, 256  # tokens and frames from which on one measurement is enough
QUESTION = 40  # tokens of text after a clip
WIDE = 8192  # tokens of a chunk, beside the product's own chunks
TOY_TOKENS, TOY_FRAMES = 40, 3  # of a dry run, at most
Task = tuple[str, Callable[[], Iterator[dict]]]


def tasks(place: Place) -> Iterator[Task]:
    """In the order of worth, beside a peer's; what takes long comes last."""
    models = Models(place)
    decode, prefill, frames = (partial(one, models) for one in (decoding, reading, looking))
    plain, four = ("7B", "bf16"), ("7B", "int4")
    small, small_four = ("0.5B", "bf16"), ("0.5B", "int4")
    wanted = [
        (decode, plain, 1024),
        (decode, four, 1024),
        (prefill, plain, 8192),
        (prefill, plain, 32768),
        (frames, plain, 64),
        (frames, plain, 1),
        (decode, small, 1024),
        (decode, small_four, 1024),
        (prefill, four, 8192),
        (decode, plain, 32768),
        (decode, four, 32768),
        (decode, plain, 131072),
        (decode, four, 131072),
    ]
    more = [
        (decode, small, 32768),
        (frames, plain, 256),
        (prefill, small, 32768),
        (decode, small_four, 32768),
        (decode, small, 131072),
        (prefill, plain, 131072),
    ]
    for task, model, size in wanted:
        yield f"{task.func.__name__} {' '.join(model)} {size}", partial(task, *model, size)
    yield "transformers 0.5B prompt", lambda: beside_prompt(models, 8192)
    yield "transformers 0.5B", lambda: beside(models, 1024, False)
    for kind in KV_DTYPES:
        for name, size in (("7B", 131072), ("7B", 32768)):
            check = partial(decode, name, "bf16", size, kind)
            yield f"decoding {name} bf16, {kind} cache {size}", check
    for task, model, size in more:
        yield f"{task.func.__name__} {' '.join(model)} {size}", partial(task, *model, size)
    yield f"reading 7B in chunks of {WIDE}", partial(prefill, "7B", "bf16", 32768, WIDE)
    for size in (1024, 32768):  # at the end: recordings that are older do not outlive it
        yield f"transformers 0.5B compiled {size}", partial(beside, models, size, True)


@dataclass
class Models:
    """The models of this stage, each made when it is first needed and then kept."""

    place: Place
    made: dict[tuple[str, str], Model] = field(default_factory=dict)
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)  # of all weights

    def config(self, name: str) -> LlavaConfig:
        """LLaVA-OneVision in a shape of shapes.TEXTS."""
        if self.place.dry:
            return onevision(shapes.TOY)
        return onevision(shapes.TEXTS[name], shapes.TOWERS["SigLIP"])

    def get(self, name: str, form: str) -> Model:
        """The handle of a model, as load() gives it, without a tokenizer."""
        if (name, form) not in self.made:
            place = self.place
            network = model_of(self.config(name), FORMATS[form], place.device, place.dtypes[0])
            self.bytes[name, form] = bytes_of(network)
            if recorded(network.device):
                network.vision = RecordedTower(network.vision)
            self.made[name, form] = Model(name, network.config, network, None, {})
        return self.made[name, form]

    def tokens(self, count: int) -> int:
        """So many, or few in a dry run."""
        return min(count, TOY_TOKENS) if self.place.dry else count


# Memory and time ---------------------------------------------------------------


def allocated(place: Place) -> int:
    """Bytes of the tensors on a GPU."""
    return torch.cuda.memory_allocated() if place.device == "cuda" else 0


def most(place: Place, call: Callable[[], object]) -> int:
    """The most bytes that a call takes on a GPU, beside what is there already."""
    if place.device != "cuda":
        call()
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = allocated(place)
    call()
    return torch.cuda.max_memory_allocated() - before


def spread(seconds: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in milliseconds."""
    p20, p50, p80 = ledger.spread(seconds)
    return {"ms": 1e3 * p50, "p20_ms": 1e3 * p20, "p80_ms": 1e3 * p80}


def stopwatch(place: Place, call: Callable[[], object], rounds: int) -> dict[str, float]:
    """The times of some calls, each waited for."""
    seconds = []
    for _ in range(1 if place.dry else rounds):
        start = time.perf_counter()
        call()
        if place.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return spread(seconds)


def of_ceiling(place: Place, moved: float, flops: float, ms: float) -> dict[str, float]:
    """The time that this machine's copy or matmul rate allows over the time taken.

    Empty where the stage ceilings has not measured them.
    """
    limits = place.limits()
    if not limits:
        return {}
    return {"of_ceiling": 1e3 * max(moved / limits["copy"], flops / limits["matmul"]) / ms}


# What is measured ----------------------------------------------------------------


@torch.inference_mode()
def decoding(models: Models, name: str, form: str, seen: int, kind: str = "") -> Iterator[dict]:
    """One greedy token after another, after so many tokens, with a cache of 16 or of 8 bits."""
    place, network, seen = models.place, models.get(name, form).network, models.tokens(seen)
    text = network.config.text
    calls, rounds = (2, 1) if place.dry else (10, 7)
    cache = full_cache(
        text, [seen], calls * rounds + 8, place.dtypes[0], KV_DTYPES.get(kind), place.device
    )
    step = token_after_token(network, cache)
    for _ in range(3):
        step()
    times = spread([ms / 1e3 for ms in generate.timed(step, calls, rounds)])
    moved, flops = cost(text, 1, seen)
    if kind:
        moved *= (text.head_dim + 4) / (2 * text.head_dim)
    moved += size_of(network.decoder)
    what = "decode" + (f", {kind} cache" if kind else "")
    yield {
        "what": what,
        "model": name,
        "format": form,
        "size": seen,
        **times,
        "tokens_per_s": 1e3 / times["ms"],
        **of_ceiling(place, moved, flops, times["ms"]),
    }


@torch.inference_mode()
def reading(models: Models, name: str, form: str, tokens: int, chunk: int = 0) -> Iterator[dict]:
    """A prompt of text, in the product's chunks or in chunks of a size of its own."""
    place, model, tokens = models.place, models.get(name, form), models.tokens(tokens)
    config = model.config
    plan = Plan((Text((7,) * tokens),), config.text.context)

    def read() -> None:
        cache = model.empty_cache(tokens)
        if chunk:
            model.network.prefill(plan, [], cache, chunk)
        else:
            finished(model.reading(plan, [], cache))

    if tokens < LONG:
        peak = most(place, read)  # this one compiles, too
        times = stopwatch(place, read, 3)
    else:
        found = []
        peak = most(place, lambda: found.append(stopwatch(place, read, 1)))
        times = found[0]
    _, flops = cost(config.text, tokens, 0)
    moved = size_of(model.network.decoder)
    what = f"reading in chunks of {chunk}" if chunk else "prefill"
    yield {
        "what": what,
        "model": name,
        "format": form,
        "size": tokens,
        **times,
        "tokens_per_s": 1e3 * tokens / times["ms"],
        **of_ceiling(place, moved, flops, times["ms"]),
        **(planned(models, name, form, plan, 0, peak) if not chunk else {}),
    }


@torch.inference_mode()
def looking(models: Models, name: str, form: str, frames: int) -> Iterator[dict]:
    """From a clip's frames in the host's memory to the first token of an answer; and its tower."""
    place, model = models.place, models.get(name, form)
    frames, config = min(frames, TOY_FRAMES) if place.dry else frames, model.config
    side = config.tile
    pixels = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), np.uint8)
    times = [float(number) for number in range(frames)]
    segment = plans.clip(times, (side, side), config)
    visual = Encodable(segment, pixels)
    plan = Plan((segment, Text((7,) * QUESTION)), config.text.context)

    def answer() -> None:
        cache = model.empty_cache(plan.tokens + 1)
        logits = finished(model.reading(plan, [visual], cache))[-1]
        next_id(logits, [], plan.tokens, Sampling(), config.text.vocab_size)

    def encode() -> None:
        for _ in model.network.encode(segment, pixels):
            pass

    peak, rounds = most(place, answer), 3 if frames < LONG_CLIP else 1
    about = {"model": name, "format": form, "size": frames}
    yield {"what": "tower", **about, **stopwatch(place, encode, rounds)}
    times = stopwatch(place, answer, rounds)
    yield {
        "what": "frames",
        **about,
        **times,
        "tokens": plan.tokens,
        "tokens_per_s": 1e3 * plan.tokens / times["ms"],
        **planned(models, name, form, plan, 1, peak),
    }


def planned(models: Models, name: str, form: str, plan: Plan, answer: int, peak: int) -> dict:
    """What `--plan` says that a prompt needs, and what it took on a GPU, in bytes."""
    if not peak:
        return {}
    model = models.get(name, form)
    need = needs.alone(model.config, plan, answer, model.storage)
    return {"planned_bytes": need.total, "peak_bytes": models.bytes[name, form] + peak}


# transformers --------------------------------------------------------------------


def ours(place: Place, what: str, size: int) -> dict:
    """Our own row of the 0.5B model in 16 bits at that size, as the row of a peer holds it."""
    rows = [
        row
        for row in place.of("whole")
        if (row.get("what"), row.get("model"), row.get("format"), row.get("size"))
        == (what, "0.5B", "bf16", size)
    ]
    return {"ms": rows[-1]["ms"]} if rows else {}


@torch.inference_mode()
def beside(models: Models, seen: int, compiled: bool) -> Iterator[dict]:
    """A decode step of transformers with its static cache, as it is or compiled."""
    place, seen = models.place, models.tokens(seen)
    peer = generate.transformers_of(models.config("0.5B").text, place.device, place.dtypes[0])
    call = peer.forward
    if compiled and place.device == "cuda":
        call = torch.compile(peer.forward, mode="reduce-overhead")
    step = generate.transformers_step(peer, call, seen)
    for _ in range(3):
        step()
    times = generate.timed(step, *((2, 1) if place.dry else (5, 7)))
    name = "transformers static, " + ("compiled" if compiled else "as it is")
    about = {"model": "0.5B", "format": "bf16", "size": seen, "peer": name}
    yield {
        "what": f"decode beside {name}",
        **about,
        "peer_ms": times[len(times) // 2],
        **ours(place, "decode", seen),
    }


@torch.inference_mode()
def beside_prompt(models: Models, tokens: int) -> Iterator[dict]:
    """A prompt of text through transformers at once, logits of the last token only."""
    place, tokens = models.place, models.tokens(tokens)
    yield from reading(models, "0.5B", "bf16", tokens)
    peer = generate.transformers_of(models.config("0.5B").text, place.device, place.dtypes[0])
    prompt = torch.full((1, tokens), 7, device=place.device)

    def read() -> None:
        peer(prompt, use_cache=True, logits_to_keep=1)

    read()
    yield {
        "what": "prefill beside transformers",
        "model": "0.5B",
        "format": "bf16",
        "size": tokens,
        "peer": "transformers",
        **ours(place, "prefill", tokens),
        "peer_ms": stopwatch(place, read, 3)["ms"],
    }
