"""What happens to the process: Ctrl-C, closed pipes, full disks, memory, packages that are missing.

Text so far stays, one line says what happened, the exit code tells scripts, and nothing hangs.
"""

import builtins
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import small
import torch
from bad_input import command, forked

import llava_min
from llava_min import sampling
from llava_min.base.memory import memory_guard
from llava_min.command.main import main
from llava_min.engine import handle
from llava_min.engine import load as loading
from llava_min.errors import MemoryBudgetError, NumericsError
from llava_min.generate import Token
from llava_min.request import prepare

STAR = str(small.TINY / "samples" / "shapes.png")
ASK = ["Describe the picture.", "--image", STAR, "--device", "cpu"]
catalogue = pytest.mark.catalogue


def interrupt_at(owner, name: str, call: int):
    """Let the call of `owner.name` with this number be met by Ctrl-C."""
    original, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    setattr(owner, name, interrupted)


@catalogue("CLI-INT", "while loading, preparing, encoding, prefilling, decoding")
@pytest.mark.parametrize(
    "owner, name, call",
    [
        (loading.weights, "place", 20),
        (handle, "prepare", 1),
        (handle.Network, "encode", 1),
        (handle.Network, "reading", 1),
        (handle.Network, "decode", 1),
        (handle.Network, "decode", 9),
    ],
)
def test_ctrl_c_ends_with_one_line_and_keeps_the_text(owner, name, call):
    ended = command(ASK, before=lambda: interrupt_at(owner, name, call))
    assert ended.code == 130 and "Traceback" not in ended.err, ended
    assert ended.err.count("interrupted") == 1
    whole = command(ASK).out.strip()
    assert whole.startswith(ended.out.strip()) and bool(ended.out.strip()) == (name == "decode")


@catalogue("CLI-INT", "with --json, what was said is still printed")
def test_ctrl_c_with_json():
    ended = command([*ASK, "--json"], before=lambda: interrupt_at(handle.Network, "decode", 9))
    assert ended.code == 130 and '"finish_reason": "interrupted"' in ended.out


def shell(script: str) -> subprocess.CompletedProcess:
    """A line of bash in which $ASK is the command."""
    quoted = " ".join(f"'{word}'" for word in ASK)
    environment = {**os.environ, "ASK": f"{sys.executable} -m llava_min {quoted}"}
    environment.pop("PYTHONUNBUFFERED", None)  # what is held back shows at the end only
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=300
    )


@catalogue("CLI-INT", "a signal from outside, at any moment after the start")
def test_a_signal_at_any_moment():
    """Before the command's first line only Python itself can answer; the dot says that it ran."""
    start = (
        "import os, llava_min.command.main as m; opened = m.open_streams\n"
        "m.open_streams = lambda: (opened(), os.write(1, b'.')); m.run()"
    )
    for delay in (0.0, 0.1, 0.5):
        running = subprocess.Popen(
            [sys.executable, "-c", start, *ASK, "--max-tokens", "20000", "--ignore-eos"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert running.stdout.read(1) == b"."
        time.sleep(delay)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=300)
        assert running.returncode == 130 and b"Traceback" not in err, (delay, err)


@catalogue("CLI-PIPE", "the reader leaves after one line")
def test_a_reader_that_leaves():
    ended = shell("eval $ASK --jsonl | head -n 1; exit ${PIPESTATUS[0]}")
    assert ended.returncode in (0, 141) and "rror" not in ended.stderr, ended
    assert ended.stdout.count("\n") == 1


@catalogue("CLI-PIPE", "no stdout, no stdin, no stderr at all")
def test_streams_that_are_closed():
    for closed in (">&-", "<&-", "2>&-"):
        ended = shell(f"eval $ASK --max-tokens 1 {closed}")
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, (closed, ended)
    ended = shell("eval $ASK --nonsense 2>&-")
    assert ended.returncode == 2 and ended.stdout == ""


@catalogue("CLI-FULL", "no room for the answer")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk():
    for more in ("", "--plan"):
        ended = shell(f"eval $ASK {more} > /dev/full")
        lines = [line for line in ended.stderr.splitlines() if "error" in line]
        assert ended.returncode == 6 and len(lines) == 1 and "stdout" in lines[0], ended
        assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert shell("eval $ASK --nonsense 2> /dev/full").returncode == 2


@catalogue("CLI-UTF8", "a terminal that knows no such character")
def test_a_terminal_without_unicode(monkeypatch):
    def speak():
        sys.stdout = open(1, "w", encoding="ascii", closefd=False)
        handle.Network.decode = None
        handle.Reply.take = say
        return main(ASK)

    def say(reply, *given):
        reply.reason = "stop"
        return Token(1, "★ é")

    ended = forked(speak)
    assert ended.code == 0 and ended.out == "\\u2605 \\xe9\n", ended


# Memory ------------------------------------------------------------------------------------------


def refuse_memory(call: int):
    """From the call of `decode` with this number on, the system gives no more memory."""
    original, calls = handle.Network.decode, []

    def decode(self, ids, cache):
        calls.append(ids)
        if len(calls) == call:
            torch.empty(1 << 50)
        return original(self, ids, cache)

    handle.Network.decode = decode


@catalogue("MEM-RUN", "an allocation fails while decoding")
def test_memory_that_runs_out_while_decoding():
    ended = command(ASK, before=lambda: refuse_memory(9))
    assert ended.code == 5 and ended.out.strip(), ended
    assert command(ASK).out.startswith(ended.out.rstrip("\n"))
    assert ended.err.count("\n") == 1 and "cannot continue the answer: memory" in ended.err
    assert "Traceback" not in ended.err and "alloc" not in ended.err


@catalogue("MEM-RUN", "the address space ends while loading, preparing or prefilling")
@pytest.mark.parametrize(
    "owner, name", [(loading.weights, "place"), (prepare, "open_media"), (handle.Cache, "empty")]
)
def test_memory_that_runs_out_earlier(owner, name):
    """A real limit: a tensor beyond the child's address space is asked for on the way."""

    def greedy():
        original = getattr(owner, name)

        def more(*args, **kwargs):
            torch.ones(6 << 30, dtype=torch.uint8)
            return original(*args, **kwargs)

        setattr(owner, name, more)

    ended = command(ASK, before=greedy)
    assert ended.code == 5 and "Traceback" not in ended.err, ended
    assert re.search(r"cannot \w+ the \w+: memory: expected enough, found no more", ended.err)


@catalogue("MEM-RUN", "every kind of report becomes one error, and no other error does")
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_reports_of_no_memory(error):
    with pytest.raises(MemoryBudgetError, match="cannot think"):
        with memory_guard("think"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"):
        with memory_guard("think"):
            raise RuntimeError("shapes do not fit")


# Packages ----------------------------------------------------------------------------------------


def without(package: str):
    """As if a package were not installed."""
    original = builtins.__import__

    def imported(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {package}")
        return original(name, *args, **kwargs)

    def hide():
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        builtins.__import__ = imported

    return hide


@catalogue("CLI-DEP", "av is needed for videos, and for nothing else")
def test_without_av():
    clip = str(small.TINY / "samples" / "clip.mp4")
    ended = command(["What?", "--video", clip, "--device", "cpu"], before=without("av"))
    assert ended.code == 4 and "pip install av" in ended.err, ended
    assert ended.err.count("\n") == 1 and "Traceback" not in ended.err
    assert command(ASK, before=without("av")).code == 0


@catalogue("CLI-DEP", "triton is needed on a GPU only")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_triton():
    assert command(ASK, before=without("triton")).code == 0
    ended = command([*ASK, "--device", "cuda"])
    assert ended.code == 2 and "--device cpu" in ended.err


# Numbers -----------------------------------------------------------------------------------------


@catalogue("NU-NANLOGIT", "named with its place; the text before it stays")
def test_logits_that_are_no_numbers():
    def spoil():
        original, calls = handle.Network.decode, []

        def decode(self, ids, cache):
            logits = original(self, ids, cache)
            calls.append(ids)
            return logits * float("nan") if len(calls) == 9 else logits

        handle.Network.decode = decode

    ended = command(ASK, before=spoil)
    assert ended.code == 7 and ended.out.strip(), ended
    assert command(ASK).out.startswith(ended.out.rstrip("\n"))
    assert re.search(r"logits at position \d+: expected finite", ended.err)
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(10)
        logits[3] = bad
        with pytest.raises(NumericsError):
            sampling.next_id(logits, [], 0, llava_min.options.Sampling(), 10)


@catalogue("NU-ROPE", "position 131,071 in a bfloat16 model, as exact as float32")
def test_angles_of_far_positions():
    """Built in bfloat16, the angle of position 255 would already be off by half a turn."""
    decoder = small.random_model(small.hf_config()).decoder.to(torch.bfloat16)
    text = decoder.config
    for far in (255, 2049, 131_071):
        powers = torch.arange(0, text.head_dim, 2, dtype=torch.float64) / text.head_dim
        exact = far * torch.cat([-(text.rope_theta**-powers), text.rope_theta**-powers])
        angles = decoder.angles(torch.tensor([[far]]), torch.bfloat16)
        error = angles.double().flatten() - torch.cat([exact.cos(), exact.sin()])
        assert error.abs().max() <= 2 * far * 2**-24 + 2**-24  # the product, and the cosine itself
