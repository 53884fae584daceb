"""Decoding in int4 by plain torch, as any device does it, beside what was done before: on a CPU.

    python -m bench devices --models 0.5B --context 200

`before` packs weights in Triton's words, multiplies whole layers of them out by the formula, and
decodes by the formula, which makes the keys and values wide: what a device without kernels got.
`cpu` is the same model by the operators that torch has for this processor. All three take turns in
one process.
Read cpu.py first. Read next: load.py.
"""

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from llava_min.kernels import choose, decode_attention, int4, int4_packing

from . import checkpoints, cpu, ledger

AGAINST = "before"


def words_of_triton(q, scales):
    """Codes and scales laid out as kernels of Triton read them."""
    return int4_packing.pack(q), scales.T.contiguous()


def by_the_formula(query, layer):
    """Attention of one new token, of keys and values that are multiplied out first."""
    key, value = layer.keys_and_values(query.shape[1], query.dtype)
    return decode_attention.decode_formula(query, key, value, layer.lengths)


@contextmanager
def before():
    """Inside a `with` block, weights are laid out and the cache is read as they were."""
    with (
        choose.using("reference"),
        patch.object(int4, "repack", words_of_triton),
        patch.object(decode_attention, "decode_torch", by_the_formula),
    ):
        yield


WAYS = {
    AGAINST: before,
    "reference": lambda: choose.using("reference"),
    "cpu": lambda: choose.using("auto"),
}


class Way:
    """The model of a folder, loaded and run inside one of WAYS."""

    def __init__(self, folder: Path, name: str):
        self.way = WAYS[name]
        with self.way():
            self.model = cpu.Ours(folder, "int4")

    def decode(self, context: int):
        with self.way():
            steps = self.model.decode(context)

        def within():
            with self.way():
                steps()

        return within


def run(shape: str, contexts, pairs: int, out: Path) -> Path:
    """A row for each way and context, written as it comes."""
    path, folder = out / "devices-cpu.jsonl", checkpoints.folder_of(shape)
    ways = {name: Way(folder, name) for name in WAYS}
    for context in contexts:
        times = cpu.measured("decode", context, ways, pairs)
        rows = [row(shape, context, name, times) for name in times]
        ledger.keep(path, rows)
        for one in rows:
            print(f"{context:6} {one['name']:10} {one['per_second']:8.2f} tokens/s", end="")
            print(f" {one['ratio']:6.2f}x", flush=True)
    return path


def row(shape: str, context: int, name: str, times: dict[str, list[float]]) -> dict:
    """Tokens per second of one way, and how many times as fast as before, turn by turn."""
    p20, p50, p80 = ledger.spread(times[name])
    ratios = ledger.spread([a / b for a, b in zip(times[AGAINST], times[name])])
    return {
        "section": "decode",
        "shape": shape,
        "context": context,
        "name": name,
        "format": "int4",
        "seconds": p50,
        "p20": p20,
        "p80": p80,
        "per_second": cpu.STEPS / p50,
        "pairs": len(times[name]),
    } | dict(zip(("ratio_p20", "ratio", "ratio_p80"), ratios))
