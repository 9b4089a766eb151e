"""Threads that run functions for coroutines."""

import asyncio
import contextvars
import gc
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.core.settings import CoreSettings
from service.core.stopping import StoppedError, checkpoint
from service.core.workers import CodecWorkers, WorkerThreads

NAME = "test-worker"
VARIABLE = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def threads():
    threads = WorkerThreads(1, NAME)
    yield threads
    threads.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="every core may be used here")
def test_a_process_that_is_bound_to_some_cores_counts_these_alone(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8})
    settings = CoreSettings()
    assert (settings.codec_threads, settings.slots) == (3, 6)


async def test_what_a_function_returns_or_raises_reaches_its_caller(threads):
    def raising():
        raise KeyError("mine")

    assert await threads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(KeyError, match="mine"):
        await threads.run(raising)
    assert await threads.run(threading.current_thread) is not threading.current_thread()


async def test_a_function_sees_the_context_of_its_caller(threads):
    VARIABLE.set("set")
    assert await threads.run(VARIABLE.get) == "set"
    await threads.run(VARIABLE.set, "changed")
    assert VARIABLE.get() == "set"


async def test_work_that_has_not_begun_is_taken_back(threads):
    begun, let_go = threading.Event(), threading.Event()

    def holding():
        begun.set()
        assert let_go.wait(30)

    ran = []
    busy = asyncio.create_task(threads.run(holding))
    await asyncio.to_thread(begun.wait, 30)
    waiting = asyncio.create_task(threads.run(ran.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    let_go.set()
    await busy
    await threads.run(ran.append, 2)
    assert ran == [2]


async def test_work_that_has_begun_ends_at_its_next_checkpoint(threads):
    begun, let_go, ended = threading.Event(), threading.Event(), threading.Event()

    def working():
        begun.set()
        assert let_go.wait(30)
        try:
            checkpoint()
        except StoppedError:
            ended.set()
            raise

    task = asyncio.create_task(threads.run(working))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    let_go.set()
    assert await asyncio.to_thread(ended.wait, 30)


async def test_an_error_and_its_frames_are_no_cycle(threads):
    class Pixels:
        pass

    kept = []

    def raising():
        pixels = Pixels()
        kept.append(weakref.ref(pixels))
        raise ValueError("mine")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="mine"):
            await threads.run(raising)
        await threads.run(int)
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_closing_waits_for_what_was_given_and_leaves_no_thread():
    threads = WorkerThreads(2, NAME)
    ran = []
    given = [asyncio.create_task(threads.run(ran.append, number)) for number in range(5)]
    await asyncio.sleep(0)
    threads.close()
    threads.close()
    await asyncio.gather(*given)
    assert sorted(ran) == list(range(5))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(NAME)]
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(int)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
async def test_threads_that_compute_stand_back_for_the_event_loop():
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def of_a_thread_of_its_own():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(niceness).result()

    before = niceness()
    threads = WorkerThreads(1, NAME, niceness=3)
    try:
        assert await threads.run(niceness) == min(19, before + 3)
        assert await threads.run(of_a_thread_of_its_own) == min(19, before + 3)
    finally:
        threads.close()
    assert niceness() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
async def test_a_sandbox_that_forbids_niceness_costs_no_thread(monkeypatch):
    def forbidden(*anything):
        raise PermissionError("no")

    monkeypatch.setattr(os, "getpriority", forbidden)
    threads = CodecWorkers(1, niceness=3)
    try:
        async with asyncio.timeout(5):
            assert await threads.run(int) == 0
    finally:
        threads.close()
