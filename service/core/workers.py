"""Threads for what would block the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from service.core.stopping import stop_when

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


_Outcome = tuple[Any, BaseException | None]


def core_count() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Work:
    """A function, and the future of its caller's event loop that hears what became of it."""

    future: asyncio.Future[Any]
    context: contextvars.Context
    function: Callable[[], Any]

    def execute(self) -> None:
        """Runs the function, unless its caller has given up already."""
        if self.future.cancelled():
            return
        self.context.run(stop_when, _given_up(self.future))
        outcome = _outcome(self.context, self.function)
        with suppress(RuntimeError):  # the loop has ended, and its callers with it
            self.future.get_loop().call_soon_threadsafe(_settle, self.future, outcome)
        # The frames of an error keep this one, which is not to keep the error.
        del self, outcome


def _given_up(future: asyncio.Future[Any]) -> Callable[[], bool]:
    # Not the future itself: its error would hold the frames that hold the context that holds it.
    reference = weakref.ref(future)

    def given_up() -> bool:
        waited_for = reference()
        return waited_for is None or waited_for.cancelled()

    return given_up


def _outcome(context: contextvars.Context, function: Callable[[], Any]) -> _Outcome:
    try:
        return context.run(function), None
    # Whatever it is, the caller is to hear of it.
    except BaseException as error:
        return None, error


def stand_back(niceness: int) -> None:
    """Makes the running thread, and those that it will start, so much nicer.

    Does nothing elsewhere than on Linux, where it would be the whole process.
    """
    if niceness and sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it; what follows is only less prompt
            now = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, now + niceness)


def _settle(future: asyncio.Future[Any], outcome: _Outcome) -> None:
    result, error = outcome
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class WorkerThreads:
    """Threads that run functions for coroutines.

    Leaner than an executor: a visit costs one hand-over each way, without a second future that
    carries its outcome from thread to loop. The threads start with the first visit.

    Args:
        count: How many.
        name: Of the threads.
        niceness: How much they stand back for others while the cores are full; see ``stand_back``.
    """

    def __init__(self, count: int, name: str, *, niceness: int = 0) -> None:
        self._count = count
        self._name = name
        self._niceness = niceness
        self._under_way = 0
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._closed = False

    @property
    def under_way(self) -> int:
        """Functions whose callers wait for them."""
        return self._under_way

    async def run(
        self,
        function: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Runs a function in a thread.

        A caller that is cancelled takes back work that has not begun; work that has ends at its
        next ``checkpoint``.

        Raises:
            RuntimeError: The threads were closed.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        context = contextvars.copy_context()
        self._under_way += 1
        try:
            self._put(_Work(future, context, partial(function, *args, **kwargs)))
            return await future
        finally:
            self._under_way -= 1
            # An error that passes here keeps this frame, and the future keeps the error.
            del future

    def _put(self, work: _Work) -> None:
        if len(self._threads) < self._count:
            self._start()
        if self._closed:
            raise RuntimeError(f"threads {self._name} are closed")
        self._queue.put(work)

    def _start(self) -> None:
        with self._starting:
            while len(self._threads) < self._count and not self._closed:
                name = f"{self._name}-{len(self._threads)}"
                # Daemons: a program that forgets to close them ends all the same.
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self) -> None:
        stand_back(self._niceness)
        while (work := self._queue.get()) is not None:
            work.execute()
            # Until the next comes, nothing of this one is to be kept.
            del work

    def close(self) -> None:
        """Waits for all work that was given, and ends the threads. Closing twice is harmless.

        Work whose callers were cancelled is skipped.
        """
        with self._starting:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            thread.join()


class CodecWorkers(WorkerThreads):
    """Threads for decoding, resizing, rasterising, upsampling and encoding.

    Args:
        threads: How many.
        niceness: See ``WorkerThreads``.
    """

    def __init__(self, threads: int, niceness: int = 0) -> None:
        super().__init__(threads, "codec", niceness=niceness)
