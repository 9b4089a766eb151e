"""Work on a stream: several items at once, answers in order, never more than a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, TypeVar

_ItemT = TypeVar("_ItemT")
_ResultT = TypeVar("_ResultT")


async def run_in_order(
    items: AsyncIterator[_ItemT],
    work: Callable[[_ItemT], Awaitable[_ResultT]],
    deliver: Callable[[_ResultT], Awaitable[None]],
    *,
    bound: int,
) -> None:
    """Works on the items of a stream and delivers the results in the order of the items.

    An item is not read before there is room for it, and its room is free only
    when its result was delivered: a slow reader of results holds up the writer
    of items, through the transport's own flow control.

    Args:
        items: What to work on.
        work: Makes the result of one item; runs for up to ``bound`` items at once.
        deliver: Takes the results, one after another.
        bound: The most items that are worked on or wait for delivery.

    Raises:
        Exception: What ``items`` raised, after the results of the items before it were
            delivered; or at once what ``work`` or ``deliver`` raised. Whatever
            ends it, a cancellation included, ends the running work too.
    """
    room = asyncio.Semaphore(bound)
    running: asyncio.Queue[asyncio.Future[_ResultT] | None] = asyncio.Queue()
    started: set[asyncio.Future[Any]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for item in items:
                future = asyncio.ensure_future(work(item))
                started.add(future)
                future.add_done_callback(started.discard)
                running.put_nowait(future)
                await room.acquire()
        finally:
            running.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (future := await running.get()) is not None:
            await deliver(await future)
            room.release()
        await reader
    finally:
        await _cancel([reader, *started])


async def _cancel(futures: Collection[asyncio.Future[Any]]) -> None:
    """Cancels what is not done, and waits until it is."""
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
