"""Compare this code with transformers, stage by stage, in float32.

in:  a checkpoint, as -m names it
out: a table of errors, a plot (-o), exit code 0 or 1

A picture and a clip go through both. Each stage may differ by 5e-5 * max(1, max|theirs| / 5). That
is five times what the two usually differ by, and less than any slip that was tried; so people can
prove their own checkpoint right. One of the two models is in memory at a time.
Read model.py first.
Agrees with: the LLaVA classes of transformers. An original checkpoint is put into
LlavaOnevisionForConditionalGeneration by our own table of names (weights/names.py).
"""

import argparse
import html
import importlib.util
import math
import re
import sys
from pathlib import Path

from ..errors import LlavaMinError, OutputError, ParameterError, shown
from ..families.layouts import NAMED_TOWERS

STAGES = {
    # stage: its module in ours, in theirs, and whether its input is compared or its output
    "pixels": (r"vision\.patch_embedding", r".*vision_tower\..*patch_embedding", True),
    "tower": (r"vision\.blocks\.(\d+)", r".*vision_tower\..*layers\.(\d+)", False),
    "projector": (r"projector", r".*multi_modal_projector", False),
    "rows": (r"decoder\.blocks\.0", r".*language_model\.layers\.0", True),
    "layer": (r"decoder\.blocks\.(\d+)", r".*language_model\.layers\.(\d+)", False),
}
SAMPLES = Path(__file__).parents[1] / "weights" / "tiny" / "samples"
TEXT = list(range(3, 35))  # ids that every vocabulary has


def cases() -> dict[str, dict]:
    """The media of each case: uint8 [3 H W 3], all three as a clip, the first one as a picture."""
    import numpy as np
    from PIL import Image

    names = ("shapes", "before", "after")
    frames = np.stack([Image.open(SAMPLES / f"{name}.png").convert("RGB") for name in names])
    return {"picture": {"images": [frames[0]]}, "clip": {"videos": [frames]}}


def watch(network, side: int) -> dict[str, list]:
    """{stage: tensors [rows width]}, filled whenever the network runs; side 0 is ours, 1 theirs."""
    passed: dict[str, list] = {}
    for name, module in network.named_modules():
        for stage, (*patterns, entering) in STAGES.items():
            if match := re.fullmatch(patterns[side], name):
                tensors = passed.setdefault(" ".join((stage, *match.groups())), [])
                module.register_forward_hook(keeping(tensors, entering, side))
    return passed


def keeping(tensors: list, entering: bool, side: int):
    """A hook that keeps what enters or leaves a module.

    A block of ours returns the stream and what is still to be added to it.
    """

    def hook(module, entered, left):
        parts = entered[:1] if entering else left if isinstance(left, tuple) else (left,)
        tensor = sum(parts) if side == 0 else parts[0]
        tensors.append(tensor.detach().flatten(0, -2).clone())

    return hook


def collected(passed: dict[str, list], logits) -> dict:
    """{stage: tensor} of one run; `passed` is emptied for the next."""
    import torch

    stages = {stage: torch.cat(tensors) for stage, tensors in passed.items() if tensors}
    for tensors in passed.values():
        tensors.clear()
    return stages | {"logits": logits}


def ours(folder: Path):
    """(the configuration, {case: (the plan of its prompt, its stages)})."""
    from ..engine import load as loading

    model = loading.load(folder, device="cpu", dtype="float32")
    passed, found = watch(model.network, 0), {}
    for case, media in cases().items():
        places = 3 if case == "clip" and model.config.pool_mode is None else 1
        prepared = model.prepare([-200] * places + TEXT, **media)
        logits = model.prefilled(prepared, 0, keep="all")[0]
        found[case] = prepared.plan, collected(passed, logits)
    return model.config, found


def theirs(folder: Path, config, plans: dict) -> dict[str, dict]:
    """{case: its stages} of the cases that their class knows."""
    import torch

    from ..segments import Image, Text

    model, found = their_model(folder, config), {}
    passed = watch(model, 1)
    clips = hasattr(model.config, "video_token_id") or config.pool_mode is None
    if config.family == "llava_qwen":
        clips = (config.newline_position, config.pool_mode) == ("one_token", "bilinear")
    for case, plan in plans.items():
        if case == "clip" and not clips:
            continue
        pixels, ids = their_pixels(folder, config, case), []
        for part in plan.segments:
            kind = "image" if isinstance(part, Image) else "video"
            text = isinstance(part, Text)
            ids += part.ids if text else [getattr(model.config, f"{kind}_token_id")] * part.tokens
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **pixels).logits[0]
        found[case] = collected(passed, logits)
    return found


def their_model(folder: Path, config):
    """Their model, filled from the same files."""
    import torch
    import transformers

    from ..weights import names
    from ..weights.checkpoint import Checkpoint

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checkpoint = Checkpoint.open(folder)
    values = checkpoint.json("config.json", "configuration")
    if config.family != "llava_qwen":
        kind = getattr(transformers, values["architectures"][0])
        return kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    kind = transformers.LlavaOnevisionForConditionalGeneration
    model = kind(their_config(values, config)).float().eval()
    stored = {names.ours(name): name for name in checkpoint.names}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(stored[names.ours(name)]))
    return model


def their_config(values: dict, config):
    """Their configuration of an original checkpoint, whose keys for the text are theirs already."""
    import transformers

    tower = values.get("vision_config") or NAMED_TOWERS[values["mm_vision_tower"]]
    layers, tile = config.vision.num_layers, config.tile
    return transformers.LlavaOnevisionConfig(
        vision_config={**tower, "num_hidden_layers": layers, "vision_use_head": False},
        text_config={**values, "model_type": "qwen2", "vision_config": None},
        image_grid_pinpoints=[[tile * rows, tile * columns] for rows, columns in config.grids],
        vision_aspect_ratio=f"anyres_max_{config.max_tiles}", tie_word_embeddings=config.text.tied,
        image_token_index=config.text.vocab_size - 1, video_token_index=config.text.vocab_size - 2
    )  # fmt: skip


def their_pixels(folder: Path, config, case: str) -> dict:
    """The pixels that their processor on Pillow makes of a case."""
    kind = "llava_next" if config.family == "llava_next_video" else "llava_onevision"
    if config.family == "llava" or case == "clip":
        kind = "clip" if config.vision.class_token else "siglip"
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    name = kind.replace("_", "") + "imageprocessorpil"
    (made,) = (thing for key, thing in vars(module).items() if key.lower() == name)
    if (folder / "preprocessor_config.json").exists():
        made = made.from_pretrained(folder)
    else:  # an original folder
        tile, half = config.tile, [0.5] * 3
        grids = [[tile * rows, tile * columns] for rows, columns in config.grids]
        made = made(size={"height": tile, "width": tile}, image_mean=half, image_std=half,
                    image_grid_pinpoints=grids)  # fmt: skip
    if case == "picture":
        return dict(made(cases()[case]["images"], return_tensors="pt"))
    pixels = made(list(cases()[case]["videos"][0]), return_tensors="pt")["pixel_values"]
    return {"pixel_values_videos": pixels[None]} if config.pool_mode else {"pixel_values": pixels}


def compared(asked: dict, found: dict) -> list[tuple[str, float, float, float]]:
    """(case and stage, max|theirs|, largest error, its bound); inf where shapes differ."""
    rows = []
    for case in found:
        for stage, mine in asked[case][1].items():
            other = found[case].get(stage)
            same = other is not None and other.shape == mine.shape
            largest = other.abs().max().item() if same else 0.0
            error = (mine - other).abs().max().item() if same else math.inf
            rows.append((f"{case}: {stage}", largest, error, 5e-5 * max(1.0, largest / 5)))
    return rows


def plot(rows: list[tuple[str, float, float, float]], title: str) -> str:
    """SVG: the errors as bars on a logarithmic axis from 1e-9 to 10, each with its bound."""
    height = 50 + 18 * len(rows)
    place = lambda value: 200 + 60 * min(10.0, max(0.0, 9 + math.log10(max(value, 1e-30))))
    legend = "bar: largest error, none where both are equal to the last bit; stroke: its bound"
    parts = [f'<text x="10" y="18" font-size="15">{html.escape(title)}</text>',
             f'<text x="850" y="18" text-anchor="end">{legend}</text>']  # fmt: skip
    for x, label in ((200 + 60 * step, f"1e{step - 9}") for step in range(11)):
        parts += [f'<path d="M{x} 40V{height}" stroke="#ddd"/>',
                  f'<text x="{x}" y="36" text-anchor="middle">{label}</text>']  # fmt: skip
    for y, (stage, _, error, bound) in zip(range(45, height, 18), rows):
        colour, width = "#4878a8" if error <= bound else "#c03028", place(error) - 200
        parts += [f'<text x="190" y="{y + 12}" text-anchor="end">{stage}</text>',
                  f'<rect x="200" y="{y + 2}" width="{width:.1f}" height="12" fill="{colour}"/>',
                  f'<path d="M{place(bound):.1f} {y}v16" stroke="black"/>']  # fmt: skip
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{height + 10}" '
    head += (
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])


def check(name: str | None, picture: str | None) -> int:
    """Print the table and draw the plot; 0 where every stage is within its bound, otherwise 1."""
    if importlib.util.find_spec("transformers") is None:
        hint = "Install it: pip install transformers."
        raise ParameterError("cannot compare", "transformers", "an installed package", "none", hint)
    from ..families.folder import EMBEDDED
    from ..weights import hub

    folder = EMBEDDED if name is None else hub.find(name)
    config, asked = ours(folder)
    found = theirs(folder, config, {case: plan for case, (plan, _) in asked.items()})
    rows = compared(asked, found)
    print(f"{'stage':20} {'max |theirs|':>13} {'max error':>10} {'relative':>9} {'bound':>9}")
    for stage, largest, error, bound in rows:
        relative, verdict = error / (largest or 1), "" if error <= bound else "  EXCEEDED"
        print(f"{stage:20} {largest:13.4g} {error:10.2e} {relative:9.1e} {bound:9.1e}{verdict}")
    wrong = [stage for stage, _, error, bound in rows if not error <= bound]
    for case in asked.keys() - found.keys():
        how = f"{config.pool_mode!r} pooling and newlines {config.newline_position!r}"
        print(f"{case}: not compared: transformers has no class with {how}")
    print(f"the first stage that differs: {wrong[0]}" if wrong else f"{len(rows)} stages are equal")
    if picture:
        try:
            Path(picture).write_text(plot(rows, f"{folder.name} beside transformers"))
        except OSError as error:
            raise OutputError("cannot draw", shown(picture), "a file that can be written",
                              error.strerror) from None  # fmt: skip
    return 1 if wrong else 0


def main(given: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    root = argparse.ArgumentParser(prog="python -m llava_min.check", description=__doc__)
    root.add_argument("-m", "--model", help="folder or hub name (default: the embedded toy)")
    root.add_argument("-o", "--output", metavar="FILE.SVG", help="draw the errors")
    arguments = root.parse_args(given)
    try:
        return check(arguments.model, arguments.output)
    except LlavaMinError as error:
        print(f"llava_min: error: {error}", file=sys.stderr)
        return error.exit_code
