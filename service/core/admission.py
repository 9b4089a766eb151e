"""Who may run now, who waits, and who is told to come back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from service.core.calls import Call, deadline_exceeded
from service.core.ports import Telemetry
from service.core.refusals import overloaded, stopping
from service.core.timing import Stage


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A request in a queue, and the future that hears of its turn."""

    turn: asyncio.Future[None]
    call: Call


_Queue = deque[_Waiter]

#: Weight of the newest request in the running mean of service times.
_SMOOTHING = 0.1
#: One request counts in that mean as no longer than so many of the usual ones: among queries of
#: milliseconds, a registration of many images says nothing of the next query.
_MOST_OF_ONE = 4.0
#: A queue may move so many times slower than it has lately. Late answers are answers in vain.
_CAUTION = 1.5
#: Seconds; who comes back sooner finds the same queue.
_SOONEST_RETRY = 0.05


class Admission:
    """Slots for requests that run, and two queues, each first come first served.

    Single calls wait in a bounded queue: one that cannot be served in time is
    refused at the door, where it costs nothing, instead of after it has waited.
    Frames of streams wait in a queue of their own, bounded by the streams
    themselves, which push back on their clients. Free slots go to the queues in
    turn, so that neither shuts the other out.

    Args:
        slots: Requests that run at once.
        in_flight: Single calls that run or wait; one more is refused.
        queue_seconds: The longest wait of a single call.
        telemetry: Is told where to ask how many requests are in flight.
    """

    def __init__(
        self, *, slots: int, in_flight: int, queue_seconds: float, telemetry: Telemetry
    ) -> None:
        self._free = slots
        self._slots = slots
        self._places = max(0, in_flight - slots)
        self._queue_seconds = queue_seconds
        self._calls: _Queue = deque()
        self._frames: _Queue = deque()
        self._frames_next = False
        self._service_seconds = 0.05
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        telemetry.watch_in_flight(lambda: self.in_flight)

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return self._slots - self._free + len(self._calls) + len(self._frames)

    def check(self, call: Call) -> None:
        """Refuses a single call that ``slot`` would refuse now, before anything is made of it.

        Raises:
            ResourceExhaustedError: The queue is full or too long (OVERLOADED).
            UnavailableError: The server is stopping (STOPPING).
        """
        if self._closed:
            raise stopping()
        if self._free == 0:
            self._refuse_if_hopeless(call)

    @asynccontextmanager
    async def slot(self, call: Call, *, patient: bool = False) -> AsyncIterator[None]:
        """Holds a slot for the body.

        Args:
            call: Waits no longer than its deadline; its clock gets the QUEUE stage.
            patient: Never refused for a full queue: for streams, whose frames
                are bounded by themselves and push back on their client.

        Raises:
            ResourceExhaustedError: The queue is full or too long (OVERLOADED).
            DeadlineExceededError: The deadline passed while waiting; or it leaves too little time
                for the work when the turn comes, and others wait.
            UnavailableError: The server is stopping (STOPPING).
        """
        with call.clock.measure(Stage.QUEUE):
            await self._acquire(call, patient)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._learn(time.perf_counter() - started)
            self._release()

    def _learn(self, took: float) -> None:
        counted = min(took, _MOST_OF_ONE * self._service_seconds)
        self._service_seconds += _SMOOTHING * (counted - self._service_seconds)

    async def _acquire(self, call: Call, patient: bool) -> None:
        if self._closed:
            raise stopping()
        self._idle.clear()
        if self._free > 0:
            self._free -= 1
            return
        if not patient:
            self._refuse_if_hopeless(call)
        await self._wait(call, patient)

    def _refuse_if_hopeless(self, call: Call) -> None:
        sharing = 2 if self._frames else 1
        expected = (len(self._calls) + 1) * sharing * self._service_seconds / self._slots
        remaining = call.remaining()
        if (
            len(self._calls) >= self._places
            or expected > self._queue_seconds
            or (remaining is not None and _CAUTION * (expected + self._service_seconds) > remaining)
        ):
            raise overloaded(max(expected, _SOONEST_RETRY))

    async def _wait(self, call: Call, patient: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(turn, call)
        queue = self._frames if patient else self._calls
        queue.append(waiter)
        limits = [call.remaining(), None if patient else self._queue_seconds]
        timeout = min((limit for limit in limits if limit is not None), default=None)
        try:
            async with asyncio.timeout(timeout):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # The slot was handed over in the moment the caller gave up.
                self._release()
            else:
                with suppress(ValueError):  # a release may have skipped it already
                    queue.remove(waiter)
            if isinstance(error, TimeoutError):
                raise self._waited_too_long(call) from None
            raise

    def _waited_too_long(self, call: Call) -> Exception:
        if call.remaining() == 0.0:
            return deadline_exceeded()
        return overloaded(max(self._service_seconds, _SOONEST_RETRY))

    def _release(self) -> None:
        while (waiter := self._next_waiter()) is not None:
            if waiter.turn.done():
                continue
            if (self._calls or self._frames) and self._too_late(waiter.call):
                # Those behind it can still be answered in time.
                waiter.turn.set_exception(deadline_exceeded())
                continue
            waiter.turn.set_result(None)
            return
        self._free += 1
        if self.in_flight == 0:
            self._idle.set()

    def _too_late(self, call: Call) -> bool:
        remaining = call.remaining()
        return remaining is not None and remaining < self._service_seconds

    def _next_waiter(self) -> _Waiter | None:
        queues = (self._frames, self._calls) if self._frames_next else (self._calls, self._frames)
        for queue in queues:
            if queue:
                self._frames_next = queue is self._calls
                return queue.popleft()
        return None

    async def drain(self, seconds: float) -> bool:
        """Admits nobody from now on; returns whether all were done in time."""
        self._closed = True
        if self.in_flight == 0:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
