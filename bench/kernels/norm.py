"""Norms of rows: ours, and the formula that torch runs eagerly or compiled.

in:  nothing      out: OPERATIONS, which pointwise.py times

Read next: activation.py.
"""

from llava_min.kernels import norm

from .. import shapes

TEXT, TOWER = shapes.TEXTS["7B"], shapes.TOWERS["SigLIP"]


def add_rms_norm_formula(rows, update, weight):
    total = rows + update
    return total, norm.rms_norm_torch(total, weight, 1e-6)


OPERATIONS = {
    # name: (width, bytes moved for each number in bfloat16, ours, formula)
    "add_rms_norm": (
        TEXT.hidden_size,
        8,
        lambda x, y, w: norm.add_rms_norm(x, y, w, 1e-6),
        add_rms_norm_formula,
    ),
    "layer_norm": (
        TOWER.hidden_size,
        4,
        lambda x, y, w: norm.layer_norm(x, w, w, 1e-6),
        lambda x, y, w: norm.layer_norm_torch(x, w, w, 1e-6),
    ),
}
