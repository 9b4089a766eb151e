"""Answers from the domain to the wire."""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np
from google.protobuf import duration_pb2, message
from numpy.typing import NDArray

from fewseg.v1 import model_service_pb2 as model_pb2
from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2
from service.core.errors import OutOfLimitsError
from service.core.family import ModelFamily
from service.core.limits import Limits
from service.core.timing import StageClock
from service.core.types import (
    BackgroundEvidence,
    ClassAgreement,
    ClassResult,
    EncodedMask,
    MaskFormat,
    RunLengthMask,
    Segmentation,
    ShotFusion,
    SupportSummary,
    TaskHeader,
    TaskReport,
)

_BACKGROUND: Final = {
    BackgroundEvidence.GIVEN: types_pb2.BACKGROUND_EVIDENCE_GIVEN,
    BackgroundEvidence.INFERRED: types_pb2.BACKGROUND_EVIDENCE_INFERRED,
}
_FUSIONS: Final = {
    ShotFusion.MERGED: task_pb2.SHOT_FUSION_MERGED,
    ShotFusion.CROSS_GUIDED: task_pb2.SHOT_FUSION_CROSS_GUIDED,
}


def task(report: TaskReport) -> task_pb2.Task:
    """Shows a task with its supports."""
    answer = listed_task(report.header, report.family)
    answer.background_evidence = _BACKGROUND[report.background]
    answer.guidance_bytes = report.guidance_bytes
    answer.supports.extend(
        _support(support, report.leave_one_out.get(support.support_id, ()))
        for support in report.supports
    )
    return answer


def listed_task(header: TaskHeader, family: str) -> task_pb2.Task:
    """Shows a task without its supports.

    Args:
        header: The task.
        family: What its model's alias stands for now; empty if the model is gone.
    """
    answer = task_pb2.Task(
        name=str(header.name),
        uid=header.uid,
        display_name=header.display_name,
        model=header.model,
        classes=header.classes,
        support_count=header.support_count,
        etag=header.etag,
        family=family,
        shot_fusion=_FUSIONS[header.fusion],
    )
    answer.create_time.FromDatetime(header.create_time)
    answer.update_time.FromDatetime(header.update_time)
    if header.expire_time is not None:
        answer.expire_time.FromDatetime(header.expire_time)
    return answer


def _support(support: SupportSummary, agreement: tuple[ClassAgreement, ...]) -> task_pb2.Support:
    return task_pb2.Support(
        support_id=support.support_id,
        height=support.image_size.height,
        width=support.image_size.width,
        shot_classes=support.shot_classes,
        mark_count=support.mark_count,
        classes_without_pixels=support.classes_without_pixels,
        leave_one_out=[
            task_pb2.ClassAgreement(class_name=one.class_name, iou=one.iou) for one in agreement
        ],
    )


async def write_segmentation(
    answer: segmentation_pb2.SegmentResponse, result: Segmentation, clock: StageClock
) -> None:
    """Shows a segmented image, and where the time of the call went.

    Args:
        answer: Is filled: copying one that holds probabilities takes its time.
        result: What to show.
        clock: Of the call.
    """
    answer.classes.extend(_class_result(one) for one in result.classes)
    answer.family = result.family
    answer.etag = result.etag
    answer.background_evidence = _BACKGROUND[result.background]
    answer.reuse.features = result.features_reused
    answer.reuse.guidance = result.guidance_reused
    _write_mask(answer.mask, result.mask)
    if result.probabilities is not None:
        # Megabytes: between two copies of them other calls have their turn.
        await asyncio.to_thread(_write_probabilities, answer.probabilities, result.probabilities)
    _write_timings(answer.timings, clock)


def _write_probabilities(
    answer: types_pb2.Probabilities, probabilities: NDArray[np.float16]
) -> None:
    answer.planes, answer.height, answer.width = probabilities.shape
    answer.values = probabilities.astype(np.dtype("<f2"), copy=False).tobytes()


def _write_mask(answer: types_pb2.Mask, mask: EncodedMask) -> None:
    answer.height, answer.width = mask.size.height, mask.size.width
    if not isinstance(mask.content, bytes):
        answer.run_lengths.masks.extend(_run_lengths(one) for one in mask.content)
    elif mask.format is MaskFormat.RAW:
        answer.raw = mask.content
    else:
        answer.png = mask.content


def _run_lengths(mask: RunLengthMask) -> types_pb2.RunLengthMask:
    return types_pb2.RunLengthMask(
        height=mask.size.height, width=mask.size.width, compressed=mask.counts.decode("ascii")
    )


def _class_result(result: ClassResult) -> types_pb2.ClassResult:
    answer = types_pb2.ClassResult(
        class_name=result.class_name,
        value=result.value,
        area=result.area,
        mean_score=result.mean_score,
    )
    if result.box is not None:
        x_min, y_min, x_max, y_max = result.box
        answer.box.CopyFrom(types_pb2.PixelBox(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    return answer


def timings(clock: StageClock) -> types_pb2.Timings:
    """Shows where the time of a call went; a stage that did not run is unset."""
    answer = types_pb2.Timings()
    _write_timings(answer, clock)
    return answer


def _write_timings(answer: types_pb2.Timings, clock: StageClock) -> None:
    for stage, seconds in clock.seconds.items():
        _write_duration(getattr(answer, stage), seconds)
    _write_duration(answer.total, clock.total())


def _write_duration(answer: duration_pb2.Duration, seconds: float) -> None:
    answer.seconds, answer.nanos = divmod(round(seconds * 1e9), 1_000_000_000)


def model(family: ModelFamily, *, default: bool) -> model_pb2.Model:
    """Shows a model.

    Args:
        family: What the alias stands for.
        default: Whether tasks that name no model get this one.
    """
    answer = model_pb2.Model(
        name=f"models/{family.alias}",
        alias=family.alias,
        family=family.name,
        method=family.method,
        class_handling=family.class_handling.value,
        decision=family.decision.value,
        score=family.score.value,
        provenance=dict(family.provenance),
        default=default,
    )
    if family.input_size is not None:
        answer.input_height = family.input_size.height
        answer.input_width = family.input_size.width
    answer.create_time.FromDatetime(family.created)
    return answer


def limits(bounds: Limits) -> model_pb2.Limits:
    """Shows what a request may hold."""
    return model_pb2.Limits(
        message_bytes=bounds.message_bytes,
        image_pixels=bounds.image_pixels,
        supports=bounds.supports,
        classes=bounds.classes,
        marks=bounds.marks,
        vertices=bounds.vertices,
        tasks=bounds.tasks,
        in_flight=bounds.in_flight,
        stream_frames=bounds.stream_frames,
        annotation_bytes=bounds.annotation_bytes,
        output_pixels=bounds.output_pixels,
        image_side=bounds.image_side,
        mask_pixels=bounds.mask_pixels,
        mask_values=bounds.mask_values,
        output_values=bounds.output_values,
        cross_guided_supports=bounds.cross_guided_supports,
    )


def check_size(answer: message.Message, bounds: Limits) -> None:
    """Refuses an answer that would not fit into one message.

    Raises:
        OutOfLimitsError: It is too large (ANSWER_TOO_LARGE).
    """
    size = answer.ByteSize()
    if size > bounds.message_bytes:
        raise OutOfLimitsError(
            "ANSWER_TOO_LARGE",
            f"The answer takes {size} bytes and a message holds {bounds.message_bytes}: ask for a "
            "smaller mask, for PNG or run lengths, or for no probabilities.",
            field="options",
            metadata={"limit": str(bounds.message_bytes), "size": str(size)},
        )
