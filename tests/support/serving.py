"""A server as its own process, for the tests of what clients see."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY = re.compile(r"ready at (http://\S+)/v1")
SECONDS = 300


def hear_ctrl_c() -> None:
    """In the child: what runs in the background of a shell ignores SIGINT otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """`llava-min serve` on a free port; `log` is what it wrote so far."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "llava_min", "serve", "--port", "0", *options]
        self.child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_ctrl_c,
        )
        self.log, self.found = "", threading.Event()
        self.address = ""
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.found.wait(SECONDS)
        assert self.address, self.log

    def read(self) -> None:
        for line in self.child.stderr:
            self.log += line
            if ready := READY.search(line):
                self.address = ready[1]
                self.found.set()
        self.found.set()

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.child.send_signal(sign)
        code = self.child.wait(SECONDS)
        self.reader.join(SECONDS)
        return code


@contextlib.contextmanager
def process(*options: str) -> Iterator[Process]:
    """A server that is stopped in the end."""
    running = Process(*options)
    try:
        yield running
    finally:
        running.stop(signal.SIGKILL)


@contextlib.contextmanager
def server(*options: str) -> Iterator[str]:
    """The address of a server: http://127.0.0.1:PORT."""
    with process(*options) as running:
        yield running.address
