"""What a question will cost, before a weight is read or a pixel decoded: tokens, bytes, seconds.

in:  a checkpoint's config.json, its tokenizer if it has one, a question, the headers of its media
out: Forecast: text for a terminal, or JSON; MemoryBudgetError where it cannot fit

No torch here, unless a GPU must be asked for its memory. One GB is 10^9 bytes.
Read segments.py, planning/predict.py, planning/page.py, request/prepare.py first. Read next:
engine/handle.py.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .. import segments as plans
from ..base import cpu
from ..config import LlavaConfig, Quantization
from ..errors import MemoryBudgetError, wrong_value
from ..families.folder import EMBEDDED, EXAMPLE_PICTURE, EXAMPLE_QUESTION, config_of
from ..families.vocabulary import read_tokenizer
from ..kernels.paths import CHOICES
from ..options import Options
from ..prompt import Piece, Visual
from ..request.prepare import Pictures, Question, Videos, prepare
from ..request.visuals import Entry
from ..segments import Plan
from ..tokenizer import VISUAL, Tokenizer
from ..weights import hub
from ..weights.kept import with_kept_codes
from ..weights.share import Share
from ..weights.tied import with_own_head
from . import memory as needs
from . import page
from .devices import default_device, default_dtype
from .devices import path as path_of
from .memory import GB, Memory, Storage
from .page import counted
from .predict import CARDS, LINKS, USUAL, Prediction, predicted, streamed
from .split import Split, TileTraffic, Way, rank_memory

KINDS = (("float32", None), ("bfloat16", None), ("bfloat16", 8), ("bfloat16", 4))
WAYS = [(*kind, cache) for kind, cache in product(KINDS, ("auto", "int8"))]


class Guess(Tokenizer):
    """Takes the place of a missing tokenizer: a token for every three bytes of text."""

    def __init__(self) -> None:
        self.special = {}

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            count = -(-len(piece.encode()) // 3) if isinstance(piece, str) else 1
            ids += [VISUAL if isinstance(piece, Visual) else 0] * count
        return ids


@dataclass(frozen=True)
class Forecast:
    """The cost of a prompt and an answer of up to `answer` tokens, kept as `storage` says.

    room: bytes that weights, cache and activations may take together, None where it is not known.
    guessed: whether the tokens of the text are a guess. seconds: {"looking", "reading", "a token"},
    where they were estimated. results: bytes that are kept for the caller, besides the answer.
    kernels: the path of its operations (kernels/paths.py), and the reason.
    """

    name: str
    config: LlavaConfig
    plan: Plan
    media: list[Entry]
    answer: int
    storage: Storage
    room: int | None
    guessed: bool = False
    seconds: dict[str, float] | None = None
    results: int = 0
    kernels: tuple[str, str] | None = None
    split: Split = Split()
    offload: bool = False

    def memory(self, storage: Storage | None = None, saved: int = 0) -> Memory:
        """What is needed, or would be with other storage, or `saved` tokens less in the cache.

        Of a split model, what the fullest rank needs.
        """
        storage = storage or self.storage
        need, share = max(self.ranks(storage), key=lambda rank: rank[0].total)
        cache = need.cache - saved * needs.token_bytes(share.local(self.config).text, storage)
        weights = need.weights
        if self.offload:  # two layers have a place on the device
            two = Share(self.config.text, 0, min(2, self.config.text.num_layers))
            weights = needs.weight_bytes(two.local(self.config), storage)
        more = need.activations + self.results
        return replace(need, weights=weights, cache=cache, activations=more)

    def ranks(self, storage: Storage | None = None) -> list[tuple[Memory, Share]]:
        """What each rank needs, with its share of the weights."""
        storage = storage or self.storage
        shares = self.split.shares(self.config, storage, [])
        return [
            (rank_memory(self.config, self.plan, self.answer, storage, share), share)
            for share in shares
        ]

    def predictions(self) -> dict[str, Prediction]:
        """Of a split model: what it should take on some cards and links, by their names."""
        if self.offload:
            pcie = LINKS["PCIe"]
            what = self.config, self.storage, self.plan.tokens
            return {name: streamed(*what, CARDS[name], pcie) for name, _ in USUAL}
        if self.split.ranks == 1:
            return {}
        ways = {f"{card}, {link}": (CARDS[card], LINKS[link]) for card, link in USUAL}
        asked = self.config, self.storage, self.split, self.plan.tokens
        return {name: predicted(*asked, *way) for name, way in ways.items()}

    @property
    def fits(self) -> bool | None:
        return None if self.room is None else self.memory().total <= self.room

    def remedies(self) -> list[str]:
        """Options each of which would make it fit; two together where it takes both."""
        if self.room is None:
            return []
        own = self.storage
        others = {
            "--dtype bfloat16": replace(own, dtype="bfloat16"),
            "--kv-dtype int8": replace(own, kv_dtype="int8"),
            "--int8": replace(own, bits=8),
            "--int4": replace(own, bits=4),
            "--int4 --kv-dtype int8": replace(own, bits=4, kv_dtype="int8"),
        }
        others = {option: other for option, other in others.items() if other.size <= own.size}
        found = [o for o, other in others.items() if self.memory(other).total <= self.room]
        found = found[:-1] if len(found) > 1 else found
        for option, unit in (("--frames", "frames"), ("--max-tiles", "tiles")):
            many = [entry for entry in self.media if counted(entry, unit) > 1]
            most = max((counted(entry, unit) for entry in many), default=1)
            for count in range(most - 1, 0, -1):
                saved = sum(max(0, e["tokens"] - self.tokens_of(e, unit, count)) for e in many)
                if saved and self.memory(saved=saved).total <= self.room:
                    found.append(f"{option} {count}")
                    break
        for option, other in {"": own, **({} if found else others)}.items():
            over = self.memory(other).total - self.room
            count = self.answer - -(-over // needs.token_bytes(self.config.text, other))
            if count > 0:
                found.append(f"{option} --max-tokens {count}".strip())
                break
        weights = min(self.memory(other).weights for other in others.values())
        return found or ["a smaller checkpoint" if weights >= self.room else "a shorter prompt"]

    def tokens_of(self, entry: Entry, unit: str, count: int) -> int:
        """Tokens of a medium if it had so many frames, or grids of so many tiles at most."""
        if unit == "frames":
            return entry["tokens"] * count // entry["frames"]
        grids = tuple(g for g in self.config.grids if g[0] * g[1] <= count)
        config = replace(self.config, grids=grids or self.config.grids[:1])
        width, height = entry["size"]
        return plans.picture((width, height), "anyres", config).tokens

    def check_room(self) -> None:
        """MemoryBudgetError, with the arithmetic and what would fit, where it does not fit."""
        if self.room is not None and not self.fits:
            raise does_not_fit(self.memory(), self.room, self.remedies())

    def json(self) -> dict[str, Any]:
        """Everything, for programs."""
        visual = sum(entry["tokens"] for entry in self.media)
        tokens = {"text": self.plan.tokens - visual, "visual": visual, "answer": self.answer}
        return {
            "model": self.name,
            "family": self.config.family,
            "media": self.media,
            "tokens": tokens | {"all": sum(tokens.values()), "context": self.plan.context},
            "text_is_a_guess": self.guessed,
            "cache_bytes_a_token": needs.token_bytes(self.config.text, self.storage),
            "memory": self.rows(),
            "kernels": self.kernels and dict(zip(("path", "reason"), self.kernels)),
            "room_bytes": self.room,
            "fits": self.fits,
            "seconds": self.seconds,
            "what_would_fit": self.remedies() if self.fits is False else [],
        } | self.split_json()

    def split_json(self) -> dict[str, Any]:
        """Of a split model: what each rank holds, and predictions."""
        guesses = {name: asdict(guess) for name, guess in self.predictions().items()}
        if self.split.ranks == 1:
            return {"predicted": guesses} if guesses else {}
        ranks = [
            {
                "rank": rank,
                "layers": [share.first, share.stop],
                "heads": self.config.text.num_heads // share.heads,
                "mlp": share.mlp[1] - share.mlp[0],
                **asdict(need),
                "total": need.total,
            }
            for rank, (need, share) in enumerate(self.ranks())
        ]
        tiles = asdict(TileTraffic.of(self.config, self.plan, self.storage))
        return {"ranks": ranks, "sent": tiles, "predicted": guesses}

    def rows(self) -> list[dict[str, Any]]:
        """The table over ways of storing."""
        own, found = self.storage, []
        ways = dict.fromkeys([*WAYS, (own.dtype, own.bits, own.kv_dtype)])
        for dtype, bits, kv_dtype in ways:
            storage = replace(own, dtype=dtype, bits=bits, kv_dtype=kv_dtype)
            need = self.memory(storage)
            named = {"dtype": dtype, "bits": bits, "kv_dtype": kv_dtype}
            sums = {"total": need.total, "chosen": storage == own}
            found.append(named | asdict(need) | sums)
        return found

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = page.WIDTH) -> str:
        """Everything, for people, in lines of at most `width` characters, or 40."""
        return page.page(self, width)


def does_not_fit(need: Memory, room: int, remedies: list[str]) -> MemoryBudgetError:
    """The error of what needs more than `room` bytes, with the arithmetic and what would fit."""
    unit, of = ("GB", GB) if need.total >= GB else ("MB", 10**6)
    sum_of = " + ".join(f"{size / of:.2f} {name}" for name, size in asdict(need).items())
    return MemoryBudgetError(
        "cannot answer",
        "memory",
        f"at most {room / of:.2f} {unit}",
        f"{sum_of} = {need.total / of:.2f} {unit}",
        f"What would fit: {', or '.join(remedies)}.",
    )


def forecast(
    folder: str | Path | None = None,
    question: Question = None,
    *,
    images: Pictures = (),
    videos: Videos = (),
    device: str = "auto",
    dtype: str = "auto",
    bits: int | None = None,
    kv_dtype: str = "auto",
    config: Mapping[str, object] | None = None,
    context: int | None = None,
    adapter: str | Path | None = None,
    devices: Sequence[str] = (),
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    offload: bool = False,
    kernels: str = "auto",
    memory: float | None = None,
    **options: object,
) -> Forecast:
    """What a question to a checkpoint, named as for load(), will cost; its weights are not fetched.

    memory: GB to fit in, instead of what is free, on each device. An adapter, once it is merged,
    costs nothing. Ranks on CPUs share what is free there.
    """
    way = Way.of(devices, tensor_parallel, pipeline_parallel, adapter, offload)
    split = Split(pipeline=len(way.devices)) if way.devices else way.split
    device = way.devices[0].partition(":")[0] if way.devices else device
    path = EMBEDDED if folder is None else hub.find(folder, files=hub.DESCRIPTION)
    chosen = Options.of(**options)
    settings = with_own_head(config_of(path, config, context), path)
    settings = settings if bits or adapter else with_kept_codes(settings, path)
    if question is None and not images and not videos:
        question, images = EXAMPLE_QUESTION, (EXAMPLE_PICTURE,)
    tokenizer = read_tokenizer(path)
    prepared = prepare(
        question, images, videos, chosen, settings, tokenizer or Guess(), headers=True
    )
    if device == "auto":
        device = default_device()
    if dtype == "auto":
        dtype, _ = default_dtype(device, is_large(settings))
    if dtype not in needs.BYTES:
        raise wrong_value("dtype", f"one of auto, {', '.join(needs.BYTES)}", dtype)
    if kernels not in CHOICES:
        raise wrong_value("kernels", f"one of {', '.join(CHOICES)}", kernels)
    if settings.quantization is not None:
        bits = settings.quantization.bits
    split.check(replace(settings, quantization=Quantization(bits) if bits else None))
    room = round(memory * GB) if memory else free_bytes(device)
    if room is not None and device == "cpu" and not memory:
        room //= split.ranks
    found = Forecast(
        name="embedded toy" if folder is None else str(folder),
        config=settings,
        plan=prepared.plan,
        media=prepared.media,
        answer=chosen.max_tokens,
        storage=Storage(dtype, bits, kv_dtype, device, split.ranks),
        room=room,
        guessed=tokenizer is None,
        kernels=path_of(device, kernels),
        split=split,
        offload=way.offload,
    )
    alone = device == "cpu" and split.ranks == 1
    return replace(found, seconds=estimate(found)) if alone else found


def is_large(config: LlavaConfig) -> bool:
    """Whether a CPU's caches do not hold the weights."""
    return needs.weight_bytes(config, Storage("float32")) > 4 * cpu.SMALL


# The machine -------------------------------------------------------------------


def free_bytes(device: str) -> int | None:
    """The memory that a model could take on a device now, None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")), None)


def estimate(found: Forecast) -> dict[str, float]:
    """Seconds at the speed at which this machine multiplies matrices and copies memory just now.

    A token of the answer reads weights and cache once.
    """
    square, block = np.ones((384, 384), np.float32), np.ones(2**22, np.float32)
    target = np.empty_like(block)
    product = fastest(lambda: square @ square) / (2 * 384**3)
    copy = fastest(lambda: np.copyto(target, block)) / (2 * block.nbytes)
    looking, reading = needs.operations(found.config, found.plan)
    need = found.memory()
    token = (need.weights + need.cache) * copy
    return {"looking": looking * product, "reading": reading * product, "a token": token}


def fastest(call: Callable[[], object], rounds: int = 3) -> float:
    """Seconds of the fastest of a few calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
