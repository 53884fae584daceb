"""Running out of memory is an error of its own, on a CPU and on a GPU."""

import contextlib
import re
from collections.abc import Iterator

from ..errors import MemoryBudgetError

EXHAUSTED = re.compile("out of memory|can't allocate|not enough memory|bad_alloc")  # torch's words


@contextlib.contextmanager
def memory_guard(what: str) -> Iterator[None]:
    """MemoryBudgetError where the work inside runs out of memory, on the CPU or a GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not EXHAUSTED.search(str(error)):
            raise
        hint = "Try a smaller --dtype, fewer --frames or --max-tiles, or a shorter --max-tokens."
        raise MemoryBudgetError(f"cannot {what}", "memory", "enough", "no more", hint) from None
