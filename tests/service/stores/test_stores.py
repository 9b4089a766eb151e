"""What every store does; each test runs on all of them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from store_samples import (
    START,
    TurnedClock,
    change,
    holds_image,
    image,
    record,
    register,
    request,
    support,
)

from service.core.errors import (
    AbortedError,
    AlreadyExistsError,
    FewSegError,
    NotFoundError,
    ResourceExhaustedError,
)
from service.core.ports import Store, Sweep
from service.core.types import TaskName


async def refusal(awaitable, kind: type[FewSegError]) -> str:
    with pytest.raises(kind) as caught:
        await awaitable
    return caught.value.reason


async def test_a_created_task_is_returned_as_it_was_given(store: Store) -> None:
    kept = record("t", support("b", 1), support("a", 0), expire_time=START + timedelta(days=2))
    await register(store, kept)
    assert await store.get(kept.header.name) == kept
    assert await store.get_header(kept.header.name) == kept.header
    assert await store.count() == 1


async def test_what_does_not_exist_is_none(store: Store) -> None:
    assert await store.get(TaskName("default", "t")) is None
    assert await store.get_header(TaskName("default", "t")) is None
    assert await store.find_request("default", "RegisterTask", "r1") is None
    assert await store.delete(TaskName("default", "t"), None) is False
    assert await store.count() == 0


async def test_images_come_back_whole_and_belong_to_their_tenant(store: Store) -> None:
    for number in (0, 1):
        await store.put_image("default", image(number))
        await store.put_image("default", image(number))
        assert await store.get_image("default", image(number).digest) == image(number)
    gone = store.get_image("other", image(0).digest)
    assert await refusal(gone, NotFoundError) == "IMAGE_NOT_FOUND"


async def test_a_name_is_taken_once_per_tenant(store: Store) -> None:
    await register(store, record("t", support("a")))
    again = store.create(record("t", support("b"), uid="bb"), None)
    assert await refusal(again, AlreadyExistsError) == "TASK_EXISTS"
    await register(store, record("t", support("a"), tenant="other"))
    assert (await store.get(TaskName("default", "t"))).supports[0].support_id == "a"
    assert await store.count() == 2


async def test_a_task_without_its_image_is_refused_whole(store: Store) -> None:
    await store.put_image("default", image(0))
    lacking = record("t", support("a", 0), support("b", 1))
    refused = store.create(lacking, request())
    assert await refusal(refused, NotFoundError) == "IMAGE_NOT_FOUND"
    assert await store.get(lacking.header.name) is None
    assert await store.find_request("default", "RegisterTask", "r1") is None
    await store.put_image("default", image(1))
    await store.create(lacking, request())


async def test_an_expired_task_is_kept_until_it_is_replaced_or_swept(
    store: Store, clock: TurnedClock
) -> None:
    former = record("t", support("a", 0), support("b", 1), expire_time=START + timedelta(hours=1))
    await register(store, former)
    clock.turn(hours=1)
    assert await store.get(former.header.name) == former
    assert await store.count() == 1
    later = record("t", support("c", 1), uid="00000000000000bb")
    await store.create(later, None)
    assert await store.get(later.header.name) == later
    assert not await holds_image(store, 0)
    assert await holds_image(store, 1)


async def test_the_number_of_tasks_is_bounded(
    new_store: Callable[..., Store], clock: TurnedClock
) -> None:
    store = new_store(max_tasks=2)
    await store.open()
    await register(store, record("a", support("s"), expire_time=START + timedelta(hours=1)))
    await register(store, record("b", support("s")))
    refused = store.create(record("c", support("s")), None)
    assert await refusal(refused, ResourceExhaustedError) == "TOO_MANY_TASKS"
    clock.turn(hours=2)
    await store.create(record("a", support("s"), uid="bb"), None)
    assert await store.delete(TaskName("default", "b"), None)
    await store.create(record("c", support("s")), None)
    assert await store.count() == 2
    await store.close()


async def test_a_change_replaces_in_place_and_appends_in_order(store: Store) -> None:
    kept = record("t", support("a"), support("b"), support("c"))
    await register(store, kept)
    first = change(kept.header, support("e"), support("b", version=2), support("d"))
    await store.apply(first)
    got = await store.get(kept.header.name)
    assert got.header == first.header
    assert got.supports == (
        support("a"),
        support("b", version=2),
        support("c"),
        support("e"),
        support("d"),
    )
    await store.apply(change(first.header, removed=("c", "a", "unknown")))
    await store.apply(
        change(replace(first.header, revision=3), support("b", version=3), support("a"))
    )
    got = await store.get(kept.header.name)
    assert [s.support_id for s in got.supports] == ["b", "e", "d", "a"]
    assert got.supports[0] == support("b", version=3)


async def test_a_change_of_a_stale_revision_is_refused(store: Store) -> None:
    kept = record("t", support("a"))
    await register(store, kept)
    await store.apply(change(kept.header, support("a", version=2)))
    stale = change(kept.header, support("a", version=3), request=request())
    assert await refusal(store.apply(stale), AbortedError) == "STALE_ETAG"
    other = change(replace(kept.header, uid="bb", revision=2))
    assert await refusal(store.apply(other), AbortedError) == "STALE_ETAG"
    ahead = change(replace(kept.header, revision=3))
    assert await refusal(store.apply(ahead), AbortedError) == "STALE_ETAG"
    missing = change(record("u").header)
    assert await refusal(store.apply(missing), NotFoundError) == "TASK_NOT_FOUND"
    assert (await store.get(kept.header.name)).supports == (support("a", version=2),)
    assert await store.find_request("default", "RegisterTask", "r1") is None


async def test_of_simultaneous_changes_exactly_one_wins(store: Store) -> None:
    kept = record("t", support("a"))
    await register(store, kept)
    changes = [change(kept.header, support("a", version=v)) for v in range(2, 12)]
    outcomes = await asyncio.gather(*map(store.apply, changes), return_exceptions=True)
    winners = [c for c, outcome in zip(changes, outcomes, strict=True) if outcome is None]
    assert len(winners) == 1
    assert {o.reason for o in outcomes if o is not None} == {"STALE_ETAG"}
    assert (await store.get(kept.header.name)).supports == winners[0].upserted


async def test_a_refused_change_leaves_the_task_alone(store: Store) -> None:
    kept = record("t", support("a"), support("b"))
    await register(store, kept, request())
    lacking = change(kept.header, support("a", version=2), support("c", 5), removed=("b",))
    assert await refusal(store.apply(lacking), NotFoundError) == "IMAGE_NOT_FOUND"
    reused = change(kept.header, support("a", version=2), request=request(body=9))
    assert await refusal(store.apply(reused), AlreadyExistsError) == "REQUEST_ID_REUSED"
    assert await store.get(kept.header.name) == kept
    assert await store.find_request("default", "RegisterTask", "r1") == request()


async def test_a_deletion_may_insist_on_a_revision(store: Store) -> None:
    kept = record("t", support("a"))
    await register(store, kept)
    refused = store.delete(kept.header.name, "00000000000000aa-2")
    assert await refusal(refused, AbortedError) == "STALE_ETAG"
    assert await store.get(kept.header.name) == kept
    assert await store.delete(kept.header.name, kept.header.etag) is True
    assert await store.get(kept.header.name) is None


async def test_an_image_lives_as_long_as_a_support_that_uses_it(store: Store) -> None:
    first = record("a", support("x", 0), support("y", 1), support("z", 1))
    await register(store, first)
    await register(store, record("b", support("x", 0)))
    await register(store, record("b", support("x", 0), tenant="other"))
    await store.apply(change(first.header, removed=("y",)))
    assert await holds_image(store, 1)
    await store.apply(change(replace(first.header, revision=2), removed=("z",)))
    assert not await holds_image(store, 1)
    await store.delete(TaskName("default", "a"), None)
    assert await holds_image(store, 0)
    await store.delete(TaskName("default", "b"), None)
    assert not await holds_image(store, 0)
    assert await holds_image(store, 0, "other")


async def test_an_image_put_for_a_registration_outlives_the_end_of_another_task(
    store: Store,
) -> None:
    await register(store, record("a", support("x", 0)))
    await store.put_image("default", image(0))
    await store.delete(TaskName("default", "a"), None)
    await store.create(record("b", support("x", 0)), None)
    assert await holds_image(store, 0)


async def test_images_awaited_in_vain_are_swept_an_hour_after_the_last_put(
    store: Store, clock: TurnedClock
) -> None:
    await store.put_image("default", image(0))
    await store.put_image("default", image(1))
    await register(store, record("t", support("a", 2)))
    clock.turn(minutes=40)
    await store.put_image("default", image(1))
    assert await store.sweep(clock.turn(minutes=20)) == Sweep(images=1)
    assert not await holds_image(store, 0)
    assert await holds_image(store, 1)
    assert await store.sweep(clock.turn(minutes=40)) == Sweep(images=1)
    assert await holds_image(store, 2)


async def test_a_sweep_removes_what_has_expired_and_nothing_else(
    store: Store, clock: TurnedClock
) -> None:
    soon, late = START + timedelta(hours=1), START + timedelta(hours=3)
    await register(store, record("b", support("s", 0), expire_time=soon), request("r1"))
    await register(store, record("a", support("s", 1), expire_time=soon))
    await register(store, record("c", support("s", 1), expire_time=late))
    await register(store, record("d", support("s", 2)), request("r2", expire_time=soon))
    assert await store.sweep(START) == Sweep()
    names = (TaskName("default", "a"), TaskName("default", "b"))
    assert await store.sweep(clock.turn(hours=1)) == Sweep(names, images=1, requests=1)
    assert [h.name.task for h in await store.list_headers("default", after="", limit=9)] == [
        "c",
        "d",
    ]
    assert [await holds_image(store, n) for n in range(3)] == [False, True, True]


async def test_a_sweep_of_many_things_removes_them_all(store: Store, clock: TurnedClock) -> None:
    for number in range(130):
        kept = record(f"t{number:03}", support("s"), expire_time=START)
        await register(store, kept, request(f"r{number}", expire_time=START))
    swept = await store.sweep(clock.turn(seconds=1))
    assert [name.task for name in swept.expired] == [f"t{n:03}" for n in range(130)]
    assert (swept.images, swept.requests) == (1, 130)
    assert await store.count() == 0


async def test_headers_are_listed_page_by_page_in_the_order_of_their_ids(store: Store) -> None:
    for task in ("b", "a", "B", "a-1", "c"):
        await register(store, record(task, support("s")))
    await register(store, record("aa", support("s"), tenant="other"))
    listed, after = [], ""
    while page := await store.list_headers("default", after=after, limit=2):
        assert len(page) <= 2
        listed += [header.name.task for header in page]
        after = listed[-1]
    assert listed == sorted(["b", "a", "B", "a-1", "c"])
    assert len(await store.list_headers("default", after="", limit=0)) == 0
    assert len(await store.list_headers("nobody", after="", limit=5)) == 0


async def test_a_request_is_remembered_by_tenant_method_and_id(
    store: Store, clock: TurnedClock
) -> None:
    kept = record("t", support("a"))
    await register(store, kept, request())
    assert await store.find_request("default", "RegisterTask", "r1") == request()
    assert await store.find_request("other", "RegisterTask", "r1") is None
    assert await store.find_request("default", "AddSupports", "r1") is None
    again = store.create(record("u", support("a")), request(body=2))
    assert await refusal(again, AlreadyExistsError) == "REQUEST_ID_REUSED"
    assert await store.count() == 1
    added = request(method="AddSupports", body=3)
    await store.apply(change(kept.header, support("b"), request=added))
    assert await store.find_request("default", "AddSupports", "r1") == added


async def test_an_expired_request_id_may_be_used_again(store: Store, clock: TurnedClock) -> None:
    await register(store, record("t", support("a")), request())
    clock.turn(days=1)
    assert await store.find_request("default", "RegisterTask", "r1") is None
    renewed = request(body=2, expire_time=clock.moment + timedelta(days=1))
    await store.create(record("u", support("a")), renewed)
    assert await store.find_request("default", "RegisterTask", "r1") == renewed


async def test_a_remembered_request_is_answered_before_anything_else_is_checked(
    store: Store,
) -> None:
    kept = record("t", support("a"))
    await register(store, kept, request())
    assert await refusal(store.create(kept, request()), AlreadyExistsError) == "REQUEST_ID_REUSED"
    stale = change(replace(kept.header, revision=7), request=request())
    assert await refusal(store.apply(stale), AlreadyExistsError) == "REQUEST_ID_REUSED"


async def test_a_large_support_set_keeps_its_order(store: Store) -> None:
    supports = tuple(support(f"s{(n * 7919) % 5000:04}", n % 16) for n in range(5000))
    kept = record("t", *supports)
    await register(store, kept)
    assert await store.get(kept.header.name) == kept


async def test_closing_twice_is_harmless(store: Store) -> None:
    await store.close()
    await store.close()


async def test_one_support_is_found_without_the_others(store: Store) -> None:
    kept = record("t", support("b", 1), support("a", 0))
    await register(store, kept)
    assert await store.get_support(kept.header.name, "a") == kept.supports[1]
    assert await store.get_support(kept.header.name, "c") is None
    assert await store.get_support(TaskName("default", "u"), "a") is None


async def test_a_withdrawn_image_goes_unless_others_count_on_it(
    store: Store, clock: TurnedClock
) -> None:
    mine = {image(n).digest: await store.put_image("default", image(n)) for n in (0, 1, 2)}
    clock.turn(seconds=1)
    theirs = await store.put_image("default", image(1))
    await register(store, record("t", support("a", 2)))
    await store.withdraw_images("default", mine)
    assert [await holds_image(store, number) for number in (0, 1, 2)] == [False, True, True]
    await store.withdraw_images("default", {image(1).digest: theirs})
    assert not await holds_image(store, 1)
