from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.caches import ENTRY_OVERHEAD, ByteBudgetCache
from tests.helpers.gateway import CountingTelemetry


@dataclass(frozen=True)
class Blob:
    nbytes: int


def cache_of(budget: int) -> tuple[ByteBudgetCache[str, Blob], CountingTelemetry]:
    telemetry = CountingTelemetry()
    return ByteBudgetCache("blobs", budget, telemetry), telemetry


async def make(blob: Blob) -> Blob:
    await asyncio.sleep(0)
    return blob


async def test_least_recently_used_goes_first() -> None:
    cache, telemetry = cache_of(3 * ENTRY_OVERHEAD + 30)
    for name in "abc":
        cache.put(name, Blob(10))
    cache.peek("a")
    cache.put("d", Blob(10))
    assert [name for name in "abcd" if cache.peek(name)] == ["a", "c", "d"]
    assert telemetry.caches["blobs", "evicted"] == 1


async def test_value_beyond_the_budget_is_returned_and_not_kept() -> None:
    cache, _ = cache_of(ENTRY_OVERHEAD + 10)
    cache.put("small", Blob(1))
    value, reused = await cache.get("huge", lambda: make(Blob(10_000)))
    assert (value.nbytes, reused) == (10_000, False)
    assert cache.peek("huge") is None
    assert cache.peek("small") is not None


async def test_concurrent_misses_build_once() -> None:
    cache, telemetry = cache_of(10**6)
    built = 0

    async def build() -> Blob:
        nonlocal built
        built += 1
        await asyncio.sleep(0.01)
        return Blob(5)

    answers = await asyncio.gather(*(cache.get("a", build) for _ in range(20)))
    assert built == 1
    assert len({id(value) for value, _ in answers}) == 1
    assert telemetry.caches["blobs", "miss"] == 20
    assert (await cache.get("a", build))[1] is True


async def test_a_failed_build_fails_its_waiters_and_is_tried_again() -> None:
    cache, _ = cache_of(10**6)

    async def fail() -> Blob:
        await asyncio.sleep(0)
        raise RuntimeError("no")

    failures = await asyncio.gather(
        *(cache.get("a", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(failure) for failure in failures] == ["no"] * 3
    assert (await cache.get("a", lambda: make(Blob(1))))[0] == Blob(1)


async def test_one_waiter_that_gives_up_does_not_take_the_build_with_it() -> None:
    cache, _ = cache_of(10**6)
    gate = asyncio.Event()

    async def build() -> Blob:
        await gate.wait()
        return Blob(1)

    first = asyncio.create_task(cache.get("a", build))
    second = asyncio.create_task(cache.get("a", build))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert (await second)[0] == Blob(1)
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("detached", [False, True])
async def test_a_build_outlives_its_last_waiter_only_if_detached(detached: bool) -> None:
    cache, _ = cache_of(10**6)
    gate = asyncio.Event()

    async def build() -> Blob:
        await gate.wait()
        return Blob(1)

    waiter = asyncio.create_task(cache.get("a", build, detached=detached))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    gate.set()
    await asyncio.sleep(0.01)
    assert (cache.peek("a") is not None) is detached


async def test_a_caller_that_comes_while_a_build_is_given_up_begins_anew() -> None:
    cache, _ = cache_of(10**6)
    stubborn = asyncio.Event()

    async def build_forever() -> Blob:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await stubborn.wait()
            raise
        return Blob(1)

    first = asyncio.create_task(cache.get("a", build_forever))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await cache.get("a", lambda: make(Blob(2))))[0] == Blob(2)
    stubborn.set()
    await asyncio.sleep(0.01)
    assert cache.peek("a") == Blob(2)


async def test_a_promised_value_is_waited_for_only_when_somebody_asks() -> None:
    cache, telemetry = cache_of(4096)
    made: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()
    asked = []

    async def wait() -> Blob:
        asked.append("asked")
        return await made

    async def never() -> Blob:
        raise AssertionError("it is being made already")

    leave = cache.promise("a", wait)
    with pytest.raises(ValueError, match="being made already"):
        cache.promise("a", wait)
    await asyncio.sleep(0)
    assert cache.expects("a")
    assert not asked

    callers = [asyncio.create_task(cache.get("a", never)) for _ in range(2)]
    await asyncio.sleep(0)
    made.set_result(Blob(1))
    assert [await caller for caller in callers] == [(Blob(1), False)] * 2
    leave()
    assert asked == ["asked"]
    assert await cache.get("a", never) == (Blob(1), True)
    assert telemetry.caches["blobs", "miss"] == 3


async def test_a_promise_that_is_not_kept_leaves_nothing_behind() -> None:
    cache, _ = cache_of(4096)
    cache.promise("a", lambda: make(Blob(1)))()
    assert not cache.expects("a")
    assert await cache.get("a", lambda: make(Blob(2))) == (Blob(2), False)


async def test_close_cancels_builds_and_empties_the_cache() -> None:
    cache, _ = cache_of(10**6)
    cache.put("kept", Blob(1))
    waiter = asyncio.create_task(cache.get("a", lambda: asyncio.sleep(60, Blob(1)), detached=True))
    await asyncio.sleep(0)
    await cache.close()
    assert (len(cache), cache.nbytes) == (0, 0)
    with pytest.raises(asyncio.CancelledError):
        await waiter


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5000), st.booleans()), max_size=60
    )
)
def test_bytes_never_exceed_the_budget_and_always_add_up(
    steps: list[tuple[str, int, bool]],
) -> None:
    budget = 4 * ENTRY_OVERHEAD
    cache, _ = cache_of(budget)
    held: dict[str, int] = {}
    for key, nbytes, keep in steps:
        if keep:
            cache.put(key, Blob(nbytes))
        else:
            cache.discard(key)
        held = {name: blob.nbytes for name in "abcdefgh" if (blob := cache.peek(name))}
        assert cache.nbytes == sum(held.values()) + ENTRY_OVERHEAD * len(held)
        assert cache.nbytes <= budget
        if keep and nbytes + ENTRY_OVERHEAD <= budget:
            assert held[key] == nbytes
