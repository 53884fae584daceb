"""LLaVA-OneVision with random weights on a CPU beside transformers, in the ways of SECTIONS.

    python -m bench generate --device cpu --context 1500 --only decode
    python -m bench generate --device cpu --only decode --also compiled lookup

llama.cpp is beside them, too, where it is installed. All candidates of a section take turns in one
process; a ratio is the median of the ratios of the turns. Every candidate answers from the same
folder. `--also` adds the compiled decode step, and the two ends between which prompt lookup is:
every drafted token taken, or none. `profile` says where the time of each section goes at the first
context, by torch's own profiler, and `operators` times each of them beside the limits of this
machine (operators.py).
Read checkpoints.py, llamacpp.py first. Read next: devices.py.
"""

import math
import os
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

import llava_min
from llava_min import segments
from llava_min.cache import Cache
from llava_min.engine import compiling
from llava_min.engine.lookup import Lookup
from llava_min.engine.step import eager
from llava_min.generate import Step
from llava_min.kernels import attention_cpu
from llava_min.options import MOST_DRAFTED
from llava_min.segments import Plan, Text

from . import checkpoints, ledger, llamacpp, operators, plots

FORMATS = {
    "float32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "bits": 8},
    "int4": {"dtype": "bfloat16", "bits": 4},
}
TIMED = ("vision", "picture", "prefill", "decode", "batch")
PROFILED = ("vision", "prefill", "decode")
APART = ("vision", "picture")  # from any context
UNITS = {"vision": "tiles/s", "picture": "pictures/s"}
BLOCKS = "attention of blocks"  # kernels/attention_cpu.py, to the profiler
SECTIONS = (*TIMED, "profile", "operators")
GROUPS = {  # of operators, by a part of their names
    "linears": ("linear", "mm", "convolution"),
    "attention": ("scaled_dot_product",),
}
CONTEXTS = (200, 1500, 6000)
AGAINST = "transformers bf16"
STEPS = 8  # tokens of one turn of decoding
ROWS = 4  # answers that are written at once in a batch
KNOWN = 100_000  # ids among which a step finds the most likely one: about a tokenizer's
ALSO = {
    # other ways of our decode step: what they are made of
    "compiled": {"llava_min-compiled": lambda ours: Compiled(ours)},
    "lookup": {
        "llava_min-all-drafts-taken": lambda ours: Drafted(ours, True),
        "llava_min-no-draft-taken": lambda ours: Drafted(ours, False),
    },
}


class Ours:
    """This project's model: `section` readies a section and gives the function to be timed."""

    def __init__(self, folder: Path, form: str):
        model = llava_min.load(folder, device="cpu", compile=False, **FORMATS[form])
        self.network = model.network

    def cache(self, capacity: int, rows: int = 1) -> Cache:
        weight = self.network.decoder.embedding.weight
        return Cache.empty(self.network.config.text, rows, capacity, weight.dtype)

    def vision(self, context: int):
        side = self.network.config.tile
        tile = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8).numpy()
        network = self.network
        return lambda: network.projector(next(network.features(tile, 1)))

    def words(self, context: int) -> Plan:
        """A prompt of so many tokens."""
        return Plan((Text(tuple(range(5, 105)) * (context // 100)),), context)

    def prefill(self, context: int):
        plan = self.words(context)
        return lambda: self.network.prefill(plan, [], self.cache(context))

    def picture(self, context: int):
        """From the tiles of a picture of one tile's size to the logits of the first token."""
        config, side = self.network.config, self.network.config.tile
        picture = segments.picture((side, side), "anyres", config)
        words = Text(tuple(range(5, 15)))
        plan = Plan((words, picture, words), picture.tokens + 2 * len(words.ids))
        pixels = torch.randint(0, 256, (picture.tiles, side, side, 3), dtype=torch.uint8).numpy()
        encode = lambda: self.network.encode(picture, pixels)
        return lambda: self.network.prefill(plan, [encode()], self.cache(plan.tokens))

    def filled(self, context: int, more: int = STEPS) -> Cache:
        """A cache that has read so many tokens, with room for `more`."""
        cache = self.cache(context + more)
        self.network.prefill(self.words(context), [], cache)
        return cache

    def decode(self, context: int):
        return self.steps(self.filled(context))

    def batch(self, context: int):
        """ROWS answers at once, which have each read as many tokens."""
        cache = self.cache(context + STEPS, ROWS)
        for row in range(ROWS):
            self.network.prefill(self.words(context), [], cache.row(row))
        return self.steps(cache)

    def steps(self, cache: Cache):
        """A turn of decoding: STEPS times the same token in every row."""
        ids = torch.tensor([7] * len(cache.lengths))

        def steps():
            for _ in range(STEPS):
                self.network.decode(ids, cache).argmax(-1)
            cache.rewind(STEPS)

        return steps


class Compiled:
    """Our decode step compiled for this CPU, which is built where it is missing."""

    def __init__(self, ours: Ours):
        self.ours, self.package = ours, compiling.for_device(ours.network, True)
        if self.package is None:
            raise SystemExit("bench: the decode step cannot be compiled here (see above)")

    def decode(self, context: int):
        cache = self.ours.filled(context)
        return repeated(self.package.step(self.ours.network, cache, KNOWN), cache)


class Drafted:
    """Our decode step with prompt lookup, of whose drafts all are taken, or none."""

    def __init__(self, ours: Ours, taken: bool):
        self.ours, self.taken = ours, taken

    def decode(self, context: int):
        network, cache = self.ours.network, self.ours.filled(context, STEPS + MOST_DRAFTED)
        step = Lookup(network, cache, KNOWN, eager(network, cache, KNOWN), [7] * 9, MOST_DRAFTED)

        def missed(ids: list[int]):
            found = step(ids)
            step.waiting.clear()  # as if another token had been chosen
            return found

        return repeated(step if self.taken else missed, cache)


def repeated(step: Step, cache: Cache):
    """A turn of decoding: STEPS times the same token."""

    def steps():
        for _ in range(STEPS):
            step([7])
        cache.rewind(STEPS)

    return steps


class Theirs:
    """transformers' model of the same folder, with scaled_dot_product_attention and last logits."""

    def __init__(self, folder: Path, form: str):
        from transformers import LlavaOnevisionForConditionalGeneration as Network

        dtype = getattr(torch, FORMATS[form]["dtype"])
        self.model = Network.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()

    def vision(self, context: int):
        model, side = self.model.model, self.model.config.vision_config.image_size
        pixels = torch.randn(1, 3, side, side, dtype=self.model.dtype)
        tower = lambda: model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        return lambda: model.multi_modal_projector(tower())

    def picture(self, context: int):
        model, side = self.model, self.model.config.vision_config.image_size
        pixels, words = torch.randn(1, 2, 3, side, side, dtype=model.dtype), list(range(5, 15))
        patches = (side // model.config.vision_config.patch_size) ** 2
        rows = [model.config.image_token_id] * (2 * patches + math.isqrt(patches))
        shown = {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}
        return lambda: self.run(torch.tensor([words + rows + words]), **shown)

    def run(self, ids, past=None, **shown):
        return self.model(
            input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1, **shown
        )

    def prefill(self, context: int, rows: int = 1):
        ids = torch.tensor([list(range(5, 105)) * (context // 100)] * rows)
        return lambda: self.run(ids)

    def batch(self, context: int):
        return self.decode(context, ROWS)

    def decode(self, context: int, rows: int = 1):
        past, ids = self.prefill(context, rows)().past_key_values, torch.tensor([[7]] * rows)

        def steps():
            for _ in range(STEPS):
                self.run(ids, past).logits[:, -1].argmax(-1)
            past.crop(-STEPS)

        return steps


@torch.inference_mode()
def measured(section: str, context: int, candidates: dict, pairs: int) -> dict[str, list[float]]:
    """Seconds of each turn of each candidate, taken in turns."""
    calls = {
        name: getattr(model, section)(context)
        for name, model in candidates.items()
        if hasattr(model, section)
    }
    return ledger.in_turns(calls, pairs)


@torch.inference_mode()
def profiled(section: str, shape: str, context: int, candidates: dict) -> list[dict]:
    """A row for each candidate: seconds of one call in linears, attention and everything else."""
    from torch.profiler import ProfilerActivity, profile

    found = []
    for name, model in candidates.items():
        call = getattr(model, section)(context)
        call()
        start = time.perf_counter()
        call()
        whole = time.perf_counter() - start  # the profiler itself takes time, outside operators
        with profile(activities=[ProfilerActivity.CPU]) as seen, attention_named():
            call()
        parts = dict.fromkeys(GROUPS, 0.0)
        for event in seen.events():
            if group := group_of(event):
                parts[group] += event.self_cpu_time_total / 1e6
        calls = STEPS if section == "decode" else 1
        parts["rest"] = whole - sum(parts.values())
        parts = {group: seconds / calls for group, seconds in parts.items()}
        found.append(
            {
                "section": f"profile {section}",
                "shape": shape,
                "name": name.split()[0],
                "context": None if section in APART else context,
                "format": name.split()[1],
                "seconds": whole / calls,
                **parts,
            }
        )
    return found


@contextmanager
def attention_named():
    """Inside a `with` block, all that attention of blocks calls is part of an event of its name."""
    attend = attention_cpu.attention

    def named(*given, **how):
        with torch.profiler.record_function(BLOCKS):
            return attend(*given, **how)

    with mock.patch.object(attention_cpu, "attention", named):
        yield


def group_of(event) -> str | None:
    """Which of GROUPS a profiler's event belongs to; products of attention are not linears."""
    parent = event
    while parent is not None:
        if parent.name == BLOCKS:
            return "attention"
        parent = parent.cpu_parent
    for group, words in GROUPS.items():
        if any(word in event.name for word in words):
            return group
    return None


def rows_of(section: str, shape: str, context: int, times: dict[str, list[float]]) -> list[dict]:
    """A row for each candidate: rates, and how many times as fast as transformers in bfloat16."""
    count = {"prefill": context, "decode": STEPS, "batch": ROWS * STEPS}.get(section, 1)
    found = []
    for name, seconds in times.items():
        p20, p50, p80 = ledger.spread(seconds)
        row = {
            "section": section,
            "shape": shape,
            "context": None if section in APART else context,
            "name": name.split()[0],
            "format": name.split()[1],
            "seconds": p50,
            "p20": p20,
            "p80": p80,
            "per_second": count / p50,
            "unit": UNITS.get(section, "tokens/s"),
            "pairs": len(seconds),
        }
        if AGAINST in times:
            ratios = ledger.spread([a / b for a, b in zip(times[AGAINST], seconds)])
            row |= dict(zip(("ratio_p20", "ratio", "ratio_p80"), ratios))
        if name.startswith("llava_min") and (peer := times.get(f"llama.cpp {row['format']}")):
            row["over_llama_cpp"] = ledger.spread([a / b for a, b in zip(peer, seconds)])[1]
        found.append(row)
    return found


def run(shape: str, contexts, sections, formats, pairs: int, out: Path, also=()) -> Path:
    """Everything asked for, written as it comes."""
    path = out / "generate-cpu.jsonl"
    folder = checkpoints.folder_of(shape)
    candidates = {f"llava_min {form}": Ours(folder, form) for form in formats}
    for form in formats:
        if "bits" not in FORMATS[form]:
            candidates[f"transformers {form}"] = Theirs(folder, form)
    in_torch = dict(candidates)
    for form in formats:
        ways = {name: make for way in also for name, make in ALSO[way].items()}
        ours = candidates[f"llava_min {form}"]
        candidates |= {f"{name} {form}": make(ours) for name, make in ways.items()}
    decodes = {"prefill", "decode"} & set(sections)
    # llama.cpp ignores ATEN_CPU_CAPABILITY
    if decodes and llamacpp.INSTALLED and "ATEN_CPU_CAPABILITY" not in os.environ:
        for form in filter(llamacpp.FORMATS.__contains__, formats):
            peer = llamacpp.LlamaCpp(folder, form, max(contexts), STEPS)
            candidates[f"llama.cpp {form}"] = peer
    for section in filter(TIMED.__contains__, sections):
        for context in contexts[:1] if section in APART else contexts:
            rows = rows_of(section, shape, context, measured(section, context, candidates, pairs))
            ledger.keep(path, rows)
            print(table(rows), flush=True)
    if "profile" in sections:
        for section in PROFILED:
            rows = profiled(section, shape, contexts[0], in_torch)
            ledger.keep(path, rows)
            print(shares(rows), flush=True)
    if "operators" in sections:
        ours = {form: candidates[f"llava_min {form}"] for form in formats}
        rows = operators.measured(shape, contexts[0], ours, pairs)
        ledger.keep(path, rows)
        print(operators.text_of(rows), flush=True)
    draw(path)
    return path


def shares(rows: list[dict]) -> str:
    """The rows of a profile as text."""
    lines = []
    for row in rows:
        parts = "  ".join(f"{part} {1e3 * row[part]:.1f}" for part in (*GROUPS, "rest"))
        lines.append(f"{row['section']:16} {row['name']:13} {row['format']:8} ms: {parts}")
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        what = f"{row['section']} {row['context'] or ''}"
        ratio = f"{row['ratio']:6.2f}x" if "ratio" in row else ""
        lines.append(
            f"{what:14} {row['name']:26} {row['format']:8} {row['per_second']:9.1f} "
            f"{row['unit']:9} {ratio}"
        )
    return "\n".join(lines)


def draw(path: Path) -> list[Path]:
    """Tokens per second over the context, a picture for decode and one for prefill."""
    written = []
    for section in ("decode", "prefill"):
        rows = [row for row in ledger.read(path) if row["section"] == section]
        rows = [row for row in rows if "-taken" not in row["name"]]  # of drafts: two ends, a table
        for capability in sorted({row["capability"] for row in rows}):
            some = [row for row in rows if row["capability"] == capability]
            if len({row["context"] for row in some}) == 1:
                continue
            contexts, rates = ([row[key] for row in some] for key in ("context", "per_second"))
            title = f"{section}, {some[0]['cpu']}, {capability}, {some[0]['threads']} threads"
            axes = plots.Axes(title, "context", "tokens/s", contexts, rates)
            names = sorted({(row["name"], row["format"]) for row in some})
            for index, name in enumerate(names):
                points = sorted(
                    (row["context"], row["per_second"])
                    for row in some
                    if (row["name"], row["format"]) == name
                )
                colour = plots.COLOURS[index % len(plots.COLOURS)]
                axes.line(points, colour, dashed=name[0] == "transformers")
                for point in points:
                    axes.dot(*point, colour, f"{' '.join(name)}: {point[1]:.1f} tokens/s")
            axes.legend([" ".join(name) for name in names])
            target = path.with_name(f"{path.stem}-{section}-{capability}.svg")
            target.write_text(axes.svg())
            written.append(target)
    return written
