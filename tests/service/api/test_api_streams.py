"""Streams of queries through a real server."""

import asyncio

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import types_pb2 as types
from tests.helpers.live_server import NAME, QUERY_BOX, box, query_image, register_request, serving

RAW = segmentation.SegmentOptions(format=types.MASK_FORMAT_RAW)


def opening(**fields):
    values = {"name": NAME, "options": RAW}
    return segmentation.SegmentStreamRequest(
        opening=segmentation.SegmentStreamOpening(**(values | fields))
    )


def frame(sequence_id, image=None):
    return segmentation.SegmentStreamRequest(
        frame=segmentation.SegmentStreamFrame(
            sequence_id=sequence_id, image=image or query_image(seed=sequence_id)
        )
    )


async def answers_of(live, *messages):
    return [answer async for answer in live.segmentation.SegmentStream(iter(messages))]


async def refusal_of(live, *messages):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers_of(live, *messages)
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    return caught.value.code(), info.reason


async def annotate(live):
    mark = types.Mark(class_name="red", box=box((8, 8, 30, 30)))
    return await live.tasks.AnnotateSupport(
        tasks.AnnotateSupportRequest(
            name=NAME,
            support_id="a",
            annotation=types.Annotation(marks=[mark], exhaustive=True),
        )
    )


async def test_answers_come_in_the_order_of_the_frames(live):
    registered = await live.tasks.RegisterTask(register_request())
    answers = await answers_of(live, opening(), *(frame(number) for number in range(20)))
    assert [answer.sequence_id for answer in answers] == list(range(20))
    for answer in answers:
        mask = answer.segmentation.mask
        labels = np.frombuffer(mask.raw, np.uint8).reshape(mask.height, mask.width)
        x_min, y_min, x_max, y_max = QUERY_BOX
        assert (labels[y_min:y_max, x_min:x_max] == 1).mean() > 0.7
        assert answer.segmentation.etag == registered.task.etag
        assert answer.segmentation.timings.HasField("decode")


async def test_an_opened_stream_without_frames_ends_well(live):
    await live.tasks.RegisterTask(register_request())
    assert await answers_of(live, opening()) == []


async def test_an_error_belongs_to_its_frame(live):
    await live.tasks.RegisterTask(register_request())
    answers = await answers_of(
        live,
        opening(),
        frame(1),
        frame(2, types.Image(encoded=b"no image")),
        frame(3, types.Image()),
        frame(4),
    )
    assert [answer.WhichOneof("result") for answer in answers] == [
        "segmentation",
        "error",
        "error",
        "segmentation",
    ]
    assert answers[1].sequence_id == 2
    assert answers[1].error.code == code_pb2.INVALID_ARGUMENT
    reasons = [
        error_details_pb2.ErrorInfo.FromString(answer.error.details[0].value).reason
        for answer in answers[1:3]
    ]
    assert reasons == ["NOT_AN_IMAGE", "NO_IMAGE"]


async def test_an_unexpected_exception_in_a_frame_is_internal_and_silent(live, monkeypatch):
    await live.tasks.RegisterTask(register_request())

    async def broken(*args, **kwargs):
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(live.server._gateway.segmenter, "stream_image", broken)
    (answer,) = await answers_of(live, opening(), frame(1))
    assert (answer.error.code, answer.error.message) == (code_pb2.INTERNAL, "internal error")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "NO_OPENING"),
        ([frame(1)], "NO_OPENING"),
        ([opening(), opening()], "SECOND_OPENING"),
        ([opening(), segmentation.SegmentStreamRequest()], "EMPTY_MESSAGE"),
        ([opening(name="reds")], "INVALID_NAME"),
        ([opening(revision_policy=7)], "UNKNOWN_VALUE"),
        ([opening(options=segmentation.SegmentOptions(format=9))], "UNKNOWN_VALUE"),
    ],
)
async def test_a_malformed_stream_is_refused(live, messages, reason):
    await live.tasks.RegisterTask(register_request())
    assert await refusal_of(live, *messages) == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_a_stream_of_an_unknown_task_does_not_open(live):
    assert await refusal_of(live, opening()) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")


async def test_a_stream_opens_only_on_the_revision_asked_for(live):
    registered = await live.tasks.RegisterTask(register_request())
    await annotate(live)
    assert await refusal_of(live, opening(etag=registered.task.etag)) == (
        grpc.StatusCode.ABORTED,
        "STALE_ETAG",
    )


async def test_frames_before_a_second_opening_are_answered(live):
    await live.tasks.RegisterTask(register_request())
    call = live.segmentation.SegmentStream(iter([opening(), frame(1), opening()]))
    assert (await call.read()).sequence_id == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("policy", "follows"),
    [(segmentation.REVISION_POLICY_PINNED, False), (segmentation.REVISION_POLICY_LATEST, True)],
)
async def test_a_stream_follows_its_task_or_keeps_its_revision(live, policy, follows):
    registered = await live.tasks.RegisterTask(register_request())
    call = live.segmentation.SegmentStream()
    await call.write(opening(revision_policy=policy))
    await call.write(frame(1))
    assert (await call.read()).segmentation.etag == registered.task.etag
    changed = await annotate(live)
    await call.write(frame(2))
    expected = changed.task.etag if follows else registered.task.etag
    assert (await call.read()).segmentation.etag == expected
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


class HeldFrames:
    """Replaces the core's work on a frame by waiting, and counts."""

    def __init__(self, live, monkeypatch):
        self.running = 0
        self.cancelled = 0
        self.released = asyncio.Event()
        self.answer = live.server._gateway.segmenter.stream_image
        monkeypatch.setattr(live.server._gateway.segmenter, "stream_image", self.held)

    async def held(self, *args, **kwargs):
        self.running += 1
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await self.answer(*args, **kwargs)

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


async def test_frames_run_together_up_to_the_bound_and_no_further(repository, monkeypatch):
    async with serving(repository, limits={"stream_frames": 3}) as live:
        await live.tasks.RegisterTask(register_request())
        held = HeldFrames(live, monkeypatch)
        call = live.segmentation.SegmentStream(
            iter([opening(), *(frame(number) for number in range(8))])
        )
        await held.until(lambda: held.running == 3)
        await asyncio.sleep(0.05)
        assert held.running == 3
        held.released.set()
        assert [answer.sequence_id async for answer in call] == list(range(8))


async def test_a_cancelled_stream_cancels_its_frames(live, monkeypatch):
    await live.tasks.RegisterTask(register_request())
    held = HeldFrames(live, monkeypatch)
    call = live.segmentation.SegmentStream()
    await call.write(opening())
    for number in range(4):
        await call.write(frame(number))
    await held.until(lambda: held.running == 4)
    call.cancel()
    await held.until(lambda: held.cancelled == 4)


async def test_a_stream_whose_deadline_passes_ends_and_lets_go(live, monkeypatch):
    await live.tasks.RegisterTask(register_request())
    held = HeldFrames(live, monkeypatch)
    call = live.segmentation.SegmentStream(iter([opening(), frame(1)]), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await held.until(lambda: held.cancelled == 1)


async def test_an_answer_that_fits_no_message_is_an_error_of_its_frame(repository):
    async with serving(repository, limits={"message_bytes": 32 * 1024}) as live:
        await live.tasks.RegisterTask(register_request())
        size = segmentation.OutputSize(height=256, width=256)
        options = segmentation.SegmentOptions(format=types.MASK_FORMAT_RAW, given_size=size)
        (answer,) = await answers_of(live, opening(options=options), frame(1))
        info = error_details_pb2.ErrorInfo.FromString(answer.error.details[0].value)
        assert info.reason == "ANSWER_TOO_LARGE"
