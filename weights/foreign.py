"""How another program says that it quantised the weights, and which tensors a matrix then has.

in:  quantization_config of config.json
out: Foreign, or CheckpointError for a way that is not read here

    gptq                (code - zero) * scale; groups along K, or those that g_idx says (act-order)
    awq                 the same, the eight codes of a word in an order of their own
    bitsandbytes        a table of 16 numbers times the largest of a block; or 8 bits and a scale
    compressed-tensors  codes packed along K, or 8 bits as they are, or float8
    fp8                 float8 with a scale for each tensor, output or block

Activations stay as they are, also where the format would quantise them. No torch here: a plan asks
too. The formulas: weights/formulas.py.
Read next: weights/kept.py.
Agrees with: the formats of GPTQModel, AutoAWQ, bitsandbytes, compressed-tensors and transformers.

K inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..families.fields import Fields

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
ENDS = {
    # method -> the ends of the names of a quantised matrix's parts
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "bitsandbytes": (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        *STATES,
        "SCB",
        "weight_format",
    ),
    "compressed-tensors": (
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
    ),
    "fp8": ("weight", "weight_scale_inv", "weight_scale", "input_scale", "activation_scale"),
}
MARKS = {"qweight", "qzeros", "scales", "weight.absmax", "SCB", *STATES}
MARKS |= {"weight_packed", "weight_scale", "weight_scale_inv"}  # parts that only such a matrix has


@dataclass(frozen=True)
class Foreign:
    """How another program quantised the weights.

    bits: of a code. block: (outputs, inputs) that share a scale, -1 for all of them. offset: what
    is added to the zeros that are stored. ordered: groups are those that g_idx says. symmetric: the
    zero is in the middle of the codes, and they are packed along K. kept: codes of the decoder are
    not multiplied out.
    """

    method: str
    bits: int = 8
    block: tuple[int, int] = (1, -1)
    offset: int = 0
    ordered: bool = False
    symmetric: bool = False
    kept: bool = False

    @property
    def own_group(self) -> int | None:
        """The group size, where a matrix is (code - 8) * scale as weights/packed.py has it."""
        ours = self.symmetric and self.bits == 4 and not self.ordered
        return self.block[1] if ours and self.block[1] in (32, 64, 128) else None

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "Foreign | None":
        """From config.json; None where nobody, or this project itself, quantised the weights."""
        given = config.get("quantization_config")
        if not isinstance(given, dict) or given.get("quant_method") not in SETTINGS:
            return None
        fields = Fields(given, "config.json: quantization_config")
        return SETTINGS[str(given["quant_method"])](fields)

    def split(self, name: str) -> tuple[str, str]:
        """(the name of what a tensor belongs to, the end of its name)."""
        for end in ENDS[self.method]:
            if name.endswith("." + end):
                return name.removesuffix("." + end), end
        return name, ""


def gptq_fields(fields: Fields) -> Foreign:
    """Of GPTQ; its first format stores zeros that are one too small."""
    bits = fields.get("bits", int, choices=(4, 8))
    form = fields.get("checkpoint_format", str, "gptq", choices=("gptq", "gptq_v2"))
    ordered, symmetric = fields.get("desc_act", bool, False), fields.get("sym", bool, False)
    block = 1, group_of(fields, "group_size")
    return Foreign("gptq", bits, block, form == "gptq", ordered, symmetric)


def group_of(fields: Fields, key: str) -> int:
    """The inputs that share a scale; -1: all."""
    found = fields.values.get(key, -1)
    if type(found) is not int or found == 0 or found < -1:
        raise fields.refused(key, "a number of inputs, or -1", found)
    return found


def awq_fields(fields: Fields) -> Foreign:
    """Of AWQ, by the names of transformers or those of its own program."""
    name = "bits" if "bits" in fields.values else "w_bit"
    bits = fields.get(name, int, 4, choices=(4,))
    fields.get("version", str, "gemm", choices=("gemm", "GEMM"))
    key = "group_size" if "group_size" in fields.values else "q_group_size"
    return Foreign("awq", bits, (1, group_of(fields, key)))


def bitsandbytes_fields(fields: Fields) -> Foreign:
    """Of bitsandbytes: each matrix has a state of its own that says the rest."""
    return Foreign("bitsandbytes")


def compressed_fields(fields: Fields) -> Foreign:
    """Of compressed-tensors: all groups of layers must be quantised alike."""
    forms = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
    fields.get("format", str, choices=forms)
    for key in ("sparsity_config", "kv_cache_scheme"):
        if fields.values.get(key):
            raise fields.refused(key, "none", fields.values[key])
    groups = fields.section("config_groups")
    found = [weights_of(groups.section(name)) for name in groups.values]
    if not found or any(other != found[0] for other in found):
        raise fields.refused("config_groups", "one way for all layers", sorted(groups.values))
    return found[0]


def weights_of(group: Fields) -> Foreign:
    """How one group of layers has its weights."""
    given = group.section("weights")
    bits = given.get("num_bits", int, choices=(4, 8))
    strategy = given.get("strategy", str, choices=("tensor", "channel", "group", "block"))
    block = {"tensor": (-1, -1), "channel": (1, -1)}.get(strategy)
    if strategy == "group":
        block = 1, group_of(given, "group_size")
    elif strategy == "block":
        block = pair_of(given, "block_structure")
    assert block is not None
    ordered = given.values.get("actorder") not in (None, False, "static", "weight")
    integer = given.get("type", str, "int") == "int"
    symmetric = integer and given.get("symmetric", bool, True)
    return Foreign("compressed-tensors", bits, block, 0, ordered, symmetric)


def pair_of(fields: Fields, key: str) -> tuple[int, int]:
    """The (outputs, inputs) of a block."""
    found = fields.values.get(key)
    if not isinstance(found, list) or len(found) != 2 or not all(type(x) is int for x in found):
        raise fields.refused(key, "two numbers", found)
    return found[0], found[1]


def fp8_fields(fields: Fields) -> Foreign:
    """Of float8: e4m3 alone, with a scale for each block or for the whole tensor."""
    fields.get("fmt", str, "e4m3", choices=("e4m3",))
    if fields.values.get("weight_block_size") is None:
        return Foreign("fp8", 8, (-1, -1))
    return Foreign("fp8", 8, pair_of(fields, "weight_block_size"))


SETTINGS: dict[str, Callable[[Fields], Foreign]] = {
    # quant_method -> how its configuration is read
    "gptq": gptq_fields,
    "awq": awq_fields,
    "bitsandbytes": bitsandbytes_fields,
    "compressed-tensors": compressed_fields,
    "fp8": fp8_fields,
}
