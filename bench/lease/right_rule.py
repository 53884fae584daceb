"""The 2x rule and what every run of a kernel under test is watched for.

in:  a Trial: how to call a kernel, its inputs, and the formula in plain torch
out: one row for each question: is it exact enough, does it hide NaN, does it repeat its bits
A kernel is exact enough where its error against float64 is at most twice that of plain torch in the
same dtype. While it runs, all memory that torch hands out is filled with NaN, so that a number that
the kernel forgets to write, or reads where nothing was written, is seen.
Read next: right_cases.py. The tests of the kernels use the same rule.
"""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llava_min.kernels import language

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


@dataclass
class Trial:
    """One kernel at one shape.

    call: runs the public function; what it returns or wrote, as a list
    inputs: tensors that it must not change; NaN is put into the first, at `spoilt` or in the middle
    formula: the same list by plain torch, in float64 (True) or in the dtype of the inputs (False)
    score: as in tests/support/kernel_checks.py, one float32 step of so many times the largest
        number
    changed: after a call, "" or what was written that should not have been
    launches: whether a kernel of ours must run; not where a product of the library does
    """

    kernel: str
    dtype: torch.dtype
    shape: str
    size: int
    call: Callable[[], list[Tensor]]
    inputs: list[Tensor]
    formula: Callable[[bool], list[Tensor]]
    score: float = 0.0
    spoilt: tuple[int, ...] = ()
    changed: Callable[[], str] = field(default=lambda: "")
    launches: bool = True

    def row(self, ok: bool, error: float, allowed: float, check: str, problem: str = "") -> dict:
        """The row of one question about this trial."""
        about = {"kernel": self.kernel, "dtype": name_of(self.dtype), "check": check}
        about |= {"shape": self.shape, "size": self.size, "ok": bool(ok and not problem)}
        about |= {"error": error, "allowed": allowed}
        return about | {"problem": problem} if problem else about


def name_of(dtype: torch.dtype) -> str:
    """float16 for torch.float16."""
    return str(dtype).removeprefix("torch.")


def allowed_error(by_torch: Tensor, exact: Tensor, dtype: torch.dtype, score: float) -> float:
    """Twice plain torch's error, and one rounding step of the largest number.

    >>> exact = torch.tensor([1.0], dtype=torch.float64)
    >>> allowed_error(exact.float() + 0.25, exact, torch.float16, 0.0)
    0.5009765625
    """
    step = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * score
    return 2 * largest_gap(by_torch, exact) + step * exact.abs().max().item()


def largest_gap(found: Tensor, exact: Tensor) -> float:
    """The largest difference, NaN where any number is NaN; a wrong shape differs by infinity."""
    if found.shape != exact.shape:
        return float("inf")
    return (found.double() - exact).abs().max().item()


def excess(pair: tuple[float, float]) -> float:
    """How many times the allowed error an error is; NaN is infinitely many."""
    error, allowed = pair
    if error == 0:
        return 0.0
    return error / allowed if allowed and error == error else float("inf")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits, those of NaN included."""
    kind = WORDS[one.element_size()]
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


@contextmanager
def poisoned():
    """Inside a `with` block new memory of torch is NaN, or the largest integer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library product that may not repeat its bits
        torch.set_deterministic_debug_mode("warn")  # which fills new memory
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode("default")


def watched(trial: Trial) -> tuple[list[Tensor], str]:
    """Run a trial over poisoned memory: its results, and "" or what it did that it must not do."""
    before = [tensor.clone() for tensor in trial.inputs]
    launches = language.launches.total()
    with poisoned():
        found = trial.call()
    if trial.launches and language.launches.total() == launches:
        return found, "no kernel was launched"
    if not all(map(same_bits, before, trial.inputs)):
        return found, "an input was changed"
    return found, trial.changed()


def is_right(trial: Trial) -> dict:
    """A row: the results by the 2x rule, the worst of them."""
    found, problem = watched(trial)
    pairs = [
        (largest_gap(one, exact), allowed_error(by_torch, exact, trial.dtype, trial.score))
        for one, by_torch, exact in zip(found, trial.formula(False), trial.formula(True))
    ]
    error, allowed = max(pairs, key=excess)
    return trial.row(error <= allowed, error, allowed, "2x rule", problem)


def shows_nan(trial: Trial) -> dict:
    """A row: with one NaN among the inputs the results are NaN where plain torch's are, only there.

    The error is the number of results that are not.
    """
    numbers = trial.inputs[0].view(-1)
    at = list(trial.spoilt or (len(numbers) // 2,))
    kept = numbers[at].clone()
    numbers[at] = torch.nan
    found, problem = watched(trial)
    expected = [x.isnan() for x in trial.formula(False)]
    wrong = sum(int((x.isnan() != y).sum()) for x, y in zip(found, expected, strict=True))
    if not sum(int(x.sum()) for x in expected):
        problem = problem or "plain torch hides the NaN too"
    numbers[at] = kept
    return trial.row(wrong == 0, wrong, 0, "NaN in, NaN out", problem)


def is_steady(trial: Trial, runs: int) -> dict:
    """A row: the same bits in every run. The error is the number of runs that differ."""
    first = [tensor.clone() for tensor in trial.call()]
    others = (trial.call() for _ in range(runs - 1))
    wrong = sum(not all(map(same_bits, first, other)) for other in others)
    return trial.row(wrong == 0, wrong, 0, f"the same bits in {runs} runs")
