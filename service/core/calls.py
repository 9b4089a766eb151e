"""One request, as the core sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.core.errors import DeadlineExceededError
from service.core.ports import Telemetry
from service.core.timing import StageClock

Result = TypeVar("Result")


@dataclass(slots=True)
class Call:
    """What travels with a request through the core.

    Attributes:
        clock: Adds up where the time goes.
        deadline: ``time.monotonic()`` after which the answer is worthless; None for never.
    """

    clock: StageClock = field(default_factory=StageClock)
    deadline: float | None = None

    def detached(self) -> Call:
        """A call of the same clock without a deadline, for work that outlives its first caller."""
        return Call(clock=self.clock)

    def remaining(self) -> float | None:
        """Seconds until the deadline, never negative; None for no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def deadline_exceeded() -> DeadlineExceededError:
    """The error of a call whose time is over."""
    return DeadlineExceededError(
        "DEADLINE_EXCEEDED", "The deadline passed before the answer was ready."
    )


async def finished(work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits work that must not be left half-way: a caller that gives up waits for its end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


@asynccontextmanager
async def running(call: Call, telemetry: Telemetry) -> AsyncIterator[None]:
    """Holds the body to the call's deadline, and reports its stages soon after it ends.

    The event loop reports them in its next turn: the answer that is ready by then leaves first.

    Raises:
        DeadlineExceededError: The deadline passed; the body was cancelled.
    """
    loop = asyncio.get_running_loop()
    try:
        # asyncio's clock is time.monotonic().
        async with asyncio.timeout_at(call.deadline) as scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise deadline_exceeded() from None
        raise
    finally:
        loop.call_soon(_report, call.clock, telemetry)


def _report(clock: StageClock, telemetry: Telemetry) -> None:
    for stage, seconds in clock.seconds.items():
        telemetry.stage(stage, seconds)
