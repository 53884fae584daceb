"""One small launch of each kernel, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python -m bench.lease.sanitise

Sizes are ragged, so that every mask is needed. Nothing is compared: a load or store outside of what
torch handed out is what the tool reports, if each tensor has memory of its own
(PYTORCH_NO_CUDA_MEMORY_CACHING=1).
Read right_cases.py first.
"""

import sys

import torch

from llava_min.kernels import choose

from . import right_cases as cases
from . import right_weights as weights
from .right_shapes import HEADS, TOY_HEADS

SMALL = [
    (cases.causal, dict(starts=(5, 33), new=19, heads="0.5B", spare=1)),
    (cases.both_ways, dict(batch=1, patches=37, heads="H72")),
    (cases.decode, dict(starts=(5, 33), new=1, heads="0.5B", spare=1)),
    (cases.decode, dict(starts=(5, 33), new=1, heads="0.5B", spare=1, kind="int8")),
    (cases.decode, dict(starts=(5, 33), new=1, heads="0.5B", spare=1, kind="fp8")),
    (cases.write, dict(starts=(5, 33), new=3, heads="0.5B", spare=1)),
    (cases.write, dict(starts=(5, 33), new=3, heads="0.5B", spare=1, kind="int8")),
    (weights.four_bits, dict(count=3, outputs=37, inputs=256)),
    (weights.four_bits, dict(count=65, outputs=37, inputs=256)),
    (cases.add_rms_norm, dict(count=3, width=77)),
    (cases.layer_norm, dict(count=3, width=77)),
    (cases.swiglu, dict(count=3, width=77)),
    (cases.gelu, dict(count=3, width=77)),
]


@torch.inference_mode()
def main(device: str) -> list[str]:
    """Launch each kernel once; the names of those that were launched."""
    dtype, heads = (torch.float32, TOY_HEADS) if device == "cpu" else (torch.bfloat16, HEADS)
    names = []
    with choose.using("triton"):
        for seed, (make, sizes) in enumerate(SMALL):
            if "heads" in sizes:
                sizes = sizes | {"heads": heads[sizes["heads"]]}
            trial = make(cases.Draw(device, dtype, seed), **sizes)
            trial.call()
            names.append(trial.kernel)
    if device == "cuda":
        torch.cuda.synchronize()
    return names


if __name__ == "__main__":
    print(*main("cpu" if "cpu" in sys.argv else "cuda"), sep="\n")
