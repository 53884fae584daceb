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

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float
    patch_bias: bool = True
    class_token: bool = False
    pre_norm: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
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
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_factor: float
    context: int
    tied: bool
    qkv_bias: bool
    eos_ids: tuple[int, ...]  # of config.json and generation_config.json: families/sections.py


@dataclass(frozen=True)
class Quantization:
    """How the decoder's linears are stored: in codes of `bits` bits.

    There is one scale for each `group` of inputs. The head has `head` bits. `method` is how the
    codes were found.
    """

    bits: int = 4
    group: int = 128
    head: int = 8
    method: str = "rtn"


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint.

    image_modes: how pictures may become tiles, the family's own way first: "anyres" (a grid of
    tiles, `grids` (rows, columns) allowed, shrunk to `max_tiles`), "pad" (one tile, padded),
    "square" (one tile, squeezed), "crop" (one tile, its middle). several_images: the mode for
    several pictures. frame_mode: the mode of a clip's frames. pool_mode: how frames are halved;
    None where each frame is a picture of its own. frames: how many are sampled from a clip.
    sample_ends: whether the evenly spaced frames include the last one.
    """

    family: str
    vision: VisionConfig
    text: TextConfig
    template: str
    grids: tuple[tuple[int, int], ...] = ()
    max_tiles: int | None = None
    image_modes: tuple[str, ...] = ("anyres", "pad")
    several_images: str = "pad"
    frame_mode: str = "square"
    unpad_rounded: bool = True
    newline: bool = False
    newline_position: str = "no_token"
    pool_mode: str | None = None
    pool_before_projector: bool = False
    time_instruction: bool = False
    frames: int = 32
    sample_ends: bool = True
    quantization: Quantization | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tile(self) -> int:
        """The side of a tile in pixels."""
        return self.vision.image_size
