"""How lmms-eval finds this project: the payload of its entry point `lmms_eval.models`.

in:  nothing; lmms-eval calls `manifest`
out: the name of the model and of its class

lmms-eval is imported only when it asks. Read next: evals/lmms_eval.py.
"""

from typing import Any


def manifest() -> Any:
    """lmms-eval's ModelManifest of `--model llava_min`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_min", chat_class_path="llava_min.evals.lmms_eval.LlavaMin")
