"""The language model: rows -> logits (Qwen2; LLaMA is the same without qkv biases).

in:  rows [B T D] (embedded text and projected pictures alike), a cache
out: hidden [B T D], logits float32

Rows may come in chunks: a new row attends to all that the cache has seen, and to the new rows up to
itself (kernels/attention.py). So chunks give what the whole gives, and the future changes nothing.
Read cache.py first. Read next: model.py.
Agrees with: Qwen2ForCausalLM and LlamaForCausalLM of transformers; arXiv 2407.10671.

B rows of a batch, T new tokens, D width, H query heads, K key/value heads, E head dimension, V
vocabulary.
"""

from functools import partial

import torch
from torch import Tensor, nn

from .cache import Cache, Layer
from .config import TextConfig
from .kernels import activation, attention, norm, rope
from .kernels.decode_attention import decode_attention
from .trace import see
from .vision import Linear

# Up to this many new tokens a row go to decode_attention: the newest one and the drafts after it
DECODE_QUERIES = 8


class RMSNorm(nn.Module):
    """Rows [... D] divided by their root mean square, times a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, rows: Tensor) -> Tensor:
        return norm.rms_norm(rows, self.weight, self.eps)

    def added(self, rows: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
        """(rows + update, their RMSNorm), each [B T D]; an update of None is zero."""
        if update is None:
            return rows, self(rows)
        return norm.add_rms_norm(rows, update, self.weight, self.eps)

    def whole_stream(
        self, rows: Tensor, update: Tensor | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """(rows + update, their RMSNorm) where a layer begins; the sum can be watched and edited.

        The norm of an edited sum is taken again.
        """
        rows, normed = self.added(rows, update)
        stream = see("stream", rows, "B T D", layer)
        return stream, normed if stream is rows else self(stream)


class Block(nn.Module):
    """Attention over the cache, then SwiGLU; both read normalised rows and add to the stream."""

    def __init__(self, config: TextConfig):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads + 2 * config.num_kv_heads
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.qkv = nn.Linear(width, heads * config.head_dim, bias=config.qkv_bias)
        self.output = nn.Linear(config.num_heads * config.head_dim, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = Linear(config.intermediate_size, width, bias=False)

    def attend(self, normed: Tensor, angles: Tensor, layer: Layer) -> Tensor:
        """Normalised rows [B T D] -> what attention adds to the stream [B T D].

        The new keys and values are written into the cache layer.
        """
        query = rope.write(self.qkv(normed), angles, layer)
        query = see("query", query, "B T H E", layer.index)
        attend = decode_attention if query.shape[1] <= DECODE_QUERIES else attention.prefill
        mixed = see("mixed", attend(query, layer), "B T H E", layer.index)
        return see("attention_update", self.output(mixed.flatten(2)), "B T D", layer.index)

    def forward(
        self, rows: Tensor, update: Tensor | None, angles: Tensor, layer: Layer
    ) -> tuple[Tensor, Tensor]:
        """(stream, update) before this block -> (stream, update) after it, each [B T D].

        The kernel of the next norm adds the update to the stream.
        """
        rows, normed = self.attention_norm.whole_stream(rows, update, layer.index)
        rows, normed = self.mlp_norm.added(rows, self.attend(normed, angles, layer))
        update = self.down(activation.swiglu(self.gate_up(normed)))
        return rows, see("mlp_update", update, "B T D", layer.index)


class Decoder(nn.Module):
    """Embedding, blocks, final norm, and the head, which may be the embedding itself ("tied")."""

    parts = 1  # processes or devices that hold its blocks

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head: nn.Module | None = None
        if not config.tied:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B T] -> rows [B T D]."""
        return see("embedded", self.embedding(ids), "B T D")

    def forward(self, rows: Tensor, cache: Cache, kept: int | None = None) -> Tensor:
        """Rows [B T D] -> hidden [B T D], writing into the cache without advancing it.

        kept: of how many of the newest rows the hidden is wanted, if not of all.
        """
        hidden = self.norm.whole_stream(*self.through(rows, cache), len(self.blocks))[1]
        hidden = see("hidden", hidden, "B T D")
        return hidden if kept is None else hidden[:, hidden.shape[1] - kept :]

    def through(self, rows: Tensor, cache: Cache) -> tuple[Tensor, Tensor | None]:
        """Rows [B T D] through all blocks: (the stream, what the last block adds to it)."""
        positions = cache.lengths[:, None] + torch.arange(rows.shape[1], device=rows.device)
        angles, update = self.angles(positions, rows.dtype), None
        for block, layer in zip(self.blocks, cache.layers()):
            rows, update = block(rows, update, angles, layer)
        return rows, update

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Cosine and sine of positions [B T], in float32 at least: [2 B T E]."""
        config = self.config
        wide = torch.promote_types(dtype, torch.float32)
        return rope.angles(positions, config.rope_theta, config.head_dim, config.rope_factor, wide)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B T D] -> [B T V], in float32 at least."""
        head = self.head or partial(nn.functional.linear, weight=self.embedding.weight)
        return see("logits", norm.wide(head(hidden)), "B T V")
