"""Every method through a real server and a real channel."""

import asyncio

import grpc
import numpy as np
import pytest

from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import types_pb2 as types
from tests.helpers.live_server import (
    NAME,
    QUERY_BOX,
    RED_BOX,
    box,
    red_support,
    register_request,
    segment_request,
    serving,
)
from tests.helpers.refusals import refused

UUID = "123e4567-e89b-42d3-a456-426614174000"


def labels_of(mask):
    return np.frombuffer(mask.raw, np.uint8).reshape(mask.height, mask.width)


def overlap(labels, corners):
    x_min, y_min, x_max, y_max = corners
    truth = np.zeros(labels.shape, bool)
    truth[y_min:y_max, x_min:x_max] = True
    return (truth & (labels == 1)).sum() / (truth | (labels == 1)).sum()


RAW = segmentation.SegmentOptions(format=types.MASK_FORMAT_RAW)


async def test_a_task_is_registered_once_and_segments_images(live):
    registered = await live.tasks.RegisterTask(register_request())
    assert registered.task.name == NAME
    assert registered.task.family.startswith("tiny-")
    assert registered.timings.HasField("total")
    answer = await live.segmentation.Segment(segment_request(options=RAW))
    assert overlap(labels_of(answer.mask), QUERY_BOX) > 0.6
    assert answer.classes[0].area == (labels_of(answer.mask) == 1).sum()
    assert answer.etag == registered.task.etag
    assert answer.family == registered.task.family
    assert answer.timings.HasField("decode")


async def test_the_image_of_a_support_is_segmented_without_sending_it(live):
    await live.tasks.RegisterTask(register_request())
    answer = await live.segmentation.Segment(segment_request(support_id="a", options=RAW))
    assert overlap(labels_of(answer.mask), RED_BOX) > 0.6
    assert answer.reuse.features


async def test_probabilities_and_run_lengths_at_the_size_asked_for(live):
    await live.tasks.RegisterTask(register_request())
    options = segmentation.SegmentOptions(
        format=types.MASK_FORMAT_COCO_RLE,
        given_size=segmentation.OutputSize(height=20, width=30),
        probabilities=True,
    )
    answer = await live.segmentation.Segment(segment_request(options=options))
    assert (answer.mask.height, answer.mask.width) == (20, 30)
    assert len(answer.mask.run_lengths.masks) == 1
    values = np.frombuffer(answer.probabilities.values, "<f2").reshape(2, 20, 30)
    np.testing.assert_allclose(values.sum(axis=0), 1.0, atol=2e-3)


async def test_a_task_is_read_and_deleted(live):
    registered = await live.tasks.RegisterTask(register_request())
    read = await live.tasks.GetTask(tasks.GetTaskRequest(name=NAME))
    assert (read.etag, read.uid) == (registered.task.etag, registered.task.uid)
    await live.tasks.DeleteTask(tasks.DeleteTaskRequest(name=NAME, etag=read.etag))
    refusal = await refused(live.tasks.GetTask(tasks.GetTaskRequest(name=NAME)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
    assert refusal.details["ResourceInfo"].resource_name == NAME


async def test_tasks_are_listed_page_by_page(live):
    for task_id in ("c", "a", "b"):
        await live.tasks.RegisterTask(register_request(task_id=task_id))
    first = await live.tasks.ListTasks(tasks.ListTasksRequest(page_size=2))
    assert [task.name[-1] for task in first.tasks] == ["a", "b"]
    assert all(task.family and not task.supports for task in first.tasks)
    second = await live.tasks.ListTasks(
        tasks.ListTasksRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [task.name[-1] for task in second.tasks] == ["c"]
    assert second.next_page_token == ""
    refusal = await refused(live.tasks.ListTasks(tasks.ListTasksRequest(page_size=-1)))
    assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_size")


async def test_an_annotation_is_replaced_and_extended(live):
    await live.tasks.RegisterTask(register_request())
    mark = types.Mark(class_name="red", points=types.Points(points=[types.Point(x=20, y=20)]))
    extended = await live.tasks.AnnotateSupport(
        tasks.AnnotateSupportRequest(
            name=NAME,
            support_id="a",
            annotation=types.Annotation(marks=[mark]),
            mode=tasks.ANNOTATION_MODE_EXTEND,
        )
    )
    assert extended.task.supports[0].mark_count == 2
    replaced = await live.tasks.AnnotateSupport(
        tasks.AnnotateSupportRequest(
            name=NAME, support_id="a", annotation=types.Annotation(marks=[mark])
        )
    )
    assert replaced.task.supports[0].mark_count == 1
    assert replaced.task.background_evidence == types.BACKGROUND_EVIDENCE_INFERRED


async def test_a_stale_etag_is_aborted(live):
    registered = await live.tasks.RegisterTask(register_request())
    annotate = tasks.AnnotateSupportRequest(
        name=NAME,
        support_id="a",
        annotation=types.Annotation(marks=[types.Mark(class_name="red", box=box(RED_BOX))]),
        etag=registered.task.etag,
    )
    await live.tasks.AnnotateSupport(annotate)
    for call in (
        live.tasks.AnnotateSupport(annotate),
        live.segmentation.Segment(segment_request(etag=registered.task.etag)),
        live.tasks.DeleteTask(tasks.DeleteTaskRequest(name=NAME, etag=registered.task.etag)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "STALE_ETAG")


def supports_of(*supports, **header):
    yield tasks.AddSupportsRequest(header=tasks.AddSupportsHeader(**({"name": NAME} | header)))
    for support in supports:
        yield tasks.AddSupportsRequest(support=support)


async def test_supports_are_streamed_in_and_taken_out(live):
    await live.tasks.RegisterTask(register_request())
    added = await live.tasks.AddSupports(supports_of(red_support("b", 2), red_support("c", 3)))
    assert [support.support_id for support in added.task.supports] == ["a", "b", "c"]
    assert added.task.supports[1].leave_one_out[0].iou > 0.5
    removed = await live.tasks.RemoveSupport(
        tasks.RemoveSupportRequest(name=NAME, support_id="b", etag=added.task.etag)
    )
    assert [support.support_id for support in removed.task.supports] == ["a", "c"]


@pytest.mark.parametrize(
    ("messages", "reason", "field"),
    [
        ([], "NO_HEADER", "header"),
        ([tasks.AddSupportsRequest(support=red_support())], "NO_HEADER", "header"),
        ([*supports_of(red_support()), *supports_of()], "SECOND_HEADER", "header"),
        (
            [*supports_of(red_support("x")), tasks.AddSupportsRequest()],
            "EMPTY_MESSAGE",
            "supports[1]",
        ),
        (list(supports_of(name="leaf")), "INVALID_NAME", "header.name"),
        (
            [*supports_of(red_support("x"), tasks.SupportInput(support_id="y"))],
            "NO_ANNOTATION",
            "supports[1].annotation",
        ),
    ],
)
async def test_a_malformed_stream_of_supports_changes_nothing(live, messages, reason, field):
    registered = await live.tasks.RegisterTask(register_request())
    refusal = await refused(live.tasks.AddSupports(iter(messages)))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refusal.reason, refusal.field) == (reason, field)
    assert (await live.tasks.GetTask(tasks.GetTaskRequest(name=NAME))).etag == registered.task.etag


async def test_a_task_of_many_supports_is_shown_whole(live, monkeypatch):
    monkeypatch.setattr("service.api.tasks._FEW_SUPPORTS", 1)
    registered = await live.tasks.RegisterTask(
        register_request(supports=[red_support("a"), red_support("b", seed=2)])
    )
    assert [support.support_id for support in registered.task.supports] == ["a", "b"]


async def test_a_stream_of_no_supports_is_refused(live):
    await live.tasks.RegisterTask(register_request())
    refusal = await refused(live.tasks.AddSupports(supports_of()))
    assert refusal.reason == "NO_SUPPORTS"


async def test_supports_of_a_cancelled_stream_are_not_kept(live):
    registered = await live.tasks.RegisterTask(register_request())
    for _ in range(5):
        call = live.tasks.AddSupports()
        for message in supports_of(red_support("b", 2)):
            await call.write(message)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    # Whatever the server still does, it has done when this has been answered.
    await asyncio.sleep(0.1)
    kept = await live.tasks.GetTask(tasks.GetTaskRequest(name=NAME))
    assert kept.etag == registered.task.etag


async def test_too_many_supports_in_a_stream_are_refused(repository):
    async with serving(repository, limits={"supports": 2}) as live:
        await live.tasks.RegisterTask(register_request())
        supports = [red_support(seed=seed) for seed in (2, 3, 4)]
        refusal = await refused(live.tasks.AddSupports(supports_of(*supports)))
        assert refusal.reason == "TOO_MANY_SUPPORTS"


async def test_a_repeated_request_is_answered_as_the_first_time(live):
    first = await live.tasks.RegisterTask(register_request(request_id=UUID))
    again = await live.tasks.RegisterTask(register_request(request_id=UUID))
    assert again.task.uid == first.task.uid
    refusal = await refused(
        live.tasks.RegisterTask(register_request(request_id=UUID, task_id="other"))
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
    )


async def test_a_taken_name_is_refused(live):
    await live.tasks.RegisterTask(register_request())
    refusal = await refused(live.tasks.RegisterTask(register_request()))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TASK_EXISTS")
    assert refusal.details["ResourceInfo"].resource_name == NAME


async def test_wrong_requests_name_the_field_at_fault(live):
    await live.tasks.RegisterTask(register_request())
    outside = red_support()
    outside.annotation.marks[0].box.x_max = 65
    for call, field in (
        (live.tasks.GetTask(tasks.GetTaskRequest(name="reds")), "name"),
        (
            live.tasks.RegisterTask(register_request(task_id="x", supports=[outside])),
            "supports[0].annotation.marks[0].box.x_max",
        ),
        (live.segmentation.Segment(segment_request(image=types.Image())), "image"),
        (
            live.segmentation.Segment(segment_request(image=types.Image(encoded=b"text"))),
            "image.encoded",
        ),
        (
            live.tasks.RegisterTask(
                register_request(task_id="x", task=tasks.Task(classes=["red"], model="none"))
            ),
            "task.model",
        ),
    ):
        assert (await refused(call)).field == field


async def test_a_message_over_the_limit_is_refused_and_the_server_lives_on(repository):
    async with serving(repository, limits={"message_bytes": 64 * 1024}) as live:
        await live.tasks.RegisterTask(register_request())
        refusal = await refused(
            live.segmentation.Segment(segment_request(image=types.Image(encoded=bytes(100 * 1024))))
        )
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.reason == "MESSAGE_TOO_LARGE"
        assert refusal.details["ErrorInfo"].metadata["limit"] == str(64 * 1024)
        assert "RetryInfo" not in refusal.details
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await live.segmentation.Segment(
                segment_request(image=types.Image(encoded=bytes(2 * 1024 * 1024)))
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        options = segmentation.SegmentOptions(
            given_size=segmentation.OutputSize(height=300, width=300),
            format=types.MASK_FORMAT_RAW,
        )
        refusal = await refused(live.segmentation.Segment(segment_request(options=options)))
        assert (refusal.reason, refusal.field) == ("ANSWER_TOO_LARGE", "options")
        assert (await live.segmentation.Segment(segment_request())).mask.png


async def test_an_expired_deadline_is_told_and_frees_its_slot(live):
    await live.tasks.RegisterTask(register_request())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.segmentation.Segment(segment_request(), timeout=1e-4)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await live.segmentation.Segment(segment_request(), timeout=10)).mask.png


async def test_a_call_keeps_the_id_that_its_client_gave_it(live):
    call = live.tasks.ListTasks(tasks.ListTasksRequest(), metadata=(("x-request-id", "mine-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"
    refusal = await refused(
        live.tasks.GetTask(tasks.GetTaskRequest(name=NAME), metadata=(("x-request-id", "mine-2"),))
    )
    assert refusal.details["RequestInfo"].request_id == "mine-2"


async def test_an_id_that_could_garble_a_log_is_replaced(live):
    call = live.tasks.ListTasks(tasks.ListTasksRequest(), metadata=(("x-request-id", "a b"),))
    await call
    assert len(dict(await call.trailing_metadata())["x-request-id"]) == 32


async def test_an_unexpected_exception_is_internal_and_silent(live, monkeypatch):
    async def broken(*args, **kwargs):
        raise RuntimeError("/srv/secret")

    monkeypatch.setattr(live.server._gateway.tasks, "get", broken)
    refusal = await refused(live.tasks.GetTask(tasks.GetTaskRequest(name=NAME)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.details["RequestInfo"].request_id
