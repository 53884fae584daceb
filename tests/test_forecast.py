"""Forecasts: tokens equal those of the original code and of transformers' processors; bytes equal
those that torch allocates; what does not fit is refused, and what is said to fit does.
"""

import json
import math
import re
import subprocess
import sys
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_agrees_golden import CASES, GOLDEN, inputs, overrides_of
from test_real_sizes import CHECKPOINTS, GRID5, GRID36

import llava_min
from llava_min import image
from llava_min import segments as plans
from llava_min.cache import Cache
from llava_min.command.main import main
from llava_min.families import layouts
from llava_min.kernels import attention_cpu
from llava_min.media import sources as media
from llava_min.planning import memory as needs
from llava_min.planning.memory import Storage
from llava_min.weights import load

CLIP = str(small.TINY / "samples" / "clip.mp4")
STAR = str(small.TINY / "samples" / "shapes.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with a published configuration and nothing else."""
    made = {}
    for name, (values, *_) in CHECKPOINTS.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps(values))
    return made


# Tokens ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_original_code(name):
    pictures, clips = inputs(name)
    ids = np.load(GOLDEN / f"{name}.npz")["input_ids"][0].tolist()
    folder = GOLDEN / ("tiny_video" if name.startswith("video") else "tiny_ov")
    several = "anyres" if name == "ov_two_anyres" else "auto"
    found = llava_min.plan(folder, ids, images=pictures, videos=clips, multi_image=several,
                           config=overrides_of(name)).json()["tokens"]  # fmt: skip
    case = CASES[name]
    assert (found["visual"], found["text"]) == (
        case["n_visual"],
        case["seq_len"] - case["n_visual"],
    )


PROCESSORS = {
    # checkpoint: transformers' class, and what its published processor files set
    "long-llava-qwen2-7b": ("LlavaProcessor", 336, dict(
        patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy="default")),
    "llava-interleave-qwen-0.5b": ("LlavaProcessor", 384, dict(
        patch_size=14, num_additional_image_tokens=0, vision_feature_select_strategy="full")),
    "llava-next-video-7b-hf": ("LlavaNextVideoProcessor", 336, dict(
        patch_size=14, num_additional_image_tokens=1, vision_feature_select_strategy="default",
        image_processor=SimpleNamespace(image_grid_pinpoints=GRID5))),
    "llava-onevision-0.5b-ov-hf": ("LlavaOnevisionProcessor", 384, dict(
        num_image_tokens=729, vision_aspect_ratio="anyres_max_9",
        vision_feature_select_strategy="full",
        image_processor=SimpleNamespace(image_grid_pinpoints=GRID36))),
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=10, deadline=None)
@given(width=st.integers(20, 2500), height=st.integers(20, 2500), frames=st.integers(2, 9))
def test_tokens_are_those_of_transformers_processors(folders, name, width, height, frames):
    kind, tile, attributes = PROCESSORS[name]
    processor = object.__new__(getattr(transformers, kind))
    vars(processor).update(attributes, image_token="i", video_token="v")
    tiles = np.zeros((1, 1, 3, tile, tile), np.uint8)
    placeholders = processor.replace_image_token(
        {"pixel_values": tiles[0] if kind == "LlavaProcessor" else tiles,
         "image_sizes": [[height, width]], "batch_num_images": [1]}, 0)  # fmt: skip
    picture = Image.new("L", (width, height))
    found = llava_min.plan(folders[name], "Why?", images=[picture]).json()["tokens"]
    assert found["visual"] == len(placeholders)
    seen = frames * len(placeholders)  # a family without clips takes each frame as a picture
    if kind != "LlavaProcessor":
        clip = np.zeros((1, frames, 3, tile, tile), np.uint8)
        seen = len(processor.replace_video_token({"pixel_values_videos": clip}, 0))
    clip = np.zeros((frames, 8, 8, 3), np.uint8)
    assert llava_min.plan(folders[name], "Why?", videos=[clip]).json()["tokens"]["visual"] == seen


def test_a_forecast_counts_what_will_be_prepared():
    question, media = "What is it?", dict(images=[STAR], videos=[CLIP])
    prepared = llava_min.load(device="cpu").prepare(question, **media, frames=5)
    found = llava_min.plan(None, question, **media, frames=5)
    assert found.plan == prepared.plan and found.media == prepared.media and not found.guessed


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_the_size_in_the_header_is_that_of_the_upright_picture(tmp_path, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small.picture(40, 30).save(tmp_path / "turned", format, exif=exif)
    assert media.picture_size(tmp_path / "turned") == media.open_picture(tmp_path / "turned").size


def test_only_the_header_of_a_picture_is_read(tmp_path):
    """All but the first hundred bytes are zeros: decoding it is an error, planning is not."""
    small.picture(400, 300).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:100] + bytes(len(data) - 100))
    with pytest.raises(llava_min.MediaError):
        media.open_picture(tmp_path / "cut.png")
    found, whole = (llava_min.plan(None, "Why?", images=[tmp_path / name])
                    for name in ("cut.png", "whole.png"))  # fmt: skip
    assert found.plan == whole.plan


# Bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_are_counted_exactly(name):
    settings = layouts.parse_config(CHECKPOINTS[name][0])
    count = sum(parameter.numel() for parameter in load.on_meta(settings).parameters())
    assert needs.weight_bytes(settings, Storage("bfloat16", device="cuda")) == 2 * count
    assert needs.weight_bytes(settings, Storage("float16")) == 2 * count
    head = settings.text.tied * settings.text.vocab_size * settings.text.hidden_size
    assert needs.weight_bytes(settings, Storage("float32")) == 4 * (count + head)
    assert needs.weight_bytes(settings, Storage("bfloat16")) == 2 * (count + head)


def allocated(call) -> int:
    """The most bytes that torch held at once beside what was there."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        call()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


WIDE = dict(hidden_size=128, intermediate_size=400)


@pytest.mark.parametrize("text, size, frames, words, dtype", [
    ({}, None, 0, 6000, "float32"),
    (WIDE, None, 0, 5000, "bfloat16"),
    (WIDE, None, 200, 0, "float32"),
    (WIDE, (500, 480), 0, 0, "float32"),
    (WIDE, (500, 480), 64, 4000, "float32"),
])  # fmt: skip
def test_cache_and_activations_are_what_torch_allocates(
    text, size, frames, words, dtype, monkeypatch
):
    """Never less by more than 1%, never more by over 10%, for text, a clip, a picture and all.

    In float32 as on a GPU, where no scores are written out; its libraries are not here.
    """
    monkeypatch.setattr(needs, "LIBRARIES", 0)
    if dtype == "float32":
        monkeypatch.setattr(attention_cpu, "LEAST", math.inf)
    values = small.hf_config(max_position_embeddings=10**6, **text)
    model = small.random_model(values, dtype=getattr(torch, dtype))
    segments, tiles = [plans.Text((1,) * (words + 1))], []
    if size:
        tiles.append(image.anyres_tiles(small.picture(*size), model.config))
        segments.append(plans.picture(size, "anyres", model.config))
    if frames:
        tiles.append(image.FrameTiles(small.frames(frames, 8, 8), model.config, range(frames)))
        segments.append(plans.clip(list(range(frames)), (8, 8), model.config))
    plan = plans.Plan(tuple(segments), 10**6)

    def run():
        cache = Cache.empty(model.config.text, 1, plan.tokens, getattr(torch, dtype))
        encode = partial(model.encode, k=storage.portions[0])
        model.prefill(plan, map(encode, segments[1:], tiles), cache, storage.portions[1])

    storage = Storage(dtype, device="cpu" if dtype == "bfloat16" else "cuda")
    run()  # what is made once, is made
    found, need = allocated(run), needs.alone(model.config, plan, 0, storage)
    assert 0.99 * found <= need.cache + need.activations <= 1.1 * found


def test_224000_tokens_of_long_llava_fit_into_16_gb(folders, capsys):
    """int4 weights and an 8-bit cache; neither alone is enough."""
    clip = np.zeros((388, 4, 4, 3), np.uint8)
    given = dict(videos=[clip], frames=388, max_tokens=1, dtype="bfloat16", memory=16)
    bare = llava_min.plan(folders["long-llava-qwen2-7b"], "Why?", **given, device="cuda")
    rest = 224_000 - bare.plan.tokens
    given |= dict(max_tokens=rest, device="cuda")
    found = llava_min.plan(folders["long-llava-qwen2-7b"], "Why?", **given, bits=4,
                           kv_dtype="int8")  # fmt: skip
    assert found.json()["tokens"]["all"] == 224_000 and found.fits
    need = found.memory()
    assert need.cache == 224_000 * 2 * 28 * 4 * (128 + 4) and 14e9 > need.total > 12e9
    for less in (dict(bits=4), dict(kv_dtype="int8"), {}):
        assert not llava_min.plan(folders["long-llava-qwen2-7b"], "Why?", **given, **less).fits


def tower_of(**text) -> dict:
    """A configuration whose tower outweighs what stands around it, with tiles of 196 pixels."""
    values = small.hf_config(max_position_embeddings=10**6, **text)
    values["vision_config"] |= dict(hidden_size=256, intermediate_size=1024, image_size=196,
                                    num_attention_heads=4)  # fmt: skip
    sides = (196, 392, 588)
    return values | {"image_grid_pinpoints": [[one, other] for one in sides for other in sides]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "quick_gelu"])
def test_frames_in_the_tower_take_what_is_said(dtype, activation):
    model = small.random_model(tower_of(), dtype=getattr(torch, dtype))
    config = replace(model.config, vision=replace(model.config.vision, activation=activation))
    for block in model.vision.blocks:
        block.activation = activation
    frames = image.FrameTiles(small.frames(12, 8, 8), config, range(12))
    for k in (1, 4):
        clip = plans.clip(list(range(12)), (8, 8), config)
        encode = lambda k=k, clip=clip: deque(model.encode(clip, frames, k), maxlen=0)
        encode()
        said = needs.vision_bytes(config, 12, Storage(dtype), k)
        assert said == pytest.approx(allocated(encode), rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_put_together_takes_what_is_said(dtype):
    text = dict(hidden_size=512, num_attention_heads=8)
    model = small.random_model(tower_of(**text), dtype=getattr(torch, dtype))
    tiles = image.anyres_tiles(small.picture(560, 560), model.config)
    segment = plans.picture((560, 560), "anyres", model.config)
    encode = lambda: list(model.encode(segment, tiles, 1))
    encode()
    said = needs.vision_bytes(model.config, len(tiles), Storage(dtype), 1)
    assert said == pytest.approx(allocated(encode), rel=0.06)


@pytest.mark.parametrize("intermediate, dtype", [
    (1024, "float32"), (1024, "bfloat16"), (64, "float32"), (64, "bfloat16")])  # fmt: skip
def test_a_chunk_in_the_decoder_takes_what_is_said(intermediate, dtype):
    """Where the MLP is the widest place, and where attention is."""
    text = dict(hidden_size=256, intermediate_size=intermediate, num_attention_heads=8)
    model = small.random_model(small.hf_config(**text), dtype=getattr(torch, dtype))
    config, rows = model.config.text, torch.randn(1, 1024, 256, dtype=getattr(torch, dtype))
    cache = Cache.empty(config, 1, 1024, rows.dtype)
    read = torch.inference_mode()(lambda: model.decoder(rows, cache))
    read()
    said = needs.prefill_bytes(config, 1024, Storage(dtype), 1024)
    assert said == pytest.approx(allocated(read), rel=0.015 if intermediate == 1024 else 0.07)


def test_weights_of_four_bits_are_counted_exactly():
    """Every tensor of a decoder in four bits beside a head of eight, as a CPU lays them out."""
    model, held = llava_min.load(dtype="bfloat16", device="cpu", bits=4), 0
    for layer in model.network.modules():
        own = (*vars(layer).values(), *layer._parameters.values())
        held += sum(t.numel() * t.dtype.itemsize for t in own if isinstance(t, torch.Tensor))
    said = needs.weight_bytes(model.config, Storage("bfloat16", bits=4))
    assert said == pytest.approx(held, rel=0.001)


def test_sizes_of_numbers():
    for name, size in needs.BYTES.items():
        assert getattr(torch, name).itemsize == size


def test_operations_are_those_of_the_linears_and_of_attention():
    """Counted while a picture and a question are read: the weights of every linear layer of the
    blocks and of the projector for each of its rows, and E for each number of a score, twice.
    """
    model = small.random_model(small.hf_config(max_position_embeddings=10**6))
    size, settings = (500, 480), model.config
    tiles = image.anyres_tiles(small.picture(*size), settings)
    segments = (plans.picture(size, "anyres", settings), plans.Text((1,) * 900))
    plan, counted = plans.Plan(segments, 10**6), {"seeing": 0, "reading": 0}

    def count(layer, inputs, output):
        where = "reading" if layer in decoder else "seeing"
        counted[where] += 2 * output[..., 0].numel() * layer.weight.numel()

    decoder = set(model.decoder.blocks.modules())
    for part in (model.decoder.blocks, model.vision.blocks, model.projector):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(count)
    visual = model.encode(segments[0], tiles)
    model.prefill(plan, [visual], Cache.empty(settings.text, 1, plan.tokens))
    text, vision, seen = settings.text, settings.vision, len(tiles)
    heads = 4 * text.num_layers * text.num_heads * text.head_dim
    patches = 4 * vision.num_layers * vision.hidden_size
    counted["reading"] += heads * plan.tokens * (plan.tokens + 1) // 2
    counted["seeing"] += patches * seen * vision.num_positions**2
    assert needs.operations(settings, plan) == pytest.approx(tuple(counted.values()), rel=1e-3)


# What does not fit -------------------------------------------------------------


def options_of(remedy: str) -> dict:
    """The options of a remedy, as keyword arguments."""
    words = remedy.split()
    kinds = {"--dtype": str, "--kv-dtype": str}
    kinds |= dict.fromkeys(("--frames", "--max-tiles", "--max-tokens"), int)
    found = {word[2:].replace("-", "_"): kinds[word](words[place + 1]) if word in kinds else True
             for place, word in enumerate(words) if word.startswith("--")}  # fmt: skip
    return found


def test_a_prompt_may_fill_the_context_and_no_more():
    """The message has the arithmetic: what each kind takes, and the answer."""
    picture = plans.Picture((9, 9), "square", side=7, newline=True, grid=None)
    clip = plans.Clip((0.0,), (9, 9), side=5, newlines="grid")
    segments = (plans.Text((1,) * 6), picture, clip)
    plan = plans.Plan(segments, 100)
    plan.check_fits(14)
    with pytest.raises(llava_min.PromptError, match=r"at most 100 tokens, found 6 text \+ 50 "
                       r"pictures \+ 30 video \+ 15 for the answer = 101"):  # fmt: skip
        plan.check_fits(15)


@settings(max_examples=15, deadline=None)
@given(
    share=st.floats(0.2, 0.99),
    frames=st.integers(1, 60),
    pictures=st.integers(0, 2),
    answer=st.sampled_from([1, 500, 20_000]),
)
def test_what_would_fit_fits(share, frames, pictures, answer):
    """Each remedy alone; one more token of the answer than it says would be too many."""
    clip, picture = np.zeros((frames, 8, 8, 3), np.uint8), Image.new("RGB", (700, 500))
    media = dict(videos=[clip], images=[picture] * pictures, multi_image="anyres")
    media["max_tokens"] = answer
    whole = llava_min.plan(None, "Why?", **media)
    given = dict(media, memory=share * whole.memory().total / 1e9)
    found = llava_min.plan(None, "Why?", **given)
    assert found.fits is False
    for remedy in found.remedies():
        options = options_of(remedy)
        count = options.pop("frames", None)
        if not options and count is None:
            assert remedy in ("a smaller checkpoint", "a shorter prompt")
            smallest = given | dict(bits=4, kv_dtype="int8", max_tokens=1)
            least = llava_min.plan(None, "Why?", **smallest)
            assert not least.fits
            assert (remedy == "a smaller checkpoint") == (least.memory().weights >= least.room)
        else:
            fewer = given | options | dict(videos=[clip[:count]])
            assert llava_min.plan(None, "Why?", **fewer).fits, remedy
        if "max_tokens" in options:
            fewer["max_tokens"] += 1
            assert not llava_min.plan(None, "Why?", **fewer).fits


@pytest.mark.catalogue("MEM-PRE", "what cannot fit is refused before anything is encoded")
def test_what_cannot_fit_is_refused_before_anything_is_encoded(monkeypatch, capsys):
    model = llava_min.load(device="cpu")
    need = llava_min.plan(None, "Why?", videos=[CLIP], device="cpu").memory()
    beside = need.cache + need.activations
    monkeypatch.setattr(model.network, "encode", None)
    for module in ("engine.admission", "planning.forecast"):
        monkeypatch.setattr(f"llava_min.{module}.free_bytes", lambda device: beside - 1)
    with pytest.raises(llava_min.MemoryBudgetError, match="What would fit: .*--frames 15"):
        model.generate("Why?", videos=[CLIP])
    monkeypatch.setattr("llava_min.engine.load.load", lambda *given, **named: model)
    assert main(["Why?", "--video", CLIP]) == 5
    assert "weights + " in capsys.readouterr().err


def test_what_just_fits_is_answered(monkeypatch):
    need = llava_min.plan(None, "Why?", videos=[CLIP], device="cpu", max_tokens=1).memory()
    monkeypatch.setattr(
        "llava_min.engine.admission.free_bytes", lambda d: need.cache + need.activations
    )
    model = llava_min.load(device="cpu")
    assert model.generate("Why?", videos=[CLIP], max_tokens=1).token_ids


# The command -------------------------------------------------------------------


def test_a_plan_needs_neither_torch_nor_weights_nor_tokenizer(folders):
    code = (
        "import sys; from llava_min.__main__ import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'av', 'transformers') if m in sys.modules], file=sys.stderr)"
    )
    for name, folder in folders.items():
        run = subprocess.run([sys.executable, "-c", code, "--plan", "-m", folder, "--image", STAR],
                             capture_output=True, text=True)  # fmt: skip
        assert run.stderr.endswith("[]\n") and "a guess without tokenizer" in run.stdout, name


def test_the_bar_and_the_table_say_what_json_says(capsys):
    pytest.importorskip("av")
    asked = ["--plan", "Why?", "--video", CLIP, "--dtype", "bfloat16", "--max-tokens", "9000"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens, chosen = found["tokens"], next(row for row in found["memory"] if row["chosen"])
    assert f"{tokens['all']:,} of 32,768 tokens" in shown and chosen["dtype"] == "bfloat16"
    bar = shown[shown.index("[") + 1 : shown.index("]")]
    assert len(bar) == 50 and abs(bar.count("+") - 50 * 9000 / 32768) < 1
    line = next(line for line in shown.splitlines() if line.startswith(">"))
    assert line.endswith(f"{chosen['total'] / 1e9:.3f}")
    assert found["fits"] and "it fits" in shown and found["seconds"]["reading"] > 0


@pytest.mark.parametrize("memory", [None, 0.001, 0.012, 0.023, 0.0245])
@pytest.mark.parametrize("name", ["shapes.png", f"{'long' * 9}/shapes.png"])
def test_a_plan_fits_every_terminal(tmp_path, memory, name):
    """Of at least 40 characters; whatever the width, the same numbers and options, and what a long
    path loses is shown by dots.
    """
    picture = tmp_path / ("long" * 20) / name
    picture.parent.mkdir(parents=True)
    picture.write_bytes(Path(STAR).read_bytes())
    given = dict(images=[picture], videos=[CLIP], dtype="float32", max_tokens=300, memory=memory)
    found = llava_min.plan(None, "Why?", **given)
    for width in range(20, 100):
        shown = found.text(width)
        assert 30 < max(map(len, shown.splitlines())) <= max(40, min(79, width))
        assert re.search(r"^  \.\.\.\S*/shapes\.png ", shown, re.M)
        assert f"{found.json()['tokens']['all']:,} of 32,768 tokens" in shown
        totals = re.findall(r"^[> ] .*float.* (\d+\.\d{3})$", shown, re.M)
        assert totals == [f"{row['total'] / 1e9:.3f}" for row in found.rows()]
        options = f"{', or '.join(found.remedies())} would"
        assert found.fits or options in re.sub(r"\s+", " ", shown)


def test_a_plan_is_as_wide_as_the_terminal(monkeypatch, capsys):
    for columns in (40, 60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["--plan", "Why?", "--image", STAR]) == 0
        assert columns - 25 < max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_a_prompt_beyond_the_context_is_shown_not_refused(capsys):
    assert main(["--plan", "Why?", "--context", "100"]) == 0
    assert "TOO MANY" in capsys.readouterr().out
