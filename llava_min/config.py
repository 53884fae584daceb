"""What a checkpoint is: frozen dataclasses, the same for every layout of files.

in:  nothing; families/layouts.py makes these from config.json
out: LlavaConfig, with a VisionConfig and a TextConfig in it

Nothing here reads a file.
This is the first file of the walk. Read next: anyres.py.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: `num_layers` blocks run, and a file may hold more."""

    hidden_size: int  # numbers of a patch
    intermediate_size: int  # inside the MLP
    num_layers: int
    num_heads: int
    image_size: int  # side of a tile in pixels
    patch_size: int  # side of a patch in pixels
    activation: str  # a name of kernels/activation.py
    norm_eps: float
    patch_bias: bool = True  # of the first layer, which makes a patch of pixels
    class_token: bool = False  # CLIP has one; it stands for no place, so it is no row later
    pre_norm: bool = False  # a norm before the blocks, as CLIP has
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of red, green, blue, from 0 to 1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def side(self) -> int:
        """Patches along one side of a tile; a remainder of pixels is dropped."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.side**2 + self.class_token


@dataclass(frozen=True)
class TextConfig:
    """The decoder: `context` is its longest sequence, and `rope_factor` divides positions."""

    vocab_size: int
    hidden_size: int  # numbers of a row
    intermediate_size: int  # inside the MLP
    num_layers: int
    num_heads: int  # of queries
    num_kv_heads: int  # of keys and values, each shared by a group of query heads
    head_dim: int
    norm_eps: float
    rope_theta: float  # the base of the angles: kernels/rope.py
    rope_factor: float
    context: int
    tied: bool  # whether the head is the embedding
    qkv_bias: bool  # Qwen2 has one, LLaMA has none
    eos_ids: tuple[int, ...]  # of config.json and generation_config.json: families/sections.py


@dataclass(frozen=True)
class Quantization:
    """How linears are stored: in codes of `bits` bits, those of the head in `head` bits.

    Four bits are for the decoder and have a scale for each `group` of inputs. Eight are for tower
    and projector too, and have a scale for each output. `method` is how the codes were found.
    """

    bits: int = 4
    group: int = 128
    head: int = 8
    method: str = "rtn"


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint: tower, decoder, and how pictures and clips become rows between them.

    A mode is how a picture becomes tiles: "anyres" (a grid of tiles, and one for the whole), "pad"
    (one tile, padded), "square" (one tile, squeezed), "crop" (one tile, its middle).
    """

    family: str
    vision: VisionConfig
    text: TextConfig
    template: str  # a key of families/templates.py
    grids: tuple[tuple[int, int], ...] = ()  # of tiles, (rows, columns), that anyres may choose
    anyres_max: int | None = None  # 9 of "anyres_max_9": a grid's patches are shrunk to 9 tiles'
    image_modes: tuple[str, ...] = ("anyres", "pad")  # that fit, the family's own first
    several_images: str = "pad"  # the mode of several pictures in a prompt
    frame_mode: str = "square"  # the mode of a clip's frames
    unpad_rounded: bool = True  # transformers' rule in anyres.unpadded, or the original code's
    newline: bool = False  # whether there is a learned newline after rows of patches
    newline_position: str = "no_token"  # where clips have it: segments.Clip
    pool_mode: str | None = None  # how frames are halved; None: each is a picture of its own
    pool_before_projector: bool = False
    time_instruction: bool = False  # whether the prompt tells the times of frames
    frames: int = 32  # sampled from a clip
    sample_ends: bool = True  # whether evenly spaced frames include the last one
    quantization: Quantization | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)  # keys that change nothing here

    @property
    def tile(self) -> int:
        """The side of a tile in pixels."""
        return self.vision.image_size
