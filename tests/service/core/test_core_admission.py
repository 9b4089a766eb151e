from __future__ import annotations

import asyncio
import time

import pytest

from service.core.admission import Admission
from service.core.calls import Call
from service.core.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from service.core.ports import SilentTelemetry
from service.core.timing import Stage


def admission(slots: int = 1, in_flight: int = 2, queue_seconds: float = 5.0) -> Admission:
    return Admission(
        slots=slots, in_flight=in_flight, queue_seconds=queue_seconds, telemetry=SilentTelemetry()
    )


class Holder:
    """Takes a slot and keeps it until it is told to let go."""

    def __init__(self, door: Admission, call: Call | None = None, patient: bool = False) -> None:
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.call = call or Call()
        self.task = asyncio.create_task(self._hold(door, patient))

    async def _hold(self, door: Admission, patient: bool) -> None:
        async with door.slot(self.call, patient=patient):
            self.inside.set()
            await self.leave.wait()

    async def let_go(self) -> None:
        self.leave.set()
        await self.task


async def entered(door: Admission) -> Holder:
    """Somebody who has a slot already."""
    holder = Holder(door)
    await holder.inside.wait()
    return holder


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    door = admission(in_flight=10)
    holders = [Holder(door)]
    await holders[0].inside.wait()
    for _ in range(3):
        holders.append(Holder(door))
        await settle()
    for position, holder in enumerate(holders):
        assert [h.inside.is_set() for h in holders] == [p <= position for p in range(4)]
        await holder.let_go()
        await settle()
    assert door.in_flight == 0
    assert holders[3].call.clock.seconds[Stage.QUEUE] > 0


async def test_a_full_house_refuses_at_once_with_a_time_to_come_back() -> None:
    door = admission()
    running, waiting = Holder(door), Holder(door)
    await settle()
    started = time.monotonic()
    with pytest.raises(ResourceExhaustedError) as refusal:
        async with door.slot(Call()):
            pytest.fail("admitted into a full house")
    assert time.monotonic() - started < 1.0
    assert (refusal.value.reason, refusal.value.retry_after > 0) == ("OVERLOADED", True)
    for holder in (running, waiting):
        await holder.let_go()
    assert door.in_flight == 0


async def test_streams_wait_where_others_are_refused() -> None:
    door = admission()
    holders = [Holder(door), Holder(door), Holder(door, patient=True)]
    await settle()
    assert not holders[2].task.done()
    for holder in holders:
        await holder.let_go()
    assert holders[2].inside.is_set()


async def test_an_expired_wait_frees_its_place() -> None:
    door = admission(in_flight=10)
    running = await entered(door)
    patient = Call(deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceededError):
        async with door.slot(patient, patient=True):
            pytest.fail("admitted")
    assert door.in_flight == 1
    await running.let_go()
    async with door.slot(Call()):
        assert door.in_flight == 1


async def test_a_deadline_that_cannot_be_met_is_refused_at_the_door() -> None:
    door = admission(in_flight=10)
    running = await entered(door)
    with pytest.raises(ResourceExhaustedError):
        async with door.slot(Call(deadline=time.monotonic() + 1e-4)):
            pytest.fail("admitted")
    await running.let_go()


async def test_a_cancelled_waiter_passes_the_slot_on() -> None:
    door = admission(in_flight=10)
    running, gives_up, stays = Holder(door), Holder(door), Holder(door)
    await settle()
    running.leave.set()
    gives_up.task.cancel()  # in the very moment when the slot is handed over
    await settle()
    stays.leave.set()
    await asyncio.wait_for(stays.task, 1)
    await asyncio.gather(running.task, gives_up.task, return_exceptions=True)
    assert door.in_flight == 0


async def test_queue_seconds_bound_the_wait() -> None:
    door = admission(in_flight=10, queue_seconds=0.06)
    running = await entered(door)
    with pytest.raises(ResourceExhaustedError) as refusal:
        async with door.slot(Call()):
            pytest.fail("admitted")
    assert refusal.value.reason == "OVERLOADED"
    await running.let_go()


async def test_drain_waits_for_those_inside_and_admits_nobody() -> None:
    door = admission()
    inside = await entered(door)
    assert await door.drain(0.02) is False
    with pytest.raises(UnavailableError):
        async with door.slot(Call()):
            pytest.fail("admitted")
    draining = asyncio.create_task(door.drain(5))
    await settle()
    inside.leave.set()
    assert await draining is True
    await inside.task


async def test_streams_and_calls_take_turns() -> None:
    door = admission(in_flight=10)
    running = await entered(door)
    frames = [Holder(door, patient=True) for _ in range(4)]
    await settle()
    calls = [Holder(door) for _ in range(2)]
    await settle()
    order: list[str] = []
    for holder in (*frames, *calls):
        holder.leave.set()
        name = "frame" if holder in frames else "call"
        holder.task.add_done_callback(lambda _, name=name: order.append(name))
    running.leave.set()
    await asyncio.gather(*(holder.task for holder in (*frames, *calls)))
    assert order == ["call", "frame", "call", "frame", "frame", "frame"]


async def test_waiting_frames_do_not_fill_the_house() -> None:
    door = admission(in_flight=2)
    running = await entered(door)
    frames = [Holder(door, patient=True) for _ in range(50)]
    await settle()
    call = Holder(door)
    await settle()
    assert not call.task.done()
    for holder in (running, call, *frames):
        holder.leave.set()
    await asyncio.gather(*(holder.task for holder in (running, call, *frames)))


async def test_who_asks_first_hears_what_the_door_would_say() -> None:
    door = admission(in_flight=2)
    door.check(Call())
    running, waiting = Holder(door), Holder(door)
    await settle()
    with pytest.raises(ResourceExhaustedError):
        door.check(Call())
    for holder in (running, waiting):
        await holder.let_go()
    door.check(Call())
    assert door.in_flight == 0
    await door.drain(0.0)
    with pytest.raises(UnavailableError):
        door.check(Call())


@pytest.mark.parametrize(
    "seconds",
    [
        # A service time of 50 ms is assumed at first: 50 ms of waiting fit, 50 ms more do not.
        0.08,
        # Both do, and do not if the queue slows down by a quarter.
        0.115,
    ],
)
async def test_a_deadline_counts_the_slot_and_a_queue_that_slows_down(seconds: float) -> None:
    door = admission(in_flight=10)
    holder = await entered(door)
    with pytest.raises(ResourceExhaustedError):
        door.check(Call(deadline=time.monotonic() + seconds))
    door.check(Call(deadline=time.monotonic() + 0.5))
    await holder.let_go()


async def test_a_turn_that_comes_too_late_passes_to_the_next() -> None:
    door = admission(in_flight=10)
    running = await entered(door)
    late = Holder(door, Call(deadline=time.monotonic() + 0.3))
    await settle()
    behind = Holder(door)
    await settle()
    await asyncio.sleep(0.26)  # 0.04 s are left, and a request takes 0.05 s
    await running.let_go()
    with pytest.raises(DeadlineExceededError):
        await late.task
    await asyncio.wait_for(behind.inside.wait(), 1)
    await behind.let_go()
    assert door.in_flight == 0


async def test_a_turn_that_nobody_else_wants_is_taken_however_late() -> None:
    door = admission(in_flight=10)
    running = await entered(door)
    late = Holder(door, Call(deadline=time.monotonic() + 0.3))
    await asyncio.sleep(0.26)
    await running.let_go()
    await asyncio.wait_for(late.inside.wait(), 1)
    await late.let_go()


async def test_one_long_request_does_not_shut_the_door_for_short_ones() -> None:
    door = admission(in_flight=10)
    long = await entered(door)
    await asyncio.sleep(2.5)
    await long.let_go()
    running = await entered(door)
    door.check(Call(deadline=time.monotonic() + 0.5))
    await running.let_go()
