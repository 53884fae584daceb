"""The operations of torch that a call makes, for tests of what is recorded on a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# what waits for the device, or brings numbers of the host there
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "is_nonzero"}


class Recorder(TorchDispatchMode):
    """The operations of torch in order, with the sizes of what they take and give."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = tree_map(lambda x: x.shape if isinstance(x, torch.Tensor) else x, (args, found))
        self.operations.append((function.__name__.split(".")[0], str(sizes)))
        return found


def recorded(call) -> list[tuple[str, str]]:
    with Recorder() as recorder:
        call()
    return recorder.operations
