"""The names of tensors: every layout's name -> the name in our modules, tables as data.

in:  a tensor's name in any layout
out: its name in our modules, and the slice that it fills or None

A checkpoint name is a prefix (where the tensor belongs) and a rest (which tensor it is). PREFIXES
turns the prefix of any layout into our module's. PARTS renames the rest. Where our module fuses
several tensors (qkv, gate_up), a row names the slice that the tensor fills.
Read weights/checkpoint.py first. Read next: weights/load.py.
Agrees with: the published safetensors indexes; transformers' conversion scripts.
"""

import itertools
import re
from typing import TYPE_CHECKING

from ..config import LlavaConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import Network

PREFIXES = (
    # (their prefix, ours, the layout that is written with it or None); the first that fits counts
    ("model.vision_tower.vision_tower.vision_model.", "vision.", "original"),
    ("model.vision_tower.vision_model.", "vision.", None),  # HF 4.52
    ("vision_tower.vision_model.", "vision.", "hf"),  # HF before 4.52
    ("model.vision_tower.", "vision.", None),  # HF 5
    ("vision_tower.", "vision.", None),
    ("model.mm_projector.0.", "projector.linear_1.", "original"),
    ("model.mm_projector.2.", "projector.linear_2.", "original"),
    ("model.multi_modal_projector.", "projector.", None),
    ("multi_modal_projector.", "projector.", "hf"),
    ("model.image_newline", "newline", "original"),
    ("image_newline", "newline", "hf"),
    ("language_model.lm_head.", "decoder.head.", "hf"),
    ("lm_head.", "decoder.head.", "original"),
    ("language_model.model.", "decoder.", "hf"),  # HF before 4.52
    ("model.language_model.", "decoder.", None),  # HF 4.52 and 5
    ("model.", "decoder.", "original"),  # fits others too: must come last
)
PARTS = (
    # (their part, our part, the slice of ours that it fills); {n} is a block's number
    ("decoder.embed_tokens.", "decoder.embedding.", None),
    ("decoder.layers.{n}.input_layernorm.", "decoder.blocks.{n}.attention_norm.", None),
    ("decoder.layers.{n}.post_attention_layernorm.", "decoder.blocks.{n}.mlp_norm.", None),
    ("decoder.layers.{n}.self_attn.q_proj.", "decoder.blocks.{n}.qkv.", "query"),
    ("decoder.layers.{n}.self_attn.k_proj.", "decoder.blocks.{n}.qkv.", "key"),
    ("decoder.layers.{n}.self_attn.v_proj.", "decoder.blocks.{n}.qkv.", "value"),
    ("decoder.layers.{n}.self_attn.o_proj.", "decoder.blocks.{n}.output.", None),
    ("decoder.layers.{n}.mlp.gate_proj.", "decoder.blocks.{n}.gate_up.", "gate"),
    ("decoder.layers.{n}.mlp.up_proj.", "decoder.blocks.{n}.gate_up.", "up"),
    ("decoder.layers.{n}.mlp.down_proj.", "decoder.blocks.{n}.down.", None),
    ("vision.embeddings.class_embedding", "vision.class_embedding", None),  # CLIP
    ("vision.pre_layrnorm.", "vision.pre_norm.", None),  # misspelt in CLIP's files
    ("vision.embeddings.patch_embedding.", "vision.patch_embedding.", None),
    ("vision.embeddings.position_embedding.", "vision.position_embedding.", None),
    ("vision.encoder.layers.{n}.layer_norm1.", "vision.blocks.{n}.attention_norm.", None),
    ("vision.encoder.layers.{n}.layer_norm2.", "vision.blocks.{n}.mlp_norm.", None),
    ("vision.encoder.layers.{n}.self_attn.q_proj.", "vision.blocks.{n}.qkv.", "query"),
    ("vision.encoder.layers.{n}.self_attn.k_proj.", "vision.blocks.{n}.qkv.", "key"),
    ("vision.encoder.layers.{n}.self_attn.v_proj.", "vision.blocks.{n}.qkv.", "value"),
    ("vision.encoder.layers.{n}.self_attn.out_proj.", "vision.blocks.{n}.output.", None),
    ("vision.encoder.layers.{n}.mlp.fc1.", "vision.blocks.{n}.up.", None),
    ("vision.encoder.layers.{n}.mlp.fc2.", "vision.blocks.{n}.down.", None),
)
LINEARS = ("qkv", "output", "gate_up", "down")  # of every block of the decoder
DECODER_MATRICES = re.compile(rf"decoder\.blocks\.\d+\.({'|'.join(LINEARS)})\.weight")
TOWER_MATRICES = re.compile(
    r"vision\.blocks\.\d+\.(qkv|output|up|down)\.weight|projector\.linear_[12]\.weight"
)
DROPPED = (
    # (pattern of the renamed tensor, why it is not used)
    (r"vision\.post_layernorm\.", "LLaVA takes the patch features before the tower's final norm"),
    (r"vision\.head\.", "SigLIP's pooling head is for classification"),
    (r"vision\.embeddings\.position_ids$", "a constant"),
    (r"decoder\..*rotary_emb\.inv_freq$", "a constant, computed from the configuration"),
)


def renamed(name: str, part: str, replacement: str) -> str | None:
    """`name` with its leading `part` replaced, or None where it begins otherwise.

    >>> renamed("a.12.b.weight", "a.{n}.b.", "c.{n}.d.")
    'c.12.d.weight'
    """
    match = re.match(re.escape(part).replace(r"\{n\}", r"(\d+)"), name)
    if match is None:
        return None
    return replacement.replace("{n}", match[1] if match.groups() else "") + name[match.end() :]


def ours(name: str) -> tuple[str, str | None]:
    """(the name in our modules, the slice that it fills or None); an unknown name keeps its rest.

    >>> ours("language_model.model.layers.3.self_attn.k_proj.bias")
    ('decoder.blocks.3.qkv.bias', 'key')
    """
    for prefix, replacement, _ in PREFIXES:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
            break
    for theirs, own, piece in PARTS:
        if found := renamed(name, theirs, own):
            return found, piece
    return name, None


def theirs(name: str, layout: str) -> list[tuple[str, str | None]]:
    """Our name -> the (name, slice) pairs that a layout stores it as: "original" or "hf".

    >>> theirs("decoder.blocks.3.gate_up.weight", "original")
    [('model.layers.3.mlp.gate_proj.weight', 'gate'), ('model.layers.3.mlp.up_proj.weight', 'up')]
    """
    inner: list[tuple[str, str | None]] = []
    for their, own, piece in PARTS:
        if found := renamed(name, own, their):
            inner.append((found, piece))
    prefixes = [(own, their) for their, own, written in PREFIXES if written == layout]
    return [
        (next(their + found[len(own) :] for own, their in prefixes if found.startswith(own)), piece)
        for found, piece in inner or [(name, None)]
    ]


def slices(name: str, config: LlavaConfig) -> dict[str, slice]:
    """The rows of our fused tensor `name` that each of its pieces fills.

    Rows of qkv: the heads of all queries, then of keys, then of values. Rows of gate_up: gate, then
    up.
    """
    if ".gate_up." in name:
        sizes = {"gate": config.text.intermediate_size, "up": config.text.intermediate_size}
    elif name.startswith("vision."):
        sizes = dict.fromkeys(("query", "key", "value"), config.vision.hidden_size)
    else:
        head = config.text.head_dim
        sizes = {
            "query": config.text.num_heads * head,
            "key": config.text.num_kv_heads * head,
            "value": config.text.num_kv_heads * head,
        }
    ends = itertools.accumulate(sizes.values())
    return {piece: slice(end - size, end) for (piece, size), end in zip(sizes.items(), ends)}


def bits(name: str, config: LlavaConfig) -> int:
    """In how many bits the tensor of our name is quantised; 16 where it stays as it is.

    Eight bits, which hardly show in answers, are for the tower and the projector too.
    """
    wanted = config.quantization
    if wanted is None:
        return 16
    if DECODER_MATRICES.fullmatch(name) or wanted.bits == 8 and TOWER_MATRICES.fullmatch(name):
        return wanted.bits
    return wanted.head if name == "decoder.head.weight" else 16


def dropped(name: str, vision_blocks: int) -> str | None:
    """Why the tensor of our name is not used, or None where it is."""
    block = re.match(r"vision\.blocks\.(\d+)\.", name)
    if block and int(block[1]) >= vision_blocks:
        return "LLaVA takes the features before the tower's last block"
    return next((why for pattern, why in DROPPED if re.match(pattern, name)), None)


def published(model: "Network", layout: str = "hf") -> dict[str, "Tensor"]:
    """{name in the layout: tensor} of a model: the fused tensors taken apart again."""
    return {
        name: tensor if piece is None else tensor[slices(own, model.config)[piece]]
        for own, tensor in model.state_dict().items()
        for name, piece in theirs(own, layout)
    }
