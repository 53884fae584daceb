"""How attention on a CPU is cut into blocks: sizes alone, which a plan asks for too.

in:  new tokens, all tokens, heads of a group
out: blocks, each with the keys that it sees and multiplies; the bytes that are written out

oneDNN makes code for each size of a product, in half a millisecond and half a megabyte. So prompts
of any length are multiplied in few sizes: blocks of 2^n tokens, the last of which may begin before
the one before it ends, and keys up to the next multiple of a step, with zeros behind the last one.
No torch here: a plan is made before torch is imported.
Read kernels/onednn.py first. Read next: kernels/attention_cpu.py.
"""

from collections.abc import Iterator

SCORES = 2**20  # that are held at a time: 4 MB, and 2 MB more as weights of 16 bits
CAUSAL_ROWS = 512  # of a block that is causal: half of the scores of its own tokens are for nothing
LEAST_ROWS = 64  # of a block, whatever is held then
STEP = 128  # keys, by which their numbers differ; of more than 16 steps an eighth at least
LEAST = 2**17  # tokens times tokens that they see, below which flash attention is as fast


def power_below(number: int) -> int:
    """The largest 2^n that is at most a number.

    >>> power_below(1), power_below(73), power_below(128)
    (1, 64, 128)
    """
    return 1 << (number.bit_length() - 1)


def rows_with(keys: int) -> int:
    """How many rows of so many scores are held at a time."""
    return max(SCORES // keys, LEAST_ROWS)


def block_of(groups: int, keys: int) -> int:
    """How many tokens are a block, each of which is `groups` rows of so many scores: 2^n.

    >>> block_of(7, 1500), block_of(1, 1500), block_of(7, 2**30)
    (64, 512, 8)
    """
    return power_below(max(1, min(rows_with(keys), CAUSAL_ROWS) // groups))


def stepped(keys: int) -> int:
    """The next number of keys that is a multiple of a step.

    >>> stepped(1), stepped(1500), stepped(3000), stepped(100_000)
    (128, 1536, 3072, 106496)
    """
    step = max(STEP, 1 << (keys - 1).bit_length() >> 4)
    return -(-keys // step) * step


def blocks_of(groups: int, new: int, stop: int, causal: bool) -> Iterator[tuple[slice, int, int]]:
    """(tokens, keys before the first one's own, keys) of each block of the newest of `stop`.

    Of one that is not causal every token sees all keys.

    >>> [(t.start, t.stop, seen, used) for t, seen, used in blocks_of(7, 100, 300, True)]
    [(0, 64, 200, 384), (36, 100, 236, 384)]
    """
    if not causal:
        size = max(1, rows_with(stop) // groups)
        yield from ((slice(s, min(s + size, new)), stop, stop) for s in range(0, new, size))
        return
    size = min(block_of(groups, stop), power_below(new))
    for first in range(0, new, size):
        start = min(first, new - size)
        yield slice(start, start + size), stop - new + start, stepped(stop - new + start + size)


def written(groups: int, head_dim: int, new: int, stop: int, size: int) -> int:
    """Bytes that causal attention of numbers of `size` bytes holds beside its arguments and result.

    Scores in float32 become weights of 16 bits, where size is 2; keys in float32 and values of a
    head, and what oneDNN makes of these; rows of queries, and the mask of a block. Chunks before
    may have had larger blocks.
    """
    most = power_below(new)
    tokens = min(block_of(groups, stop), most)
    rows, keys = groups * tokens, stepped(stop)
    earlier = min(SCORES, groups * min(block_of(groups, 1), most) * stop)
    scores = max(rows * keys, earlier) * (4 + size % 4)
    return scores + keys * head_dim * (4 + 2 * size) + rows * head_dim * 4 + tokens**2 * 4
