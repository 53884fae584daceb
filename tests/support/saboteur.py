"""A follower that fails on purpose: which rank, where and how are in the variable SABOTAGE."""

import os
import signal
import time
from pathlib import Path

WORDS = os.environ.get("SABOTAGE", "").split()  # rank, place, way, and the file for the time


def fail() -> None:
    Path(WORDS[3]).write_text(str(time.time()))
    if WORDS[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if WORDS[2] == "memory":
        raise MemoryError
    if WORDS[2] == "exit":
        os._exit(11)


def main() -> None:
    from llava_min.engine import follower, leader
    from llava_min.weights import load

    if WORDS and os.environ["RANK"] == WORDS[0]:
        fill, run, look, steps = load.fill, leader.whole_stream, leader.Stage.look, []

        def filling(*given):
            if WORDS[1] == "loading":
                fail()
            return fill(*given)

        def running(decoder, rows, cache):
            steps.append(rows.shape[1])
            if WORDS[1] == "prefill" and steps[-1] > 1:
                fail()
            if WORDS[1] == "decode" and steps[-3:] == [1, 1, 1]:
                fail()
            return run(decoder, rows, cache)

        def looking(stage, tiles):
            if WORDS[1] == "tower":
                fail()
            return look(stage, tiles)

        load.fill, leader.whole_stream, leader.Stage.look = filling, running, looking
    follower.main()
