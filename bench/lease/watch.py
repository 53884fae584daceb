"""A stage as its parent sees it: the process, what it prints, and the task that it is at.

in:  a forked stage      out: log.txt, and what the journal says of its tasks
Read next: table.py.
"""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from . import child, table
from .place import BETWEEN, ROWS, Found, Place, lines_of

LOG_BYTES = 15 * 2**20


class Log:
    """Everything that is printed, each line with the seconds since the start, up to LOG_BYTES."""

    def __init__(self, path: Path, start: float):
        self.file, self.start, self.rest = path.open("ab"), start, b""

    def feed(self, data: bytes) -> None:
        """Write the whole lines of what was printed so far."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if self.file.tell() < LOG_BYTES:
                self.file.write(f"{time.monotonic() - self.start:8.2f} ".encode() + line + b"\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """A line of this process: into the log, and to whoever reads along."""
        self.feed(b"\n" if self.rest else b"")
        self.feed(text.encode() + b"\n")
        with suppress(OSError):  # nobody reads along any more: the files are what counts
            print(f"{time.monotonic() - self.start:7.1f} s  {text}", flush=True)


class Tail:
    """The lines that a journal got since they were last asked for."""

    def __init__(self, path: Path):
        self.path, self.place = path, path.stat().st_size

    def new(self) -> list[dict]:
        """Those lines, parsed; half a line waits for its end."""
        with self.path.open("rb") as file:
            file.seek(self.place)
            whole = file.read().rpartition(b"\n")
        self.place += len(whole[0]) + len(whole[1])
        return lines_of(whole[0])


class Stage:
    """A stage that runs: its process, what it prints, and the task that it is at."""

    def __init__(self, name: str, module: str, place: Place, found: Found, device: str):
        self.name, self.tail = name, Tail(place.out / ROWS)
        self.output, writing = os.pipe()
        self.process = child.fork(lambda: child.stage(name, module, place, found, device), writing)
        os.close(writing)
        os.set_blocking(self.output, False)
        self.key, self.since = BETWEEN, time.monotonic()
        self.clean = 0  # tasks that did not end the process
        self.gone = False

    def follow(self, log: Log) -> None:
        """Read what came, and wait a little where nothing did."""
        if select.select([self.output], [], [], 0.1)[0]:
            with suppress(BlockingIOError):
                while data := os.read(self.output, 65536):
                    log.feed(data)
                time.sleep(0.02)  # it is closed: the process is about to end
        for line in self.tail.new():
            if line.get("line") == "begun":
                self.key, self.since = line["key"], time.monotonic()
            elif line.get("line") == "done":
                self.key, self.since = BETWEEN, time.monotonic()
                self.clean += "broken" not in line
                log.say(f"{self.name}: {line['key']} {line.get('broken') or ''}".rstrip())
            elif line.get("ok") is False:
                log.say(f"{self.name}: WRONG: {table.wrong(line)}")

    def ended(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        self.gone = bool(process)
        return os.waitstatus_to_exitcode(status) if process else None

    def tell(self, log: Log) -> None:
        """Have the process print where it is."""
        with suppress(ProcessLookupError):
            os.kill(self.process, child.WHERE)
        for _ in range(3):
            self.follow(log)

    def kill(self) -> None:
        """End the process and its group."""
        try:
            os.killpg(self.process, signal.SIGKILL)
        except ProcessLookupError:  # it has not come to lead a group yet, or nothing is left of it
            if not self.gone:
                os.kill(self.process, signal.SIGKILL)

    def close(self, log: Log) -> None:
        """End what is left of the group, and read what is left of its words."""
        self.kill()
        self.follow(log)
        os.close(self.output)
