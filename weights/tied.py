"""Whether a checkpoint that ties its head to the embedding has a head of its own all the same.

in:  LlavaConfig, the folder of the weights
out: LlavaConfig, untied where the folder holds a head that differs from its embedding

Merging a LoRA into a tied model leaves such files: tie_word_embeddings is still true. As in
transformers 5, what the file holds counts. A head that equals the embedding is dropped. The bytes
of both are compared without torch, so that a plan knows as much as loading.
Read weights/index.py, weights/names.py first. Read next: weights/load.py.
Agrees with: PreTrainedModel.tie_weights of transformers 5.
"""

import logging
from dataclasses import replace
from pathlib import Path

from ..config import LlavaConfig
from ..errors import CheckpointError, shown
from . import header, names
from .index import index

log = logging.getLogger("llava_min")
PORTION = 2**24  # bytes that are compared at a time


def with_own_head(config: LlavaConfig, folder: Path) -> LlavaConfig:
    """The configuration, untied where the weights of the folder are not; a line says so.

    Where the weights are not there, or cannot be read, there is nothing to say yet.
    """
    if not config.text.tied:
        return config
    try:
        shards = index(folder)
    except CheckpointError:
        return config
    ours = {names.ours(name)[0]: name for name in shards}
    head, embedding = ours.get("decoder.head.weight"), ours.get("decoder.embedding.weight")
    if head is None or embedding is None:
        return config
    if same_bytes((shards[head], head), (shards[embedding], embedding)):
        return config
    log.warning(
        f"tie_word_embeddings is true, but {shown(head)} is not the embedding; "
        "the checkpoint's own head is used"
    )
    return replace(config, text=replace(config.text, tied=False))


def same_bytes(first: tuple[Path, str], second: tuple[Path, str]) -> bool:
    """Whether two tensors, each of a file, are stored as the same bytes."""
    begin, end = header.stored_bytes(*first)
    other, other_end = header.stored_bytes(*second)
    if end - begin != other_end - other:
        return False
    with open(first[0], "rb") as one, open(second[0], "rb") as two:
        one.seek(begin)
        two.seek(other)
        left = end - begin
        while left:
            portion = min(left, PORTION)
            if one.read(portion) != two.read(portion):
                return False
            left -= portion
    return True
