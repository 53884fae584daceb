"""Seconds that a split model should take, from what cards and links are said to do.

in:  a configuration, a Split, a prompt's length, a Card, a Link
out: Prediction: bytes that are sent, seconds of the prompt and of a token

Nothing of it was measured: peaks come from data sheets, and of each a fixed share is assumed. What
is computed and what is sent do not overlap, but for the stages of a pipeline, which are followed
chunk by chunk. A token reads weights and cache once on each rank; stages take turns.
No torch here.
Read planning/split.py, planning/memory.py first. Read next: planning/forecast.py.
"""

from dataclasses import dataclass

from ..config import LlavaConfig
from ..segments import CHUNK
from ..weights.share import Share
from .memory import Storage, matrices, token_bytes
from .split import Split, Traffic, block_bytes

READ, MULTIPLIED, ATTENDED = 0.8, 0.5, 0.35  # shares of the peaks that are reached


@dataclass(frozen=True)
class Card:
    """What a GPU's data sheet says: bytes/s of its memory, FLOP/s dense in bfloat16, bytes."""

    read: float
    multiply: float
    memory: float


@dataclass(frozen=True)
class Link:
    """What joins ranks: bytes/s in one direction, seconds until a small sum is there."""

    send: float
    sum: float


CARDS = {
    "H100": Card(3.35e12, 989e12, 80e9),
    "A100": Card(2.0e12, 312e12, 80e9),
    "RTX 3090": Card(0.94e12, 71e12, 24e9),
}
LINKS = {
    "NVLink": Link(360e9, 8e-6),
    "PCIe": Link(18e9, 20e-6),
    "400 Gb InfiniBand": Link(45e9, 25e-6),
    "25 Gb Ethernet": Link(2.8e9, 100e-6),
}
USUAL = (("H100", "NVLink"), ("A100", "PCIe"), ("RTX 3090", "PCIe"))  # what --plan shows


@dataclass(frozen=True)
class Prediction:
    """Bytes that the first rank sends for the prompt and a token, and seconds of each."""

    prompt_bytes: int
    token_bytes: int
    prompt: float
    token: float


def predicted(
    config: LlavaConfig, storage: Storage, split: Split, tokens: int, card: Card, link: Link
) -> Prediction:
    """For a prompt of so many tokens, read CHUNK at a time."""
    shares = split.shares(config, storage, [])[:: split.tensor]
    first, size = shares[0], storage.wide
    chunks = [(start, min(CHUNK, tokens - start)) for start in range(0, tokens, CHUNK)]
    ready = [0.0] * len(chunks)  # when each chunk is there for the next stage
    for share in shares:
        until = 0.0
        for index, (start, new) in enumerate(chunks):
            until = max(until, ready[index]) + reading(share, split, start, new, size, card, link)
            passing = Traffic.of(share, split, new, 0, size).passed
            ready[index] = until + (link.sum + passing / link.send) * (split.pipeline > 1)
    prompt, token = (Traffic.of(first, split, rows, 0, size) for rows in (tokens, 1))
    return Prediction(
        prompt.sent(split),
        token.sent(split),
        until,
        writing(config, storage, split, shares, tokens, card, link),
    )


def streamed(
    config: LlavaConfig, storage: Storage, tokens: int, card: Card, link: Link
) -> Prediction:
    """The same with all layers in the host's memory, from where each comes once a chunk or token.

    A layer computes while the next one comes, so the longer of the two counts.
    """
    text, blocks = config.text, block_bytes(config, storage) * config.text.num_layers
    share, coming, prompt = Share.whole(text), blocks / link.send, 0.0
    for start in range(0, tokens, CHUNK):
        new = min(CHUNK, tokens - start)
        computing = reading(share, Split(), start, new, storage.wide, card, link)
        prompt += max(coming, computing)
    token = writing(config, storage, Split(), [share], tokens, card, link)
    return Prediction(-(-tokens // CHUNK) * blocks, blocks, prompt, max(coming, token))


def reading(
    share: Share, split: Split, start: int, new: int, size: int, card: Card, link: Link
) -> float:
    """Seconds of a stage for `new` tokens after `start` others."""
    layers = share.stop - share.first
    products = 2 * new * matrices(share.text) * layers / share.text.num_layers / split.tensor
    numbers = share.text.num_heads * share.text.head_dim // split.tensor
    pairs = 4 * new * (start + new / 2) * numbers * layers
    work = products / (MULTIPLIED * card.multiply) + pairs / (ATTENDED * card.multiply)
    return work + summing(share, split, new, size, link)


def summing(share: Share, split: Split, new: int, size: int, link: Link) -> float:
    """Seconds of a stage's sums over the ranks that share its heads."""
    if split.tensor == 1:
        return 0.0
    summed = Traffic.of(share, split, new, 0, size).summed
    ring = 2 * summed * (split.tensor - 1) / split.tensor
    return 2 * (share.stop - share.first) * link.sum + ring / link.send


def writing(
    config: LlavaConfig,
    storage: Storage,
    split: Split,
    shares: list[Share],
    tokens: int,
    card: Card,
    link: Link,
) -> float:
    """Seconds of one more token: every stage reads its weights and cache, one after another."""
    text = config.text
    head = text.vocab_size * text.hidden_size * (1 if storage.bits else storage.size)
    cache = tokens * token_bytes(text, storage)
    blocks = block_bytes(config, storage) * text.num_layers
    seconds = ((blocks + cache) / split.tensor + head) / (READ * card.read)
    seconds += sum(summing(share, split, 1, storage.wide, link) for share in shares)
    return seconds + (split.pipeline - 1 + (split.pipeline > 1)) * link.sum
