"""A process that follows: it loads its share of a model, and works for the leader until that ends.

in:  on its command line, the arguments of load() as JSON; a pipe from the leader as stdin
out: an exit code; a line on stderr where something is wrong

Read engine/followers.py first. Read next: engine/several.py.
"""

import json
import logging
import os
import signal
import sys
import threading

import torch

from .. import use_kernels
from ..errors import LlavaMinError, RankError
from .load import load


def main() -> None:
    """Load and follow. Ctrl-C is for the leader, which says most other things too."""
    threading.Thread(target=end_with_leader, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("llava_min").setLevel(logging.ERROR)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec.pop("threads"))
    use_kernels(spec.pop("kernels"))
    try:
        load(**spec)
    except SystemExit:
        code = 0
    except RankError as error:
        code = error.exit_code
    except LlavaMinError as error:
        rank = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        print(f"llava_min: error: {rank}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    os._exit(code)


def end_with_leader() -> None:
    """Wait until the leader's end of the pipe is closed, and end at once, whatever is going on."""
    os.read(0, 1)
    os._exit(0)
