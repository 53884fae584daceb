"""Mutants by machine: change one operator or number at a time, run the tests that should notice.

    python tests/mutants.py [--count 200] [--jobs 2] [--file anyres.py]...

Each mutant lives in a copy of the project, one for each job; its tests pass without a mutant, the
examples in the file's own docstrings among them. One that no test notices is a survivor and is
printed with its line: a test that is missing, or a change that means nothing. What is known to mean
nothing is not drawn.
`make mutants` starts it, over the walk and the loading code; the kernels, each mutant a minute of
the interpreter, are asked for by name: `--file attention.py`.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

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
    "llava_min/check/verify.py": ("test_verify",),
    "llava_min/check/published.py": ("test_verify",),
    "llava_min/evals/lmms_eval.py": ("test_evals",),
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
    "llava_min/engine/slots.py": ("test_slots", "test_reuse"),
    "llava_min/serve/guard.py": ("test_serve_borders",),
    "llava_min/serve/page.py": ("test_chat_page",),
    "llava_min/serve/explanations.py": ("test_chat_page",),
    "llava_min/serve/public.py": ("test_public",),
    "llava_min/serve/worker.py": ("test_serve_life",),
    "llava_min/engine/batch.py": ("test_slots", "test_batch", "test_admission"),
    "llava_min/serve/fields.py": ("test_serve_fields",),
    "llava_min/serve/service.py": ("test_serve_fields", "test_serve_openapi"),
    "llava_min/serve/errors.py": ("test_serve_fields", "test_serve_openapi"),
    "llava_min/serve/parts.py": ("test_serve_fields", "test_serve_borders"),
    "llava_min/serve/protocol.py": ("test_serve_fields", "test_serve_openapi"),
    "llava_min/serve/exchange.py": ("test_serve_fields", "test_serve_openapi", "test_serve_life"),
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
    "llava_min/engine/recording.py": ("test_recording", "test_step"),
    "llava_min/engine/prefix.py": ("test_prefix", "test_chat"),
    "llava_min/engine/chat.py": ("test_chat",),
    "weights/names.py": ("test_checkpoint", "test_families"),
    "weights/load.py": ("test_checkpoint",),
    "weights/quantize.py": ("test_quantize",),
    "weights/packed.py": ("test_quantize",),
    "kernels/norm.py": ("test_norm", "test_families"),
    "kernels/activation.py": ("test_activation", "test_families"),
    "kernels/rope.py": ("test_rope", "test_properties"),
    "kernels/attention.py": ("test_attention", "test_properties"),
    "kernels/decode_attention.py": ("test_decode_attention", "test_properties"),
    "kernels/int4_packing.py": ("test_int4_packing",),
    "kernels/int4_cpu.py": ("test_int4_cpu",),
    "kernels/int4.py": ("test_int4",),
}
MEANINGLESS = {
    # file: {part of a line: why nobody could notice another number or operator in it}
    "llava_min/media/video.py": {
        "1 << 20": "bytes that are read at a time",
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
    },
    "llava_min/media/timeline.py": {
        "packets[order[-1]].duration or 0": "a demuxer of MP4 sets it",
        "self.durations.append(packet.duration or 0)": "demuxers set it",
        ", place = True, 0": "no packet of an MP4 lies in front of its first box",
    },
    "llava_min/image.py": {
        "PART = 2**22": "pixels that are resized at a time",
        "max(PART // (high - low), 1)": "rows that are resized at a time",
        "16_384": "a square that is made whole and one that is not are the same",
    },
    "llava_min/planning/memory.py": {
        "(2, 1024)": "sizes to work on at a time, found by measuring",
    },
    "llava_min/sampling.py": {
        "chosen > 0": "of 0 the quotient is the product",
    },
    "llava_min/engine/prefix.py": {
        "SAMPLE = 1024": "numbers of a fingerprint: more are as good",
        "[:16]": "digits of a fingerprint: one more is as good",
    },
    "llava_min/engine/rows.py": {
        "tensor[:, :, :, :1].clone()": "of what is kept only the first token is read",
    },
    "weights/packed.py": {
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


class Mutator(ast.NodeTransformer):
    """Changes the `wanted`-th place that can be changed, and counts them all.

    But for those inside `spans`: (line, first column, last column) of what means nothing.
    """

    def __init__(self, wanted: int, spans: Iterable[tuple[int, int, int]] = ()):
        self.wanted, self.spans = wanted, list(spans)
        self.count, self.left_out, self.line = 0, 0, 0

    def hit(self, node: ast.AST) -> bool:
        for line, first, last in self.spans:
            inside = first <= node.col_offset and node.end_col_offset <= last
            if node.lineno == node.end_lineno == line and inside:
                self.left_out += 1
                return False
        self.count += 1
        if self.count - 1 == self.wanted:
            self.line = node.lineno
            return True
        return False

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


def failure(copy: Path, files: Iterable[str], names: Iterable[str], seconds: int) -> str | None:
    """What fails in the copy of the examples in these files and of these tests, or None.

    A mutant that hangs fails, too.
    """
    examples = [str(Path("llava_min", file.removeprefix("llava_min/"))) for file in files]
    tests = [*examples, *(f"tests/{name}.py" for name in names)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"more than {seconds} seconds"
    ending = f"exit status {run.returncode}\n{run.stdout[-2000:]}"
    return ending if run.returncode else None


def survivor(copy: Path, file: str, wanted: int) -> str | None:
    """The place and line of a mutant that no test notices, or None where one does."""
    source = (ROOT / file).read_text()
    mutator = Mutator(wanted, meaningless(file))
    mutated = ast.unparse(ast.fix_missing_locations(mutator.visit(ast.parse(source))))
    (copy / file).write_text(mutated)
    alive = failure(copy, [file], TESTS[file], seconds=600) is None
    (copy / file).write_text(source)
    line = mutator.line
    return f"{file}:{line}: {source.splitlines()[line - 1].strip()}" if alive else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time (%(default)s)")
    parser.add_argument("--file", action="append", help="only files that end so; repeatable")
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
    start, survivors = time.time(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        copies = SimpleQueue()
        for index in range(given.jobs):
            copy = Path(folder) / str(index)
            ignored = shutil.ignore_patterns(".venv", ".git", "node_modules", "__pycache__", "*.pt")
            shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
            copies.put(copy)
        every_test = sorted({name for file in files for name in TESTS[file]})
        if found := failure(copy, files, every_test, seconds=3600):
            sys.exit(f"the tests fail without a mutant: {found}")

        def tried(mutant: tuple[str, int]) -> str | None:
            copy = copies.get()
            try:
                return survivor(copy, *mutant)
            finally:
                copies.put(copy)

        for done, found in enumerate(pool.map(tried, sorted(chosen)), start=1):
            if found is not None:
                survivors.append(found)
                print(f"\nsurvivor: {found}")
            left = (time.time() - start) / done * (len(chosen) - done)
            print(f"\r{done}/{len(chosen)}, {left / 60:.0f} min left ", end="", flush=True)
    print(
        f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants noticed (of {len(every)}, "
        f"without {left_out} that mean nothing)"
    )


if __name__ == "__main__":
    main()
