"""An answer becomes an Explanation: its words are read again, and what they looked at is measured.

in:  a network, a cache that has read the prompt, the prompt's last row, ids of the answer
out: Explanation

The words run through the decoder as one chunk after the cached prompt, which gives the numbers of
the run itself. The row before a word predicts it; so the prompt's last row and all words but the
last are read.
Read explain/explanation.py first. Read next: engine/explaining.py.

T words, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..cache import Cache
from ..model import Network
from ..request.prepare import Prepared
from ..segments import Clip, Text
from ..tokenizer import Tokenizer
from ..trace import observing
from .attention import weighing
from .explanation import Explanation
from .forced import log_probabilities
from .measures import Planes, Shares, suggested, wanted, words_that_fit
from .rows import Rows
from .sinks import lengths

AT_A_TIME = 4  # words of which the logits are there together
ENTRANCES = ("embedded", "visual_rows")  # the places at which rows enter the decoder


@contextmanager
def last_row() -> Iterator[list[Tensor]]:
    """A list that holds the newest row [1 D] that has entered the decoder."""
    newest: list[Tensor] = []

    def observer(name: str, layer: int | None, tensor: Tensor) -> Tensor:
        if name in ENTRANCES:
            newest[:] = [tensor.flatten(0, -2)[-1:].clone()]
        return tensor

    with observing(observer):
        yield newest


@torch.inference_mode()
def explained(
    network: Network,
    cache: Cache,
    last: Tensor,
    prepared: Prepared,
    ids: list[int],
    words: int,
    alternatives: int,
    model: str,
) -> Explanation:
    """What the first `words` of an answer's ids looked at.

    cache: of one row, after the prompt, with room for the answer; it is left as it was. last: the
    prompt's last row [1 D]. alternatives: how many likely words to name in each place.
    """
    rows, text = Rows.of(prepared.plan, network.config), network.config.text
    count = words_that_fit(min(words, len(ids)), len(rows.tokens))
    tokens = int(cache.host_lengths[0]) - 1 + count
    entering = last[None]  # B T D
    if count > 1:
        said = torch.tensor([ids[: count - 1]], device=network.device)
        entering = torch.cat([entering, network.decoder.embed(said)], dim=1)
    cache.rewind(1)
    shares = Shares(text, count, rows.all_kinds(tokens))
    sums: dict[int, Tensor] = {}
    with weighing(cache, shares.take, sums):
        hidden = network.decoder(entering, cache)
    marks = shares.marks()
    planes = Planes(text, count, rows, wanted(marks, count, len(rows.tokens)))
    with weighing(cache, planes.take, sums):
        network.decoder(entering, cache)
    cache.advance(1)
    maps = planes.arrays() if len(rows.tokens) else {}
    long = lengths(cache, text, rows, maps) if maps else {}
    name, answer, whole = namer(prepared.tokenizer), ids[:count], " ".join(map(str, ids))
    if prepared.tokenizer is not None:
        whole = prepared.tokenizer.decode(ids)
    logs, top = likelihoods(network, hidden, answer, alternatives, name)
    return Explanation(
        model=model,
        config=network.config,
        answer=whole,
        token_ids=answer,
        tokens=[name(token) for token in answer],
        log_probabilities=logs,
        top=top,
        shares=shares.shares.numpy(),
        planes=maps,
        lengths={key: found.half().numpy() for key, found in long.items()},
        rows=rows,
        visuals=prepared.visuals,
        sources=list(sources(prepared)),
        prompt=list(ribbon(prepared, name)),
        suggested=suggested(marks) if maps else None,
        left_out=left_out(len(ids), count, len(planes.planes) + 1, marks.numel() + 1),
    )


def namer(tokenizer: Tokenizer | None) -> Callable[[int], str]:
    """A function that gives a token's text: special tokens as they are written, else its number."""
    if tokenizer is None:
        return str
    return lambda token: tokenizer.decode([token], special=True) or f"[{token}]"


def likelihoods(
    network: Network, hidden: Tensor, ids: list[int], count: int, name: Callable[[int], str]
) -> tuple[list[float], list[list[tuple[str, float]]]]:
    """(the logarithm of each word's probability, the `count` likeliest words in its place).

    hidden: [1 T D]. The logits of all words at once would be as large as everything else.
    """
    logs: list[float] = []
    top: list[list[tuple[str, float]]] = []
    for start in range(0, len(ids), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        logits = network.decoder.logits(hidden[:, part])[0]
        logs += log_probabilities(logits, ids[part]).tolist()
        top += likeliest(logits, count, name)
    return logs, top


def likeliest(
    logits: Tensor, count: int, name: Callable[[int], str]
) -> list[list[tuple[str, float]]]:
    """The `count` likeliest words by logits [T V], each with its probability."""
    found = logits.softmax(-1).topk(min(count, logits.shape[-1]))
    pairs = zip(found.indices.tolist(), found.values.tolist())
    return [[(name(token), share) for token, share in zip(*pair)] for pair in pairs]


def ribbon(prepared: Prepared, name: Callable[[int], str]) -> Iterator[str | int]:
    """The prompt in order: the text of each token, and the number of each visual."""
    visual = 0
    for segment in prepared.plan.segments:
        if isinstance(segment, Text):
            yield from map(name, segment.ids)
        else:
            yield visual
            visual += 1


def sources(prepared: Prepared) -> Iterator[str]:
    """Where each visual comes from; a clip that is taken frame by frame is as many visuals."""
    clips = sum(isinstance(visual.segment, Clip) for visual in prepared.visuals)
    videos = sum(entry["type"] == "video" for entry in prepared.media)
    for entry in prepared.media:
        if entry["type"] == "image" or clips == videos:
            yield entry["source"]
        else:
            for frame in range(entry["frames"]):
                yield f"{entry['source']}, frame {frame + 1}"


def left_out(said: int, words: int, kept: int, all_planes: int) -> list[str]:
    """What there was no room for, in sentences."""
    found = []
    if words < said:
        found.append(f"Only the first {words} of {said} tokens of the answer are explained.")
    if kept < all_planes:
        found.append(
            f"{kept} of {all_planes} maps were kept: the mean, the layer and the head that are "
            "aimed best, and as many others as there was room for."
        )
    return found
