"""The processes that follow: started here on one machine, watched, and never left behind.

in:  what load() was asked for, and how many ranks there are
out: processes that run engine/follower.py, as ranks from 1 on

A follower has a session of its own,
so that Ctrl-C in a terminal reaches the leader alone, and a pipe from the leader, which is closed
when the leader ends in whatever way: then it ends too. The leader watches each follower. If one
ends, everything ends, with its exit code where it is one of ours, and with one line.
Read engine/ranks.py first. Read next: engine/follower.py.
"""

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

CODE = "from llava_min.engine.follower import main; main()"
STORE = "LLAVA_MIN_STORE"  # the file through which ranks that were started here meet
OURS = range(2, 8)  # exit codes after which the follower itself has said why


class Followers:
    """The ranks from 1 on, as processes of this machine."""

    def __init__(self, count: int, spec: Mapping[str, object]):
        self.folder, self.ending = tempfile.mkdtemp(prefix="llava_min-"), threading.Lock()
        self.store = os.path.join(self.folder, "store")
        atexit.register(self.end)
        self.children = [self.start(rank, count, json.dumps(spec)) for rank in range(1, count)]
        for rank, child in enumerate(self.children, start=1):
            threading.Thread(target=self.watch, args=(rank, child), daemon=True).start()

    def start(self, rank: int, count: int, spec: str) -> subprocess.Popen[bytes]:
        """One follower."""
        ours = str(Path(__file__).parent.parent.parent)
        told = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, STORE: self.store}
        paths = [ours, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {name: str(value) for name, value in told.items()}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return subprocess.Popen(
            [sys.executable, "-c", CODE, spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def watch(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a follower, and end everything unless it was time."""
        code = child.wait()
        if not self.ending.acquire(blocking=False):
            return
        if code not in OURS:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
            line = f"rank {rank} of {len(self.children) + 1} {how}: the others cannot go on."
            with contextlib.suppress(OSError):
                print(f"\nllava_min: error: {line}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self.stop(seconds=0)
        os._exit(code if code in OURS else 1)

    def end(self) -> None:
        """Let all followers end, and wait for them."""
        if self.ending.acquire(blocking=False):
            self.stop(seconds=3)

    def stop(self, seconds: float) -> None:
        """Close the pipes, and after so many seconds kill."""
        for child in self.children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        until = time.monotonic() + seconds
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
            child.kill()
            child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
