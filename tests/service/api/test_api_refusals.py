"""What refused calls say, and what they leave behind: nothing."""

import asyncio
import gc
import tracemalloc

import grpc
import pytest
from google.rpc import error_details_pb2

from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import types_pb2 as types
from tests.helpers.live_server import (
    NAME,
    RED_BOX,
    box,
    red_support,
    register_request,
    segment_request,
    serving,
)
from tests.helpers.refusals import Refusal, refused

MEGABYTE = 1024 * 1024
_TURNS = 300
UUID = "123e4567-e89b-42d3-a456-426614174000"
NONSENSE = types.Image(encoded=bytes(MEGABYTE))
HOSTILE_RUNS = types.Mark(
    class_name="red",
    run_length_mask=types.RunLengthMask(height=64, width=64, compressed="0" * MEGABYTE),
)
LONG_VALUES = types.Mark(
    index_mask=types.IndexMask(png=bytes(MEGABYTE), class_of_value={1: "red"}),
)


def with_mark(mark):
    support = red_support("b", seed=2)
    support.annotation.CopyFrom(types.Annotation(marks=[mark]))
    return support


def raw_call(live, path, messages, *, streams=False):
    """Sends bytes, so that the client's side keeps no message of its own."""
    method = (live.channel.stream_stream if streams else live.channel.stream_unary)(path)
    return method(iter(messages))


async def growth(attempt, times=6):
    """Bytes that further attempts leave in memory while no garbage is collected.

    A thread that converted a message may let it go after the answer has come: on a machine that
    others keep busy it waits for its turn, for which it has a few seconds.
    """
    await attempt()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(times):
            await attempt()
        for _ in range(_TURNS):
            after, _ = tracemalloc.get_traced_memory()
            if after - before < MEGABYTE:
                break
            await asyncio.sleep(0.01)
    finally:
        tracemalloc.stop()
        gc.enable()
    return after - before


@pytest.mark.parametrize(
    ("path", "messages"),
    [
        ("SegmentationService/Segment", [segment_request(image=NONSENSE)]),
        ("TaskService/RegisterTask", [register_request(supports=[with_mark(HOSTILE_RUNS)])]),
        ("TaskService/RegisterTask", [register_request(supports=[with_mark(LONG_VALUES)])]),
        (
            "TaskService/AddSupports",
            [
                tasks.AddSupportsRequest(header=tasks.AddSupportsHeader(name=NAME)),
                tasks.AddSupportsRequest(support=with_mark(HOSTILE_RUNS)),
            ],
        ),
    ],
)
async def test_refused_requests_leave_nothing_in_memory(live, path, messages):
    await live.tasks.RegisterTask(register_request())
    packed = [message.SerializeToString() for message in messages]

    async def attempt():
        with pytest.raises(grpc.aio.AioRpcError):
            await raw_call(live, f"/fewseg.v1.{path}", packed)

    assert await growth(attempt) < MEGABYTE


@pytest.mark.parametrize("leave", [True, False])
async def test_calls_that_end_early_leave_nothing_in_memory(live, monkeypatch, leave):
    await live.tasks.RegisterTask(register_request())
    entered = asyncio.Event()

    async def held(query, call):
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(live.server._gateway.segmenter, "segment", held)
    image = types.Image(raw=types.RawImage(rgb=bytes(3 * 600 * 600), height=600, width=600))
    packed = segment_request(image=image).SerializeToString()
    method = live.channel.stream_unary("/fewseg.v1.SegmentationService/Segment")

    async def attempt():
        entered.clear()
        call = method(iter([packed]), timeout=None if leave else 0.1)
        waiting = asyncio.ensure_future(call)
        await entered.wait()
        if leave:
            call.cancel()
        await asyncio.wait({waiting})
        async with asyncio.timeout(5):
            while live.server._reception._running:
                await asyncio.sleep(0.005)

    assert await growth(attempt) < MEGABYTE


async def test_refused_frames_leave_nothing_in_memory(live):
    await live.tasks.RegisterTask(register_request())
    opening = segmentation.SegmentStreamRequest(
        opening=segmentation.SegmentStreamOpening(name=NAME)
    ).SerializeToString()
    frame = segmentation.SegmentStreamRequest(
        frame=segmentation.SegmentStreamFrame(image=NONSENSE)
    ).SerializeToString()
    call = live.channel.stream_stream("/fewseg.v1.SegmentationService/SegmentStream")()
    await call.write(opening)

    async def attempt():
        await call.write(frame)
        answer = segmentation.SegmentStreamResponse.FromString(await call.read())
        assert answer.error.message

    # gRPC's reader keeps the newest.
    assert await growth(attempt) < 1.5 * MEGABYTE
    await call.done_writing()


@pytest.mark.parametrize(
    ("call", "reason", "field"),
    [
        (lambda live: live.tasks.GetTask(tasks.GetTaskRequest(name=NAME + "x")), "TASK", "name"),
        (
            lambda live: live.tasks.GetTask(tasks.GetTaskRequest(name="tenants/no/tasks/x")),
            "TENANT",
            "name",
        ),
        (
            lambda live: live.tasks.DeleteTask(tasks.DeleteTaskRequest(name=NAME + "x")),
            "TASK",
            "name",
        ),
        (lambda live: live.segmentation.Segment(segment_request(name=NAME + "x")), "TASK", "name"),
        (
            lambda live: live.segmentation.Segment(segment_request(name="tenants/no/tasks/x")),
            "TENANT",
            "name",
        ),
        (
            lambda live: live.segmentation.Segment(segment_request(support_id="zz")),
            "SUPPORT",
            "support_id",
        ),
        (
            lambda live: live.tasks.ListTasks(tasks.ListTasksRequest(parent="tenants/no")),
            "TENANT",
            "parent",
        ),
        (
            lambda live: live.tasks.RegisterTask(register_request(parent="tenants/no")),
            "TENANT",
            "parent",
        ),
        (lambda live: live.tasks.RegisterTask(register_request()), "TASK_EXISTS", "task_id"),
        (
            lambda live: live.tasks.RemoveSupport(
                tasks.RemoveSupportRequest(name=NAME, support_id="a")
            ),
            "CLASS_WITHOUT_PIXELS",
            "support_id",
        ),
        (
            lambda live: live.tasks.AnnotateSupport(
                tasks.AnnotateSupportRequest(
                    name=NAME + "x",
                    support_id="a",
                    annotation=types.Annotation(
                        marks=[types.Mark(class_name="red", box=box(RED_BOX))]
                    ),
                )
            ),
            "TASK",
            "name",
        ),
        (
            lambda live: live.tasks.AddSupports(adding(name=NAME + "x")),
            "TASK",
            "header.name",
        ),
        (
            lambda live: live.tasks.AddSupports(adding(name="tenants/no/tasks/x")),
            "TENANT",
            "header.name",
        ),
        (
            lambda live: live.tasks.AddSupports(adding(etag="no etag")),
            "MALFORMED_ETAG",
            "header.etag",
        ),
        (
            lambda live: live.tasks.AddSupports(adding(etag="0123456789abcdef-7")),
            "STALE_ETAG",
            "header.etag",
        ),
        (
            lambda live: live.tasks.AddSupports(adding(red_support("a"))),
            "SUPPORT_EXISTS",
            "supports[0].support_id",
        ),
        (
            lambda live: live.segmentation.SegmentStream(opening_of(name=NAME + "x")).read(),
            "TASK",
            "opening.name",
        ),
        (
            lambda live: live.segmentation.SegmentStream(
                opening_of(etag="0123456789abcdef-7")
            ).read(),
            "STALE_ETAG",
            "opening.etag",
        ),
        (
            lambda live: live.segmentation.SegmentStream(
                opening_of(options=segmentation.SegmentOptions(format=9))
            ).read(),
            "UNKNOWN_VALUE",
            "opening.options.format",
        ),
    ],
)
async def test_a_refusal_names_the_field_at_fault(live, call, reason, field):
    await live.tasks.RegisterTask(register_request())
    refusal = await refused(call(live))
    assert refusal.reason.startswith(reason)
    assert refusal.field == field


def adding(*supports, **header):
    yield tasks.AddSupportsRequest(header=tasks.AddSupportsHeader(**({"name": NAME} | header)))
    for support in supports or [red_support("b", seed=2)]:
        yield tasks.AddSupportsRequest(support=support)


def opening_of(**fields):
    opening = segmentation.SegmentStreamOpening(**({"name": NAME} | fields))
    yield segmentation.SegmentStreamRequest(opening=opening)


async def test_an_error_of_a_frame_names_what_the_opening_said(repository):
    async with serving(repository, limits={"output_pixels": 100}) as live:
        await live.tasks.RegisterTask(register_request())
        size = segmentation.OutputSize(height=20, width=20)
        messages = [
            *opening_of(options=segmentation.SegmentOptions(given_size=size)),
            segmentation.SegmentStreamRequest(
                frame=segmentation.SegmentStreamFrame(image=segment_request().image)
            ),
        ]
        answer = await live.segmentation.SegmentStream(iter(messages)).read()
        details = {packed.TypeName(): packed.value for packed in answer.error.details}
        bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
        assert bad.field_violations[0].field == "opening.options.given_size"


async def test_a_message_of_a_stream_over_the_limit_is_refused_with_the_limit(repository):
    async with serving(repository, limits={"message_bytes": 64 * 1024}) as live:
        await live.tasks.RegisterTask(register_request())
        support = red_support("b")
        support.image.encoded = bytes(100 * 1024)
        refusal = await refused(live.tasks.AddSupports(adding(support)))
        assert refusal.reason == "MESSAGE_TOO_LARGE"


async def test_bytes_that_are_no_message_are_refused(live):
    call = raw_call(live, "/fewseg.v1.TaskService/GetTask", [b"\xff\xff\xff"])
    refusal = await refused(call)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
    )


async def test_a_call_that_sends_no_message_is_refused(live):
    refusal = await refused(raw_call(live, "/fewseg.v1.TaskService/GetTask", []))
    assert refusal.reason == "EMPTY_MESSAGE"


async def test_calls_beyond_the_bound_are_refused_before_their_message_is_read(repository):
    async with serving(repository, open_calls=2) as live:
        await live.tasks.RegisterTask(register_request())
        waiting = [live.tasks.AddSupports() for _ in range(2)]
        for call in waiting:
            await call.write(next(adding()))
        await asyncio.sleep(0.05)
        # It never sends its message: an answer can come only if nobody waits for it.
        unsent = live.channel.stream_unary("/fewseg.v1.TaskService/GetTask")()
        async with asyncio.timeout(5):
            refusal = await refused(unsent)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        for call in waiting:
            call.cancel()
        async with asyncio.timeout(5):
            while live.server._reception._running:
                await asyncio.sleep(0.01)
        assert (await live.tasks.GetTask(tasks.GetTaskRequest(name=NAME))).name == NAME


async def test_messages_that_the_memory_has_no_room_for_are_refused(live, monkeypatch):
    await live.tasks.RegisterTask(register_request())
    held = asyncio.Event()
    entered = asyncio.Event()
    segment = live.server._gateway.segmenter.segment

    async def wait(query, call):
        entered.set()
        await held.wait()
        return await segment(query, call)

    monkeypatch.setattr(live.server._gateway.segmenter, "segment", wait)
    monkeypatch.setattr(live.server._reception._memory, "_budget", 1000)
    first = asyncio.ensure_future(live.segmentation.Segment(segment_request()))
    await entered.wait()
    refusal = await refused(live.segmentation.Segment(segment_request()))
    assert refusal.reason == "OVERLOADED"
    held.set()
    assert (await first).mask.png
    assert (await live.segmentation.Segment(segment_request())).mask.png


class Stopping:
    """A server that is told to stop while a test looks on."""

    def __init__(self, live, late_calls_seconds=0.0):
        self.task = asyncio.create_task(live.server.stop(late_calls_seconds=late_calls_seconds))
        self.started = asyncio.get_running_loop().time()

    async def seconds(self):
        await self.task
        return asyncio.get_running_loop().time() - self.started


def why_ended(caught):
    refusal = Refusal(caught.value)
    return refusal.code, refusal.reason


async def test_an_idle_stream_ends_at_once_when_the_server_stops(repository):
    async with serving(repository, drain_seconds=30.0) as live:
        await live.tasks.RegisterTask(register_request())
        call = live.segmentation.SegmentStream()
        await call.write(next(opening_of()))
        await call.write(frame_of(1))
        assert (await call.read()).sequence_id == 1
        stopping = Stopping(live)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert why_ended(caught) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        assert await stopping.seconds() < 5


async def test_a_running_frame_is_answered_before_its_stream_ends(repository, monkeypatch):
    async with serving(repository, drain_seconds=30.0) as live:
        await live.tasks.RegisterTask(register_request())
        entered, released = asyncio.Event(), asyncio.Event()
        answer = live.server._gateway.segmenter.stream_image

        async def held(*args, **kwargs):
            entered.set()
            await released.wait()
            return await answer(*args, **kwargs)

        monkeypatch.setattr(live.server._gateway.segmenter, "stream_image", held)
        call = live.segmentation.SegmentStream()
        await call.write(next(opening_of()))
        await call.write(frame_of(7))
        await entered.wait()
        stopping = Stopping(live)
        await asyncio.sleep(0.05)
        released.set()
        assert (await call.read()).segmentation.mask.png
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert why_ended(caught) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        await stopping.seconds()


async def test_supports_that_stop_coming_do_not_hold_up_a_stop(repository):
    async with serving(repository, drain_seconds=30.0) as live:
        await live.tasks.RegisterTask(register_request())
        call = live.tasks.AddSupports()
        for message in adding():
            await call.write(message)
        await asyncio.sleep(0.05)
        stopping = Stopping(live)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert why_ended(caught) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        assert await stopping.seconds() < 10


async def test_supports_that_keep_coming_are_taken_by_a_server_that_stops(repository):
    async with serving(repository, drain_seconds=30.0) as live:
        await live.tasks.RegisterTask(register_request())
        call = live.tasks.AddSupports()
        first, *others = adding(red_support("b", 2), red_support("c", 3))
        await call.write(first)
        await asyncio.sleep(0.05)
        stopping = Stopping(live)
        for message in others:
            await asyncio.sleep(0.1)
            await call.write(message)
        await call.done_writing()
        assert (await call).task.support_count == 3
        await stopping.seconds()


async def test_late_calls_hear_that_the_server_stops(repository):
    async with serving(repository) as live:
        stopping = Stopping(live, late_calls_seconds=0.3)
        await asyncio.sleep(0.1)
        refusal = await refused(live.tasks.ListTasks(tasks.ListTasksRequest()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        assert await stopping.seconds() > 0.3


def frame_of(sequence_id):
    frame = segmentation.SegmentStreamFrame(sequence_id=sequence_id, image=segment_request().image)
    return segmentation.SegmentStreamRequest(frame=frame)
