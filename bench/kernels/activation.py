"""Activations of rows: ours, and the formula that torch runs eagerly or compiled.

in:  nothing      out: OPERATIONS, which pointwise.py times

Read norm.py first. Read next: pointwise.py.
"""

from llava_min.kernels import activation

from .. import shapes

TEXT, TOWER = shapes.TEXTS["7B"], shapes.TOWERS["SigLIP"]
OPERATIONS = {
    # name: (width, bytes moved for each number in bfloat16, ours, formula)
    "gelu": (
        TOWER.intermediate_size,
        4,
        lambda x, y, w: activation.gelu(x, "gelu_pytorch_tanh"),
        lambda x, y, w: activation.gelu_torch(x, "gelu_pytorch_tanh"),
    ),
    "swiglu": (
        2 * TEXT.intermediate_size,
        3,
        lambda x, y, w: activation.swiglu(x),
        lambda x, y, w: activation.swiglu_torch(x),
    ),
}
