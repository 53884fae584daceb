"""The product's models with random weights, and what their steps read and compute.

in:  a shape, a device and a dtype
out: a Network as load() leaves it; bytes and FLOPs by formula

Speed does not need trained weights. Everything that is called here is the product's own.
Read shapes.py first. Read next: generate.py.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from llava_min.cache import Cache
from llava_min.config import LlavaConfig, TextConfig, VisionConfig
from llava_min.decoder import Decoder
from llava_min.engine.step import decoding
from llava_min.families import layouts
from llava_min.model import Network
from llava_min.options import Sampling
from llava_min.sampling import next_id
from llava_min.weights import load as weights
from llava_min.weights import packed, quantize

from . import checkpoints, shapes

CONTEXT = 262_144  # prompts are measured that are longer than a checkpoint's own context


def onevision(text: TextConfig, tower: VisionConfig = shapes.TOY_TOWER) -> LlavaConfig:
    """LLaVA-OneVision with a decoder and a tower of these shapes."""
    embedded = layouts.parse_config(checkpoints.config_of("embedded"))
    return replace(embedded, text=replace(text, context=CONTEXT), vision=tower)


def filled(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A module from `meta`, with small random weights; codes are any bytes, buffers zero."""
    module = module.to(dtype).to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.dtype == torch.uint8:
            parameter.data.random_(0, 256)
        elif parameter.dtype == torch.int8:
            parameter.data.random_(-127, 128)
        elif name.endswith("scale"):  # deviations of codes of four bits and of eight
            parameter.data.fill_(0.02 / (4.6 if parameter.ndim == 2 else 73))
        else:
            parameter.data.normal_(std=0.02)
    for buffer in module.buffers():
        buffer.zero_()
    return module.eval().requires_grad_(False)


def model_of(config: LlavaConfig, bits: int | None, device: str, dtype: torch.dtype) -> Network:
    """A model of random weights as load() makes it: in `dtype`, or its decoder in 4 or 8 bits."""
    if bits is not None:
        config = replace(config, quantization=quantize.on_load(config, bits))
    model = filled(weights.on_meta(config), device, dtype)
    packed.ready(model)
    return model


def decoder_of(config: TextConfig, quantised: bool, device: str, dtype: torch.dtype) -> Decoder:
    """A decoder of random weights, in int4 if `quantised`."""
    return model_of(onevision(config), 4 if quantised else None, device, dtype).decoder


def network_of(decoder: Decoder) -> Network:
    """A model around a decoder; its tower has no memory."""
    network = weights.on_meta(onevision(decoder.config))
    network.decoder = decoder
    return network


def full_cache(
    config: TextConfig,
    lengths: list[int],
    more: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Cache:
    """A cache whose rows have seen so many tokens, with room for `more`.

    It holds any numbers: those of 8 bits are 1, scales below 1.
    """
    cache = Cache.empty(config, len(lengths), max(lengths) + more, dtype, kv_dtype, device)
    for tensor in cache.stored(lambda tensor: tensor):
        if tensor is not None and tensor.element_size() == 1:
            tensor.fill_(1)
        elif tensor is not None:
            tensor.uniform_()
    for row, length in enumerate(lengths):
        cache.row(row).advance(length)
    return cache


def token_after_token(network: Network, cache: Cache) -> Callable[[], None]:
    """A function that makes one more greedy token of each row, as the product's loop does."""
    known = network.config.text.vocab_size
    make, ids = decoding(network, cache, known), [7] * len(cache.host_lengths)

    def step() -> None:
        logits, likely = make(ids)
        for row, one in enumerate(logits):
            ids[row] = next_id(one, [], 0, Sampling(), known, likely and likely[row])

    return step


def size_of(decoder: nn.Module) -> float:
    """Bytes that one decode step reads: everything but an embedding that is not also the head."""
    tensors = [
        tensor
        for module in decoder.modules()
        for tensor in (*module._parameters.values(), *vars(module).values())
        if isinstance(tensor, torch.Tensor)
    ]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    embedding = decoder.embedding.weight
    return total - (0 if decoder.head is None else embedding.numel() * embedding.element_size())


def cost(config: TextConfig, new: int, seen: int) -> tuple[float, float]:
    """Bytes of the cache that `new` tokens after `seen` read, and FLOPs of linears and scores."""
    width, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
    mixing = width * head_dim * (2 * heads + 2 * config.num_kv_heads)
    linears = mixing + 3 * width * config.intermediate_size
    scores = new * seen + new * (new + 1) / 2
    cache = 2 * 2 * config.num_kv_heads * head_dim * (seen + new)
    flops = 2 * linears * new + 4 * head_dim * heads * scores
    return config.num_layers * cache, config.num_layers * flops + 2 * width * config.vocab_size
