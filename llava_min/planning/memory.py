"""Bytes and operations of a prompt, from sizes alone.

in:  a configuration, a Plan, how numbers are stored
out: Memory(weights, cache, activations), operations

Read segments.py first. Read next: planning/forecast.py.
"""

import math
from dataclasses import dataclass

from ..anyres import Grid
from ..config import LlavaConfig, TextConfig, VisionConfig
from ..image import EXTREME, PART
from ..kernels.attention_sizes import LEAST, rows_with, written
from ..kernels.paths import LARGE
from ..segments import CHUNK, TILES, Clip, Picture, Plan, Text

# Memory and work ---------------------------------------------------------------

GB = 10**9
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
UNPACKED = 2**26  # packed weights that a prefill multiplies out at a time
LIBRARIES = 96 * 2**20  # what cuBLAS and recorded passes keep on a GPU: 74 MB on an H100
SCALE = 4  # bytes of the scale of an output whose weights have eight bits, at most


@dataclass(frozen=True)
class Storage:
    """How and where numbers are stored: as `dtype`, unless `bits` or `kv_dtype` says otherwise.

    With `bits`, 4 or 8, the matrices of the decoder's blocks have that many bits and the head 8;
    with 8 those of tower and projector have them too.
    With kv_dtype int8 or fp8 the cache has 8. towers: how many devices share the tiles.
    """

    dtype: str = "float32"
    bits: int | None = None
    kv_dtype: str = "auto"
    device: str = "cpu"
    towers: int = 1

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return BYTES[self.dtype]

    @property
    def wide(self) -> int:
        """Bytes of a number of the residual stream, which float16 does not hold (half.py)."""
        return max(self.size, 4) if self.dtype == "float16" else self.size

    @property
    def portions(self) -> tuple[int, int]:
        """(tiles of each tower, tokens) to work on at a time, at most.

        A CPU is no faster with more, and its heap fills with holes (bench frames).
        """
        return (2, 1024) if self.device == "cpu" else (TILES, CHUNK)

    def writes_scores(self, count: int) -> bool:
        """Whether attention may write out so many scores (kernels/attention_cpu.py)."""
        return self.device == "cpu" and self.dtype in ("bfloat16", "float32") and count >= LEAST


@dataclass(frozen=True)
class Memory:
    """Bytes of a prompt and its answer at the worst moment."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def matrices(text: TextConfig) -> int:
    """Weights in the matrices of the decoder's blocks, which quantising packs."""
    heads = 2 * text.num_heads + 2 * text.num_kv_heads
    block = text.hidden_size * (heads * text.head_dim + 3 * text.intermediate_size)
    return text.num_layers * block


def tower_matrices(vision: VisionConfig) -> int:
    """Weights in the matrices of the tower's blocks."""
    width = vision.hidden_size
    return vision.num_layers * width * (4 * width + 2 * vision.intermediate_size)


def projector_matrices(config: LlavaConfig) -> int:
    """Weights in the two matrices of the projector."""
    return (config.vision.hidden_size + config.text.hidden_size) * config.text.hidden_size


def outputs(config: LlavaConfig) -> int:
    """Outputs of all these matrices, each of which has a scale where weights have eight bits."""
    text = config.text
    qkv = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    block = qkv + 2 * text.hidden_size + 2 * text.intermediate_size
    return text.num_layers * block + tower_outputs(config.vision) + 2 * text.hidden_size


def tower_outputs(vision: VisionConfig) -> int:
    """Outputs of the matrices of the tower's blocks."""
    return vision.num_layers * (5 * vision.hidden_size + vision.intermediate_size)


def other_tower_parameters(vision: VisionConfig) -> int:
    """Parameters of the tower that are not in these matrices: patches, positions, biases, norms."""
    width = vision.hidden_size
    patches = (3 * vision.patch_size**2 + vision.patch_bias) * width
    rows = vision.num_positions + vision.class_token + 2 * vision.pre_norm
    biases = vision.num_layers * (9 * width + vision.intermediate_size)
    return patches + rows * width + biases


def other_parameters(config: LlavaConfig) -> int:
    """All others: embedding and head, tower, projector, biases, norms."""
    text, vision, width = config.text, config.vision, config.text.hidden_size
    qkv = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    decoder = text.num_layers * (2 * width + text.qkv_bias * qkv) + width
    embeddings = (1 if text.tied else 2) * text.vocab_size * width
    projector = projector_matrices(config) + (2 + config.newline) * width
    tower = tower_matrices(vision) + other_tower_parameters(vision)
    return decoder + embeddings + tower + projector


def weight_bytes(config: LlavaConfig, storage: Storage) -> int:
    """Bytes of all weights.

    Of four bits 128 have a scale and a zero, of eight each output has a scale. The head has a
    packed form of its own, next to the embedding where the two are tied; unpacked on a CPU too,
    unless it is small (weights/packed.py).
    """
    text, others = config.text, other_parameters(config)
    head = text.vocab_size * text.hidden_size
    if storage.bits is None:
        least = {"bfloat16": 0, "float32": LARGE}.get(storage.dtype, math.inf)
        ordered = text.tied and storage.device == "cpu" and head >= least
        return (matrices(text) + others + ordered * head) * storage.size
    packed = head + text.vocab_size * SCALE
    others -= (not text.tied) * head
    if storage.bits == 4:
        packed += matrices(text) // 2 + matrices(text) // 128 * 2 * storage.size
    else:
        seen = tower_matrices(config.vision) + projector_matrices(config)
        packed += matrices(text) + seen + outputs(config) * SCALE
        others -= seen
    return packed + others * storage.size


def tower_weight_bytes(vision: VisionConfig, storage: Storage) -> int:
    """Bytes of the weights of the tower, as they are counted among all."""
    matrices, others = tower_matrices(vision), other_tower_parameters(vision)
    if storage.bits == 8:
        return matrices + tower_outputs(vision) * SCALE + others * storage.size
    return (matrices + others) * storage.size


def token_bytes(text: TextConfig, storage: Storage) -> int:
    """Bytes of one token in the cache: 2 x layers x heads x numbers.

    With 8 bits each key and value has a float32 scale too.
    """
    vector = text.head_dim * storage.size if storage.kv_dtype == "auto" else text.head_dim + 4
    return 2 * text.num_layers * text.num_kv_heads * vector


def prefill_bytes(text: TextConfig, tokens: int, storage: Storage, chunk: int = CHUNK) -> int:
    """The most that a chunk of a prompt of `tokens` needs besides weights and cache.

    It is the largest of three moments. The MLP needs gate, up and their product. Before it,
    rotating makes float32 of 16 bits four times. Attention needs the keys and values of the new
    tokens for each head, and after the first chunk the results over earlier and own tokens, which
    are added up in float32; a CPU may write out scores instead. It also needs one layer's keys and
    values where 8 bits are multiplied out. Packed weights are multiplied out; a CPU makes bytes of
    rows instead, two where it must, next to one.
    """
    new, size, heads = min(chunk, tokens), storage.size, text.num_heads * text.head_dim
    kv_heads = text.num_kv_heads * text.head_dim
    angles = 8 * new * text.head_dim  # cosines and sines in float32
    mlp = new * storage.wide * (3 * text.intermediate_size + 4 * text.hidden_size)
    rotating = new * (size * (heads + 2 * kv_heads) + (size < 4) * 16 * (heads + kv_heads))
    results = size * 2 * new * heads + (tokens > new) * new * heads * (size + (size < 4) * 12)
    if storage.writes_scores(new * tokens):
        groups = text.num_heads // text.num_kv_heads
        results = max(results, written(groups, text.head_dim, new, tokens, size))
    results += (storage.kv_dtype != "auto") * 2 * tokens * kv_heads * size
    attention = max(rotating, new * size * 3 * heads + angles + results)
    attention += new * storage.wide * 4 * text.hidden_size
    largest = 2 * text.intermediate_size * text.hidden_size
    unpacked = min(UNPACKED, largest) * size * (storage.bits is not None)
    if (storage.bits, storage.device) == (8, "cpu"):
        unpacked = 3 * new * text.intermediate_size
    return max(mlp, attention) + angles + unpacked


def vision_bytes(config: LlavaConfig, tiles: int, storage: Storage, k: int = TILES) -> int:
    """The most that encoding needs: k tiles in an MLP of the tower, or the rows of a picture.

    A picture of `tiles` is put together whole, from four copies.
    """
    together = 4 * tiles * config.vision.side**2 * config.text.hidden_size
    return max(pass_bytes(config.vision, min(k, tiles), storage), together * storage.wide)


def pass_bytes(vision: VisionConfig, tiles: int, storage: Storage) -> int:
    """The most that a pass of so many tiles through the tower needs.

    That is in an MLP, or where a CPU writes out scores (kernels/attention_cpu.py) in attention.
    """
    rows, width, attention = vision.num_positions, vision.hidden_size, 0
    copies = 3 if vision.activation == "quick_gelu" else 2
    mlp = tiles * rows * (2 * width + copies * vision.intermediate_size) * storage.wide
    if storage.writes_scores(rows**2):
        size = storage.size
        attention = (4 + size % 4) * min(rows, rows_with(rows)) * rows
        # of a head: keys and queries in float32, what oneDNN makes of keys and values, the result
        attention += 20 * rows * (width // vision.num_heads) + tiles * rows * 6 * width * size
    return max(mlp, attention)


def picture_bytes(config: LlavaConfig, size: tuple[int, int], mode: str) -> int:
    """The most that a picture of `size` (width, height) needs until it is tiles by `mode`.

    It is the larger of two moments, at four bytes a pixel. Decoding needs up to four copies: as it
    was stored, white to lie on, and two of the result. Resizing needs one, the picture with its
    rows resized, parts of a padded square, and the result twice.
    """
    (width, height), tile = size, config.tile
    columns, rows = tile, tile
    if mode == "anyres":
        grid = Grid.of(size, config).tiles
        columns, rows = grid[1] * tile, grid[0] * tile
    elif mode == "crop" and max(size) <= EXTREME * min(size):
        columns, rows = (math.ceil(tile * side / min(size)) for side in size)
    elif mode == "pad":
        height = max(size)
    between = columns * height + (mode == "pad") * 2 * min(PART, height**2)
    return 4 * max(4 * width * size[1], width * size[1] + between + 2 * columns * rows)


def opening_bytes(config: LlavaConfig, plan: Plan) -> int:
    """The most that opening one of the pictures or frames of a plan needs."""
    each = [0]
    for segment in plan.segments:
        if not isinstance(segment, Text):
            mode = segment.mode if isinstance(segment, Picture) else config.frame_mode
            each.append(picture_bytes(config, segment.size, mode))
    return max(each)


def portions(config: LlavaConfig, storage: Storage, free: int | None) -> tuple[int, int]:
    """(tiles of each tower, tokens) to work on at a time.

    They are storage.portions, each halved until it takes at most an eighth of `free` bytes.
    """
    (k, chunk), most = storage.portions, math.inf if free is None else free / 8
    while k > 1 and vision_bytes(config, k * storage.towers, storage, k) > most:
        k //= 2
    while chunk > 64 and prefill_bytes(config.text, chunk, storage, chunk) > most:
        chunk //= 2
    return k, chunk


def alone(config: LlavaConfig, plan: Plan, answer: int, storage: Storage) -> Memory:
    """What a prompt and an answer of up to `answer` tokens need."""
    tokens, (_, chunk) = plan.tokens + answer, storage.portions
    decoder = prefill_bytes(config.text, plan.tokens, storage, chunk)
    rows = waiting_tokens(plan, storage) + 2 * min(chunk, plan.tokens)
    waiting = row_bytes(config, rows, storage)
    opening = opening_bytes(config, plan) if storage.device == "cpu" else 0
    activations = max(tower_bytes(config, plan, storage), decoder, opening) + waiting
    activations += LIBRARIES * storage.device.startswith("cuda")
    cache = tokens * token_bytes(config.text, storage)
    return Memory(weight_bytes(config, storage), cache, activations)


def waiting_tokens(plan: Plan, storage: Storage) -> int:
    """Rows that wait for the decoder: of the longest part that is made whole.

    Where towers share the tiles, all visuals are encoded before the prompt is read.
    """
    texts = [s.tokens for s in plan.segments if isinstance(s, Text)]
    if storage.towers > 1:
        return plan.tokens - sum(texts) + max(texts, default=0)
    return max((s.tokens for s in plan.segments if not isinstance(s, Clip)), default=0)


def tower_bytes(config: LlavaConfig, plan: Plan, storage: Storage) -> int:
    """The most that encoding one of the visuals of a plan needs."""
    k, _ = storage.portions
    tiles = max((s.tiles for s in plan.segments if isinstance(s, Picture)), default=0)
    frames = max((s.tiles for s in plan.segments if isinstance(s, Clip)), default=0)
    at_a_time = min(frames, k * storage.towers)
    return max(vision_bytes(config, n, storage, k) for n in (tiles, at_a_time))


def together(config: LlavaConfig, prompts: list[tuple[Plan, int]], storage: Storage) -> Memory:
    """What prompts and answers of up to so many tokens need when they are written together.

    Each row has room for the longest of them. Prompts are read one by one, and each keeps the
    logits of its last token until all are read.
    """
    each = [alone(config, plan, answer, storage) for plan, answer in prompts]
    waiting = (len(each) - 1) * logit_bytes(config, 1)
    return Memory(
        weights=each[0].weights,
        cache=len(each) * max(need.cache for need in each),
        activations=max(need.activations for need in each) + waiting,
    )


def row_bytes(config: LlavaConfig, tokens: int, storage: Storage) -> int:
    """Bytes of so many rows as they enter the decoder."""
    return tokens * config.text.hidden_size * storage.wide


def logit_bytes(config: LlavaConfig, tokens: int) -> int:
    """Bytes of the logits of so many tokens: float32, and the head's product before it is wide."""
    return 2 * 4 * tokens * config.text.vocab_size


def operations(config: LlavaConfig, plan: Plan) -> tuple[int, int]:
    """Floating-point operations of (tower and projector, prefill).

    They are two for each weight that meets a row, and four E for each pair of query and key, E
    numbers a head.
    """
    text, vision, rows = config.text, config.vision, config.vision.num_positions
    tiles = sum(s.tiles for s in plan.segments if not isinstance(s, Text))
    width = text.hidden_size
    weights = tower_matrices(vision) + (vision.hidden_size + width) * width
    pairs = 4 * rows * vision.hidden_size * vision.num_layers
    causal = 2 * plan.tokens * text.num_heads * text.head_dim * text.num_layers
    return tiles * rows * (2 * weights + pairs), plan.tokens * (2 * matrices(text) + causal)
