"""The benchmarks start: every module is imported, every command tells what it takes.

What they measure is not tested here; `make bench` walks through them at toy sizes.
"""

import importlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llava_min
from bench import __main__ as bench
from bench import (
    checkpoints,
    cpu,
    explain,
    kv_cache,
    ledger,
    llamacpp,
    long,
    operators,
    paired,
    shapes,
)
from llava_min.engine import explaining
from llava_min.families import layouts
from llava_min.families.folder import EMBEDDED
from llava_min.segments import Plan, Text

FOLDER = Path(bench.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in [*FOLDER.glob("[a-z]*.py"), *FOLDER.glob("kernels/[a-z]*.py")]
)
COMMANDS = bench.__doc__.split("python -m bench ")[1].split(":")[0].split(" | ")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_imported(name):
    importlib.import_module(f"bench.{name}")


def test_the_shape_of_the_embedded_checkpoint_is_its_own():
    """A shape that is written down twice would drift; the others are in tests/test_aot.py."""
    config = llava_min.load().config
    text = replace(shapes.TEXTS["embedded"], eos_ids=config.text.eos_ids)
    assert (text, shapes.TOWERS["embedded"]) == (config.text, config.vision)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main([command, "--help"])
    assert ended.value.code == 0 and command in capsys.readouterr().out


@pytest.mark.parametrize("shape", shapes.TEXTS)
def test_a_folder_of_real_shape_is_read(shape, tmp_path):
    """Its processors have the sizes of its tower; the embedded files have others."""
    checkpoints.describe(shape, tmp_path)
    assert layouts.read_config(tmp_path).text.hidden_size == shapes.TEXTS[shape].hidden_size


def test_a_row_measured_again_replaces_the_old_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    ledger.keep(
        path, [{"section": "a", "name": "x", "seconds": 1.0}, {"section": "a", "name": "y"}]
    )
    ledger.keep(path, [{"section": "a", "name": "x", "seconds": 2.0}])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["name"], row.get("seconds")) for row in rows] == [("y", None), ("x", 2.0)]
    assert all({"cpu", "torch", "commit"} <= set(row) for row in rows)


def test_plots_are_drawn_again(tmp_path, capsys):
    """Of kernels and of generate, each line in a colour of its own; of others a line says no."""
    results = Path(ledger.__file__).parent / "results"
    for name in ("generate-cpu", "kernels-NVIDIA-H100-80GB-HBM3", "quality"):
        copy = tmp_path / f"{name}.jsonl"
        copy.write_text((results / copy.name).read_text())
        code = bench.main(["plot", str(copy)])
        said, drawn = capsys.readouterr(), sorted(tmp_path.glob(f"{name}-*.svg"))
        assert sorted(said.out.split()) == [str(path) for path in drawn]
        assert (code == 0) == bool(drawn) == (name != "quality")
        assert ("is drawn" in said.err) == (name == "quality")
    (decode,) = tmp_path.glob("generate-cpu-decode-*.svg")
    colours = re.findall(r'<polyline [^>]*stroke="(#\w+)"', decode.read_text())
    assert len(set(colours)) == len(colours) > 8


def test_paired_questions_go_on_where_they_stopped(tmp_path, monkeypatch):
    """Broken off in the second group, and run again: the rows of a run in one go, from the same
    questions to every way.
    """
    two = {name: paired.exam.PASS[name] for name in ("two pictures", "clip")}
    monkeypatch.setattr(paired.exam, "PASS", two)
    monkeypatch.setattr(paired, "BATCH", 3)
    whole, marked, asked = paired.rows(1, tmp_path / "whole.jsonl"), paired.marked, []

    def broken(models, teacher, group, *rest):
        asked.append(group)
        if asked == ["two pictures", "clip"]:
            raise KeyboardInterrupt
        return marked(models, teacher, group, *rest)

    monkeypatch.setattr(paired, "marked", broken)
    with pytest.raises(KeyboardInterrupt):
        paired.rows(1, tmp_path / "parts.jsonl")
    assert paired.rows(1, tmp_path / "parts.jsonl") == whole
    assert asked == ["two pictures", "clip", "clip"]
    assert {row["format"] for row in whole} == {"int8", "int4"} and all(row["n"] for row in whole)


def test_eight_bits_are_judged_by_the_answers_of_float32():
    """One question a task: nothing differs by more than rounding, and the bytes are halved."""
    rows = kv_cache.rows(1)
    whole = {row["format"]: row for row in rows if row["name"] == "all"}
    assert set(whole) == {"int8", "fp8"} and all(row["n"] == 16 for row in whole.values())
    for row in whole.values():
        assert 0 < row["kl"] <= row["kl_most"] < 0.1
        assert 0.5 < row["token_bytes"] / row["token_bytes_bf16"] < 0.54
    assert whole["int8"]["kl"] < whole["fp8"]["kl"]  # 7 bits of fraction, not 3


def test_a_clip_for_long_prompts_has_the_rows_that_it_says():
    config = llava_min.load().config
    segment, tiles = long.clip_of(20, config)
    assert len(segment.times) == len(tiles) == 20
    assert (tiles[0] == tiles[16]).all() and tiles[0].shape[0] == config.tile


def test_mistakes_of_the_geometry_cost_the_pointing_game_twenty_points(monkeypatch):
    """On few scenes: each moves the brightest place out of the box, and so do the controls."""
    monkeypatch.setattr(explain, "CHOSEN_ON", 1)
    found = {(row["name"], row["format"]): row for row in explain.pointing(30)}
    right = found["mean of the last layer", "joined"]["hit"]
    assert right > 0.9
    for name in (*explain.MUTANTS, "another shape's box", "blank picture", "shuffled places"):
        assert found[name, "joined"]["hit"] <= right - 0.2, name
    assert found["mean of the last layer", "grid"]["mass"] > 0.8


def test_the_committed_maps_are_to_be_trusted():
    rows = [
        json.loads(line) for line in (FOLDER / "results/explain.jsonl").read_text().splitlines()
    ]
    found = {(row["name"], row["format"]): row for row in rows if row["section"] == "pointing"}
    last = found["mean of the last layer", "grid"]
    for trusted in (last, found["suggested layer", "grid"]):
        assert trusted["n"] >= 2000 and trusted["low"] >= 0.95
    for name in explain.MUTANTS:
        assert found[name, "grid"]["high"] <= last["low"] - 0.2, name
    memory = [row for row in rows if row["section"] == "memory"]
    assert len(memory) == len(explain.COSTS)
    assert all(row["above_bytes"] < explaining.BYTES for row in memory)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_an_explanation_takes_no_more_than_it_says():
    """After 100,000 tokens; small tensors that outlive large ones would take 30 MB between them."""
    (row,) = explain.apart(explain.memory, "embedded", 100_000)
    assert row["words"] > 30 and row["above_bytes"] < explaining.BYTES


@pytest.mark.skipif(not llamacpp.INSTALLED, reason="llama-cpp-python or gguf is not installed")
@pytest.mark.parametrize("form, alike", [("bf16", 0.9999), ("int8", 0.999), ("int4", 0.9)])
def test_llama_cpp_reads_the_same_decoder(tmp_path, monkeypatch, form, alike):
    """Logits of the last token behind a prompt, and behind two more."""
    monkeypatch.setattr(checkpoints, "CACHE", tmp_path)
    folder, ids = checkpoints.folder_of("embedded"), tuple(range(5, 105))
    peer = llamacpp.LlamaCpp(folder, form, 100, 2)
    model = llava_min.load(folder, device="cpu", dtype="float32")
    for more, act in (((), peer.prefill(100)), ((7, 7), peer.decode(100))):
        act()
        plan = Plan((Text(ids + more),), 200)
        logits = model.network.prefill(plan, [], model.empty_cache(200))[0].numpy()
        assert np.corrcoef(peer.logits(), logits)[0, 1] > alike


def test_operators_are_timed_over_all_weights_and_no_others():
    """Their operations are two for each weight of the blocks and the head, and each row."""
    ours = cpu.Ours(EMBEDDED, "float32")
    decoder = ours.network.decoder
    blocks = sum(block.get_submodule(name).weight.numel() for block in decoder.blocks
                 for name in operators.PRODUCTS)  # fmt: skip
    for count in (1, 4, 100):
        found = operators.operators(ours, "float32", count, 100)
        head = decoder.embedding.weight.numel() if "head" in found else 0
        assert (head > 0) == (count < 100)
        attention = found.pop("attention")
        assert sum(work.operations for work in found.values()) == 2 * count * (blocks + head)
        assert sum(work.bytes for work in found.values()) == 4 * (blocks + head)
        scores = 100**2 / 2 if count == 100 else 100 * count  # half of them are before a query
        heads = decoder.config.num_heads * decoder.config.head_dim * decoder.config.num_layers
        assert attention.operations == 4 * heads * scores
        for work in found.values():
            work.call()
        attention.call()


def test_lookup_is_timed_at_its_two_ends(monkeypatch):
    """A turn of eight tokens is one forward of eight rows, or eight of them."""
    ours, rows = cpu.Ours.__new__(cpu.Ours), []
    ours.network = llava_min.load(device="cpu").network
    forward = ours.network.decoder.forward

    def counted(embedded, cache, *kept):
        rows.append(embedded.shape[1])
        return forward(embedded, cache, *kept)

    monkeypatch.setattr(ours.network.decoder, "forward", counted)
    for taken, expected in ((True, [8]), (False, [8] * 8)):
        turn = cpu.Drafted(ours, taken).decode(100)
        for _ in range(3):
            rows.clear()
            turn()
            assert rows == expected
