"""Waiting for several things at once, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


async def gathered(
    jobs: Sequence[Callable[[], Coroutine[Any, Any, Result]]], at_once: int
) -> list[Result]:
    """Results in the order of the jobs; the first failure ends the others and is raised.

    Args:
        jobs: What is to be done.
        at_once: How many of them run at a time.
    """
    room = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        async with room:
            return await job()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(job)) for job in jobs]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
