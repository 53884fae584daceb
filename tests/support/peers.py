"""Where tests find the browser and the packages of node that .ci/peers installs."""

import shutil
from pathlib import Path

import pytest

NODE_MODULES = Path(__file__).parent.parent / "node" / "node_modules"
BROWSERS = ("chromium", "google-chrome")


def browser_path() -> str:
    """The path of a Chromium; without one the test is skipped."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.skip(f"needs {' or '.join(BROWSERS)}: run .ci/peers")


def node_package(name: str) -> Path:
    """The folder of a package of node; without it the test is skipped."""
    if not (NODE_MODULES / name).exists():
        pytest.skip(f"needs node's package {name}: run .ci/peers")
    return NODE_MODULES / name
