"""From the model's thread to the event loop: nothing is lost or overtaken, and the loop sleeps."""

import asyncio
import threading
from collections import deque

from llava_min.serve.outbox import Outbox


class Calls:
    """An event loop that remembers what it is to call, and calls it when told."""

    def __init__(self):
        self.calls = []

    def call_soon_threadsafe(self, call):
        self.calls.append(call)

    def run(self):
        """All that was to be called: how many calls it was."""
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        return len(calls)


class Queue(list):
    """A queue; `then` is called with each thing that is put into it."""

    def __init__(self, then=lambda thing: None):
        self.then = then

    def put_nowait(self, thing):
        self.append(thing)
        self.then(thing)


def test_the_loop_is_woken_once_for_all_that_comes_until_it_looks():
    loop, one, other = Calls(), Queue(), Queue()
    outbox = Outbox(loop)
    for number in range(8):
        outbox.put((one, other)[number % 2], number)
    assert not one and not other  # not in the thread that puts
    assert loop.run() == 1
    assert one == [0, 2, 4, 6] and other == [1, 3, 5, 7]
    assert loop.run() == 0
    outbox.put(one, 8)
    assert loop.run() == 1 and one[-1] == 8


def test_what_comes_while_the_loop_looks_is_not_left():
    loop = Calls()
    outbox = Outbox(loop)
    queue = Queue(lambda thing: thing < 3 and outbox.put(queue, thing + 1))
    outbox.put(queue, 0)
    while loop.run():
        pass
    assert queue == [0, 1, 2, 3]


def test_what_comes_after_the_loop_found_nothing_wakes_it_again():
    loop, queue = Calls(), Queue()
    outbox = Outbox(loop)

    class Things(deque):
        late = [1]

        def __bool__(self):
            some = len(self) > 0
            if not some and self.late:
                outbox.put(queue, self.late.pop())
            return some

    outbox.things = Things()
    outbox.put(queue, 0)
    while loop.run():
        pass
    assert queue == [0, 1]


def test_threads_lose_nothing_and_keep_their_order():
    async def received(count=2_000, threads=3):
        outbox = Outbox(asyncio.get_running_loop())
        queues = [asyncio.Queue() for _ in range(threads)]

        def put(queue):
            for number in range(count):
                outbox.put(queue, number)

        for queue in queues:
            threading.Thread(target=put, args=(queue,), daemon=True).start()
        async with asyncio.timeout(60):
            return [[await queue.get() for _ in range(count)] for queue in queues]

    found = asyncio.run(received())
    assert all(numbers == list(range(2_000)) for numbers in found)


def test_nobody_minds_a_closed_loop():
    loop = asyncio.new_event_loop()
    loop.close()
    Outbox(loop).put(Queue(), 1)
