"""llava_min: the LLaVA family in plain PyTorch, with Triton kernels on CUDA.

    import llava_min
    model = llava_min.load()                                   # or load("folder")
    answer = model.generate("Where is the star?", images=["picture.png"])

Importing this module imports nothing heavy; torch comes with the first load().
Reading order: config, anyres, image, vision, projector, prompt, tokenizer, segments, cache,
decoder, model, sampling, generate.
"""

import os

from .errors import (
    CheckpointError,
    LlavaMinError,
    MediaError,
    MemoryBudgetError,
    NumericsError,
    OutputError,
    ParameterError,
    PromptError,
)

TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .engine.handle import Model
    from .media.sources import Picture, Video
    from .planning.forecast import Forecast
    from .request.messages import Question

__version__ = "0.1.0"
__all__ = [
    "load",
    "plan",
    "LlavaMinError",
    "ParameterError",
    "CheckpointError",
    "MediaError",
    "PromptError",
    "MemoryBudgetError",
    "OutputError",
    "NumericsError",
]

if not os.path.isdir(os.path.join(__path__[0], "kernels")):  # a clone without symbolic links
    __path__.append(os.path.dirname(__path__[0]))


def load(
    folder: "str | Path | None" = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    config: "Mapping[str, object] | None" = None,
    context: int | None = None,
    bits: int | None = None,
) -> "Model":
    """A Model from a checkpoint folder, or the embedded checkpoint.

    device: auto, cpu, cuda, mps. dtype: auto, bfloat16, float16, float32. kv_dtype: of the cache,
    auto (as dtype), int8, fp8. config: keys that replace those of config.json. context: the longest
    sequence, instead of the checkpoint's. bits: 4 or 8 quantises the decoder while loading. Raises
    LlavaMinError.
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
    )


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
    memory: float | None = None,
    **options: object,
) -> "Forecast":
    """What a question to a checkpoint will cost, without torch: a Forecast.

    The Forecast holds tokens, bytes and seconds. It prints as text and has json(). device, dtype,
    kv_dtype, config, context and bits are those of load(), options those of generate(). memory: the
    GB that it should fit in, by default what is free. Raises LlavaMinError.
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
        memory=memory,
        **options,
    )
