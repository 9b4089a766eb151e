"""Whatever is done, in whatever order, the stores cannot be told apart."""

import asyncio
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import START, TurnedClock, change, image, record, request, support

from service.core.errors import FewSegError
from service.core.ports import Store
from service.core.types import TaskName
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore

tasks = st.sampled_from(["a", "b", "c"])
numbers = st.integers(0, 3)
supports = st.lists(
    st.builds(support, st.sampled_from("wxyz"), numbers, st.integers(1, 3)),
    min_size=1,
    max_size=3,
    unique_by=lambda s: s.support_id,
)
#: Hours after the start at which something expires.
expiries = st.none() | st.integers(1, 6)
request_ids = st.none() | st.sampled_from(["r1", "r2"])
steps = st.one_of(
    st.tuples(st.just("put"), numbers),
    st.tuples(st.just("create"), tasks, supports, expiries, request_ids),
    st.tuples(
        st.just("apply"),
        tasks,
        supports,
        st.sets(st.sampled_from("wxyz"), max_size=2),
        request_ids,
        st.booleans(),
    ),
    st.tuples(st.just("delete"), tasks, st.booleans()),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("turn"), st.integers(10, 200)),
)


async def take(store: Store, clock: TurnedClock, step: tuple[Any, ...]) -> Any:
    """Does one step; returns what a caller sees of it."""
    match step:
        case ("put", number):
            return await store.put_image("default", image(number))
        case ("create", task, added, expiry, request_id):
            expire_time = None if expiry is None else START + timedelta(hours=expiry)
            uid = f"{clock.moment.timestamp():.0f}"
            kept = record(task, *added, uid=uid, expire_time=expire_time)
            return await store.create(kept, remembered(request_id, expiry))
        case ("apply", task, upserted, removed, request_id, stale):
            header = await store.get_header(TaskName("default", task)) or record(task).header
            if stale:
                header = replace(header, revision=header.revision + 1)
            following = change(
                header, *upserted, removed=tuple(removed), request=remembered(request_id, 2)
            )
            return await store.apply(following)
        case ("delete", task, stale):
            return await store.delete(TaskName("default", task), "other" if stale else None)
        case ("sweep",):
            return await store.sweep(clock.moment)


def remembered(request_id: str | None, expiry: int | None) -> Any:
    if request_id is None:
        return None
    return request(request_id, expire_time=START + timedelta(hours=expiry or 1))


async def outcome(store: Store, clock: TurnedClock, step: tuple[Any, ...]) -> Any:
    try:
        return await take(store, clock, step)
    except FewSegError as error:
        return type(error), error.reason, error.message, error.field, error.metadata


async def contents(store: Store) -> Any:
    headers = await store.list_headers("default", after="", limit=10)
    requests = [await store.find_request("default", "RegisterTask", r) for r in ("r1", "r2")]
    images = []
    for number in range(4):
        try:
            images.append(await store.get_image("default", image(number).digest))
        except FewSegError as error:
            images.append(error.reason)
    records = [await store.get(header.name) for header in headers]
    return tuple(headers), records, requests, images, await store.count()


async def compare(folder: str, walk: list[tuple[Any, ...]]) -> None:
    clock = TurnedClock()
    memory = MemoryStore(max_tasks=2, now=clock)
    sqlite = SqliteStore(Path(folder, "tasks.db"), max_tasks=2, now=clock)
    await sqlite.open()
    try:
        for number in range(4):
            for store in (memory, sqlite):
                await store.put_image("default", image(number))
        for step in walk:
            if step[0] == "turn":
                clock.turn(minutes=step[1])
            else:
                assert await outcome(memory, clock, step) == await outcome(sqlite, clock, step)
            assert await contents(memory) == await contents(sqlite)
    finally:
        await sqlite.close()


@given(st.lists(steps, min_size=5, max_size=20))
@settings(deadline=None, max_examples=50)
def test_stores_answer_alike_on_every_walk(walk: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(folder, walk))
