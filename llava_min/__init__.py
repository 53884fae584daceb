"""llava_min: the LLaVA family in plain PyTorch, with Triton kernels on CUDA.

    import llava_min
    model = llava_min.load()                                   # or load("folder")
    answer = model.generate("Where is the star?", images=["picture.png"])

Importing this module imports nothing heavy; torch comes with the first load().
Reading order: config, anyres, image, vision, projector, prompt, tokenizer, segments, cache,
decoder, model, sampling, generate.
"""

import importlib
import os
import sys

from .base.habits import accepting
from .errors import (
    CheckpointError,
    LlavaMinError,
    MediaError,
    MemoryBudgetError,
    NumericsError,
    OutputError,
    ParameterError,
    PromptError,
    RankError,
    wrong_value,
)

TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .engine.answers import Answer, Score
    from .engine.chat import Chat
    from .engine.handle import Model
    from .explain.explanation import Explanation
    from .media.sources import Picture, Video
    from .options import Options
    from .planning.forecast import Forecast
    from .request.messages import Question

__version__ = "0.2.0"
__all__ = [
    "load",
    "plan",
    "use_kernels",
    "Model",
    "Options",
    "Answer",
    "Score",
    "Chat",
    "Explanation",
    "Forecast",
    "LlavaMinError",
    "ParameterError",
    "CheckpointError",
    "MediaError",
    "PromptError",
    "RankError",
    "MemoryBudgetError",
    "OutputError",
    "NumericsError",
]

HOMES = {
    # a public name -> the module that it comes from when it is first asked for
    "Model": "engine.handle",
    "Options": "options",
    "Answer": "engine.answers",
    "Score": "engine.answers",
    "Chat": "engine.chat",
    "Explanation": "explain.explanation",
    "Forecast": "planning.forecast",
}


def find_linked(name: str) -> None:
    """Import llava_min.`name` from the folder next to the package, where there is no link to it.

    Git makes no symbolic links on Windows, and an unpacked source archive has none.
    """
    from importlib import machinery, util

    spec = machinery.ModuleSpec(f"{__name__}.{name}", None, is_package=True)
    spec.submodule_search_locations = [os.path.join(os.path.dirname(__path__[0]), name)]
    globals()[name] = sys.modules[spec.name] = util.module_from_spec(spec)


for linked in ("kernels", "weights"):
    if not os.path.isdir(os.path.join(__path__[0], linked)):
        find_linked(linked)


def __getattr__(name: str) -> object:
    """A public name that needs torch or numpy."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})


@accepting("folder")
def load(
    folder: "str | Path | None" = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    config: "Mapping[str, object] | None" = None,
    context: int | None = None,
    bits: int | None = None,
    adapter: "str | Path | None" = None,
    compile: bool | None = None,
    devices: "Sequence[str]" = (),
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    offload: bool = False,
) -> "Model":
    """A Model from a checkpoint folder, or the embedded checkpoint.

    device: auto, cpu, cuda, mps, xpu. dtype: auto, bfloat16, float16, float32, float64. kv_dtype:
    of the cache, auto (as dtype), int8, fp8. config: keys that replace those of config.json.
    context: the longest sequence, instead of the checkpoint's. bits: 4 quantises the decoder while
    loading, 8 the vision tower and the projector too. adapter: a folder with a LoRA, as PEFT writes
    it, which is merged into the weights. compile: on a CPU, True compiles the decode step, once for
    a model's shape and format, which takes a minute; None uses it where it was compiled before,
    False never. devices: share the layers among several of one kind. tensor_parallel,
    pipeline_parallel: share each layer, or the layers, among so many processes, which end with this
    one; if one of them fails, they end this one too. Tiles and frames are shared by all three.
    offload: keep layers that do not fit on the device in the host's memory. Names and types of
    other libraries are taken too (base/habits.py).
    Raises LlavaMinError.
    """
    from .engine.load import load

    return load(
        folder,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        config=config,
        context=context,
        bits=bits,
        adapter=adapter,
        compile=compile,
        devices=devices,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        offload=offload,
    )


@accepting("folder", "question", "images", "videos")
def plan(
    folder: "str | Path | None" = None,
    question: "Question | None" = None,
    *,
    images: "Picture | Sequence[Picture]" = (),
    videos: "Video | Sequence[Video]" = (),
    device: str = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    config: "Mapping[str, object] | None" = None,
    context: int | None = None,
    bits: int | None = None,
    adapter: "str | Path | None" = None,
    devices: "Sequence[str]" = (),
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    offload: bool = False,
    kernels: str = "auto",
    memory: float | None = None,
    **options: object,
) -> "Forecast":
    """What a question to a checkpoint will cost, without torch: a Forecast.

    The Forecast holds tokens, bytes and seconds. It prints as text and has json(). device, dtype,
    kv_dtype, config, context, bits, adapter, devices, numbers of ranks and offload are those of
    load(), options those of generate(), kernels those of use_kernels().
    memory: the GB that it should fit in, by default what is free. Raises LlavaMinError.
    """
    from .planning.forecast import forecast

    return forecast(
        folder,
        question,
        images=images,
        videos=videos,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        config=config,
        context=context,
        bits=bits,
        adapter=adapter,
        devices=devices,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        offload=offload,
        kernels=kernels,
        memory=memory,
        **options,
    )


def use_kernels(choice: str) -> None:
    """Choose how operations run, in the whole process: "auto", "reference" or "triton".

    "reference" is plain torch with operators that every device has, which older GPUs and other
    processors take anyway (kernels/paths.py). A model is laid out for it when it is loaded.
    ParameterError for any other choice, and for "triton" where there is no CUDA GPU.
    """
    from .kernels import choose

    if choice not in choose.CHOICES:
        raise wrong_value("kernels", "auto, reference or triton", choice)
    if choice == "triton" and not choose.language.AVAILABLE:
        raise ParameterError("The kernels of Triton need a CUDA GPU, and there is none.")
    choose.use(choice)
