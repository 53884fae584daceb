"""Install llava_min. The folders kernels/ and weights/ are linked into the package; each is listed
by name.
"""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
TEXT = (HERE / "llava_min/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+)"', TEXT)[1]

ROOMS = (
    "base",
    "families",
    "media",
    "request",
    "planning",
    "explain",
    "engine",
    "command",
    "check",
    "serve",
    "evals",
)

setup(
    name="llava_min",
    version=VERSION,
    description="The LLaVA family in plain PyTorch with Triton kernels, to read and to run",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "llava_min",
        *(f"llava_min.{room}" for room in ROOMS),
        "llava_min.kernels",
        "llava_min.weights",
        "llava_min.weights.tiny",
        "llava_min.weights.tiny.samples",
    ],
    package_dir={
        "llava_min": "llava_min",
        "llava_min.kernels": "kernels",
        "llava_min.weights": "weights",
        "llava_min.weights.tiny": "weights/tiny",
        "llava_min.weights.tiny.samples": "weights/tiny/samples",
    },
    package_data={
        "llava_min": ["py.typed"],
        "llava_min.check": ["published.json"],
        "llava_min.explain": ["page.html"],
        "llava_min.serve": ["page.html"],
        "llava_min.weights.tiny": ["*.json", "*.safetensors"],
        "llava_min.weights.tiny.samples": ["*"],
    },
    install_requires=[
        "torch>=2.10,<2.14",  # operators of torch that are not public are used: 2.13 is tested
        # wheels are there for these two; on Windows see the extra
        "triton>=3.6; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "triton>=3.6; platform_system == 'Linux' and platform_machine == 'aarch64'",
        "safetensors>=0.8",
        "tokenizers>=0.21",
        "huggingface_hub>=1.0",
        "numpy>=1.26",
        "pillow>=11.3",
        "av>=18",
    ],
    extras_require={
        "serve": ["starlette>=1.0", "uvicorn>=0.40", "llguidance>=1.5"],
        "grammar": ["llguidance>=1.5"],
        "windows": ["triton-windows>=3.6; platform_system == 'Windows'"],
        "test": [
            "pytest>=8",
            "hypothesis>=6",
            "transformers>=5.17",
            "jinja2>=3.1",
            "starlette>=1.0",
            "uvicorn>=0.40",
            "llguidance>=1.5",
            "openai>=3.0",
            "schemathesis>=4.30",
            "playwright>=1.50",
            "peft>=0.17",
            "bitsandbytes>=0.46; platform_system == 'Linux'",
            "compressed-tensors>=0.15",
            "sentencepiece>=0.2",
        ],
        "dev": ["ruff", "mypy"],
    },
    entry_points={
        "console_scripts": ["llava-min = llava_min.command.main:run"],
        "lmms_eval.models": ["llava_min = llava_min.evals.manifest:manifest"],
    },
)
