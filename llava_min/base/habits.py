"""What people call arguments elsewhere, and the types that they pass, become what is meant here.

in:  arguments as for transformers, vLLM, llama.cpp, ollama or mlx-vlm
out: the same by the names and in the types of this project; ParameterError where it does not exist

No torch and no numpy here: their numbers and arrays are known by their `tolist`.
Read errors.py first. Read next: options.py.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import CheckpointError, ParameterError, no_such_option, shown, wrong_value

TYPE_CHECKING = False  # typing takes a twentieth of --help to import
if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    Arguments = ParamSpec("Arguments")
    Result = TypeVar("Result")

NAMES = {
    # the name elsewhere: (where, the name here)
    "prompt": ("ollama, vLLM, mlx-vlm", "question"),
    "text": ("transformers", "question"),
    "messages": ("OpenAI, ollama", "question"),
    "image": ("mlx-vlm", "images"),
    "video": ("mlx-vlm", "videos"),
    "max_new_tokens": ("transformers", "max_tokens"),
    "max_completion_tokens": ("OpenAI", "max_tokens"),
    "n_predict": ("llama.cpp", "max_tokens"),
    "num_predict": ("ollama", "max_tokens"),
    "temp": ("llama.cpp, mlx-vlm", "temperature"),
    "repeat_penalty": ("llama.cpp, ollama", "repetition_penalty"),
    "stop_strings": ("transformers", "stop"),
    "num_frames": ("transformers", "frames"),
    "nframes": ("Qwen-VL", "frames"),
    "system_prompt": ("llama.cpp, LLaVA", "system"),
    "model": ("vLLM, ollama, mlx-vlm", "folder"),
    "model_path": ("LLaVA", "folder"),
    "model_name": ("several", "folder"),
    "model_id": ("several", "folder"),
    "pretrained_model_name_or_path": ("transformers", "folder"),
    "torch_dtype": ("transformers", "dtype"),
    "device_map": ("transformers", "device"),
    "max_model_len": ("vLLM", "context"),
    "n_ctx": ("llama.cpp", "context"),
    "num_ctx": ("ollama", "context"),
    "ctx_size": ("llama.cpp", "context"),
    "kv_cache_dtype": ("vLLM", "kv_dtype"),
    "hf_overrides": ("vLLM", "config"),
    "tensor_parallel_size": ("vLLM", "tensor_parallel"),
    "pipeline_parallel_size": ("vLLM", "pipeline_parallel"),
    "adapter_path": ("mlx-vlm", "adapter"),
    "lora_path": ("several", "adapter"),
}
SWITCHES = {
    # a switch elsewhere: (where, the bits that it stands for here)
    "load_in_4bit": ("transformers", 4),
    "load_in_8bit": ("transformers", 8),
    "load_4bit": ("LLaVA", 4),
    "load_8bit": ("LLaVA", 8),
    "int4": ("the command line", 4),
    "int8": ("the command line", 8),
}
MISSING = {
    # what does not exist here: (where it does, the value that asks for nothing, what does it here);
    # {names} are those of options
    "max_length": ("transformers", None, "{max_tokens} limits the answer without its prompt."),
    "num_beams": ("transformers", 1, "There is no beam search; {temperature} above 0 samples."),
    "presence_penalty": ("OpenAI, vLLM", 0, "{repetition_penalty} discourages what has occurred."),
    "frequency_penalty": ("OpenAI, vLLM", 0, "{repetition_penalty} discourages what has occurred."),
    "prompt_lookup_num_tokens": ("transformers", None, "{lookup} drafts tokens in this way."),
    "chat_template": ("transformers", None, "{template} chooses how turns are written."),
    "conv_mode": ("LLaVA", None, "{template} chooses how turns are written."),
    "quantization_config": ("transformers", None, "{bits} quantises while loading."),
    "quantization": ("vLLM", None, "{bits} quantises while loading."),
    "trust_remote_code": ("transformers", False, "No code of a checkpoint is ever run."),
    "attn_implementation": ("transformers", None, "{use_kernels} chooses how."),
    "gpu_memory_utilization": ("vLLM", None, "A cache is as long as its prompt and answer need."),
    "n_gpu_layers": ("llama.cpp", None, "{device} is where all of the model goes."),
}
LOADED = (
    "folder",
    "device",
    "dtype",
    "kv_dtype",
    "config",
    "context",
    "bits",
    "adapter",
    "compile",
    "devices",
    "tensor_parallel",
    "pipeline_parallel",
    "offload",
)  # of load()
CHOICES = {
    "device": ("auto", "cpu", "cuda", "mps", "xpu"),
    "dtype": ("auto", "bfloat16", "float16", "float32", "float64"),
    "kv_dtype": ("auto", "int8", "fp8"),
}
SHORT = {
    # what values are called elsewhere
    "cuda:0": "cuda",
    "gpu": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "double": "float64",
    "float8_e4m3fn": "fp8",
    "fp8_e4m3": "fp8",
}
LONGEST_CONTEXT = 2**31 - 1


def accepting(
    *names: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let a function take its arguments as they are called and typed elsewhere.

    names: the arguments that may come without a name, in order; with "self" first, of a method.
    "folder" among them is for functions that load, "question" for those that ask. A generator's
    wrong arguments are found when it is called, not when it is first asked for a piece.

    >>> @accepting("question", "images")
    ... def generate(question, *, images=(), **options):
    ...     return question, images, options
    >>> generate("Where?", ["a.png"], max_new_tokens=5)
    ('Where?', ['a.png'], {'max_tokens': 5})
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def accept(*given: Arguments.args, **named: Arguments.kwargs) -> Result:
            call: Callable[..., Result] = function
            return call(**ours(names, given, named))

        return accept

    return decorate


def ours(
    names: tuple[str, ...], given: tuple[object, ...], named: Mapping[str, object]
) -> dict[str, object]:
    """Arguments of a function, each by the name and of the type that it has here."""
    own = [name for name in names if name != "self"]
    if len(given) > len(names):
        known = f"only {', '.join(own)}" if own else "nothing"
        raise ParameterError(f"Without its name {known} can be given, in this order.")
    values = dict(zip(names, given))
    for name, value in renamed(named).items():
        if name in values:
            raise ParameterError(f"{name} is given twice.")
        values[name] = value
    if "folder" in names:
        if "question" not in names and (unknown := [n for n in values if n not in LOADED]):
            raise no_such_option(unknown[0], LOADED)
        others = {name: value for name, value in values.items() if name not in LOADED}
        values = others | loaded({name: values[name] for name in values if name in LOADED})
    if "memory" in values:
        values["memory"] = memory(values["memory"])
    if "question" in values:
        values["question"] = question(values["question"])
    for kind in ("images", "videos"):
        if kind in values:
            values[kind] = sources(kind, values[kind])
    return values


# Names -------------------------------------------------------------------------


def renamed(given: Mapping[str, object]) -> dict[str, object]:
    """Arguments by their names here; ParameterError where two are the same, or one has no such.

    >>> renamed({"max_new_tokens": 5, "load_in_4bit": True, "do_sample": False})
    {'max_tokens': 5, 'bits': 4}
    """
    found: dict[str, object] = {}
    first: dict[str, str] = {}  # the name here -> the name by which it was given
    for name, value in given.items():
        if name in MISSING:
            if plain(value) not in (None, MISSING[name][1]):
                raise missing(name)
            continue
        if name in SWITCHES:
            if not isinstance(value, bool | None):
                raise wrong_value(name, "True or False", value)
            if not value:
                continue
            target, value = "bits", SWITCHES[name][1]
        elif name == "do_sample":
            check_sampling(value, given.get("temperature", given.get("temp")))
            continue
        else:
            target = NAMES.get(name, ("", name))[1]
        if target in first:
            raise ParameterError(f"{first[target]} and {name} cannot be used together.")
        first[target], found[target] = name, value
    return found


def missing(name: str) -> ParameterError:
    """The error for an argument that exists elsewhere only, with what does it here.

    >>> print(missing("num_beams"))
    No option is called num_beams. There is no beam search; temperature above 0 samples.
    """
    return ParameterError(f"No option is called {name}. {instead(name)}")


def instead(name: str, spelt: Callable[[str], str] = str) -> str:
    """The sentence of MISSING about an argument, the names in it as `spelt` writes them."""
    return re.sub(r"\{(\w+)\}", lambda found: spelt(found[1]), MISSING[name][2])


def check_sampling(sample: object, temperature: object) -> None:
    """ParameterError unless transformers' do_sample says what the temperature says."""
    if not isinstance(sample, bool | None):
        raise wrong_value("do_sample", "True or False", sample)
    if sample is not None and sample is not bool(plain(temperature)):
        expected = "above 0, such as 1.0" if sample else "0"
        raise ParameterError(f"do_sample={sample} needs a temperature that is {expected}.")


# Values ------------------------------------------------------------------------


def plain(value: object) -> object:
    """Numbers and arrays of numpy and torch as numbers and lists; anything else as it is."""
    if isinstance(value, type) or not hasattr(value, "tolist"):
        return value
    return value.tolist()


def question(given: object) -> object:
    """A question: None, a text, messages, or token ids, also as an array of one row."""
    given = plain(given)
    if isinstance(given, list | tuple):
        inner = [plain(one) for one in given]
        row = inner[0] if len(inner) == 1 and isinstance(inner[0], list) else inner
        return row if isinstance(given, list) else tuple(row)
    if given is not None and not isinstance(given, str):
        raise wrong_value("question", "a text, messages or token ids", given)
    return given


def sources(kind: str, given: object) -> object:
    """Pictures or videos, with the bytes of files that are open in their place."""
    if isinstance(given, list | tuple):
        return [source(kind, one) for one in given]
    return source(kind, given)


def source(kind: str, given: object) -> object:
    """A picture or video; a file that is open is read from where it stands."""
    if hasattr(given, "requires_grad"):
        raise ParameterError(f"{kind} cannot be tensors; a uint8 array can: tensor.numpy().")
    if not isinstance(given, str | Path) and isinstance(given, os.PathLike):
        return os.fspath(given)
    if not hasattr(given, "read"):
        return given
    try:
        data = given.read()
    except (OSError, ValueError) as error:  # closed, or text that is none
        raise ParameterError(f"{kind}: a file that is open cannot be read: {error}.") from None
    if not isinstance(data, bytes):
        raise ParameterError(f"{kind}: a file must be opened for bytes: open(name, 'rb').")
    return data


def loaded(given: Mapping[str, object]) -> dict[str, object]:
    """Arguments of load() in the types that they have here; those that are None are left out.

    >>> loaded({"device": "cuda:0", "dtype": "fp16", "context": None})
    {'device': 'cuda', 'dtype': 'float16'}
    """
    values = {name: value for name, value in given.items() if value is not None}
    for name in CHOICES:
        if name in values:
            values[name] = chosen(name, values[name])
    if "folder" in values:
        values["folder"] = folder(values["folder"])
    values |= {name: plain(values[name]) for name in ("context", "bits") if name in values}
    context, bits = values.get("context", 1), values.get("bits", 4)
    if type(context) is not int or not 1 <= context <= LONGEST_CONTEXT:
        raise wrong_value("context", f"a whole number from 1 to {LONGEST_CONTEXT}", context)
    if type(bits) is not int or bits not in (4, 8):
        raise wrong_value("bits", "4 or 8", bits)
    if not isinstance(values.get("compile", True), bool):
        raise wrong_value("compile", "True, False or None", values["compile"])
    config = values.get("config", {})
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise wrong_value("config", "keys of config.json with their values", config)
    if not isinstance(values.get("adapter", ""), str | os.PathLike):
        raise wrong_value("adapter", "the path of a folder", values["adapter"])
    return values


def chosen(name: str, value: object) -> str:
    """A device or dtype by its name here, also from torch's or numpy's own object.

    >>> chosen("device", "cuda:0"), chosen("dtype", float)
    ('cuda', 'float32')
    """
    text = value.__name__ if isinstance(value, type) else str(value).removeprefix("torch.")
    text = SHORT.get(text, text)
    if text.startswith("cuda:"):
        raise ParameterError("device cuda is the first GPU; CUDA_VISIBLE_DEVICES chooses another.")
    if text not in CHOICES[name]:
        known = CHOICES[name]
        raise wrong_value(name, f"{', '.join(known[:-1])} or {known[-1]}", value)
    return text


def folder(given: object) -> str | Path:
    """The name of a checkpoint; CheckpointError where it plainly is none, with what to do."""
    if not isinstance(given, str | Path):
        given = os.fspath(given) if isinstance(given, os.PathLike) else given
        if not isinstance(given, str):
            raise wrong_value("folder", "the path or name of a checkpoint", given)
    name, hint = str(given), ""
    if not name.strip():
        raise wrong_value("folder", "the path or name of a checkpoint", given)
    if name.lower().endswith((".gguf", ".ggml")):
        hint = "GGUF is not read: give the folder with the original safetensors."
    elif os.path.isfile(name):
        hint = f"Give the folder that it lies in, {shown(os.path.dirname(name) or '.')}."
    elif re.search(r"\s", name) and not os.path.exists(name):
        hint = "A question comes after the folder."
    elif re.fullmatch(r"[\w.-]+:[\w.-]+", name) and not os.path.exists(name):
        hint = "Names of ollama are not known; --help lists aliases, such as onevision-0.5b."
    if hint:
        found = "a file" if os.path.isfile(name) else "none"
        raise CheckpointError("cannot open the checkpoint", shown(name), "a folder", found, hint)
    return given


def memory(given: object) -> float | None:
    """The GB that a plan should fit into, above 0; None is what is free."""
    given = plain(given)
    if given is not None and (
        not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf
    ):
        raise wrong_value("memory", "a number of GB above 0", given)
    return given


def refuse_unread(config: Mapping[str, object] | None, ignored: tuple[str, ...]) -> None:
    """ParameterError for a key of load()'s `config` that nothing reads.

    ignored: the keys that were not read, as LlavaConfig lists them.
    """
    for key in config or {}:
        if f"config.json: {key}" in ignored:
            section, dot, _ = key.partition(".")
            hint = f" A section is replaced as a whole: {section}={{...}}." if dot else ""
            raise ParameterError(f"No key of config.json that is read is called {key}.{hint}")
