"""How many threads of the CPU torch uses: those that were asked for, or one for each core.

in:  the number of --threads, or None
out: torch uses so many, in the whole process; -v says why

Read planning/devices.py first. Read next: command/main.py.
"""

import logging

log = logging.getLogger("llava_min")


def set_threads(chosen: int | None) -> None:
    """Let torch use so many threads of the CPU, by the rule of planning/devices.py."""
    import torch

    from ..planning import devices

    usual = torch.get_num_threads()
    count, reason = devices.threads(chosen, usual)
    if count != usual:
        torch.set_num_threads(count)
    log.debug("threads %d: %s", count, reason)
