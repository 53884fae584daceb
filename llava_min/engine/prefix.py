"""What a cache holds, token by token: a later prompt that begins alike goes on from there.

in:  a prepared prompt, a cache that has seen another
out: the part that is still to compute

A token of text counts by its id, a row of a picture or clip by the hash of the tiles it comes from.
On disk this is a safetensors file: the tokens, the cache head by head, and as metadata what they
depend on.
Read generate.py first. Read next: engine/chat.py.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..cache import Cache
from ..config import LlavaConfig
from ..errors import OutputError, PromptError, shown
from ..model import Network
from ..request.prepare import Prepared
from ..request.visuals import Encodable, Entry, Kept
from ..segments import Plan, Text

log = logging.getLogger("llava_min")
KIND = "llava_min prompt cache"  # the key of the metadata, by which a file of ours is known
AGAIN = "Remove the file, or name another."
UNWRITTEN = "cannot write the prompt cache"
INDIFFERENT = {"template", "frames", "ignored", "text.context", "text.eos_ids"}  # to the cache
Description = dict[str, object]  # names and values that a cache depends on besides the prompt
SAMPLE = 1024  # numbers of each tensor in a checkpoint's fingerprint


class Prefix:
    """A cache of one row, and what it holds: a number for each token (numbers_of).

    `opened` are the media of a conversation, kept from question to question (request/prepare.py).
    `reused` counts the tokens of the newest prompt that were not computed again.
    """

    def __init__(self, cache: Cache):
        self.cache, self.numbers, self.reused = cache, np.empty(0, np.int64), 0
        self.opened: Kept = {}

    def turn_to(self, prepared: Prepared, capacity: int) -> tuple[Plan, list[Encodable]]:
        """Forget what differs from a prompt and make room: (the plan of the rest, its visuals)."""
        numbers, seen = numbers_of(prepared), int(self.cache.host_lengths[0])
        plan, visuals = rest(prepared, common(self.numbers[:seen], numbers))
        self.reused, self.numbers = prepared.plan.tokens - plan.tokens, numbers
        self.cache.rewind(seen - self.reused)
        self.cache.lengths.fill_(self.reused)  # Ctrl-C may have come between the two counts
        self.grow(capacity, plan.context)
        return plan, visuals

    def grow(self, capacity: int, context: int) -> None:
        """Make room for `capacity` tokens and an eighth more, so that few later questions copy."""
        if capacity > self.cache.capacity:
            self.cache.grow(max(capacity, min(capacity + capacity // 8, context)))

    def append(self, ids: list[int]) -> None:
        """Append the answer's ids to the prompt's."""
        self.numbers = np.append(self.numbers, np.array(ids, np.int64))

    def load(self, path: str | Path, model: Description, prepared: Prepared, more: int) -> bool:
        """Fill the cache from a file, as far as the prompt begins alike; False without a file.

        The cache gets room for all of the prompt and `more` tokens. model: its `description`.

        PromptError names what does not fit, OutputError a folder in which no file can be made.
        """
        path = Path(path)
        if not path.exists():
            check_writable(path)
            return False
        self.numbers = np.empty(0, np.int64)
        self.cache.rewind(int(self.cache.host_lengths[0]))
        try:
            with safe_open(path, framework="pt", backend="pread") as file:
                made = json.loads((file.metadata() or {})[KIND])
                for name, value in made_with(model, self.cache).items():
                    if (found := made["with"].get(name)) != value:
                        raise refused(path, f"{name} {shown(value)}", shown(found))
                held, wanted = file.get_tensor("tokens").numpy(), numbers_of(prepared)
                count = common(held, wanted)
                check_media(path, made["media"], prepared.media, held, wanted, count)
                self.grow(prepared.plan.tokens + more, prepared.plan.context)
                self.cache.advance(count)
                for name, head in heads(self.cache, count):
                    stored = file.get_slice(name)[:count]
                    if stored.shape != head.shape:
                        raise ValueError(name)
                    head.copy_(stored)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            found = "a folder" if path.is_dir() else "a file cut short, or of another kind"
            raise refused(path, "a whole prompt cache", found, "Name another file.") from None
        self.numbers = held
        log.info(f"{count:,} of {prepared.plan.tokens:,} prompt tokens come from {path}")
        return True

    def save(self, path: str | Path, model: Description, prepared: Prepared) -> None:
        """Save the prompt's part of the cache in a new file, which is named `path` when whole."""
        count, path = prepared.plan.tokens, Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        tokens = torch.from_numpy(self.numbers[:count])
        media = [[entry["source"], entry["tokens"]] for entry in prepared.media]
        made = json.dumps({"with": made_with(model, self.cache), "media": media})
        try:
            save_file({"tokens": tokens, **dict(heads(self.cache, count))}, part, {KIND: made})
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            found = getattr(error, "strerror", None) or "an error of the file system"
            raise OutputError(UNWRITTEN, shown(str(path)), "to write all of it", found) from None
        finally:
            part.unlink(missing_ok=True)
        log.info(f"{count:,} prompt tokens kept in {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def check_writable(path: Path, failed: str = UNWRITTEN) -> None:
    """OutputError unless a file can be made next to a path; what is made is removed again.

    failed: what could not be done, as the error says it.
    """
    if not path.parent.is_dir():
        raise OutputError(failed, shown(str(path)), "a folder to write it to", "none")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part"):
            return
    except OSError as error:
        what, found = "a folder in which a file can be made", error.strerror
        raise OutputError(failed, shown(str(path)), what, found) from None


def numbers_of(prepared: Prepared, key: bytes = b"") -> np.ndarray:
    """A number for each token of a prompt, int64 [tokens].

    A token of text has its id. The rows of a visual have numbers below zero, counted down from its
    hash, which a key makes hard to foresee.
    """
    visuals, numbers = iter(prepared.visuals), []
    for segment in prepared.plan.segments:
        if isinstance(segment, Text):
            numbers.append(np.array(segment.ids, np.int64))
        else:
            numbers.append(-1 - next(visuals).hash(key) - np.arange(segment.tokens))
    return np.concatenate(numbers)


def common(held: np.ndarray, wanted: np.ndarray) -> int:
    """How many tokens two prompts begin with alike, without the last one wanted.

    The logits of that one are still to be computed.

    >>> common(np.array([5, 6, 7, 8]), np.array([5, 6, 9, 8])), common(np.arange(9), np.arange(4))
    (2, 3)
    """
    count = min(len(held), len(wanted) - 1)
    differ = np.flatnonzero(held[:count] != wanted[:count])
    return int(differ[0]) if len(differ) else count


def rest(prepared: Prepared, count: int) -> tuple[Plan, list[Encodable]]:
    """What follows the first `count` tokens of a prompt; a visual cut in two comes whole."""
    segments = prepared.plan.segments
    ends = np.cumsum([segment.tokens for segment in segments])
    index = int(np.searchsorted(ends, count, side="right"))
    left, passed = segments[index:], sum(not isinstance(s, Text) for s in segments[:index])
    if isinstance(left[0], Text):
        left = (Text(left[0].ids[count - int(ends[index]) :]), *left[1:])
    return Plan(left, prepared.plan.context), prepared.visuals[passed:]


def heads(cache: Cache, count: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, its first `count` tokens) of every layer and head of a cache of one row.

    These are whole runs of memory, so that none is copied to be saved.
    """
    for name, tensor in cache.tensors().items():
        if name != "lengths":
            for layer, parts in enumerate(tensor[:, 0]):
                yield from ((f"{name}.{layer}.{h}", head[:count]) for h, head in enumerate(parts))


# What a cache depends on besides the prompt --------------------------------------


def description(network: Network) -> Description:
    """Names and values that describe a model, as JSON would give them back.

    Its layers must not be laid out for the device yet, because some then hide their numbers.
    """
    return {
        "dtype": str(network.decoder.embedding.weight.dtype).removeprefix("torch."),
        "checkpoint": fingerprint(network),
        **{f"config {key}": value for key, value in flat_config(network.config).items()},
    }


def made_with(model: Description, cache: Cache) -> Description:
    """All that a file depends on besides the prompt: the model, and the dtype of its cache."""
    return model | {"kv-dtype": str(cache.keys.dtype).removeprefix("torch.")}


def fingerprint(network: Network) -> str:
    """A hash of numbers evenly spread over every tensor; all of a 7B model would take long."""
    seen = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        flat = tensor.reshape(-1)
        part = flat[:: max(1, len(flat) // SAMPLE)].double().cpu().numpy()
        seen.update(f"{name} {list(tensor.shape)}".encode() + part.tobytes())
    return seen.hexdigest()[:16]


def flat_config(config: LlavaConfig) -> dict[str, object]:
    """The configuration by dotted names, without what no key or value depends on."""
    flat = asdict(config)
    for part in ("text", "vision"):
        flat |= {f"{part}.{key}": value for key, value in flat.pop(part).items()}
    return json.loads(json.dumps({k: v for k, v in flat.items() if k not in INDIFFERENT}))


def refused(path: Path, expected: str, found: str, hint: str = AGAIN) -> PromptError:
    """The error of a file from which this prompt cannot go on."""
    what = "cannot continue from the prompt cache"
    return PromptError(what, shown(str(path)), expected, found, hint)


def check_media(
    path: Path,
    stored: list[tuple[str, int]],
    given: list[Entry],
    held: np.ndarray,
    wanted: np.ndarray,
    count: int,
) -> None:
    """PromptError unless the common part holds all media of the file, or all of the prompt."""
    ends = np.cumsum([tokens for _, tokens in stored])
    number = int(np.searchsorted(ends, (held[:count] < 0).sum(), side="right"))
    if number == len(stored) or count == len(wanted) - 1:
        return
    source, found = stored[number][0], "other text before it"
    if held[count] < 0:
        found = given[number]["source"] if number < len(given) else "none"
        found = "other contents of that name" if found == source else found
    raise refused(path, f"media {number + 1} to be {source}", found)
