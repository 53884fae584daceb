"""Which file of a checkpoint folder holds which tensor.

in:  a folder with safetensors: one file, or shards with an index
out: {tensor name: file}

Read weights/header.py first. Read next: weights/checkpoint.py.
Agrees with: the names of files that transformers and huggingface_hub write.
"""

import re
from pathlib import Path

from ..base.files import read_json, regular
from ..errors import CheckpointError, shown
from . import header

PLAIN = re.compile(r"[^./\\:\0][^/\\:\0]*")  # a file name that stays in its folder
WHOLE = "model.safetensors", "model-00001-of-00001.safetensors"  # one file that holds everything
ELSEWHERE = "Folders of llava-hf hold the same weights whole, such as llava-hf/llava-1.5-7b-hf."


def index(folder: Path) -> dict[str, Path]:
    """{tensor name: file} from the one file there is, or from the shards that the index names."""
    single, listing = folder / WHOLE[0], folder / "model.safetensors.index.json"
    if listing.exists():
        listed = read_json(listing, "index of the weights")
        if single.exists():
            raise CheckpointError(
                "cannot choose the weights",
                "model.safetensors",
                "either one file or an index with shards",
                "both",
                "Move one of them away.",
            )
        return sharded(folder, listed)
    for single in (folder / name for name in WHOLE):
        if regular(single):
            return dict.fromkeys(header.read_header(single), single)
    raise no_weights(folder)


def no_weights(folder: Path) -> CheckpointError:
    """What is wrong with a folder without safetensors."""
    found, hint = "none", "Is the folder complete?"
    if any(folder.glob("model-*-of-*.safetensors")):
        found = "shards without their model.safetensors.index.json"
    elif any(folder.glob("*.bin*")) or any(folder.glob("*.pt*")):
        found = "pickled files only"
        hint = "Pickles can run code when they are opened, so they stay closed. Convert them first."
        config = folder / "config.json"
        if regular(config) and "mm_vision_tower" in read_json(config, "configuration"):
            hint = f"Pickles can run code when they are opened, so they stay closed. {ELSEWHERE}"
    return CheckpointError(
        "cannot load the weights", shown(str(folder)), "model.safetensors", found, hint
    )


def sharded(folder: Path, listing: dict[str, object]) -> dict[str, Path]:
    """{tensor name: file} of an index.

    Each shard is inside the folder and holds just what the index says.
    """
    weight_map = listing.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise wrong_index("a weight_map", "none")
    for name in weight_map.values():
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise wrong_index("a plain file name in weight_map", shown(name))
    for name in dict.fromkeys(weight_map.values()):
        what = "cannot load the weights"
        if not regular(folder / name):
            raise CheckpointError(what, shown(name), "a shard in the folder", "none")
        listed = {tensor for tensor, shard in weight_map.items() if shard == name}
        odd = sorted(listed ^ set(header.read_header(folder / name)))
        if odd:
            found = f"a difference at {shown(odd[0])}"
            raise CheckpointError(what, shown(name), "the tensors that the index lists", found)
    return {tensor: folder / shard for tensor, shard in weight_map.items()}


def wrong_index(expected: str, found: str) -> CheckpointError:
    what = "cannot read the index of the weights"
    return CheckpointError(what, "model.safetensors.index.json", expected, found)
