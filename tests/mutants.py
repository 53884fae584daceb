"""Mutants by machine: change one operator or number at a time, run the tests that should notice.

    python tests/mutants.py [--count 200] [--jobs 2] [--file anyres.py]...

Each mutant lives in a copy of the project, one for each job. One that no test notices is a survivor
and is printed with its line: a test that is missing, or a change that means nothing. What is known
to mean nothing is not drawn.

The tests of all the files run once without a mutant, the examples in the files' own docstrings
among them, over files that are written the way a mutant is written. A test that fails then is named
and judges nothing. That run also notes which functions each test enters. With a mutant, the tests
that enter its function come first and the first failure ends the run; a survivor has passed them
all. The mutants come in random order, so that a run which is stopped has tried a sample, too.

Each run is a forked child of one process, which has imported what the tests need from elsewhere and
nothing of the project. A mutant that takes four times as long as its tests, and a minute more, is
noticed, too; the last line says how many did. Mutants have no CUDA and no browser. Tests of named
mutants look for lines of the source, so they are left out.

`make mutants` starts it, over the walk and the loading code; the kernels, each mutant a minute of
the interpreter, are asked for by name: `--file attention.py`.
"""

import argparse
import ast
import importlib.util
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = {
    # file: the tests that should notice a slip in it
    "llava_min/anyres.py": ("test_anyres", "test_image"),
    "llava_min/media/sources.py": ("test_media", "test_bad_media"),
    "llava_min/media/stream.py": ("test_video", "test_clips"),
    "llava_min/media/timeline.py": ("test_video", "test_clips"),
    "llava_min/media/film.py": ("test_video", "test_clips"),
    "llava_min/media/colors.py": ("test_colors",),
    "llava_min/media/png.py": ("test_colors", "test_cut_pictures"),
    "llava_min/media/jpeg.py": ("test_cut_pictures",),
    "llava_min/media/tiff.py": ("test_media", "test_colors"),
    "llava_min/media/data_uri.py": ("test_media",),
    "llava_min/media/video.py": ("test_video", "test_media"),
    "llava_min/media/subtitles.py": ("test_subtitles",),
    "llava_min/image.py": ("test_image", "test_families"),
    "llava_min/vision.py": ("test_families", "test_image"),
    "llava_min/projector.py": ("test_properties", "test_agrees_golden"),
    "llava_min/cache.py": ("test_properties", "test_cache", "test_step"),
    "llava_min/decoder.py": ("test_properties", "test_families"),
    "llava_min/model.py": ("test_properties",),
    "llava_min/segments.py": ("test_forecast", "test_properties", "test_real_sizes"),
    "llava_min/planning/memory.py": (
        "test_properties",
        "test_anyres",
        "test_real_sizes",
        "test_forecast",
        "test_memory",
    ),
    "llava_min/planning/split.py": ("test_ranks",),
    "llava_min/engine/offload.py": ("test_offload", "test_ranks"),
    "llava_min/engine/towers.py": ("test_ranks",),
    "llava_min/command/batch_shares.py": ("test_ranks",),
    "weights/share.py": ("test_ranks",),
    "weights/slices.py": ("test_ranks",),
    "llava_min/check/verify.py": ("test_verify",),
    "llava_min/check/published.py": ("test_verify",),
    "llava_min/check/samples.py": ("test_verify",),
    "llava_min/explain/places.py": ("test_places", "test_explain"),
    "llava_min/explain/rows.py": ("test_explain",),
    "llava_min/explain/attention.py": ("test_explain",),
    "llava_min/explain/measures.py": ("test_explain",),
    "llava_min/explain/sinks.py": ("test_explain",),
    "llava_min/explain/pictures.py": ("test_explain",),
    "llava_min/explain/occlusion.py": ("test_explain",),
    "llava_min/explain/explanation.py": ("test_explain",),
    "llava_min/explain/explaining.py": ("test_explain",),
    "llava_min/explain/page.py": ("test_page",),
    "llava_min/explain/knockout.py": ("test_knockout",),
    "llava_min/explain/gradients.py": ("test_knockout",),
    "llava_min/sampling.py": ("test_sampling", "test_step"),
    "llava_min/tokenizer.py": ("test_tokenizer", "test_tokenizer_agrees"),
    "llava_min/prompt.py": ("test_prompt", "test_subtitles", "test_cards"),
    "llava_min/generate.py": ("test_generate", "test_batch"),
    "llava_min/families/layouts.py": ("test_checkpoint", "test_families", "test_real_sizes"),
    "llava_min/families/originals.py": ("test_originals", "test_real_sizes", "test_checkpoint"),
    "llava_min/families/sections.py": ("test_checkpoint", "test_families", "test_real_sizes"),
    "llava_min/families/fields.py": ("test_checkpoint", "test_families"),
    "llava_min/families/processors.py": ("test_processors",),
    "llava_min/families/templates.py": ("test_templates", "test_cards"),
    "llava_min/families/vocabulary.py": ("test_sentencepiece", "test_tokenizer_agrees"),
    "llava_min/families/sentencepiece.py": ("test_sentencepiece",),
    "llava_min/request/messages.py": ("test_prompt", "test_templates", "test_cards"),
    "llava_min/engine/pace.py": ("test_reuse",),
    "llava_min/engine/rows.py": ("test_reuse",),
    "llava_min/engine/looks.py": ("test_reuse",),
    "llava_min/engine/slots.py": ("test_slots", "test_reuse", "test_compiled"),
    "llava_min/serve/guard.py": ("test_serve_borders",),
    "llava_min/serve/page.py": ("test_chat_page",),
    "llava_min/serve/explanations.py": ("test_chat_page",),
    "llava_min/serve/public.py": ("test_public",),
    "llava_min/serve/worker.py": ("test_serve_life",),
    "llava_min/engine/batch.py": ("test_slots", "test_batch", "test_admission"),
    "llava_min/serve/fields.py": ("test_serve_fields",),
    "llava_min/serve/service.py": ("test_serve_fields", "test_serve_openapi"),
    "llava_min/serve/errors.py": ("test_serve_fields", "test_serve_openapi", "test_serve_life"),
    "llava_min/serve/parts.py": ("test_serve_fields", "test_serve_borders", "test_public"),
    "llava_min/serve/protocol.py": ("test_serve_fields", "test_serve_openapi"),
    "llava_min/serve/exchange.py": ("test_serve_fields", "test_serve_openapi", "test_serve_life"),
    "llava_min/serve/outbox.py": ("test_outbox",),
    "llava_min/serve/metrics.py": ("test_serve_openapi",),
    "llava_min/engine/rules.py": ("test_serve_fields", "test_grammar"),
    "llava_min/engine/grammar.py": ("test_grammar",),
    "llava_min/trace.py": ("test_hooks",),
    "llava_min/base/habits.py": ("test_habits",),
    "weights/adapter.py": ("test_adapter",),
    "weights/foreign.py": ("test_foreign",),
    "weights/formulas.py": ("test_foreign",),
    "weights/kept.py": ("test_foreign",),
    "weights/tied.py": ("test_checkpoint",),
    "weights/index.py": ("test_checkpoint",),
    "llava_min/engine/step.py": ("test_step",),
    "llava_min/engine/lookup.py": ("test_lookup",),
    "llava_min/engine/compiled.py": ("test_compiled",),
    "llava_min/engine/compiling.py": ("test_compiled",),
    "llava_min/engine/recording.py": ("test_recording", "test_step"),
    "llava_min/engine/prefix.py": ("test_prefix", "test_chat"),
    "llava_min/engine/chat.py": ("test_chat",),
    "weights/names.py": ("test_checkpoint", "test_families"),
    "weights/load.py": ("test_checkpoint",),
    "weights/quantize.py": ("test_quantize", "test_int8"),
    "weights/packed.py": ("test_quantize", "test_int8"),
    "kernels/norm.py": ("test_norm", "test_families"),
    "kernels/activation.py": ("test_activation", "test_families"),
    "kernels/rope.py": ("test_rope", "test_properties"),
    "kernels/attention.py": ("test_attention", "test_properties"),
    "kernels/attention_cpu.py": ("test_attention_cpu",),
    "kernels/attention_sizes.py": ("test_attention_cpu", "test_forecast"),
    "kernels/decode_attention.py": ("test_decode_attention", "test_properties", "test_cache"),
    "kernels/int4_packing.py": ("test_int4_packing",),
    "kernels/int4_cpu.py": ("test_int4_cpu",),
    "kernels/int4_bytes.py": ("test_devices",),
    "kernels/half.py": ("test_devices",),
    "kernels/paths.py": ("test_devices",),
    "llava_min/planning/devices.py": ("test_devices", "test_quantize"),
    "kernels/int4.py": ("test_int4",),
    "kernels/int8.py": ("test_int8",),
    "kernels/int8_cpu.py": ("test_int8",),
}
MEANINGLESS = {
    # file: {part of a line: why nobody could notice another number or operator in it}
    "llava_min/anyres.py": {
        "length, 7": "of sides that fit in memory no product is so near to another whole number",
    },
    "llava_min/media/sources.py": {
        "data[:100]": "a pointer shows in its first bytes: one more is as good",
        "file.read(100)": "the same of a film",
        "text[:64]": "letters among which its first word is looked for: one more is as good",
        "data[:32]": "bytes among which a brand is looked for: one more is as good",
        "data[:12]": "bytes that a message shows: one more is as good",
        "limit) + 1), limit": "that there is more shows in one byte as in two",
    },
    "llava_min/media/data_uri.py": {
        "text[:64]": "letters among which its first word is looked for: one more is as good",
    },
    "llava_min/media/video.py": {
        "total <= frames": "as many as there are, evenly spread, are all of them",
        "or stop - first": "as many as there are, or more, are all of them",
        "1 << 20": "bytes that are read at a time",
    },
    "llava_min/media/stream.py": {
        "guessed_rate or 25": "frames a second of a film that says nothing: another is as good",
        "1 / self.rate)": "FFmpeg gives every stream a unit of time",
        "self.errors = 0": "how many more there are is asked, and not how many",
    },
    "llava_min/media/film.py": {
        "length, 6": "digits of a second: one more is as good",
        "self.stream.unit, 6": "the same of a time",
        "decode(0, None)": "at the end of a file there is no packet that has a number",
        "d < 0": "a side of length 0 lies no way",
        "a < 0": "the same of the other side",
    },
    "llava_min/media/png.py": {
        "1 << 20": "bytes that are unpacked at a time",
        "sound, end = True": "False only unpacks files whose checksums say already that they hold",
    },
    "llava_min/media/jpeg.py": {
        "+ 16": "an ending is longer than a decoder reads, by whatever",
        "randrange(1, 255)": "any bytes but those that end an entropy-coded part",
        "range(512)": "an ending is longer than a decoder reads, by whatever",
    },
    "llava_min/media/colors.py": {
        "assert isinstance(picture, ImageFile) and picture.fp": "for the type checker",
        "ROWS = 64": "rows that are converted at a time",
        "WHITE = (255, 255, 255)": "Pillow takes what is more than white for white",
        'picture.mode in ("LA", "La", "PA", "RGBA", "RGBa", "P") '
        "and picture.has_transparency_data": "an opaque picture on white stays as it is",
    },
    "llava_min/media/timeline.py": {
        "packets[order[-1]].duration or 0": "a demuxer of MP4 sets it",
        "self.durations.append(packet.duration or 0)": "demuxers set it",
        "if first else 0": "of a film in which nothing decodes no frame is shown",
        "decode(0, None)": "at the end of a file there is no packet that has a number",
        "[(0, None)]": "the same where all is decoded",
        "if stamps else -1": "before the first frame this is not asked",
        "(packet.pos or 0) >= place": "where it does not hold all is decoded, which says the same",
        "self.last = 0": "the last group is read, and sets it, before anybody asks",
        ", place = True, 0": "no packet of an MP4 lies in front of its first box",
    },
    "llava_min/image.py": {
        "PART = 2**22": "pixels that are resized at a time",
        "max(PART // (high - low), 1)": "rows that are resized at a time",
        "EXTREME, LARGEST = 50, 16_384": "what is made whole and what is not are the same",
    },
    "llava_min/planning/memory.py": {
        "(2, 1024)": "sizes to work on at a time, found by measuring",
    },
    "kernels/half.py": {
        "2**-14": "any number that is small and not zero",
    },
    "kernels/int4_bytes.py": {
        "2**20": "weights that are written out at a time",
        "2**22": "the same on a GPU",
        "max(1, (": "outputs that are written out at a time",
    },
    "kernels/int8.py": {
        "2**20": "weights that are written out at a time",
        "2**24": "the same on a GPU",
        "max(1, chunk": "outputs that are written out at a time",
        "CPU_FEW = 64": "either side of it is right",
    },
    "kernels/int8_cpu.py": {
        "2**18": "numbers that are rounded at a time",
        "1e-30": "any number that is small and not zero",
        "FEW = 8": "either side of it is right",
    },
    "llava_min/sampling.py": {
        "chosen > 0": "of 0 the quotient is the product",
    },
    "llava_min/engine/step.py": {
        "non_blocking=True": "what a GPU does meanwhile; its numbers are the same",
    },
    "llava_min/engine/offload.py": {
        "non_blocking=True": "what a GPU does meanwhile; its numbers are the same",
        "(free_bytes(device) or 0)": "three quarters of a byte are none",
    },
    "llava_min/engine/compiled.py": {
        "digest[:32]": "digits of a name: one more is as good",
        '"model", False, 1': "how many threads may be in it at once: others wait",
        "True, user": "whether torch looks for weights that are missing: none is",
        "sort_keys=True": "names in another order are as good",
    },
    "llava_min/engine/compiling.py": {
        "CAPACITY, SEEN = 48, 20": "sizes that no model has: others are as good",
        "SEEN + 1": "the same",
        '"aot_inductor.precompile_headers": False': "how long a build takes",
        '"compile_threads": 1': "the same",
        "check_guards=False": "what it would check of a step's tensors holds for those of a cache",
        "24 * 3600": "seconds: another number is as good",
    },
    "llava_min/serve/exchange.py": {
        "PING_SECONDS = 10.0": "seconds: another number is as good",
        "self.newest = 0.0": "the first token sets it, and the second is the first to ask",
    },
    "llava_min/engine/prefix.py": {
        "SAMPLE = 1024": "numbers of a fingerprint: more are as good",
        "[:16]": "digits of a fingerprint: one more is as good",
    },
    "llava_min/engine/pace.py": {
        "0.1, 0.2": "seconds: other numbers are as good",
    },
    "llava_min/engine/rows.py": {
        "WORTH = 32": "tokens: another number is as good",
        "count, 0": "later is more: from what on is not asked",
        "numbers[:0]": "one token that happens to be the same is not worth copying",
        "tensor[:, :, :, :1].clone()": "of what is kept only the first token is read",
        "token_bytes(16)": "bytes of a key: one more is as good",
        "uses += 1": "later is more: how much is not asked",
        "np.empty(0, np.int64)": "one token that happens to be the same is not worth copying",
    },
    "llava_min/engine/slots.py": {
        "looks: int = 0": "no row is of one byte",
        "else 0 for row": "what is not written is counted back",
    },
    "llava_min/engine/batch.py": {
        'f"{key[0]} {key[1]}", request, held': "what this names was refused before, by its headers",
    },
    "llava_min/check/verify.py": {
        "round(value, 4)": "digits of a logit: one more is as good",
        "indent=1": "how a file looks: a blank more is as good",
    },
    "llava_min/check/samples.py": {
        "48, 64": "pixels of a blank frame: of any size it becomes one tile",
    },
    "llava_min/explain/attention.py": {
        "NUMBERS = 2**19": "weights that are held at a time",
        "columns.stop > layer.longest + 1": "of columns that all rows see none is hidden",
    },
    "llava_min/explain/measures.py": {
        "KEPT = 28 * 2**20": "bytes that are kept: another size is as good",
    },
    "llava_min/explain/sinks.py": {
        "max(NUMBERS // (heads * head_dim), 1)": "values that are held at a time",
    },
    "llava_min/explain/explaining.py": {
        "AT_A_TIME = 4": "words that are looked at together: another number is as good",
    },
    "llava_min/explain/pictures.py": {
        "GREY = (128, 128, 128)": "a grey: another is as good",
        "cut.reshape(rows * tiles.shape[1], columns * tiles.shape[2], 3)": "tiles are square",
        "box[:2]": "zip takes no more of it than there are fits",
    },
    "llava_min/cache.py": {
        "self.key_scales is None or self.value_scales is None": "there are both or neither",
    },
    "llava_min/explain/page.py": {
        "5 * 2**18": "bytes of maps: another size is as good while the page fits",
        "PICTURES = 2**21": "bytes of pictures: another size is as good while the page fits",
        "drops.astype(float).round(4)": "digits of nats: one more is as good",
        "LONGEST, QUALITY = 1024, 85": "sizes of pictures: others are as good",
        "320 if": "pixels of a frame in a strip: another size is as good",
        "longest <= 32": "a picture that is no smaller: another size is as good",
        "words].astype(float).round(4)": "digits of shares: one more is as good",
        "// 3": "how much smaller the next try is: another step is as good",
    },
    "llava_min/serve/explanations.py": {
        "KEPT = 8": "pages that are kept: another number is as good",
        "PATIENCE = 600.0": "seconds: another number is as good",
    },
    "llava_min/serve/guard.py": {
        "BODIES = 8": "bodies that are held at a time: another number is as good",
        "BODY_SECONDS = 30.0": "seconds and bytes: others are as good",
        "BODY_SPEED = 50_000": "seconds and bytes: others are as good",
        "longest: int = 64 << 20": "bytes of a body: another number is as good",
        "retry_after=2": "seconds: another number is as good",
    },
    "llava_min/serve/parts.py": {
        "MOST_PARTS, MOST_MEDIA = 10_000, 64": "of a request: other numbers are as good",
        "MEDIA_BYTES = 256 << 20": "bytes of a request: another number is as good",
        "source[:16]": "letters in which its first word is: one more is as good",
        "file.read(16)": "bytes in which a sign is: one more is as good",
    },
    "llava_min/serve/metrics.py": {
        "0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0": (
            "bounds of a histogram: others are as good"
        ),
    },
    "llava_min/serve/worker.py": {
        "PATIENCE = 120.0": "seconds: another number is as good",
        "eq=False": "no job is compared with another",
    },
    "llava_min/serve/errors.py": {
        "retry_after=5": "seconds: another number is as good",
    },
    "llava_min/serve/public.py": {
        "1 << 16": "bytes that are read at a time",
    },
    "llava_min/serve/service.py": {
        "TILE_BYTES = 64 << 20": "bytes that are kept: another number is as good",
        "ROW_BYTES = 256 << 20": "bytes that are kept: another number is as good",
        "DECODERS = 2": "requests that are opened at a time: another number is as good",
        "token_bytes(16)": "bytes of a key: one more is as good",
        ", 1024": "room that a row should have: another size is as good",
        "Text((0,)": "how many tokens there are is asked, and not which",
        "name[:60]": "letters of a name in the log: one more is as good",
    },
    "weights/tied.py": {
        "2**24": "bytes that are compared at a time",
    },
    "weights/quantize.py": {
        "range(13)": "steps that are tried: one more is as good",
        "ROWS = 2**20": "weights that are quantised at a time",
    },
    "weights/packed.py": {
        "product.shape[-1] > self.outputs": "as many as there are, cut to as many, are all",
        "PART = 2**21": "bytes that are laid out at a time",
    },
}
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


LATE = "took too long"


class Mutator(ast.NodeTransformer):
    """Changes the `wanted`-th place that can be changed, and counts them all.

    But for those inside `spans`: (line, first column, last column) of what means nothing.
    """

    def __init__(self, wanted: int, spans: Iterable[tuple[int, int, int]] = ()):
        self.wanted, self.spans = wanted, list(spans)
        self.count, self.left_out, self.line = 0, 0, 0
        self.scope, self.function = [], ""

    def hit(self, node: ast.AST) -> bool:
        for line, first, last in self.spans:
            inside = first <= node.col_offset and node.end_col_offset <= last
            if node.lineno == node.end_lineno == line and inside:
                self.left_out += 1
                return False
        self.count += 1
        if self.count - 1 == self.wanted:
            self.line, self.function = node.lineno, ".".join(self.scope)
            return True
        return False

    def visit_ClassDef(self, node):
        return self.visit_inside(node, node.name)

    def visit_FunctionDef(self, node):
        """Its default values and decorators count as its own."""
        return self.visit_inside(node, node.name, "<locals>")

    def visit_AsyncFunctionDef(self, node):
        return self.visit_inside(node, node.name, "<locals>")

    def visit_inside(self, node, *names: str):
        """What lies in it has a qualified name as Python has it: `Class.method.<locals>.inner`."""
        self.scope.extend(names)
        self.generic_visit(node)
        del self.scope[-len(names) :]
        return node

    def visit_keyword(self, node):
        """`frozen=True` only guards against our own slips."""
        if node.arg == "frozen":
            self.left_out += 1
            return node
        return self.generic_visit(node)

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if type(node.op) in SWAPS and self.hit(node):
            node.op = SWAPS[type(node.op)]()
        return node

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        if self.hit(node):
            node.op = SWAPS[type(node.op)]()
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if type(node.ops[0]) in SWAPS and self.hit(node):
            node.ops[0] = SWAPS[type(node.ops[0])]()
        return node

    def visit_Constant(self, node):
        if isinstance(node.value, int | float) and self.hit(node):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            return ast.copy_location(ast.Constant(value), node)
        return node

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Not | ast.USub) and self.hit(node):
            return node.operand
        return node


def meaningless(file: str) -> list[tuple[int, int, int]]:
    """The spans of a file in which nothing is changed. Each part must be in one line of it."""
    lines, spans = (ROOT / file).read_text().splitlines(), []
    for part in MEANINGLESS.get(file, ()):
        found = [(number, line.find(part)) for number, line in enumerate(lines, 1) if part in line]
        assert len(found) == 1, f"{file} holds {part!r} in {len(found)} lines"
        ((number, first),) = found
        spans.append((number, first, first + len(part)))
    return spans


def places(file: str) -> tuple[int, int]:
    """How many mutants a file has, and how many more that mean nothing."""
    mutator = Mutator(-1, meaningless(file))
    mutator.visit(ast.parse((ROOT / file).read_text()))
    return mutator.count, mutator.left_out


def imported(file: str) -> str:
    """The path of a file under the package, by which the tests import it."""
    return f"llava_min/{file.removeprefix('llava_min/')}"


class Notes:
    """A plugin of pytest that notes how long each test takes and which functions it enters.

    `tests`: {its id: (seconds, [[file, qualified name]...])}, of the files of the project alone and
    of this process alone. `failed`: the ids of those that fail.
    """

    def __init__(self, copy: Path):
        self.prefix, self.tests, self.entered = f"{copy}/", {}, set()
        self.failed = set()

    def note(self, frame, event, argument) -> None:
        code = frame.f_code  # of a call, as no trace of lines is returned
        if code.co_filename.startswith(self.prefix):
            self.entered.add((code.co_filename.removeprefix(self.prefix), code.co_qualname))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self.entered, start = set(), time.perf_counter()
        threading.settrace(self.note)
        sys.settrace(self.note)
        yield
        sys.settrace(None)
        threading.settrace(None)
        self.tests[item.nodeid] = time.perf_counter() - start, sorted(self.entered)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self):
        outside = [
            name
            for name, module in sys.modules.items()
            if getattr(module, "__file__", None) and not module.__file__.startswith(self.prefix)
        ]
        for test in self.failed:
            del self.tests[test]
        notes = {"tests": self.tests, "failed": sorted(self.failed), "modules": outside}
        Path(self.prefix, "notes.json").write_text(json.dumps(notes))


class LikelyFirst:
    """A plugin of pytest that runs first what enters a function, then what enters its file.

    Of two test files the quicker comes first; inside one the tests keep their order. What failed
    without a mutant does not run.
    """

    def __init__(self, tests: dict, file: str, function: str):
        self.tests, self.file, self.function = tests, imported(file), function

    def rank(self, item) -> int:
        entered = self.tests[item.nodeid][1]
        if [self.file, self.function] in entered:
            return 0
        return 1 if self.file in (file for file, _ in entered) else 2

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.tests]
        ranks, seconds = {item: self.rank(item) for item in items}, defaultdict(float)
        for item in items:
            seconds[ranks[item], item.path] += self.tests[item.nodeid][0]
        items.sort(key=lambda item: (ranks[item], seconds[ranks[item], item.path], item.path))


def start(copy: Path, files: Iterable[str], plugin, *options: str) -> int:
    """Runs the tests of these files in a forked child. Returns its id.

    The child leads a process group, and its output goes to `output` in the copy.
    """
    if child := os.fork():
        return child
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(copy / "output", os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:0] = [str(copy), str(copy / "tests")]
    names = sorted({name for file in files for name in TESTS[file]})
    tests = [*map(imported, files), *(f"tests/{name}.py" for name in names)]
    general = ["-q", "-p", "no:cacheprovider", "-k", "not mutants_are_caught"]
    os._exit(pytest.main([*general, *options, *tests], plugins=[plugin]))


def end(child: int) -> None:
    """Ends a child and whatever it started, if it has not ended."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def changed(source: str, mutant: str) -> str:
    """The line of a mutant that is not that of the source, as ast.unparse writes it."""
    pairs = zip(ast.unparse(ast.parse(source)).splitlines(), mutant.splitlines(), strict=True)
    return next((after.strip() for before, after in pairs if before != after), "")


class Run:
    """The tests of one mutant, as they run in a copy of the project."""

    def __init__(self, copy: Path, file: str, wanted: int, tests: dict):
        source = (ROOT / file).read_text()
        mutator = Mutator(wanted, meaningless(file))
        self.copy, self.file = copy, file
        mutant = ast.unparse(mutator.visit(ast.parse(source)))
        self.write(mutant)
        line = source.splitlines()[mutator.line - 1].strip()
        self.place = f"{file}:{mutator.line}: {line}\n    {changed(source, mutant)}"
        (copy / "output").unlink(missing_ok=True)
        self.child = start(copy, [file], LikelyFirst(tests, file, mutator.function), "-x")
        own = (imported(file), *(f"tests/{name}.py" for name in TESTS[file]))
        seconds = sum(took for test, (took, _) in tests.items() if test.startswith(own))
        self.until = time.monotonic() + 60 + 4 * seconds

    def write(self, source: str) -> None:
        """Changes the file. What is compiled of it could be of the same second and size."""
        (self.copy / self.file).write_text(source)
        Path(importlib.util.cache_from_source(self.copy / self.file)).unlink(missing_ok=True)

    def ending(self) -> str | None:
        """None while it runs, then "" where nothing failed, or else what noticed the mutant."""
        done, status = os.waitpid(self.child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(status)
        late = not done and time.monotonic() > self.until
        if not done and not late:
            return None
        end(self.child)
        self.write(ast.unparse(ast.parse((ROOT / self.file).read_text())))
        if late:
            os.waitpid(self.child, 0)
            return LATE
        if status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return ""
        lines = (self.copy / "output").read_text(errors="replace").splitlines()
        failed = [line for line in lines if re.match(r"(FAILED|ERROR) \S", line)]
        return (failed or [f"exit status {status}"])[0]


def runs(mutants: list, copies: list[Path], tests: dict) -> Iterator[tuple[Run, str]]:
    """Tries the mutants, one at a time in each copy. Gives each with its ending, as they end."""
    waiting, running = mutants[::-1], []
    try:
        while waiting or running:
            while waiting and copies:
                running.append(Run(copies.pop(), *waiting.pop(), tests))
            time.sleep(0.02)
            for run in list(running):
                ending = run.ending()
                if ending is not None:
                    running.remove(run)
                    copies.append(run.copy)
                    yield run, ending
    finally:
        for run in running:
            end(run.child)


def copied(folder: Path, files: Iterable[str]) -> Path:
    """A copy of the project in which these files are written the way a mutant is."""
    ignored = shutil.ignore_patterns(".venv", ".git", "node_modules", "__pycache__", "*.pt")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
    for file in files:
        (folder / file).write_text(ast.unparse(ast.parse((ROOT / file).read_text())))
    return folder


def noted(copy: Path, files: Iterable[str]) -> dict:
    """What each test that passes without a mutant enters. Imports what the tests import."""
    child = start(copy, files, Notes(copy))
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        end(child)
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f"the tests do not run: {(copy / 'output').read_text()[-2000:]}")
    notes = json.loads((copy / "notes.json").read_text())
    if notes["failed"]:
        print("failed without a mutant, left out:", *notes["failed"], sep="\n")
    for name in notes["modules"]:
        with suppress(Exception):  # what a test wrote and removed again
            importlib.import_module(name)
    return notes["tests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time (%(default)s)")
    parser.add_argument("--file", action="append", help="only files that end so; repeatable")
    parser.add_argument("--verbose", action="store_true", help="say what noticed each, too")
    given = parser.parse_args()
    files = [
        file
        for file in TESTS
        if (file.endswith(tuple(given.file)) if given.file else not file.startswith("kernels/"))
    ]
    if not files:
        parser.error(f"no file that has mutants ends in {' or '.join(given.file)}")
    every = [(file, place) for file in files for place in range(places(file)[0])]
    left_out = sum(places(file)[1] for file in files)
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.modules["playwright"] = None  # its driver hangs in a forked child: such tests are skipped
    runpy.run_path(str(ROOT / "tests/conftest.py"))  # it sets what must be set before any import
    with tempfile.TemporaryDirectory() as folder:
        copies = [copied(Path(folder).resolve() / str(job), files) for job in range(given.jobs)]
        tests = noted(copies[0], files)
        endings = []
        begin = time.time()
        for run, ending in runs(chosen, copies, tests):
            endings.append(ending)
            if given.verbose or not ending:
                print(f"\n{ending or 'survivor'}: {run.place}")
            left = (time.time() - begin) / len(endings) * (len(chosen) - len(endings))
            done = f"{len(endings)}/{len(chosen)}"
            print(f"\r{done}, {left / 60:.0f} min left ", end="", flush=True)
    print(
        f"\n{len(chosen) - endings.count('')} of {len(chosen)} mutants noticed, "
        f"{endings.count(LATE)} of them by taking too long (of {len(every)}, "
        f"without {left_out} that mean nothing)"
    )


if __name__ == "__main__":
    main()
