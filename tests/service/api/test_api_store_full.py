"""A store without room refuses, keeps what it has, and takes new tasks once there is room."""

import grpc
import numpy as np

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
from tests.helpers.refusals import refused


def large_support(support_id):
    """More bytes than the store takes; they cannot be packed."""
    noise = np.random.default_rng(0).bytes(3 * 900 * 900)
    image = types.Image(raw=types.RawImage(rgb=noise, height=900, width=900))
    mark = types.Mark(class_name="red", box=box(RED_BOX))
    annotation = types.Annotation(marks=[mark])
    return tasks.SupportInput(support_id=support_id, image=image, annotation=annotation)


def adding(*supports):
    yield tasks.AddSupportsRequest(header=tasks.AddSupportsHeader(name=NAME))
    for support in supports:
        yield tasks.AddSupportsRequest(support=support)


async def test_nothing_is_half_done_when_the_disk_is_full(repository, tmp_path):
    path = tmp_path / "tasks.db"
    async with serving(repository, store="sqlite", store_path=path, store_bytes=2_000_000) as live:
        await live.tasks.RegisterTask(register_request())
        before = await live.segmentation.Segment(segment_request())
        for call in (
            live.tasks.RegisterTask(
                register_request(task_id="more", supports=[large_support("big")])
            ),
            live.tasks.AddSupports(adding(red_support("b", seed=2), large_support("big"))),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "STORE_FULL",
            )
            assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        listed = await live.tasks.ListTasks(tasks.ListTasksRequest())
        assert [task.name for task in listed.tasks] == [NAME]
        kept = await live.tasks.GetTask(tasks.GetTaskRequest(name=NAME))
        assert [support.support_id for support in kept.supports] == ["a"]
        after = await live.segmentation.Segment(segment_request())
        assert (after.etag, after.mask.png) == (before.etag, before.mask.png)
        await live.tasks.DeleteTask(tasks.DeleteTaskRequest(name=NAME))
        await live.tasks.RegisterTask(register_request())
