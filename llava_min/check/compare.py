"""Compare this code with transformers, stage by stage, in float32.

in:  a checkpoint, as -m names it
out: a table of errors, a plot (-o), exit code 0 or 1

A picture and a clip go through both. Each stage may differ by 5e-5 * max(1, max|theirs| / 5). That
is five times what the two usually differ by, and less than any slip that was tried; so people can
prove their own checkpoint right. One of the two models is in memory at a time.
Read model.py first.
Agrees with: the LLaVA classes of transformers. An original checkpoint is put into the class that
computes the same by our own table of names (weights/names.py).
"""

from __future__ import annotations  # torch and transformers are imported when they are needed

import argparse
import html
import importlib.util
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import LlavaConfig
from ..errors import LlavaMinError, OutputError, ParameterError, shown
from ..families.folder import EMBEDDED
from ..families.originals import KINDS, NAMED_TOWERS
from ..families.processors import ORIGINAL
from ..segments import Picture, Plan, Text

if TYPE_CHECKING:
    import transformers
    from torch import Tensor, nn

    Stages = dict[str, Tensor]  # {stage: [rows width]}, and "logits"

STAGES = {
    # stage: its module in ours, in theirs, and whether its input is compared or its output
    "pixels": (r"vision\.patch_embedding", r".*vision_tower\..*patch_embedding", True),
    "tower": (r"vision\.blocks\.(\d+)", r".*vision_tower\..*layers\.(\d+)", False),
    "projector": (r"projector", r".*multi_modal_projector", False),
    "rows": (r"decoder\.blocks\.0", r".*language_model\.layers\.0", True),
    "layer": (r"decoder\.blocks\.(\d+)", r".*language_model\.layers\.(\d+)", False),
}
Row = tuple[str, float, float, float]  # case and stage, max|theirs|, largest error, its bound
SAMPLES = EMBEDDED / "samples"
TEXT = list(range(3, 35))  # ids that every vocabulary has


def cases() -> dict[str, dict[str, Any]]:
    """The media of each case: uint8 [3 H W 3], all three as a clip, the first one as a picture."""
    import numpy as np
    from PIL import Image

    names = ("shapes", "before", "after")
    pictures = (Image.open(SAMPLES / f"{name}.png").convert("RGB") for name in names)
    frames = np.stack([np.asarray(picture) for picture in pictures])
    return {"picture": {"images": [frames[0]]}, "clip": {"videos": [frames]}}


def watch(network: nn.Module, side: int) -> dict[str, list[Tensor]]:
    """{stage: tensors [rows width]}, filled whenever the network runs; side 0 is ours, 1 theirs."""
    passed: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        for stage, (*patterns, entering) in STAGES.items():
            if match := re.fullmatch(patterns[side], name):
                tensors = passed.setdefault(" ".join((stage, *match.groups())), [])
                module.register_forward_hook(keeping(tensors, entering, side))
    return passed


def keeping(tensors: list[Tensor], entering: bool, side: int) -> Callable[..., None]:
    """A hook that keeps what enters or leaves a module.

    A block of ours returns the stream and what is still to be added to it.
    """

    def hook(
        module: nn.Module, entered: tuple[Tensor, ...], left: Tensor | tuple[Tensor, ...]
    ) -> None:
        parts = entered[:1] if entering else left if isinstance(left, tuple) else (left,)
        tensor = parts[0] if side or len(parts) == 1 else parts[0] + parts[1]
        tensors.append(tensor.detach().flatten(0, -2).clone())

    return hook


def collected(passed: dict[str, list[Tensor]], logits: Tensor) -> Stages:
    """{stage: tensor} of one run; `passed` is emptied for the next."""
    import torch

    stages = {stage: torch.cat(tensors) for stage, tensors in passed.items() if tensors}
    for tensors in passed.values():
        tensors.clear()
    return stages | {"logits": logits}


def ours(folder: Path) -> tuple[LlavaConfig, dict[str, tuple[Plan, Stages]]]:
    """(the configuration, {case: (the plan of its prompt, its stages)})."""
    from ..engine import load as loading

    model = loading.load(folder, device="cpu", dtype="float32")
    passed = watch(model.network, 0)
    found: dict[str, tuple[Plan, Stages]] = {}
    for case, media in cases().items():
        places = 3 if case == "clip" and model.config.pool_mode is None else 1
        prepared = model.prepare([-200] * places + TEXT, **media)
        model.admission.admit(prepared, 0, results=stage_bytes(model.config, prepared.plan))
        logits = model.prefilled(prepared, 0, keep="all")[0]
        found[case] = prepared.plan, collected(passed, logits)
    return model.config, found


def stage_bytes(config: LlavaConfig, plan: Plan) -> int:
    """Bytes of all stages of a prompt in float32, and of its logits."""
    from ..planning.memory import logit_bytes

    tiles = sum(segment.tiles for segment in plan.segments if not isinstance(segment, Text))
    tower = tiles * config.vision.num_positions * config.vision.hidden_size
    rows = plan.tokens * config.text.hidden_size
    stages = config.vision.num_layers * tower + config.text.num_layers * rows
    return 4 * stages + logit_bytes(config, plan.tokens)


def theirs(folder: Path, config: LlavaConfig, plans: dict[str, Plan]) -> dict[str, Stages]:
    """{case: its stages} of the cases that their class knows."""
    import torch

    model = their_model(folder, config)
    found: dict[str, Stages] = {}
    passed = watch(model, 1)
    clips = hasattr(model.config, "video_token_id") or config.pool_mode is None
    if config.family == "llava_qwen":
        clips = (config.newline_position, config.pool_mode) == ("one_token", "bilinear")
    for case, plan in plans.items():
        if case == "clip" and not clips:
            continue
        pixels = their_pixels(folder, config, case)
        ids: list[int] = []
        for part in plan.segments:
            if isinstance(part, Text):
                ids += part.ids
            else:
                kind = "image" if isinstance(part, Picture) else "video"
                ids += [getattr(model.config, f"{kind}_token_id")] * part.tokens
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **pixels).logits[0]
        found[case] = collected(passed, logits)
    return found


def their_model(folder: Path, config: LlavaConfig) -> nn.Module:
    """Their model, filled from the same files."""
    import torch
    import transformers

    from ..weights import names
    from ..weights.checkpoint import Checkpoint

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checkpoint = Checkpoint.open(folder)
    values: dict[str, Any] = checkpoint.json("config.json", "configuration")
    if config.family not in ORIGINAL:
        kind = getattr(transformers, values["architectures"][0])
        return kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    name = class_of(config)
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    theirs = their_config(getattr(transformers, f"{name}Config"), values, config)
    model = kind(theirs).float().eval()
    stored = {names.ours(name): name for name in checkpoint.names}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(stored[names.ours(name)]))
    return model


def class_of(config: LlavaConfig) -> str:
    """The family of transformers that computes what an original checkpoint does."""
    if config.family == "llava_qwen":
        return "LlavaOnevision"
    return "LlavaNextVideo" if config.grids else "Llava"


def their_config(
    kind: type[transformers.PretrainedConfig], values: dict[str, Any], config: LlavaConfig
) -> transformers.PretrainedConfig:
    """Their configuration of an original checkpoint, whose keys for the text are theirs already."""
    tower = values.get("vision_config") or NAMED_TOWERS[values["mm_vision_tower"].split("/")[-1]]
    layers, tile = config.vision.num_layers, config.tile
    return kind(
        vision_config={**tower, "num_hidden_layers": layers, "vision_use_head": False},
        text_config={
            **values,
            "model_type": KINDS[values["architectures"][0]],
            "vision_config": None,
        },
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if config.vision.class_token else "full",
        image_grid_pinpoints=[[tile * rows, tile * columns] for rows, columns in config.grids],
        vision_aspect_ratio=f"anyres_max_{config.anyres_max}",
        tie_word_embeddings=config.text.tied,
        image_token_index=config.text.vocab_size - 1,
        video_token_index=config.text.vocab_size - 2,
    )


def their_pixels(folder: Path, config: LlavaConfig, case: str) -> dict[str, Tensor]:
    """The pixels that their processor on Pillow makes of a case."""
    clip = config.vision.class_token
    kind = "llava_next" if clip else "llava_onevision"
    if not config.grids or case == "clip":
        kind = "clip" if clip else "siglip"
    if config.frame_mode == "pad":
        kind = "llava"
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    name = kind.replace("_", "") + "imageprocessorpil"
    (made,) = (thing for key, thing in vars(module).items() if key.lower() == name)
    files = ("preprocessor_config.json", "processor_config.json")
    if any((folder / name).exists() for name in files):
        made = made.from_pretrained(folder)
    else:  # an original folder
        tile, mean, std = config.tile, list(config.vision.mean), list(config.vision.std)
        square = {"height": tile, "width": tile}
        how: dict[str, Any] = {"size": square}
        if clip:
            how = {"size": {"shortest_edge": tile}, "crop_size": square}
        if kind == "llava":
            how["do_pad"] = True
        grids = [[tile * rows, tile * columns] for rows, columns in config.grids]
        made = made(image_mean=mean, image_std=std, image_grid_pinpoints=grids, **how)
    if case == "picture":
        return dict(made(cases()[case]["images"], return_tensors="pt"))
    pixels = made(list(cases()[case]["videos"][0]), return_tensors="pt")["pixel_values"]
    return {"pixel_values_videos": pixels[None]} if config.pool_mode else {"pixel_values": pixels}


def compared(asked: dict[str, tuple[Plan, Stages]], found: dict[str, Stages]) -> list[Row]:
    """A row for each stage; its error is inf where shapes differ."""
    rows = []
    for case in found:
        for stage, mine in asked[case][1].items():
            other, largest, error = found[case].get(stage), 0.0, math.inf
            if other is not None and other.shape == mine.shape:
                largest, error = other.abs().max().item(), (mine - other).abs().max().item()
            rows.append((f"{case}: {stage}", largest, error, 5e-5 * max(1.0, largest / 5)))
    return rows


def plot(rows: list[Row], title: str) -> str:
    """SVG: the errors as bars on a logarithmic axis from 1e-9 to 10, each with its bound."""
    height = 50 + 18 * len(rows)

    def place(value: float) -> float:
        return 200 + 60 * min(10.0, max(0.0, 9 + math.log10(max(value, 1e-30))))

    def text(x: float, y: float, words: str, style: str = 'text-anchor="end"') -> str:
        return f'<text x="{x}" y="{y}" {style}>{html.escape(words)}</text>'

    legend = "bar: largest error, none where both are equal to the last bit; stroke: its bound"
    parts = [text(10, 18, title, 'font-size="15"'), text(850, 18, legend)]
    for step in range(11):
        x = 200 + 60 * step
        parts.append(f'<path d="M{x} 40V{height}" stroke="#ddd"/>')
        parts.append(text(x, 36, f"1e{step - 9}", 'text-anchor="middle"'))
    for y, (stage, _, error, bound) in zip(range(45, height, 18), rows):
        colour = "#4878a8" if error <= bound else "#c03028"
        bar = f'x="200" y="{y + 2}" width="{place(error) - 200:.1f}" height="12" fill="{colour}"'
        parts.append(text(190, y + 12, stage))
        parts.append(f"<rect {bar}/>")
        parts.append(f'<path d="M{place(bound):.1f} {y}v16" stroke="black"/>')
    size = f'width="860" height="{height + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'{head} font-size="12">{paper}', *parts, "</svg>\n"])


def beside(folder: Path) -> tuple[list[Row], list[str]]:
    """(a row for each stage, what was not compared and why), both models loaded in turn."""
    config, asked = ours(folder)
    found = theirs(folder, config, {case: plan for case, (plan, _) in asked.items()})
    how = f"{config.pool_mode!r} pooling and newlines {config.newline_position!r}"
    why = f"transformers has no class with {how}"
    missing = [f"{case}: not compared: {why}" for case in sorted(asked.keys() - found.keys())]
    return compared(asked, found), missing


def installed() -> bool:
    """Whether transformers is there."""
    return importlib.util.find_spec("transformers") is not None


def check(name: str | None, picture: str | None) -> int:
    """Print the table and draw the plot; 0 where every stage is within its bound, otherwise 1."""
    if not installed():
        raise ParameterError("check needs transformers: pip install transformers.")
    from ..weights import hub

    folder = EMBEDDED if name is None else hub.find(name)
    rows, missing = beside(folder)
    print(f"{'stage':20} {'max |theirs|':>13} {'max error':>10} {'relative':>9} {'bound':>9}")
    for stage, largest, error, bound in rows:
        relative, verdict = error / (largest or 1), "" if error <= bound else "  EXCEEDED"
        print(f"{stage:20} {largest:13.4g} {error:10.2e} {relative:9.1e} {bound:9.1e}{verdict}")
    wrong = [stage for stage, _, error, bound in rows if not error <= bound]
    for line in missing:
        print(line)
    print(f"the first stage that differs: {wrong[0]}" if wrong else f"{len(rows)} stages are equal")
    if picture:
        try:
            drawn = plot(rows, f"{folder.name} beside transformers")
            Path(picture).write_text(drawn, encoding="utf-8")
        except OSError as error:
            reason = error.strerror
            raise OutputError(
                "cannot draw", shown(picture), "a file that can be written", reason
            ) from None
    return 1 if wrong else 0


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    root = argparse.ArgumentParser(
        prog="python -m llava_min.check", description=__doc__.split("\n")[0]
    )
    root.add_argument("-m", "--model", help="folder or hub name (default: the embedded toy)")
    root.add_argument("-o", "--output", metavar="FILE.SVG", help="draw the errors")
    return root


def main(given: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where a stage differs."""
    arguments = parser().parse_args(given)
    try:
        return check(arguments.model, arguments.output)
    except LlavaMinError as error:
        print(f"llava_min: error: {error}", file=sys.stderr)
        return error.exit_code
