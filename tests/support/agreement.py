"""Every family beside its transformers class: pictures, clips, counts, logits and greedy answers.

    python tests/support/agreement.py      writes bench/results/agreement.jsonl

docs/correctness.md shows them.

Small random models in float32, every tensor random, tiles of 56 pixels; what is drawn for them is
the same every time.
"""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import small
import test_agrees_golden as stored
import test_real_sizes
import torch
from PIL import Image
from test_families import FAMILIES, GRIDS, TILE, Family, pixels_of
from test_mistakes import golden
from test_originals import WITH, Original, padded, tiled

from llava_min import image, vision
from llava_min import segments as plans
from llava_min.families import layouts

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "agreement.jsonl"
ONEVISION = small.hf_config(tied=False) | {"video_token_index": 511}
FAMILIES["onevision"] = ONEVISION
EXTREMES = [(1, 1), (1, 2400), (2400, 1), (56, 56), (57, 56), (2400, 48), (112, 56), (30, 1700)]


def opened(name: str, folder: Path) -> Family:
    """The small model of a family, in the layout that its name stands for."""
    return (Original if name in WITH else Family)(name, folder)


def their_pixels(name: str, pictures: list, frames) -> dict[str, torch.Tensor]:
    """The inputs that transformers' processors on Pillow make of pictures or of a clip."""
    if name == "original_1_5":
        return {"pixel_values": padded(pictures or [Image.fromarray(each) for each in frames])}
    if name in WITH and frames is None:
        return tiled(pictures)
    if name in ("long_llava", "interleave", "llava_1_5"):
        return {"pixel_values": pixels_of(name, pictures or list(frames))}
    if frames is not None:
        made = pixels_of("interleave" if name == "onevision" else name, list(frames))
        return {"pixel_values_videos": made[None]}
    if name == "onevision":
        from transformers.models.llava_onevision import image_processing_pil_llava_onevision as pil

        made = pil.LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            image_grid_pinpoints=ONEVISION["image_grid_pinpoints"],
        )
        return dict(made(pictures if len(pictures) == 1 else [pictures], return_tensors="pt"))
    from transformers.models.llava_next import image_processing_pil_llava_next as pil

    made = pil.LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=GRIDS,
    )
    return dict(made(pictures, return_tensors="pt"))


def difference(name: str, family: Family, sizes: list[tuple[int, int]], frames: int) -> dict:
    """How far ours and theirs are apart on pictures of `sizes`, or on a clip where there are none.

    tiles: whether all pixels are bit-equal, beyond a ratio of 50:1 within one level; counts:
    whether they take as many tokens as theirs want; logits: the largest difference where the pixels
    are equal; largest: the largest logit.
    """
    pictures = [small.picture(*size, seed=sum(size)) for size in sizes]
    clip = None if sizes else small.frames(frames, seed=frames)
    media = {"images": pictures} if sizes else {"videos": [clip]}
    inputs = their_pixels(name, pictures, clip)
    prepared = family.ours.prepare("What is in it?", **media)
    mine = torch.from_numpy(np.stack([t for v in prepared.visuals for t in v.pixels]))
    mine = vision.normalise(mine, family.ours.config.vision, torch.float32)
    tiles = next(value for key, value in inputs.items() if key.startswith("pixel_values"))
    if tiles.ndim == 5:  # padded to the picture with most tiles, or the frames of one clip
        counts = [len(visual.pixels) for visual in prepared.visuals]
        tiles = torch.cat([each[:count] for each, count in zip(tiles, counts)])
    equal = torch.equal(mine, tiles)
    extreme = any(max(size) > image.EXTREME * min(size) for size in sizes)
    level = 1.01 / 255 / min(family.ours.config.vision.std)
    near = equal or (extreme and (mine - tiles).abs().max() <= level)  # only what is seen is made
    ids = [token for part in prepared.plan.segments for token in placeholders(part)]
    try:
        theirs = family.logits(ids, **inputs)
    except ValueError:  # "Image features and image tokens do not match"
        return {"tiles": near, "counts": False}
    ours = family.ours.logits("What is in it?", **media)
    return {
        "tiles": near,
        "counts": ours.shape == theirs.shape,
        "logits": (ours - theirs).abs().max().item() if equal else 0.0,
        "largest": theirs.abs().max().item(),
    }


def placeholders(part) -> tuple[int, ...] | list[int]:
    """Ids of a segment as transformers wants them."""
    if isinstance(part, plans.Text):
        return part.ids
    return [510 if isinstance(part, plans.Picture) else 511] * part.tokens


def bound(largest: float) -> float:
    return 5e-5 * max(1.0, largest / 5)


def greedy(name: str, family: Family, count: int = 16) -> tuple[list[int], list[int]]:
    """`count` greedy ids of ours, and what theirs chooses behind each.

    What has been said counts less, in both: a random model would only repeat itself.
    """
    from transformers import RepetitionPenaltyLogitsProcessor

    decoder = family.ours.network.decoder
    for head in (family.model.get_output_embeddings(), decoder.head or decoder.embedding):
        head.weight.data[510:] = 0  # never a placeholder, which would want a visual
    question, picture = "What is in it?", small.picture(90, 60)
    answer = family.ours.generate(
        question, images=[picture], max_tokens=count, ignore_eos=True, repetition_penalty=2.0
    ).token_ids
    prepared = family.ours.prepare(question, images=[picture])
    ids = [token for part in prepared.plan.segments for token in placeholders(part)]
    logits = family.logits(ids + answer, **their_pixels(name, [picture], None))
    penalty, theirs = RepetitionPenaltyLogitsProcessor(2.0), []
    for place, row in enumerate(logits[len(ids) - 1 : -1]):
        seen = torch.tensor([prepared.ids + answer[:place]])
        theirs.append(int(penalty(seen, row[None])[0].argmax()))
    return answer, theirs


# The table of docs/correctness.md ------------------------------------------------

PUBLISHED = {
    # family here: (its name in test_real_sizes, what the table calls it, its layouts)
    "onevision": ("llava-onevision-0.5b-ov-hf", "LLaVA-OneVision", "HF"),
    "next_video": ("llava-next-video-7b-hf", "LLaVA-NeXT-Video", "HF"),
    "next": ("llava-next-video-7b-hf", "LLaVA-NeXT, pictures", "HF"),
    "long_llava": ("long-llava-qwen2-7b", "long-llava", "HF"),
    "interleave": ("llava-interleave-qwen-0.5b", "llava-interleave", "HF"),
    "llava_1_5": ("llava-1.5-7b", "LLaVA-1.5", "HF"),
    "next_mistral": ("llava-1.6-mistral-7b", "LLaVA-NeXT on Mistral, pictures", "HF"),
    "original_1_5": ("llava-v1.5-7b", "LLaVA-1.5", "original"),
    "original_1_6": ("llava-v1.6-vicuna-7b", "LLaVA-1.6 on Vicuna", "original"),
    "original_mistral": ("llava-v1.6-mistral-7b", "LLaVA-1.6 on Mistral", "original"),
}
PICTURES_ONLY = ("next", "next_mistral")  # their class knows no clips


def published(name: str) -> dict:
    """Rows of a picture of 640 x 480 and of a frame, and the context, at the published size."""
    settings = layouts.parse_config(test_real_sizes.configuration(name))
    ten = plans.clip([0.0] * 10, (9, 9), settings).tokens // 10
    return {
        "picture": plans.picture((640, 480), settings.image_modes[0], settings).tokens,
        "frame": ten,
        "context": settings.text.context,
    }


def originals() -> list[dict]:
    """The original layouts against the stored outputs of the original code."""
    rows = []
    for folder, name, title in (
        ("tiny_ov", "llava-onevision-7b-ov", "LLaVA-OneVision"),
        ("tiny_video", "llava-video-7b-qwen2", "LLaVA-Video"),
    ):
        found = [golden(case)(None)[0] for case in stored.CASES if folder[5:] == case.split("_")[0]]
        rows.append(
            {
                "family": title,
                "layouts": "original",
                **published(name),
                "against": "original code",
                "cases": len(found),
                "worst": float(max(found)),
            }
        )
    return rows


def drawn(name: str) -> list[tuple[list[tuple[int, int]], int]]:
    """(sizes of pictures, frames of a clip) of the cases of a family."""
    choose = random.Random(name)
    cases = [([size], 0) for size in EXTREMES]
    cases += [
        ([(choose.randint(1, 400), choose.randint(1, 400)) for _ in range(count)], 0)
        for count in (1, 1, 1, 1, 2, 2, 3)
    ]
    return cases + [([], frames) for frames in (1, 2, 5, 9) if name not in PICTURES_ONLY]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (real, title, layouts) in PUBLISHED.items():
            family = opened(name, Path(folder) / name)
            found = [difference(name, family, *case) for case in drawn(name)]
            assert all(each["tiles"] and each["counts"] for each in found), name
            assert all(each["logits"] <= bound(each["largest"]) for each in found), name
            worst = max(each["logits"] for each in found)
            rows.append(
                {
                    "family": title,
                    "layouts": layouts,
                    **published(real),
                    "against": "transformers",
                    "cases": len(found),
                    "worst": worst,
                }
            )
            print(rows[-1], flush=True)
    rows += originals()
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
