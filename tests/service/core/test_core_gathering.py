# SPDX-License-Identifier: Apache-2.0
"""Waiting for several things at once."""

import asyncio
from functools import partial

import pytest

from service.core.gathering import gathered


async def test_results_come_in_order_and_few_jobs_run_at_a_time():
    running, most = 0, 0

    async def job(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5 - number):
            await asyncio.sleep(0)
        running -= 1
        return number

    assert await gathered([partial(job, number) for number in range(5)], 2) == [0, 1, 2, 3, 4]
    assert most == 2
    assert await gathered([], 2) == []


async def test_the_first_failure_ends_the_others_and_is_raised_as_it_is():
    ended = []

    async def waits():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("waits")

    async def fails():
        await asyncio.sleep(0)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        await gathered([waits, fails], 2)
    assert ended == ["waits"]


async def test_who_gives_up_ends_all():
    ended = []

    async def waits():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("waits")

    task = asyncio.create_task(gathered([waits, waits], 2))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["waits", "waits"]
