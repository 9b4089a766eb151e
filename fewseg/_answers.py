"""Answers to values. Pure: both clients read their answers here."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from fewseg.annotations import CocoRunLengths
from fewseg.errors import FewSegError, InternalError, error_of_status
from fewseg.results import (
    ClassResult,
    Fusion,
    ModelInfo,
    ModelRefresh,
    Reuse,
    SegmentResult,
    ServerInfo,
    Task,
    TaskSupport,
)
from fewseg.v1 import model_service_pb2 as model_pb2
from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2

#: A server of an earlier release says nothing, and merges.
_FUSIONS: Final[dict[int, Fusion]] = {task_pb2.SHOT_FUSION_CROSS_GUIDED: "cross_guided"}


def task_of(message: task_pb2.Task, timings: types_pb2.Timings | None = None) -> Task:
    """Reads a task."""
    return Task(
        name=message.name,
        uid=message.uid,
        display_name=message.display_name,
        model=message.model,
        classes=tuple(message.classes),
        supports=tuple(_support(support) for support in message.supports),
        support_count=message.support_count,
        etag=message.etag,
        create_time=_moment(message.create_time),
        update_time=_moment(message.update_time),
        expire_time=_moment(message.expire_time) if message.HasField("expire_time") else None,
        background_inferred=_inferred(message.background_evidence),
        family=message.family,
        guidance_bytes=message.guidance_bytes,
        fusion=_FUSIONS.get(message.shot_fusion, "merged"),
        timings={} if timings is None else _timings(timings),
    )


def _support(message: task_pb2.Support) -> TaskSupport:
    return TaskSupport(
        id=message.support_id,
        height=message.height,
        width=message.width,
        shot_classes=tuple(message.shot_classes),
        mark_count=message.mark_count,
        leave_one_out={a.class_name: a.iou for a in message.leave_one_out},
        classes_without_pixels=tuple(message.classes_without_pixels),
    )


def changed_task(
    answer: (
        task_pb2.RegisterTaskResponse
        | task_pb2.AddSupportsResponse
        | task_pb2.AnnotateSupportResponse
        | task_pb2.RemoveSupportResponse
    ),
) -> Task:
    """Reads the task in the answer of a call that changed it."""
    return task_of(answer.task, answer.timings)


def segmentation_of(message: segmentation_pb2.SegmentResponse) -> SegmentResult:
    """Reads a segmented image.

    Raises:
        InternalError: The mask is not what its size says.
    """
    written = message.mask
    return SegmentResult(
        mask=_mask(written),
        classes=tuple(_class_result(result) for result in message.classes),
        probabilities=(
            _probabilities(message.probabilities) if message.HasField("probabilities") else None
        ),
        family=message.family,
        etag=message.etag,
        background_inferred=_inferred(message.background_evidence),
        timings=_timings(message.timings),
        reuse=Reuse(message.reuse.features, message.reuse.guidance),
        png=written.png if written.WhichOneof("content") == "png" else None,
        run_lengths=_run_lengths(written),
    )


def frame_of(
    message: segmentation_pb2.SegmentStreamResponse,
) -> SegmentResult | FewSegError:
    """Reads what became of a frame."""
    if message.WhichOneof("result") == "error":
        return error_of_status(message.error)
    return segmentation_of(message.segmentation)


def model_of(message: model_pb2.Model) -> ModelInfo:
    """Reads a model."""
    native = message.input_height == 0 or message.input_width == 0
    return ModelInfo(
        alias=message.alias,
        family=message.family,
        method=message.method,
        input_size=None if native else (message.input_height, message.input_width),
        class_handling=message.class_handling,
        decision=message.decision,
        score=message.score,
        create_time=_moment(message.create_time) if message.HasField("create_time") else None,
        provenance=dict(message.provenance),
        default=message.default,
    )


def refresh_of(message: model_pb2.RefreshModelsResponse) -> ModelRefresh:
    """Reads what the model repository holds."""
    return ModelRefresh(
        models=tuple(model_of(model) for model in message.models),
        problems=tuple(message.problems),
    )


def server_info_of(message: model_pb2.ServerInfo) -> ServerInfo:
    """Reads versions and limits."""
    limits = message.limits
    return ServerInfo(
        version=message.version,
        api_version=message.api_version,
        engine=message.engine,
        store=message.store,
        limits={f.name: int(getattr(limits, f.name)) for f in limits.DESCRIPTOR.fields},
    )


def _class_result(message: types_pb2.ClassResult) -> ClassResult:
    box = message.box
    return ClassResult(
        class_name=message.class_name,
        value=message.value,
        area=message.area,
        box=(box.x_min, box.y_min, box.x_max, box.y_max) if message.HasField("box") else None,
        mean_score=message.mean_score,
    )


def _mask(message: types_pb2.Mask) -> NDArray[np.uint8]:
    shape = (message.height, message.width)
    match message.WhichOneof("content"):
        case "png":
            with Image.open(io.BytesIO(message.png)) as opened:
                mask: NDArray[np.uint8] = np.array(opened, dtype=np.uint8)
        case "raw":
            if len(message.raw) != message.height * message.width:
                raise InternalError("The server sent a raw mask of a wrong size.", code="INTERNAL")
            mask = np.frombuffer(message.raw, np.uint8).reshape(shape).copy()
        case _:
            mask = np.zeros(shape, np.uint8)
            for value, runs in enumerate(_run_lengths(message) or (), start=1):
                mask[coco.decode(runs) != 0] = value
    if mask.shape != shape:
        raise InternalError("The server sent a mask of a wrong size.", code="INTERNAL")
    return mask


def _run_lengths(message: types_pb2.Mask) -> tuple[CocoRunLengths, ...] | None:
    if message.WhichOneof("content") != "run_lengths":
        return None
    return tuple(_coco(runs) for runs in message.run_lengths.masks)


def _coco(runs: types_pb2.RunLengthMask) -> CocoRunLengths:
    size = [runs.height, runs.width]
    if runs.WhichOneof("runs") == "compressed":
        return {"size": size, "counts": runs.compressed}
    counts = coco.frPyObjects({"size": size, "counts": list(runs.lengths.counts)}, *size)["counts"]
    return {"size": size, "counts": counts.decode("ascii")}


def _probabilities(message: types_pb2.Probabilities) -> NDArray[np.float16]:
    values = np.frombuffer(message.values, np.dtype("<f2")).astype(np.float16)
    return values.reshape(message.planes, message.height, message.width)


def _timings(message: types_pb2.Timings) -> dict[str, float]:
    return {
        stage.name: (duration.seconds * 10**9 + duration.nanos) / 1e9
        for stage, duration in message.ListFields()
    }


def _inferred(evidence: int) -> bool:
    return evidence == types_pb2.BACKGROUND_EVIDENCE_INFERRED


def _moment(stamp: Any) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)  # type: ignore[no-any-return]
