"""One thread, no interpreter surprises, and the marks: gpu, slow, real."""

import importlib.util
import os

import pytest


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if importlib.util.find_spec("triton") and not has_cuda():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "slow: only with -m slow")
    config.addinivalue_line("markers", "real: needs the published weights")


def pytest_collection_modifyitems(config, items):
    expression = config.getoption("-m")
    for item in items:
        if "gpu" in item.keywords and not has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and "slow" not in expression:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
