import asyncio

import pytest

from service.api.pipeline import run_in_order


class Trace:
    """Items that are read, worked on and delivered, under a test's control."""

    def __init__(self, count):
        self.count = count
        self.read = 0
        self.running = 0
        self.most = 0
        self.cancelled = 0
        self.delivered = []

    async def items(self):
        for item in range(self.count):
            self.read += 1
            yield item

    async def work(self, item):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            # The first ones take longest, so that results come in the wrong order.
            await asyncio.sleep(0.002 * (self.count - item))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return item

    async def deliver(self, result):
        self.delivered.append(result)


async def test_results_come_in_order_and_work_overlaps():
    trace = Trace(8)
    await run_in_order(trace.items(), trace.work, trace.deliver, bound=4)
    assert trace.delivered == list(range(8))
    assert trace.most == 4


async def test_an_empty_stream_delivers_nothing():
    trace = Trace(0)
    await run_in_order(trace.items(), trace.work, trace.deliver, bound=2)
    assert trace.delivered == []


async def test_a_reader_of_results_that_stands_still_holds_up_the_items():
    trace = Trace(10)
    first = asyncio.Event()

    async def deliver(result):
        first.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(run_in_order(trace.items(), trace.work, deliver, bound=3))
    await first.wait()
    await asyncio.sleep(0.05)
    assert trace.read == 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_broken_stream_delivers_what_came_before():
    trace = Trace(3)

    async def broken():
        async for item in trace.items():
            yield item
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_in_order(broken(), trace.work, trace.deliver, bound=2)
    assert trace.delivered == [0, 1, 2]


async def test_a_failed_delivery_ends_the_work():
    trace = Trace(6)

    async def deliver(result):
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_in_order(trace.items(), trace.work, deliver, bound=3)
    assert trace.running == 0


async def test_cancelling_cancels_what_runs():
    trace = Trace(4)

    async def work(item):
        try:
            trace.running += 1
            await asyncio.Event().wait()
        finally:
            trace.running -= 1
            trace.cancelled += 1

    running = asyncio.create_task(run_in_order(trace.items(), work, trace.deliver, bound=3))
    await asyncio.sleep(0.01)
    assert trace.running == 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (trace.running, trace.cancelled) == (0, 3)
