"""From scenarios to messages: everything is registered, drawn and serialised before the run."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import grpc

from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2
from loadtests.arrivals import zipf_choices
from loadtests.photographs import STANDARD_SIZE, Photograph, outline, photographs
from loadtests.scenarios import Work
from loadtests.servers import ServerError
from loadtests.targets import ANNOTATE, SEGMENT, Connection

#: The class of every task.
CLASS_NAME = "thing"

_FORMATS = {
    "png": types_pb2.MASK_FORMAT_PNG,
    "rle": types_pb2.MASK_FORMAT_COCO_RLE,
    "raw": types_pb2.MASK_FORMAT_RAW,
}
_REGISTER_SECONDS = 120.0
_SUPPORT_SEED = 1_000_003
_CLICKS_BEFORE_REPLACE = 20


@dataclass(frozen=True, slots=True)
class Rpc:
    """One unary call.

    Attributes:
        method: ``/package.Service/Method``.
        request: The serialised message.
    """

    method: str
    request: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """What one arrival does: calls one after another.

    Attributes:
        rpcs: The calls.
        lane: Jobs of one lane change the same task and are sent by the same process.
    """

    rpcs: tuple[Rpc, ...]
    lane: int = 0


def support_of(photograph: Photograph, number: int, support_id: str = "") -> task_pb2.SupportInput:
    """A support whose outline and everything outside it are labelled."""
    return task_pb2.SupportInput(
        support_id=support_id or f"s{number}",
        image=types_pb2.Image(encoded=photograph.jpeg),
        annotation=types_pb2.Annotation(
            marks=[
                types_pb2.Mark(
                    class_name=CLASS_NAME,
                    polygon=types_pb2.Polygon(
                        rings=[
                            types_pb2.Ring(
                                vertices=[
                                    types_pb2.Point(x=x, y=y)
                                    for x, y in outline(photograph, number)
                                ]
                            )
                        ]
                    ),
                )
            ],
            exhaustive=True,
        ),
    )


@contextmanager
def _told(method: str) -> Iterator[None]:
    """Tells what a server made of a call in the words that this tool ends with."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
        raise ServerError(f"the server answers {method} with {code}: {details}") from error


def register(
    connection: Connection, task_id: str, supports: Sequence[task_pb2.SupportInput]
) -> str:
    """Registers a task and returns its name.

    Raises:
        ServerError: The server refuses it.
    """
    request = task_pb2.RegisterTaskRequest(
        task_id=task_id, task=task_pb2.Task(classes=[CLASS_NAME]), supports=supports
    )
    with _told("RegisterTask"):
        answer = connection.tasks.RegisterTask(
            request, timeout=_REGISTER_SECONDS, metadata=connection.target.metadata
        )
    return str(answer.task.name)


def register_tasks(connection: Connection, work: Work, prefix: str = "") -> list[str]:
    """Registers the tasks of a scenario, their shots drawn from its support images.

    Args:
        connection: Where to.
        work: How many tasks and shots.
        prefix: Of the task ids; one of its own keeps two runs on one server apart.

    Raises:
        ServerError: The server refuses one; those before it are deleted again.
    """
    prefix = prefix or f"load-{uuid.uuid4().hex[:8]}"
    distinct = work.support_images or work.tasks * work.shots
    images = photographs(distinct, seed=_SUPPORT_SEED)
    names = []
    for task in range(work.tasks):
        numbers = range(task * work.shots, (task + 1) * work.shots)
        supports = [
            support_of(images[number % distinct], number, f"s{shot}")
            for shot, number in enumerate(numbers)
        ]
        try:
            names.append(register(connection, f"{prefix}-{task}", supports))
        except ServerError:
            with suppress(ServerError):
                delete_tasks(connection, names)
            raise
    return names


def delete_tasks(connection: Connection, names: Sequence[str]) -> None:
    """Deletes what ``register_tasks`` registered.

    Raises:
        ServerError: The server refuses to.
    """
    for name in names:
        with _told("DeleteTask"):
            connection.tasks.DeleteTask(
                task_pb2.DeleteTaskRequest(name=name),
                timeout=_REGISTER_SECONDS,
                metadata=connection.target.metadata,
            )


def segment_request(
    task: str, photograph: Photograph, mask_format: str = "png"
) -> segmentation_pb2.SegmentRequest:
    """Asks for the mask of a photograph at its own size."""
    return segmentation_pb2.SegmentRequest(
        name=task,
        image=types_pb2.Image(encoded=photograph.jpeg),
        options=segmentation_pb2.SegmentOptions(format=_FORMATS[mask_format]),
    )


def click_requests(
    task: str, number: int, support_id: str = "s0"
) -> tuple[task_pb2.AnnotateSupportRequest, segmentation_pb2.SegmentRequest]:
    """One more click on a support, and the mask under it.

    Args:
        task: The task.
        number: Of the click; every so often one starts afresh, as people do.
        support_id: On which support.
    """
    height, width = STANDARD_SIZE
    x, y = (37 * number) % width, (53 * number) % height
    fresh = number % _CLICKS_BEFORE_REPLACE == 0
    mode = task_pb2.ANNOTATION_MODE_REPLACE if fresh else task_pb2.ANNOTATION_MODE_EXTEND
    annotate = task_pb2.AnnotateSupportRequest(
        name=task,
        support_id=support_id,
        annotation=types_pb2.Annotation(
            marks=[
                types_pb2.Mark(
                    class_name=CLASS_NAME,
                    points=types_pb2.Points(points=[types_pb2.Point(x=x, y=y)], radius=5.0),
                )
            ]
        ),
        mode=mode,
    )
    return annotate, segmentation_pb2.SegmentRequest(name=task, support_id=support_id)


def jobs(
    work: Work, tasks: Sequence[str], count: int, seed: int = 0, choices: int = 0
) -> list[Job]:
    """What ``count`` arrivals do, in order.

    Args:
        work: ``segment`` or ``clicks``.
        tasks: Names of the registered tasks.
        count: How many arrivals.
        seed: Of the images; two seeds share none.
        choices: Seed by which tasks are chosen.
    """
    chosen = (
        zipf_choices(len(tasks), work.zipf, count, choices).tolist()
        if work.zipf
        else [number % len(tasks) for number in range(count)]
    )
    if work.kind == "clicks":
        return [_click(tasks, task, number) for number, task in enumerate(chosen)]
    images = photographs(min(count, work.images), work.sizes, seed)
    return [
        Job(
            (
                Rpc(
                    SEGMENT,
                    segment_request(
                        tasks[task], images[number % len(images)], work.format
                    ).SerializeToString(),
                ),
            ),
            lane=number,
        )
        for number, task in enumerate(chosen)
    ]


def _click(tasks: Sequence[str], task: int, number: int) -> Job:
    annotate, segment = click_requests(tasks[task], number // len(tasks))
    return Job(
        (Rpc(ANNOTATE, annotate.SerializeToString()), Rpc(SEGMENT, segment.SerializeToString())),
        lane=task,
    )
