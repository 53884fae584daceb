"""llama.cpp as a peer on a CPU: a folder's decoder written as GGUF, run by llama-cpp-python.

    pip install gguf 'llama-cpp-python[server]'  # built here, for this machine's own instructions

bf16   matrices in bfloat16
int8   matrices and head in Q8_0 (groups of 32)
int4   matrices in Q4_0 (groups of 32), the tied head in Q8_0: 8 bits, as this project's has
The file holds a vocabulary only for the server, whose clients send text. The cache is in float16,
as is llama.cpp's way.
Read next: cpu.py.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from llava_min.families import layouts
from llava_min.weights.checkpoint import Checkpoint

INSTALLED = all(importlib.util.find_spec(name) for name in ("gguf", "llama_cpp"))
FORMATS = {
    # of the matrices, of the head
    "bf16": ("BF16", "BF16"),
    "int8": ("Q8_0", "Q8_0"),
    "int4": ("Q4_0", "Q8_0"),
}
DECODER = "language_model."  # in the HF layout


def add_vocabulary(writer, folder: Path, size: int) -> None:
    """The tokenizer of a folder, with made-up words up to `size` where the model has more rows."""
    import gguf

    described = json.loads((folder / "tokenizer.json").read_text())
    words = dict(described["model"]["vocab"])
    special = {added["content"]: added["id"] for added in described["added_tokens"]}
    names = {number: word for word, number in (words | special).items()}
    kinds = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names.get(number, f"word{number}") for number in range(size)])
    writer.add_token_types([kinds[names.get(number) in special] for number in range(size)])
    merges = described["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(special["<|im_end|>"])


def write(folder: Path, form: str, path: Path, vocabulary: bool = False) -> None:
    """The decoder of a checkpoint (HF layout, Qwen2, tied head) as a GGUF file."""
    import gguf

    text = layouts.read_config(folder).text
    matrix, head = (gguf.GGMLQuantizationType[name] for name in FORMATS[form])
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, text.num_layers)
    writer = gguf.GGUFWriter(path, "qwen2")
    if vocabulary:
        add_vocabulary(writer, folder, text.vocab_size)
    else:
        writer.add_tokenizer_model("none")
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.context)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_block_count(text.num_layers)
    writer.add_head_count(text.num_heads)
    writer.add_head_count_kv(text.num_kv_heads)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_layer_norm_rms_eps(text.norm_eps)
    for name, tensor in Checkpoint.open(folder).tensors():
        if not name.startswith(DECODER):
            continue
        values = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if values.ndim == 2:
            kind = head if "embed_tokens" in name else matrix
        name = known.get_name(name.removeprefix(DECODER), (".weight", ".bias"))
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """The peer, with the sections of cpu.Ours that a decoder has."""

    def __init__(self, folder: Path, form: str, context: int, steps: int):
        import llama_cpp

        self.api, self.steps, threads = llama_cpp, steps, torch.get_num_threads()
        with tempfile.TemporaryDirectory() as there:  # mapped files outlive their names
            path = Path(there) / "decoder.gguf"
            write(folder, form, path)
            self.model = llama_cpp.Llama(
                str(path),
                n_ctx=context + steps,
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )

    def logits(self) -> np.ndarray:
        """Of the last position: [vocab]."""
        pointer = self.api.llama_get_logits_ith(self.model.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab(),))

    def prefill(self, context: int):
        ids = list(range(5, 105)) * (context // 100)

        def read():
            self.model.reset()
            self.model.eval(ids)

        return read

    def decode(self, context: int):
        self.prefill(context)()

        def steps():
            for _ in range(self.steps):
                self.model.eval([7])
                self.logits().argmax()
            self.model.n_tokens = context

        return steps
