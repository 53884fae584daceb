"""Which code runs: the rule, its override, what importing costs, and a whole model through the
kernels.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_min.cache import Cache
from llava_min.config import TextConfig, VisionConfig
from llava_min.decoder import Decoder
from llava_min.kernels import attention, choose, int4, int4_packing, language, norm
from llava_min.vision import VisionTower

FOLDER = Path(norm.__file__).resolve().parent
FILES = sorted(FOLDER.glob("*.py"))
TEXT = TextConfig(
    vocab_size=40,
    hidden_size=48,
    intermediate_size=72,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_factor=1.0,
    context=64,
    tied=False,
    qkv_bias=True,
    eos_ids=(),
)
TOWER = VisionConfig(
    hidden_size=144,
    intermediate_size=40,
    num_layers=2,
    num_heads=2,
    image_size=28,
    patch_size=7,
    activation="gelu_pytorch_tanh",
    norm_eps=1e-6,
)


def random(module: torch.nn.Module, std: float) -> torch.nn.Module:
    """0.6 is enough to make greedy tokens vary."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return module.requires_grad_(False)


def test_the_rule():
    """A CPU tensor takes torch; the override is obeyed, but never for float64."""
    assert not choose.triton_for(torch.zeros(1))
    with choose.using("triton"):
        assert choose.triton_for(torch.zeros(1)) and choose.triton_for(torch.zeros(1).bfloat16())
        assert not choose.triton_for(torch.zeros(1).double())
        with choose.using("reference"):
            assert not choose.triton_for(torch.zeros(1))
        assert choose.triton_for(torch.zeros(1))
    with pytest.raises(AssertionError):
        choose.use("fastest")
    assert not choose.triton_for(torch.zeros(1))


def test_the_override_ends_with_an_error():
    with pytest.raises(KeyError), choose.using("triton"):
        raise KeyError
    assert not choose.triton_for(torch.zeros(1))


@pytest.mark.parametrize(
    ("capability", "part"),
    [
        ((8, 0), "163 KB"),
        ((9, 0), "227 KB"),
        ((10, 0), "227 KB"),
        ((8, 6), "99 KB"),
        ((8, 9), "99 KB"),
        ((12, 0), "99 KB"),
        ((13, 0), "99 KB"),
    ],
)
def test_parts(capability, part, monkeypatch):
    """An unknown GPU takes the row that fits everywhere; 7.5 takes torch."""
    monkeypatch.setattr(language, "AVAILABLE", True)
    half = torch.zeros(2, dtype=torch.float16)
    monkeypatch.setattr(choose, "gpu_of", lambda _: choose.Gpu(capability, 100))
    assert choose.part(half) == part and choose.triton_for(half)
    monkeypatch.setattr(choose, "gpu_of", lambda _: choose.Gpu((7, 5), 100))
    assert not choose.triton_for(half) and not choose.triton_multiplies(half)


def test_float32_on_a_gpu_is_multiplied_by_torch():
    """Its blocks overflow shared memory and registers; what is pointwise runs as a kernel."""
    with choose.pretending(choose.Gpu((9, 0), 132)):
        for dtype, ours in ((torch.float32, False), (torch.bfloat16, True), (torch.half, True)):
            rows = torch.zeros(2, dtype=dtype, device="meta")
            assert choose.triton_for(rows) and choose.triton_multiplies(rows) is ours
    assert not choose.triton_for(torch.zeros(2))


def test_importing_kernels_on_a_cpu_never_imports_triton():
    """Half a second of every start; and the torch paths work without a wheel of it."""
    code = (
        "import sys, os; os.environ.pop('TRITON_INTERPRET', None); import torch\n"
        "from llava_min.kernels import activation, attention, choose, decode_attention\n"
        "from llava_min.kernels import int4, norm, rope\n"
        "norm.rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6)\n"
        "try: choose.use('triton')\n"
        "except AssertionError: print('triton' in sys.modules, torch.cuda.is_available())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() in (["False", "False"], [])  # with a CUDA device both are there


def test_kernels_know_tensors_only():
    """Imports: the standard library, torch, Triton in one file, and each other."""
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots = {name.name.split(".")[0] for name in node.names}
                assert roots <= allowed, (path.name, roots)
                assert "triton" not in roots or path.name == "language.py", path.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module.split(".")[0] in allowed, (
                    path.name,
                    node.module,
                )
                assert node.level < 2, path.name


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that are neither empty nor comment nor docstring."""
    quoted = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return {number for number, line in lines if line and line[0] != "#"} - quoted


def test_every_kernel_begins_with_begin():
    """One that did not would read what the kernel before it has not written yet (language.py)."""
    found = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found.append((node.name, ast.unparse(node.body[1])))
    assert len(found) > 8 and all(first == "begin()" for _, first in found), found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_sizes(path):
    """A kernel has 16 arguments at most; a long file or function says so in its header."""
    text = path.read_text()
    tree, code = ast.parse(text), code_lines(text)
    header = ast.get_docstring(tree)
    assert len(code) <= 250 or "more than 250 lines" in header, len(code)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        assert len(function.args.args) <= 16, function.name
        length = len(code & set(range(function.lineno, function.end_lineno + 1)))
        excuse = f"`{function.name}` has more than 60"
        assert length <= 60 or excuse in " ".join(header.split()), (function.name, length)


def greedy(decoder: Decoder, static: bool) -> tuple[list[int], torch.Tensor]:
    """A prompt of 20 tokens and three steps: ids and the last logits.

    `static`: only the lengths on the device move, as in the replay of a CUDA graph.
    """
    cache = Cache.empty(decoder.config, 1, 40)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    ids = torch.arange(20)[None] * 7 % 40
    found = []
    for step in range(4):
        logits = decoder.logits(decoder(decoder.embed(ids), cache)[:, -1:])
        if step and static:
            cache.lengths += 1
        else:
            cache.advance(ids.shape[1])
        ids = logits.argmax(-1)
        found.append(int(ids))
    return found, logits


def test_a_model_through_the_kernels():
    """The same tokens as the reference, and counted launches: it was not the reference."""
    decoder = random(Decoder(TEXT), 0.6)
    with torch.inference_mode():
        expected, exact = greedy(decoder, static=False)
        before = language.launches.copy()
        with choose.using("triton"):
            ids, logits = greedy(decoder, static=True)
    assert ids == expected and len(set(ids)) > 2
    torch.testing.assert_close(logits, exact, atol=1e-5 * float(exact.abs().max()), rtol=0)
    counted = language.launches - before
    blocks, steps = TEXT.num_layers, 3
    assert counted == {
        "rms_norm_kernel": (2 * blocks + 1) * (1 + steps),
        "write_kernel": blocks * (1 + steps),
        "swiglu_kernel": blocks * (1 + steps),
        "attention_kernel": blocks,
        "decode_kernel": blocks * steps,
        "combine_kernel": blocks * steps,
    }


def test_a_tower_through_the_kernels():
    """Heads of 72 numbers, 16 patches, two tiles."""
    tower = random(VisionTower(TOWER), 0.3)
    tiles = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = tower(tiles)
        before = language.launches.copy()
        with choose.using("triton"):
            features = tower(tiles)
    torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-4)
    assert language.launches - before == {
        "layer_norm_kernel": 2 * TOWER.num_layers,
        "attention_kernel": TOWER.num_layers,
        "gelu_kernel": TOWER.num_layers,
    }


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_at_real_sizes(dtype):
    """The checked-in blocks, compiled: error against float64 at most twice torch's own."""
    from kernel_checks import no_worse_than_torch

    torch.manual_seed(0)
    for heads, kv_heads, head_dim in ((28, 4, 128), (14, 2, 64)):
        query = torch.randn(1, 300, heads, head_dim, device="cuda").to(dtype)
        key, value = torch.randn(2, 1, kv_heads, 500, head_dim, device="cuda").to(dtype)
        seen, mask = (
            torch.tensor([200], dtype=torch.int32, device="cuda"),
            attention.causal_mask(300, 200, "cuda"),
        )
        exact = attention.attention_formula(query.double(), key.double(), value.double(), mask)
        wide = [x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value)]
        scores = (query.transpose(1, 2) @ wide[0].transpose(2, 3) / head_dim**0.5).masked_fill(
            ~mask, -torch.inf
        )
        by_torch = (torch.softmax(scores, -1) @ wide[1]).transpose(1, 2)
        no_worse_than_torch(attention.attention_triton(query, key, value, seen), by_torch, exact)
    fused = torch.randn(2, 729, 3, 16, 72, device="cuda").to(dtype)
    query, key, value = fused.unbind(2)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    exact = attention.attention_formula(query.double(), key.double(), value.double(), None)
    by_torch = (
        torch.softmax(query.transpose(1, 2) @ key.transpose(2, 3) / 72**0.5, -1) @ value
    ).transpose(1, 2)
    no_worse_than_torch(attention.attention_triton(query, key, value), by_torch, exact)
    weight = torch.randn(600, 1024, device="cuda")
    q, scales = int4_packing.quantise(weight, 128)
    words = int4_packing.pack(q)
    for count in (1, 7, 64, 200):
        rows = torch.randn(count, 1024, device="cuda").to(dtype)
        exact = int4.linear_formula(rows.double(), words, scales.double())
        by_torch = rows @ int4_packing.dequantise_formula(words, scales, dtype).T
        no_worse_than_torch(int4.linear(rows, words, scales), by_torch, exact)
