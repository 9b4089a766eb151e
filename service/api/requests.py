"""Requests from the wire to the domain: every field is checked here, by form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, ParamSpec, TypeVar

from google.protobuf import duration_pb2, message, timestamp_pb2

from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2
from service.api import names
from service.api.annotations import annotation_input
from service.core import images
from service.core.counts import check_count
from service.core.errors import InvalidArgumentError
from service.core.limits import Limits
from service.core.types import (
    AnnotationInput,
    MaskFormat,
    OutputOptions,
    Query,
    Registration,
    ShotFusion,
    Size,
    SourceImage,
    SupportInput,
)

_LONGEST_LIFE: Final = timedelta(days=3650)
# Checking a smaller message takes less time than handing it to a thread and back.
# A kilobyte of a PNG's text chunks unpacks to a megabyte: few of them may do so on the loop.
_SMALL_MESSAGE: Final = 4 * 1024

_FORMATS: Final[dict[int, MaskFormat]] = {
    types_pb2.MASK_FORMAT_UNSPECIFIED: MaskFormat.PNG,
    types_pb2.MASK_FORMAT_PNG: MaskFormat.PNG,
    types_pb2.MASK_FORMAT_COCO_RLE: MaskFormat.COCO_RLE,
    types_pb2.MASK_FORMAT_RAW: MaskFormat.RAW,
}
_EXTENDS: Final[dict[int, bool]] = {
    task_pb2.ANNOTATION_MODE_UNSPECIFIED: False,
    task_pb2.ANNOTATION_MODE_REPLACE: False,
    task_pb2.ANNOTATION_MODE_EXTEND: True,
}
_FUSIONS: Final[dict[int, ShotFusion]] = {
    task_pb2.SHOT_FUSION_UNSPECIFIED: ShotFusion.MERGED,
    task_pb2.SHOT_FUSION_MERGED: ShotFusion.MERGED,
    task_pb2.SHOT_FUSION_CROSS_GUIDED: ShotFusion.CROSS_GUIDED,
}
_PINS: Final[dict[int, bool]] = {
    segmentation_pb2.REVISION_POLICY_UNSPECIFIED: False,
    segmentation_pb2.REVISION_POLICY_LATEST: False,
    segmentation_pb2.REVISION_POLICY_PINNED: True,
}

_MessageT = TypeVar("_MessageT", bound=message.Message)
_DomainT = TypeVar("_DomainT")
_P = ParamSpec("_P")


async def off_the_loop(
    convert: Callable[[_MessageT, Limits], _DomainT],
    request: _MessageT,
    limits: Limits,
    *,
    quick: bool = False,
) -> _DomainT:
    """Converts a message without holding up other calls: a large one in a thread.

    Args:
        convert: Does it.
        request: What is converted.
        limits: What it may hold.
        quick: Whether it takes no time although it is large.
    """
    if not quick and request.ByteSize() > _SMALL_MESSAGE:
        return await asyncio.to_thread(convert, request, limits)
    return convert(request, limits)


def is_quick(message: types_pb2.Image) -> bool:
    """Whether an image is converted in less time than a visit to a thread takes."""
    return images.is_quick_to_inspect(message.encoded)


def registration(request: task_pb2.RegisterTaskRequest, limits: Limits) -> Registration:
    """Converts a request to register a task.

    Raises:
        InvalidArgumentError: A field is missing or malformed.
        OutOfLimitsError: It holds more than the server accepts.
    """
    if not request.HasField("task"):
        raise InvalidArgumentError("NO_TASK", "Describe the task: its classes.", field="task")
    if not request.supports:
        raise InvalidArgumentError(
            "NO_SUPPORTS", "A task needs at least one annotated image.", field="supports"
        )
    check_support_count(len(request.supports), limits)
    return Registration(
        tenant=names.tenant_of(request.parent),
        task_id=names.task_id(request.task_id),
        display_name=within("task", names.display_name, request.task.display_name),
        model=within("task", names.model_alias, request.task.model),
        classes=within("task", classes, request.task.classes, limits),
        expiration=within("task", expiration, request.task),
        request_id=names.request_id(request.request_id),
        fusion=within("task", _known, _FUSIONS, request.task.shot_fusion, "shot_fusion"),
        supports=tuple(
            within(f"supports[{index}]", support_input, support, limits)
            for index, support in enumerate(request.supports)
        ),
    )


def check_support_count(count: int, limits: Limits) -> None:
    """Refuses more supports than a task may have, before any of them is looked at.

    Raises:
        OutOfLimitsError: There are too many (TOO_MANY_SUPPORTS).
    """
    check_count("supports", count, limits.supports, field="supports")


def classes(ways: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Checks the classes of a task: one or more, all different.

    Raises:
        InvalidArgumentError: There is none, one is malformed, or one comes twice.
        OutOfLimitsError: There are too many (TOO_MANY_CLASSES).
    """
    if not ways:
        raise InvalidArgumentError(
            "NO_CLASSES", "A task needs at least one class.", field="classes"
        )
    check_count("classes", len(ways), limits.classes, field="classes")
    checked: dict[str, int] = {}
    for index, way in enumerate(ways):
        name = names.class_name(way, f"classes[{index}]")
        if name in checked:
            raise InvalidArgumentError(
                "DUPLICATE_CLASS",
                f"Classes {checked[name]} and {index} have the same name.",
                field=f"classes[{index}]",
            )
        checked[name] = index
    return tuple(checked)


def expiration(task: task_pb2.Task) -> datetime | timedelta | None:
    """Reads when a task ends: a moment, a time from now, or None for never.

    Raises:
        InvalidArgumentError: It is malformed, over, or too far away.
    """
    kind = task.WhichOneof("expiration")
    if kind == "ttl":
        return _ttl(task.ttl)
    if kind == "expire_time":
        return _expire_time(task.expire_time)
    return None


def _ttl(duration: duration_pb2.Duration) -> timedelta:
    try:
        ttl: timedelta = duration.ToTimedelta()
    except (ValueError, OverflowError):
        ttl = timedelta()
    if not timedelta() < ttl <= _LONGEST_LIFE:
        raise InvalidArgumentError(
            "INVALID_TTL",
            f"A time to live is above 0 and at most {_LONGEST_LIFE.days} days.",
            field="ttl",
        )
    return ttl


def _expire_time(timestamp: timestamp_pb2.Timestamp) -> datetime:
    now = datetime.now(UTC)
    try:
        moment: datetime = timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        moment = now
    if not now < moment <= now + _LONGEST_LIFE:
        raise InvalidArgumentError(
            "INVALID_EXPIRE_TIME",
            f"A task ends in the future, within {_LONGEST_LIFE.days} days.",
            field="expire_time",
        )
    return moment


def support_input(message: task_pb2.SupportInput, limits: Limits) -> SupportInput:
    """Converts an annotated image.

    Raises:
        InvalidArgumentError: A field is missing or malformed, or the image cannot be read.
        OutOfLimitsError: It holds more than the server accepts.
    """
    support_id = names.support_id(message.support_id, required=False)
    if not message.HasField("annotation"):
        raise InvalidArgumentError(
            "NO_ANNOTATION", "A support needs an annotation.", field="annotation"
        )
    annotation = within("annotation", annotation_input, message.annotation, limits)
    return SupportInput(
        support_id=support_id, image=image_of(message, limits), annotation=annotation
    )


def new_annotation(request: task_pb2.AnnotateSupportRequest, limits: Limits) -> AnnotationInput:
    """Converts the annotation that a support is to get.

    Raises:
        InvalidArgumentError: There is none, or it is malformed.
        OutOfLimitsError: It holds more than the server accepts.
    """
    if not request.HasField("annotation"):
        raise InvalidArgumentError("NO_ANNOTATION", "Send an annotation.", field="annotation")
    return within("annotation", annotation_input, request.annotation, limits)


def image_of(
    message: task_pb2.SupportInput
    | segmentation_pb2.SegmentRequest
    | segmentation_pb2.SegmentStreamFrame,
    limits: Limits,
) -> SourceImage:
    """Reads the header of a message's ``image``; its pixels stay encoded.

    Raises:
        InvalidArgumentError: There is none, or it cannot be read.
        OutOfLimitsError: It has too many pixels.
    """
    if not message.HasField("image"):
        raise InvalidArgumentError("NO_IMAGE", "Send an image.", field="image")
    return within("image", _image, message.image, limits)


def _image(message: types_pb2.Image, limits: Limits) -> SourceImage:
    kind = message.WhichOneof("source")
    if kind is None:
        raise InvalidArgumentError("NO_IMAGE", "Set either encoded or raw.")
    if kind == "encoded":
        return within(
            "encoded",
            images.inspect,
            message.encoded,
            max_pixels=limits.image_pixels,
            max_side=limits.image_side,
        )
    return within(
        "raw",
        images.raw_image,
        message.raw.rgb,
        Size(message.raw.height, message.raw.width),
        max_pixels=limits.image_pixels,
        max_side=limits.image_side,
    )


def query(request: segmentation_pb2.SegmentRequest, limits: Limits) -> Query:
    """Converts a request to segment an image.

    Raises:
        InvalidArgumentError: A field is missing or malformed, or the image cannot be read.
        OutOfLimitsError: The image has too many pixels.
    """
    task = names.task_name(request.name)
    etag = names.etag(request.etag)
    options = within("options", output_options, request.options)
    kind = request.WhichOneof("query")
    if kind is None:
        raise InvalidArgumentError(
            "NO_QUERY",
            "Send an image, or name a support whose image is to be segmented.",
            field="query",
        )
    image: SourceImage | str
    if kind == "support_id":
        image = names.support_id(request.support_id, required=True)
    else:
        image = image_of(request, limits)
    return Query(task=task, image=image, options=options, etag=etag)


def output_options(message: segmentation_pb2.SegmentOptions) -> OutputOptions:
    """Converts the wishes for an answer.

    Raises:
        InvalidArgumentError: The format is unknown or the size is not positive.
    """
    return OutputOptions(
        format=_known(_FORMATS, message.format, "format"),
        size=_output_size(message),
        probabilities=message.probabilities,
    )


def _output_size(message: segmentation_pb2.SegmentOptions) -> Size | str:
    if message.WhichOneof("size") != "given_size":
        return "network" if message.network_size else "original"
    size = Size(message.given_size.height, message.given_size.width)
    if size.height < 1 or size.width < 1:
        raise InvalidArgumentError(
            "INVALID_SIZE", "A mask has at least one row and one column.", field="given_size"
        )
    return size


def extends(mode: int) -> bool:
    """Whether new marks are painted over those that are there.

    Raises:
        InvalidArgumentError: The mode is unknown.
    """
    return _known(_EXTENDS, mode, "mode")


def is_pinned(policy: int) -> bool:
    """Whether a stream keeps the revision that it opened on.

    Raises:
        InvalidArgumentError: The policy is unknown.
    """
    return _known(_PINS, policy, "revision_policy")


def _known(table: dict[int, _DomainT], number: int, field: str) -> _DomainT:
    if number not in table:
        raise InvalidArgumentError(
            "UNKNOWN_VALUE", f"This server does not know {field} {number}.", field=field
        )
    return table[number]


def within(
    prefix: str, convert: Callable[_P, _DomainT], *args: _P.args, **kwargs: _P.kwargs
) -> _DomainT:
    """Converts a part of a message; the path of an error begins with that part."""
    try:
        return convert(*args, **kwargs)
    except InvalidArgumentError as error:
        raise error.within(prefix) from None
