"""The one thread in which the model works, and through which every request gets its events.

in:  prompts that are ready, from any thread
out: each prompt's events, handed to its listener, and at the end None or what went wrong

The thread runs the rounds of engine/slots.py. Between two rounds it takes what came: new questions,
and the end of those whose client is gone, whose work so stops within one portion.
Read engine/slots.py first. Read next: serve/app.py.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..engine.answers import Event
from ..engine.rules import Rule
from ..engine.slots import Asked, Slots
from ..options import Options
from ..request.prepare import Prepared
from .errors import STOPPING, STUCK, Refusal, refusal_of

log = logging.getLogger("llava_min")
PATIENCE = 120.0  # seconds of one round after which the server is not healthy


@dataclass(eq=False)
class Job:
    """A question on its way through the worker.

    listen: called in the worker's thread with each event. end: called once, with None after the
    last event or with what went wrong. ends: ids that end the answer.
    """

    prepared: Prepared
    options: Options
    listen: Callable[[Event], None]
    end: Callable[[Exception | None], None]
    rules: Iterable[Rule] = ()
    ends: tuple[int, ...] = ()
    began: float = field(default_factory=time.perf_counter)
    asked: Asked | None = None
    cancelled: bool = False


class Worker(threading.Thread):
    """Runs the slots; `jobs` are the questions that have not ended."""

    def __init__(self, slots: Slots) -> None:
        super().__init__(name="model", daemon=True)
        self.slots = slots
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.jobs: dict[Asked, Job] = {}
        self.idle: deque[Callable[[], None]] = deque()  # work for when no slot is busy
        self.round_began: float | None = None  # time.monotonic(), while one runs
        self.stopped = False  # told to end
        self.over = False  # the thread has ended: whoever submits ends the job
        self.why: Refusal = STOPPING  # what jobs without an answer are told

    # Called from any thread --------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self.commands.put(lambda: self.begin(job))
        if self.over:
            self.take_commands()

    def cancel(self, job: Job) -> None:
        """Forget a job that may have ended already; nothing more is heard of it."""
        job.cancelled = True
        self.commands.put(lambda: self.forget(job))

    def when_idle(self, work: Callable[[], None]) -> None:
        """Do something else with the model once no slot is busy; it must not raise."""
        self.commands.put(lambda: self.idle.append(work))

    def stop(self) -> None:
        """End all jobs, and the thread."""
        self.stopped = True
        self.commands.put(lambda: None)

    @property
    def healthy(self) -> bool:
        """Whether the thread works, and its round has not taken too long."""
        began, works = self.round_began, self.is_alive() and not self.stopped
        return works and (began is None or time.monotonic() - began < PATIENCE)

    # In the worker's thread -----------------------------------------------------------

    def run(self) -> None:
        """What the thread does: rounds and commands until `stop`, or a mistake of ours."""
        try:
            while not self.stopped:
                self.take_commands()
                if self.slots.busy and not self.stopped:
                    self.round_began = time.monotonic()
                    for asked in self.slots.round():
                        self.ended(asked)
                    self.round_began = None
                elif self.idle and not self.stopped:
                    self.idle.popleft()()
        except Exception as error:  # a mistake of ours: /health tells that nobody works any more
            log.error("the model's thread ended", exc_info=error)
            self.why = STUCK
        finally:
            self.finish()

    def take_commands(self) -> None:
        """Do all that came; where there is nothing else to do, wait for something."""
        waiting = not (self.slots.busy or self.idle or self.stopped)
        while True:
            try:
                command = self.commands.get(block=waiting)
            except queue.Empty:
                return
            command()
            waiting = False

    def begin(self, job: Job) -> None:
        """Give a job to the slots, or end it at once where it cannot begin."""
        if job.cancelled:
            return
        if self.stopped:
            job.end(self.why)
            return
        try:
            job.asked = self.slots.submit(
                job.prepared, job.options, job.began, job.listen, job.rules
            )
        except Exception as error:  # such as a grammar that cannot be followed
            self.tell(job, error)
        else:
            self.jobs[job.asked] = job
            job.prepared = job.prepared.without_media()  # the slots have them
            job.asked.reply.eos = job.ends

    def forget(self, job: Job) -> None:
        """Let the slots stop a job, unless it has ended."""
        if job.asked in self.jobs:
            self.slots.cancel(job.asked)
            del self.jobs[job.asked]

    def ended(self, asked: Asked) -> None:
        """Tell the end of a job."""
        job = self.jobs.pop(asked, None)
        if job is not None:
            self.tell(job, asked.error)

    def tell(self, job: Job, error: Exception | None) -> None:
        """End a job. A mistake of ours goes to the log, because its client gets no details."""
        if error is not None and refusal_of(error).code == "internal_error":
            log.error("a question failed", exc_info=error)
        job.end(error)

    def finish(self) -> None:
        """End every job with `why`, also those that come from now on."""
        self.stopped = True
        for asked, job in list(self.jobs.items()):
            self.slots.cancel(asked)
            job.end(self.why)
        self.jobs.clear()
        self.over = True
        self.take_commands()
