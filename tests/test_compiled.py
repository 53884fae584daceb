"""The decode step that is compiled ahead of time: equal to the ordinary one, and never a wrong one.

What builds a package needs a C++ compiler, and is skipped without one. All of it here shares one
package, of a model with two layers in four bits.
"""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import no_worse_than_torch

import llava_min
from llava_min import trace
from llava_min.base import cpu
from llava_min.cache import Cache
from llava_min.command.main import main
from llava_min.engine import batch, compiled, compiling
from llava_min.engine.slots import Slots
from llava_min.engine.step import eager
from llava_min.errors import ParameterError
from llava_min.kernels import choose

ON_CPU = choose.rule("cpu", None)[0] == "cpu"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
needs_path = pytest.mark.skipif(not ON_CPU, reason="a CPU on the reference path compiles nothing")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler, g++ or CXX")
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
FORMAT = {"device": "cpu", "dtype": "float32", "bits": 4}

pytestmark = needs_path


def checkpoint(folder, **text):
    config = small.hf_config(**SIZES, **text)
    return small.write(folder, config, small.tensors_of(small.random_model(config, 3), "hf"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache folder of this file's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_MIN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def built(home, source):
    """The model with its package, which is built here."""
    if not COMPILER:
        pytest.skip("needs a C++ compiler, g++ or CXX")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # a package serves any number
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of torch, which says nothing to a user
        model = llava_min.load(source, **FORMAT, compile=True)
    torch.set_num_threads(threads)
    assert model.compiled is not None
    return model


@pytest.fixture(scope="module")
def ordinary(home, source):
    return llava_min.load(source, **FORMAT, compile=False)


@pytest.fixture(scope="module")
def oracle(source):
    """The same codes and scales in float64."""
    return llava_min.load(source, device="cpu", dtype="float64", bits=4)


def random_cache(model, seen, spare, seed, dtype=torch.float32):
    cache = Cache.empty(model.config.text, 1, seen + spare, dtype)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (cache.keys, cache.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
        tensor[:, :, :, seen:] = torch.nan  # what no token has written
    cache.advance(seen)
    return cache


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 508),
    st.integers(1, 512),
    st.integers(0, 9),
)
def test_a_step_is_an_ordinary_step(built, ordinary, oracle, seen, spare, newest, known, seed):
    """After any number of tokens, in a cache of any capacity: its error against float64 is at most
    twice that of the ordinary step; it writes the token's place and no other.
    """
    models = oracle, ordinary, built
    caches = [random_cache(ordinary, seen, spare, seed) for _ in models]
    caches[0] = random_cache(ordinary, seen, spare, seed, torch.float64)
    before = caches[2].keys.clone(), caches[2].values.clone()
    steps = [
        eager(oracle.network, caches[0], 512),
        eager(ordinary.network, caches[1], 512),
        built.compiled.step(built.network, caches[2], known),
    ]
    exact, plain, found = (step([newest]) for step in steps)
    assert found[0].dtype == torch.float32 and found[0].shape == plain[0].shape
    assert found[1] == found[0][:, :known].argmax(-1).tolist()
    no_worse_than_torch(found[0], plain[0], exact[0])
    for name, held in zip(("keys", "values"), before):
        exact, plain, found = (getattr(cache, name) for cache in caches)
        no_worse_than_torch(*(one[:, :, :, seen] for one in (found, plain, exact)))
        found[:, :, :, seen] = torch.nan
        assert torch.equal(found.nan_to_num(9.0), held.nan_to_num(9.0))
    assert caches[2].host_lengths.tolist() == caches[2].lengths.tolist() == [seen + 1]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_not_finite_choose_nothing(built, wrong):
    """A value in the cache that is none makes every logit one; the ordinary step says -1 too."""
    cache = random_cache(built, 30, 2, 0)
    cache.values[:, :, :, 7] = wrong
    logits, likely = built.compiled.step(built.network, cache, 512)([5])
    assert not torch.isfinite(logits).all() and likely == [-1]


def asked(model, **options):
    return model.generate("What is in the picture?", images=[small.picture(70, 50)], **options)


def test_the_answers_are_those_of_ordinary_steps(built, ordinary):
    for options in ({}, {"temperature": 0.8, "seed": 3}, {"lookup": 7}):
        options |= {"max_tokens": 40, "ignore_eos": True}
        assert asked(built, **options).token_ids == asked(ordinary, **options).token_ids
    chats = [model.chat(max_tokens=12, ignore_eos=True) for model in (built, ordinary)]
    for question in ("Where?", "Why?", "Again?"):
        first, second = (chat.ask(question) for chat in chats)
        assert first.token_ids == second.token_ids and first.usage == second.usage


def test_it_is_the_package_that_runs(built, monkeypatch):
    """Of an answer's tokens, the ordinary step makes none; while somebody watches, all."""
    calls, decode = [], built.network.decode
    monkeypatch.setattr(built.network, "decode", lambda *args: calls.append(1) or decode(*args))
    plain = asked(built, max_tokens=9, ignore_eos=True)
    assert not calls
    with trace.watch("hidden") as hidden:
        watched = asked(built, max_tokens=9, ignore_eos=True)
    assert watched.token_ids == plain.token_ids and len(calls) == 8 and len(hidden) == 9


def test_a_cache_of_eight_bits_takes_ordinary_steps(built, source, caplog):
    """And so do several rows; asked for, a package is not even built, and a line says why."""
    eight = llava_min.load(source, **FORMAT, kv_dtype="int8")
    assert eight.compiled is None and not caplog.records
    eight = llava_min.load(source, **FORMAT, kv_dtype="int8", compile=True)
    assert eight.compiled is None
    assert "not compiled: a cache of 8 bits takes ordinary steps." in caplog.text
    assert not built.compiled.takes(eight.empty_cache(4))
    assert not built.compiled.takes(built.empty_cache(4, 2))
    assert built.compiled.takes(built.empty_cache(4))


def test_threads_share_it(built):
    ask = lambda seed: asked(built, max_tokens=8, temperature=1.0, seed=seed).token_ids
    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(8))) == alone


def test_slots_use_it_where_one_answer_is_alone(built, ordinary, monkeypatch):
    """In whichever row that is; two at once take ordinary steps. The answers are the same."""
    step, places = compiled.Compiled.step, []

    def noted(self, network, cache, known):
        places.append(cache.keys.data_ptr())
        return step(self, network, cache, known)

    monkeypatch.setattr(compiled.Compiled, "step", noted)
    slots, lines = Slots(built, 3, 200), {"What?": 4, "And where is it now?": 20}
    options = [
        {"question": question, "max_tokens": tokens, "ignore_eos": True}
        for question, tokens in lines.items()
    ]
    found = [slots.submit(*batch.ready_for(built, "line", one), 0.0) for one in options]
    while slots.busy:
        slots.round()
    for one, line in zip(found, options):
        alone = ordinary.generate(line.pop("question"), **line)
        assert one.answer.token_ids == alone.token_ids
    assert set(places) == {slots.cache.row(row).keys.data_ptr() for row in (0, 1)}
    assert 10 < len(places) < 3 + 19  # tokens after the first ones


def test_weights_are_handed_over_and_not_copied(built):
    """A change of a weight changes the next step: the package has none of its own."""
    cache = random_cache(built, 9, 4, 0)
    step, norm = built.compiled.step(built.network, cache, 512), built.network.decoder.norm.weight
    first = step([7])[0].clone()
    before = norm.clone()
    norm.mul_(2)
    cache.rewind(1)
    second = step([7])[0]
    norm.copy_(before)
    assert torch.allclose(second, 2 * first, rtol=1e-4)
    assert built.compiled.path.stat().st_size < 2**23


# Which package is opened ---------------------------------------------------------


def test_once_built_it_is_used_unasked(built, source, home):
    """By another process, without the compiler's modules, and it says so with -v."""
    code = f"""
import logging, sys, llava_min
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("llava_min").setLevel(logging.DEBUG)
for given in ({{}}, {{"compile": True}}, {{"compile": False}}):
    model = llava_min.load({str(source)!r}, device="cpu", dtype="float32", bits=4, **given)
    print(model.compiled is not None, len(model.generate([5, 6], max_tokens=3).token_ids))
print([name for name in ("torch._inductor", "torch._dynamo", "sympy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["True 3", "True 3", "False 3", "[]"], run.stderr
    assert run.stderr.count(f"decode step: compiled, from {built.compiled.path}") == 2
    assert "compiling" not in run.stderr


def changed(monkeypatch, what):
    """Make this machine another one, for what packages are made with."""
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    elif what == "instructions":
        flags = cpu.flags()
        monkeypatch.setattr(cpu, "flags", lambda: [*flags, "amx_tile"])
    elif what == "vectors":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    else:
        monkeypatch.setattr(compiled, "code", lambda: "another")


@pytest.mark.parametrize("what", ["torch", "instructions", "vectors", "code"])
def test_a_package_of_another_machine_is_not_opened(home, ordinary, monkeypatch, what, caplog):
    """Neither by its name nor, where somebody gave it the right name, by what is in it."""
    decoder = ordinary.network.decoder
    made = compiled.made_with(decoder)
    path = compiled.path_of(made)
    if not path.exists():
        write_notes(path, made)
    with monkeypatch.context() as patch:
        changed(patch, what)
        other = compiled.path_of(compiled.made_with(decoder))
        assert other != path and compiled.opened(decoder) is None
        shutil.copy(path, other)
        caplog.clear()
        assert compiled.opened(decoder) is None and "no whole package" in caplog.text
        other.unlink()


def write_notes(path, made):
    """A file that says what a package says, without its code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"package/extra/{compiled.NOTES}", json.dumps({"made_with": made,
                                                                     "numbers": {}}))  # fmt: skip


def test_names_differ_by_shape_and_format(home, tmp_path):
    """Every shape and format has a name of its own; a context of another length has not."""
    kinds = {
        "float32": {"dtype": "float32"},
        "int4": {"bits": 4},
        "int8": {"bits": 8},
        "bfloat16": {"dtype": "bfloat16"},
        "int4, scales of bfloat16": {"dtype": "bfloat16", "bits": 4},
    }
    shapes = [{}, {"rope_theta": 1e4}, {"num_hidden_layers": 3}, {"vocab_size": 544}]
    paths = {}
    for number, text in enumerate(shapes):
        folder = checkpoint(tmp_path / str(number), **text)
        for name, form in kinds.items():
            model = llava_min.load(folder, device="cpu", compile=False, **form)
            paths[number, name] = compiled.path_of(compiled.made_with(model.network.decoder))
    assert len(set(paths.values())) == len(shapes) * len(kinds)
    longer = llava_min.load(tmp_path / "0", device="cpu", dtype="float32", context=99)
    again = compiled.path_of(compiled.made_with(longer.network.decoder))
    assert again == paths[0, "float32"]


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_package_is_not_opened(built, source, tmp_path, monkeypatch, damage, caplog):
    """Cut at many places, with a byte changed at many, or something else altogether."""
    data, decoder = built.compiled.path.read_bytes(), built.network.decoder
    monkeypatch.setenv("LLAVA_MIN_CACHE", str(tmp_path))
    path = compiled.path_of(compiled.made_with(decoder))
    path.parent.mkdir(parents=True)
    places = {"empty": [0], "text": [0], "cut": [10, len(data) // 2, len(data) - 1]}
    with zipfile.ZipFile(built.compiled.path) as file:
        inside = [info.header_offset + 200 + info.file_size // 2 for info in file.infolist()
                  if info.file_size > 10_000]  # fmt: skip
    for place in places.get(damage, inside):
        wrong = bytearray(data)
        wrong[place] ^= 1
        content = {"empty": b"", "text": b"no package", "cut": data[:place]}
        path.write_bytes(content.get(damage, bytes(wrong)))
        assert compiled.opened(decoder) is None and "is not opened" in caplog.text
    path.write_bytes(data)
    assert compiled.opened(decoder) is not None
    monkeypatch.setattr(compiled, "Compiled", refused)
    caplog.clear()
    assert compiled.opened(decoder) is None and "cannot be opened" in caplog.text
    shutil.rmtree(path.parent)


def refused(*args):
    raise RuntimeError("failed to map segment\nand more")


# Builds that come to nothing -------------------------------------------------------


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_MIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "compiling was interrupted: the ordinary decode step is used."),
        (OSError(28, "No space left on device"), "is not compiled: OSError: [Errno 28] No space"),
        (RuntimeError("C++ compile error\n\nmuch"), "compiled: RuntimeError: C++ compile error"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_build_that_fails_leaves_the_ordinary_step(
    empty, source, monkeypatch, caplog, error, line
):
    from torch._inductor.utils import fresh_cache

    def write(decoder, path, work):
        with fresh_cache(dir=str(work), delete=False):  # which warns of the folder it leaves
            (work / "half").write_bytes(b"x" * 1000)
            raise error

    monkeypatch.setattr(compiling, "write", write)
    monkeypatch.setenv("CXX", sys.executable)  # any compiler that is there
    with caplog.at_level(logging.INFO, "llava_min"):
        model = llava_min.load(source, **FORMAT, compile=True)
    assert model.compiled is None and len(asked(model, max_tokens=3).token_ids) == 3
    (said,) = (r.message for r in caplog.records if r.levelno == logging.WARNING)
    assert line in said and "\n" not in said
    assert list(empty.iterdir()) == []


def test_packages_and_leftovers_share_a_folder(empty, ordinary, monkeypatch):
    """A second build goes into the folder of the first; what was left a day ago is removed."""
    monkeypatch.setattr(compiling, "write", lambda decoder, path, work: path.write_bytes(b"x"))
    monkeypatch.setenv("CXX", sys.executable)  # any compiler that is there
    assert compiling.built(ordinary.network.decoder)
    (package,) = empty.iterdir()
    for name, age in (("build-old", 2 * compiling.STALE), ("build-new", compiling.STALE / 2)):
        (empty / name).mkdir()
        then = time.time() - age
        os.utime(empty / name, (then, then))
    assert compiling.built(ordinary.network.decoder)
    assert {path.name for path in empty.iterdir()} == {package.name, "build-new"}


def test_without_a_compiler(empty, source, monkeypatch, caplog):
    from torch._inductor import cpp_builder, exc

    def missing():
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    model = llava_min.load(source, **FORMAT, compile=True)
    assert model.compiled is None and len(asked(model, max_tokens=3).token_ids) == 3
    assert "torch finds no C++ compiler, such as g++" in caplog.text


@needs_compiler
def test_a_build_that_is_killed_leaves_no_package(empty, source):
    """kill -9 while the compiler runs. A day later its folder is removed by the next build."""
    code = f"import llava_min; llava_min.load({str(source)!r}, **{FORMAT!r}, compile=True)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 600
    while not list(empty.glob("build-*/*/*/*.cpp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (left,) = empty.iterdir()
    assert left.name.startswith("build-") and any(left.iterdir())
    model = llava_min.load(source, **FORMAT)
    assert model.compiled is None
    compiling.remove_stale(empty)
    assert left.exists()  # another process may be building there
    os.utime(left, (time.time() - 2 * compiling.STALE,) * 2)
    compiling.remove_stale(empty)
    assert not left.exists()


def test_a_split_model_compiles_nothing(empty, caplog):
    """Two parts are the fewest."""
    split = SimpleNamespace(device=torch.device("cpu"), decoder=SimpleNamespace(parts=2))
    assert compiling.for_device(split, True) is None and not empty.exists()
    assert "the decode step is not compiled: the model is split." in caplog.text


def test_where_packages_are_kept(monkeypatch):
    for name in ("LLAVA_MIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, "/home/me")
    assert compiled.folder() == Path("/home/me/.cache/llava_min/compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compiled.folder() == Path("/caches/llava_min/compiled")
    monkeypatch.setenv("LLAVA_MIN_CACHE", "/ours")
    assert compiled.folder() == Path("/ours/compiled")


def test_what_compile_may_be(source):
    for wrong in (1, "yes"):
        with pytest.raises(ParameterError, match="compile"):
            llava_min.load(source, compile=wrong)


def test_the_reference_path_compiles_nothing(empty, source, caplog):
    with choose.using("reference"):
        model = llava_min.load(source, device="cpu", compile=True)
    assert model.compiled is None and not empty.exists()
    assert "the decode step is not compiled: --kernels reference." in caplog.text


def test_the_command(built, source, capsys, caplog):
    """Its options, and that a plan has nothing to compile."""
    words = ["-m", str(source), "--int4", "--dtype", "float32", "--device", "cpu", "-v"]
    said = []
    for more in ([], ["--compile"], ["--no-compile"]):
        assert main([*words, *more, "What?", "--max-tokens", "2"]) == 0
        said.append(caplog.text.count("decode step: compiled, from"))
        caplog.clear()
    assert said == [1, 1, 0]
    assert main(["--plan", "--compile", "What?"]) == 2
    assert "--plan and --compile cannot be used together" in capsys.readouterr().err
    assert main(["--plan", "--no-compile", "What?"]) == 0


# What takes minutes ------------------------------------------------------------------


@pytest.mark.slow
@needs_compiler
def test_two_builds_at_once(empty, source):
    code = (
        f"import llava_min; m = llava_min.load({str(source)!r}, **{FORMAT!r}, compile=True)\n"
        "print(m.compiled is not None, m.generate([5, 6], max_tokens=5).token_ids)"
    )
    call = [sys.executable, "-c", code]
    runs = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate()[0] for run in runs]
    assert said[0] == said[1] and said[0].startswith("True")
    assert [path.suffix for path in empty.iterdir()] == [".pt2"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "given", [{"dtype": "bfloat16", "bits": 4}, {"dtype": "bfloat16"}, {"bits": 8}, {}], ids=str
)
def test_five_hundred_scenes(tmp_path, monkeypatch, given):
    """The embedded checkpoint answers questions about 500 scenes as it does without a package.

    Where an answer differs, its first other token was as likely as the ordinary one, but for the
    rounding of 16 bits.
    """
    from llava_min.weights.tiny import scenes

    monkeypatch.setenv("LLAVA_MIN_CACHE", str(tmp_path))
    model = llava_min.load(device="cpu", compile=True, **given)
    plain = llava_min.load(device="cpu", compile=False, **given)
    assert model.compiled is not None
    rng, different = np.random.default_rng(23), 0
    for _ in range(500):
        scene = scenes.draw_scene(rng, (84, 84))
        picture, questions = scenes.render(scene), scenes.picture_questions(rng, scene)
        _, text, _ = questions[int(rng.integers(len(questions)))]
        one, other = (m.generate(text, images=[picture], max_tokens=48) for m in (model, plain))
        different += one.text != other.text
    print(f"{given}: {different} of 500 answers differ")
    assert different == 0
