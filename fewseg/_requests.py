"""Values to requests. Pure: both clients make their requests here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from fewseg._marks import annotation_message
from fewseg.annotations import AnnotationLike, Support
from fewseg.errors import FewSegError
from fewseg.images import MESSAGE_HEADROOM, ImageLike, to_message
from fewseg.results import Fusion, SegmentResult, Task
from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2

#: A task: as it was answered, its full name, or the last part of its name.
TaskRef = Task | str
#: How long a task lives: a time from its registration, or seconds.
Ttl = timedelta | float
#: In which form a mask crosses the wire; the result holds an array whatever it is.
Format = Literal["png", "rle", "raw"]
#: The size of a mask: that of the image, that of the network's input, or (rows, columns).
OutputSize = Literal["original", "network"] | tuple[int, int]

Several = TypeVar("Several")

_FORMATS = {
    "png": types_pb2.MASK_FORMAT_PNG,
    "rle": types_pb2.MASK_FORMAT_COCO_RLE,
    "raw": types_pb2.MASK_FORMAT_RAW,
}
_FUSIONS = {
    "merged": task_pb2.SHOT_FUSION_MERGED,
    "cross_guided": task_pb2.SHOT_FUSION_CROSS_GUIDED,
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What the requests of one client have in common.

    Attributes:
        tenant: Owner of tasks that are given by the last part of their name.
        message_bytes: What one message may hold.
    """

    tenant: str
    message_bytes: int

    @property
    def parent(self) -> str:
        """Resource name of the tenant."""
        return f"tenants/{self.tenant}"

    def name(self, task: TaskRef) -> str:
        """Resource name of a task."""
        if isinstance(task, Task):
            return task.name
        if not task:
            raise ValueError("The name of a task is empty.")
        return task if "/" in task else f"{self.parent}/tasks/{task}"

    def raw_limit(self, images: int = 1) -> int:
        """Bytes that each of several images in one message may take uncompressed."""
        return (self.message_bytes - MESSAGE_HEADROOM) // max(1, images)


def classes_of(task: TaskRef) -> tuple[str, ...]:
    """The classes of a task as far as they are known here."""
    return task.classes if isinstance(task, Task) else ()


def new_request_id(given: str | None) -> str:
    """The id that makes sending a request again harmless."""
    return str(uuid.uuid4()) if given is None else given


@contextmanager
def naming_support(index: int) -> Iterator[None]:
    """Notes which support it was that could not be made into a message."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        error.add_note(f"supports[{index}]")
        raise


def support_message(
    support: Support, classes: Sequence[str], raw_limit: int
) -> task_pb2.SupportInput:
    """Makes the wire form of a support; see ``annotation_message`` and ``to_message``."""
    return task_pb2.SupportInput(
        support_id=support.id,
        image=to_message(support.image, raw_limit=raw_limit),
        annotation=annotation_message(support.annotation, classes),
    )


def register_request(
    scope: Scope,
    classes: Sequence[str],
    supports: Sequence[Support],
    *,
    model: str,
    task_id: str,
    display_name: str,
    ttl: Ttl | None,
    expire_time: datetime | None,
    fusion: Fusion,
    request_id: str | None,
) -> task_pb2.RegisterTaskRequest:
    """Makes the request that registers a task.

    Raises:
        TypeError: ``classes`` is no list of strings, or ``supports`` no list.
        ValueError: Both ``ttl`` and ``expire_time`` are given, ``fusion`` is unknown, or the
            supports do not fit in one message.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError("The classes of a task are a list of names.")
    if isinstance(supports, Support):
        raise TypeError("The supports of a task are a list, even a single one.")
    if fusion not in _FUSIONS:
        raise ValueError(f"Shots are {' or '.join(_FUSIONS)}, not {fusion!r}.")
    task = task_pb2.Task(
        display_name=display_name, model=model, classes=classes, shot_fusion=_FUSIONS[fusion]
    )
    _set_expiration(task, ttl, expire_time)
    request = task_pb2.RegisterTaskRequest(
        parent=scope.parent,
        task_id=task_id,
        task=task,
        request_id=new_request_id(request_id),
    )
    limit = scope.raw_limit(len(supports))
    for index, support in enumerate(supports):
        with naming_support(index):
            request.supports.append(support_message(support, classes, limit))
    if request.ByteSize() > scope.message_bytes:
        raise ValueError(
            f"The supports take {request.ByteSize():,} bytes, more than one message may hold "
            f"({scope.message_bytes:,}): register with the first ones and send the rest by "
            "add_supports."
        )
    return request


def _set_expiration(task: task_pb2.Task, ttl: Ttl | None, expire_time: datetime | None) -> None:
    if ttl is not None and expire_time is not None:
        raise ValueError("Give ttl or expire_time, not both.")
    if ttl is not None:
        task.ttl.FromTimedelta(ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl))
    if expire_time is not None:
        if expire_time.tzinfo is None:
            raise ValueError("expire_time needs a time zone.")
        task.expire_time.FromDatetime(expire_time.astimezone(UTC))


def add_header(
    scope: Scope, task: TaskRef, etag: str, request_id: str | None
) -> task_pb2.AddSupportsRequest:
    """Makes the message that opens a stream of supports."""
    header = task_pb2.AddSupportsHeader(
        name=scope.name(task), etag=etag, request_id=new_request_id(request_id)
    )
    return task_pb2.AddSupportsRequest(header=header)


def add_support(scope: Scope, task: TaskRef, support: Support) -> task_pb2.AddSupportsRequest:
    """Makes a message of a stream of supports."""
    message = support_message(support, classes_of(task), scope.raw_limit())
    return task_pb2.AddSupportsRequest(support=message)


def annotate_request(
    scope: Scope,
    task: TaskRef,
    support_id: str,
    annotation: AnnotationLike,
    *,
    extend: bool,
    etag: str,
    request_id: str | None,
) -> task_pb2.AnnotateSupportRequest:
    """Makes the request that changes the annotation of a support."""
    return task_pb2.AnnotateSupportRequest(
        name=scope.name(task),
        support_id=support_id,
        annotation=annotation_message(annotation, classes_of(task)),
        mode=task_pb2.ANNOTATION_MODE_EXTEND if extend else task_pb2.ANNOTATION_MODE_REPLACE,
        etag=etag,
        request_id=new_request_id(request_id),
    )


def remove_request(
    scope: Scope, task: TaskRef, support_id: str, *, etag: str, request_id: str | None
) -> task_pb2.RemoveSupportRequest:
    """Makes the request that removes a support."""
    return task_pb2.RemoveSupportRequest(
        name=scope.name(task),
        support_id=support_id,
        etag=etag,
        request_id=new_request_id(request_id),
    )


def segment_options(
    format: Format, size: OutputSize, probabilities: bool
) -> segmentation_pb2.SegmentOptions:
    """Makes the wire form of how an answer is to look."""
    if format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(_FORMATS)}, not {format!r}.")
    options = segmentation_pb2.SegmentOptions(format=_FORMATS[format], probabilities=probabilities)
    if size == "network":
        options.network_size = True
    elif size != "original":
        if isinstance(size, str):
            raise ValueError(
                f"size must be 'original', 'network' or (rows, columns), not {size!r}."
            )
        height, width = size
        options.given_size.CopyFrom(segmentation_pb2.OutputSize(height=height, width=width))
    return options


def segment_request(
    scope: Scope,
    task: TaskRef,
    image: ImageLike | None,
    support_id: str,
    options: segmentation_pb2.SegmentOptions,
    etag: str,
) -> segmentation_pb2.SegmentRequest:
    """Makes the request that segments one image, or the image of a support.

    Raises:
        TypeError: Neither or both of image and support are given.
    """
    if (image is None) == (support_id == ""):
        raise TypeError("Give an image or a support_id, one of the two.")
    request = segmentation_pb2.SegmentRequest(name=scope.name(task), options=options, etag=etag)
    if image is None:
        request.support_id = support_id
    else:
        request.image.CopyFrom(to_message(image, raw_limit=scope.raw_limit()))
    return request


def stream_opening(
    scope: Scope,
    task: TaskRef,
    options: segmentation_pb2.SegmentOptions,
    *,
    pinned: bool,
    etag: str,
) -> segmentation_pb2.SegmentStreamRequest:
    """Makes the message that opens a stream of queries."""
    policy = (
        segmentation_pb2.REVISION_POLICY_PINNED
        if pinned
        else segmentation_pb2.REVISION_POLICY_LATEST
    )
    opening = segmentation_pb2.SegmentStreamOpening(
        name=scope.name(task), options=options, revision_policy=policy, etag=etag
    )
    return segmentation_pb2.SegmentStreamRequest(opening=opening)


def stream_frame(
    scope: Scope, sequence_id: int, image: ImageLike
) -> segmentation_pb2.SegmentStreamRequest:
    """Makes a frame of a stream of queries."""
    frame = segmentation_pb2.SegmentStreamFrame(
        sequence_id=sequence_id, image=to_message(image, raw_limit=scope.raw_limit())
    )
    return segmentation_pb2.SegmentStreamRequest(frame=frame)


def several_images(images: Several) -> Several:
    """Refuses what can be iterated over but is a single image.

    Raises:
        TypeError: It is a path or the bytes of a file.
    """
    if isinstance(images, (str, bytes)):
        raise TypeError("Give a list of images, or use segment() for a single one.")
    return images


def checked_window(window: int) -> int:
    """Refuses a window that no image fits in."""
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}.")
    return window


def result_or_raise(answer: SegmentResult | FewSegError, index: int) -> SegmentResult:
    """Returns a segmentation, or raises the error with a note that names the image."""
    if isinstance(answer, FewSegError):
        answer.add_note(f"images[{index}]")
        raise answer
    return answer
