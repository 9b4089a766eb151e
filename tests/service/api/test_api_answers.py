from datetime import UTC, datetime

import numpy as np
import pytest

from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import task_service_pb2 as task_pb2
from fewseg.v1 import types_pb2 as types
from service.api import answers
from service.core.errors import OutOfLimitsError
from service.core.limits import Limits
from service.core.timing import Stage, StageClock
from service.core.types import (
    BackgroundEvidence,
    ClassAgreement,
    ClassResult,
    EncodedMask,
    MaskFormat,
    RunLengthMask,
    Segmentation,
    ShotFusion,
    Size,
    SupportSummary,
    TaskHeader,
    TaskName,
    TaskReport,
)

MOMENT = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)


def header(**fields):
    values = {
        "name": TaskName("acme", "leaves"),
        "uid": "0123456789abcdef",
        "display_name": "Leaves",
        "model": "compact",
        "classes": ("leaf", "rust"),
        "revision": 3,
        "support_count": 2,
        "create_time": MOMENT,
        "update_time": MOMENT,
    }
    return TaskHeader(**(values | fields))


def segmentation(mask, **fields):
    values = {
        "mask": mask,
        "classes": (
            ClassResult("leaf", 1, 2, (0, 0, 2, 1), 0.75),
            ClassResult("rust", 2, 0, None, 0.0),
        ),
        "probabilities": None,
        "family": "compact-1f2e3d4c",
        "etag": "0123456789abcdef-3",
        "background": BackgroundEvidence.INFERRED,
        "features_reused": True,
        "guidance_reused": False,
    }
    return Segmentation(**(values | fields))


async def shown(mask, **fields):
    answer = segmentation_pb2.SegmentResponse()
    await answers.write_segmentation(answer, segmentation(mask, **fields), StageClock())
    return answer


def test_a_task_says_how_its_shots_become_one_answer():
    shown_fusions = [answers.listed_task(header(fusion=f), "").shot_fusion for f in ShotFusion]
    assert shown_fusions == [task_pb2.SHOT_FUSION_MERGED, task_pb2.SHOT_FUSION_CROSS_GUIDED]


def test_a_task_is_shown_with_its_supports():
    report = TaskReport(
        header(expire_time=MOMENT),
        (SupportSummary("a", Size(4, 6), ("leaf", "rust"), 2, ("rust",)),),
        "compact-1f2e3d4c",
        2048,
        {"a": (ClassAgreement("leaf", 0.5),)},
    )
    task = answers.task(report)
    assert task.name == "tenants/acme/tasks/leaves"
    assert list(task.classes) == ["leaf", "rust"]
    assert task.etag == "0123456789abcdef-3"
    assert (task.family, task.guidance_bytes) == ("compact-1f2e3d4c", 2048)
    assert task.background_evidence == types.BACKGROUND_EVIDENCE_GIVEN
    assert task.create_time.ToDatetime(tzinfo=UTC) == MOMENT
    assert task.expire_time.ToDatetime(tzinfo=UTC) == MOMENT
    shown = task.supports[0]
    assert (shown.support_id, shown.height, shown.width, shown.mark_count) == ("a", 4, 6, 2)
    assert list(shown.shot_classes) == ["leaf", "rust"]
    assert list(shown.classes_without_pixels) == ["rust"]
    assert [(one.class_name, one.iou) for one in shown.leave_one_out] == [("leaf", 0.5)]


def test_a_listed_task_has_no_supports_and_may_never_end():
    task = answers.listed_task(header(), "")
    assert task.support_count == 2
    assert not task.supports
    assert task.WhichOneof("expiration") is None


@pytest.mark.parametrize(("format_", "kind"), [(MaskFormat.PNG, "png"), (MaskFormat.RAW, "raw")])
async def test_masks_are_bytes_of_their_format(format_, kind):
    mask = (await shown(EncodedMask(Size(1, 2), format_, b"\x01\x01"))).mask
    assert (mask.WhichOneof("content"), getattr(mask, kind)) == (kind, b"\x01\x01")
    assert (mask.height, mask.width) == (1, 2)


async def test_run_lengths_are_a_mask_per_class():
    runs = (RunLengthMask(Size(1, 2), b"02"), RunLengthMask(Size(1, 2), b"2"))
    mask = (await shown(EncodedMask(Size(1, 2), MaskFormat.COCO_RLE, runs))).mask
    assert [one.compressed for one in mask.run_lengths.masks] == ["02", "2"]


async def test_an_answer_says_what_made_it_and_what_it_found():
    answer = await shown(EncodedMask(Size(1, 2), MaskFormat.RAW, b"\x01\x01"))
    assert (answer.family, answer.etag) == ("compact-1f2e3d4c", "0123456789abcdef-3")
    assert answer.background_evidence == types.BACKGROUND_EVIDENCE_INFERRED
    assert (answer.reuse.features, answer.reuse.guidance) == (True, False)
    leaf, rust = answer.classes
    assert (leaf.class_name, leaf.value, leaf.area, leaf.mean_score) == ("leaf", 1, 2, 0.75)
    assert (leaf.box.x_min, leaf.box.y_min, leaf.box.x_max, leaf.box.y_max) == (0, 0, 2, 1)
    assert not rust.HasField("box")
    assert not answer.HasField("probabilities")


async def test_probabilities_are_little_endian_halves_whatever_the_memory_order():
    planes = np.arange(12, dtype=np.float16).reshape(2, 2, 3)
    mask = EncodedMask(Size(2, 3), MaskFormat.RAW, bytes(6))
    for given in (planes, np.asfortranarray(planes), planes.astype(">f2")):
        answer = await shown(mask, probabilities=given)
        values = np.frombuffer(answer.probabilities.values, "<f2")
        assert values.reshape(2, 2, 3).tolist() == planes.tolist()
        assert answer.probabilities.planes == 2


def test_timings_tell_the_stages_that_ran_and_the_whole():
    clock = StageClock()
    clock.add(Stage.DECODE, 0.25)
    shown = answers.timings(clock)
    assert shown.decode.ToMilliseconds() == 250
    assert not shown.HasField("guide")
    assert shown.HasField("total")


def test_every_stage_has_its_field():
    clock = StageClock()
    for stage in Stage:
        clock.add(stage, 1.0)
    shown = answers.timings(clock)
    assert {field.name for field, _ in shown.ListFields()} == {*Stage, "total"}


def test_every_limit_is_told():
    shown = answers.limits(Limits(supports=7))
    assert shown.supports == 7
    assert all(getattr(shown, field.name) > 0 for field in shown.DESCRIPTOR.fields)


def test_an_answer_that_fits_no_message_is_refused():
    answer = types.Mask(raw=bytes(100))
    answers.check_size(answer, Limits(message_bytes=200))
    with pytest.raises(OutOfLimitsError) as caught:
        answers.check_size(answer, Limits(message_bytes=50))
    assert (caught.value.reason, caught.value.field) == ("ANSWER_TOO_LARGE", "options")
