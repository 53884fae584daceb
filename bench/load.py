"""Loading in processes of their own: seconds, peak memory, the whole command to its first token.

    python -m bench load [--only load cold quantise] [--models 0.5B 7B]

load      seconds and peak resident memory, less what `import torch` needs, over the file's size
cold      python -m llava_min.generate on the embedded checkpoint to its first token, and the same
          work with transformers, in turns
quantise  writing int4, then loading it and answering: seconds and peak memory
Read cpu.py first.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llava_min.families.folder import EMBEDDED, EXAMPLE_PICTURE

from . import checkpoints, ledger
from .cpu import FORMATS

SECTIONS = ("load", "cold", "quantise")
QUESTION = "Where is the star?"
PEAK = """
import json, resource, sys, time
start = time.perf_counter()
def done(**more):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak, **more}))
"""
IMPORT = "import torch; done()"
OURS = """
import llava_min
model = llava_min.load(sys.argv[1], device="cpu", compile=False, **json.loads(sys.argv[2]))
done(inside=model.load_seconds)
"""
THEIRS = """
import torch
from transformers import LlavaOnevisionForConditionalGeneration as Network
dtype = getattr(torch, json.loads(sys.argv[2])["dtype"])
begun = time.perf_counter()
model = Network.from_pretrained(sys.argv[1], dtype=dtype)
done(inside=time.perf_counter() - begun)
"""
QUANTISE = """
from llava_min.config import Quantization
from llava_min.weights import quantize
quantize.quantize(sys.argv[1], sys.argv[2], Quantization(method="mse"))
done()
"""
ANSWER = """
import llava_min
model = llava_min.load(sys.argv[1], device="cpu", compile=False)
answer = model.generate("What is this?", images=[sys.argv[2]], max_tokens=8, ignore_eos=True,
                        max_tiles=1)
done(timings=answer.timings)
"""
COLD_THEIRS = """
import sys
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration as Network
from transformers import LlavaOnevisionProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil as Processor)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
images = Processor.from_pretrained(sys.argv[1])
model = Network.from_pretrained(sys.argv[1], dtype="float32")
picture, tile = Image.open(sys.argv[2]).convert("RGB"), images.size["height"]
counter = object.__new__(LlavaOnevisionProcessor)  # the whole one would need torchvision
counter.image_processor, counter.num_image_tokens = images, (tile // 14) ** 2
counter.vision_aspect_ratio = "anyres_max_9"
count = counter._get_number_of_features(picture.height, picture.width, tile, tile)
text = "<|im_start|>user " + "<image>" * count + f"\\n{sys.argv[3]}"
text += "<|im_end|><|im_start|>assistant\\n"
inputs = dict(tokenizer(text, return_tensors="pt")) | dict(images([picture], return_tensors="pt"))
ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(ids[0, -1]))
"""


def child(code: str, *arguments) -> dict:
    """What a process that ends with done(...) says of itself."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK + code, *map(str, arguments)], capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(f"bench: a child failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def weights_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's files of weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load(shape: str, pairs: int) -> list[dict]:
    """This project in four formats and transformers in two, in turns."""
    folder, imported = checkpoints.folder_of(shape), child(IMPORT)["peak_bytes"]
    codes = {("llava_min", form): OURS for form in FORMATS}
    codes |= {("transformers", form): THEIRS for form in ("float32", "bf16")}
    found = {name: [] for name in codes}
    for _ in range(pairs):
        for name, code in codes.items():
            found[name].append(child(code, folder, json.dumps(FORMATS[name[1]])))
    stored, rows = weights_bytes(folder), []
    for (name, form), results in found.items():
        row = {"section": "load", "shape": shape, "name": name, "format": form}
        for key in ("seconds", "inside", "peak_bytes"):
            row[key] = ledger.spread([result[key] for result in results])[1]
        over = (row["peak_bytes"] - imported) / stored
        row |= {"file_bytes": stored, "import_bytes": imported, "over_file": over, "pairs": pairs}
        rows.append(row)
    return rows


def cold(shape: str, pairs: int) -> list[dict]:
    """The whole command on the embedded checkpoint, to the first token."""
    ours = ["-m", "llava_min.generate", QUESTION, "--image", EXAMPLE_PICTURE, "--max-tokens", "1"]
    theirs = ["-c", COLD_THEIRS, EMBEDDED, EXAMPLE_PICTURE, QUESTION]
    times, said = {"llava_min": [], "transformers": []}, set()
    for turn in range(pairs + 1):
        for name, command in (("llava_min", ours), ("transformers", theirs)):
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, *map(str, command)], capture_output=True, text=True
            )
            seconds = time.perf_counter() - start
            if run.returncode:
                raise SystemExit(f"bench: {name} failed:\n{run.stderr}")
            said.add(run.stdout.strip())
            if turn:
                times[name].append(seconds)
    assert len(said) == 1, said  # the same work: the same token
    rows = []
    for name, seconds in times.items():
        ratios = [b / a for a, b in zip(seconds, times["transformers"])]
        rows.append(
            {
                "section": "cold",
                "shape": "embedded",
                "name": name,
                "format": "float32",
                "seconds": ledger.spread(seconds)[1],
                "ratio": ledger.spread(ratios)[1],
                "pairs": pairs,
            }
        )
    return rows


def quantise(shape: str, pairs: int) -> list[dict]:
    """Once: the bench of a 7B shape takes minutes."""
    source, rows = checkpoints.folder_of(shape), []
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        target = Path(folder) / "int4"
        row = {"section": "quantise", "shape": shape, "format": "int4"}
        written = {"name": "quantise", **child(QUANTISE, source, target)}
        rows.append(row | written | {"file_bytes": weights_bytes(source)})
        answered = {"name": "answer", **child(ANSWER, target, EXAMPLE_PICTURE)}
        rows.append(row | answered | {"file_bytes": weights_bytes(target)})
        shutil.rmtree(target)
    return rows


def run(shapes: list[str], sections: list[str], pairs: int, out: Path) -> Path:
    """Everything asked for, written as it comes."""
    path = out / "load-cpu.jsonl"
    for section in sections:
        for shape in shapes[:1] if section == "cold" else shapes:
            rows = globals()[section](shape, pairs)
            ledger.keep(path, rows)
            for row in rows:
                peak = f"{row['peak_bytes'] / 2**20:7.0f} MiB" if "peak_bytes" in row else ""
                over = f"{row['over_file']:5.2f} of the file" if "over_file" in row else ""
                ratio = f"{row['ratio']:5.2f}x" if "ratio" in row else ""
                print(
                    f"{section:9} {row['shape']:9} {row['name']:13} {row['format']:8} "
                    f"{row['seconds']:7.2f} s {peak} {over}{ratio}",
                    flush=True,
                )
    return path
