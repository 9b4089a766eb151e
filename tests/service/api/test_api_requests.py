import io
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image

from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import types_pb2 as types
from service.api import requests
from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.limits import Limits
from service.core.run_lengths import decode_run_lengths
from service.core.types import (
    BACKGROUND,
    Box,
    IndexMask,
    MaskFormat,
    Points,
    Polygon,
    Scribble,
    ShotFusion,
    Size,
    SourceImage,
    TaskName,
)

LIMITS = Limits()
NAME = "tenants/default/tasks/leaf"


def png(width=6, height=4):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(**size):
    return types.Image(encoded=png(**size))


def box(x_min=0, y_min=0, x_max=2, y_max=2):
    return types.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def annotation(*marks):
    return types.Annotation(marks=marks or [types.Mark(class_name="leaf", box=box())])


def support(**fields):
    return tasks.SupportInput(**({"image": picture(), "annotation": annotation()} | fields))


def register(**fields):
    values = {"task": tasks.Task(classes=["leaf"]), "supports": [support()]}
    return tasks.RegisterTaskRequest(**(values | fields))


def refused(convert, *args):
    with pytest.raises(InvalidArgumentError) as caught:
        convert(*args)
    return caught.value.reason, caught.value.field


def test_a_registration_arrives_whole():
    task = tasks.Task(display_name="Rust", model="compact", classes=["leaf", "rust"])
    task.ttl.FromSeconds(60)
    request = register(
        parent="tenants/acme",
        task_id="leaves",
        task=task,
        supports=[support(support_id="a"), support()],
        request_id="123e4567-e89b-42d3-a456-426614174000",
    )
    registration = requests.registration(request, LIMITS)
    assert (registration.tenant, registration.task_id) == ("acme", "leaves")
    assert (registration.display_name, registration.model) == ("Rust", "compact")
    assert registration.classes == ("leaf", "rust")
    assert registration.expiration == timedelta(seconds=60)
    assert registration.fusion is ShotFusion.MERGED
    assert registration.request_id == "123e4567-e89b-42d3-a456-426614174000"
    assert [given.support_id for given in registration.supports] == ["a", ""]
    assert registration.supports[0].image.size == Size(4, 6)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (tasks.RegisterTaskRequest(supports=[support()]), "NO_TASK", "task"),
        (register(supports=[]), "NO_SUPPORTS", "supports"),
        (register(task=tasks.Task()), "NO_CLASSES", "task.classes"),
        (
            register(task=tasks.Task(classes=["a", "b", "a"])),
            "DUPLICATE_CLASS",
            "task.classes[2]",
        ),
        (register(task=tasks.Task(classes=["a", ""])), "INVALID_CLASS_NAME", "task.classes[1]"),
        (register(task=tasks.Task(classes=["a"], model="A")), "INVALID_MODEL", "task.model"),
        (
            register(task=tasks.Task(classes=["a"], shot_fusion=9)),
            "UNKNOWN_VALUE",
            "task.shot_fusion",
        ),
        (register(task_id="No"), "INVALID_TASK_ID", "task_id"),
        (register(parent="no"), "INVALID_NAME", "parent"),
        (register(request_id="no"), "INVALID_REQUEST_ID", "request_id"),
        (
            register(supports=[support(), support(support_id="?")]),
            "INVALID_SUPPORT_ID",
            "supports[1].support_id",
        ),
        (
            register(supports=[tasks.SupportInput(annotation=annotation())]),
            "NO_IMAGE",
            "supports[0].image",
        ),
        (register(supports=[support(image=types.Image())]), "NO_IMAGE", "supports[0].image"),
        (
            register(supports=[tasks.SupportInput(image=picture())]),
            "NO_ANNOTATION",
            "supports[0].annotation",
        ),
        (
            register(supports=[support(image=types.Image(encoded=b""))]),
            "EMPTY_IMAGE",
            "supports[0].image.encoded",
        ),
        (
            register(supports=[support(), support(), support(image=types.Image(encoded=b"nope"))]),
            "NOT_AN_IMAGE",
            "supports[2].image.encoded",
        ),
        (
            register(
                supports=[
                    support(image=types.Image(raw=types.RawImage(rgb=b"", height=2, width=2)))
                ]
            ),
            "WRONG_RAW_LENGTH",
            "supports[0].image.raw",
        ),
        (
            register(supports=[support(image=types.Image(raw=types.RawImage(rgb=b"", width=2)))]),
            "EMPTY_IMAGE",
            "supports[0].image.raw",
        ),
    ],
)
def test_a_wrong_registration_is_refused_with_the_path_of_what_is_wrong(request_, reason, field):
    assert refused(requests.registration, request_, LIMITS) == (reason, field)


@pytest.mark.parametrize(
    ("limits", "reason", "field"),
    [
        (Limits(supports=1), "TOO_MANY_SUPPORTS", "supports"),
        (Limits(classes=1), "TOO_MANY_CLASSES", "task.classes"),
        (Limits(marks=1), "TOO_MANY_MARKS", "supports[0].annotation.marks"),
        (Limits(vertices=3), "TOO_MANY_VERTICES", "supports[0].annotation.marks"),
        (Limits(image_pixels=23), "IMAGE_TOO_LARGE", "supports[0].image.encoded"),
    ],
)
def test_more_than_the_server_takes_is_refused(limits, reason, field):
    point = types.Point(x=1, y=1)
    given = annotation(
        types.Mark(class_name="leaf", points=types.Points(points=[point, point])),
        types.Mark(class_name="leaf", scribble=types.Scribble(vertices=[point])),
        types.Mark(class_name="leaf", polygon=types.Polygon(rings=[types.Ring(vertices=[point])])),
    )
    request = register(
        task=tasks.Task(classes=["leaf", "rust"]),
        supports=[support(annotation=given), support()],
    )
    with pytest.raises(OutOfLimitsError) as caught:
        requests.registration(request, limits)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_counts_are_checked_before_any_image_is_looked_at():
    request = register(supports=[support(image=types.Image(encoded=b"nope"))] * 3)
    assert refused(requests.registration, request, Limits(supports=2))[0] == "TOO_MANY_SUPPORTS"


def test_shot_classes_are_bounded_as_classes_are():
    given = annotation()
    given.shot_classes.extend(["leaf", "rust"])
    request = register(supports=[support(annotation=given)])
    assert refused(requests.registration, request, Limits(classes=1)) == (
        "TOO_MANY_CLASSES",
        "supports[0].annotation.shot_classes",
    )


def converted(*marks, **fields):
    message = annotation(*marks)
    message.MergeFrom(types.Annotation(**fields))
    return requests.support_input(support(annotation=message), LIMITS).annotation


def test_every_geometry_keeps_its_numbers():
    one, two, three = (types.Point(x=x, y=x + 0.5) for x in (0, 1, 2))
    ring = types.Ring(vertices=[one, two, three])
    given = converted(
        types.Mark(class_name="leaf", polygon=types.Polygon(rings=[ring, ring])),
        types.Mark(background=True, points=types.Points(points=[one], radius=2)),
        types.Mark(class_name="leaf", scribble=types.Scribble(vertices=[one, two], width=3)),
        types.Mark(class_name="leaf", box=box(0, 1, 2, 3)),
        types.Mark(
            index_mask=types.IndexMask(
                png=b"png", class_of_value={2: "rust", 1: "leaf"}, void_values=[255, 9, 9]
            )
        ),
    )
    vertices = ((0.0, 0.5), (1.0, 1.5), (2.0, 2.5))
    assert [mark.geometry for mark in given.marks] == [
        Polygon(rings=(vertices, vertices)),
        Points(points=vertices[:1], radius=2.0),
        Scribble(vertices=vertices[:2], width=3.0),
        Box(0.0, 1.0, 2.0, 3.0),
        IndexMask(png=b"png", class_of_value={1: "leaf", 2: "rust"}, void_values=(9, 255)),
    ]
    assert [mark.class_name for mark in given.marks] == ["leaf", BACKGROUND, "leaf", "leaf", None]


def test_both_writings_of_run_lengths_mean_the_same_mask():
    plain = types.RunLengthMask(height=2, width=3, lengths=types.RunLengths(counts=[1, 2, 3]))
    mask = converted(types.Mark(class_name="leaf", run_length_mask=plain)).marks[0].geometry
    assert decode_run_lengths(mask).tolist() == [[0, 1, 0], [1, 0, 0]]
    packed = types.RunLengthMask(height=2, width=3, compressed=mask.counts.decode())
    again = converted(types.Mark(class_name="leaf", run_length_mask=packed)).marks[0].geometry
    assert again == mask


def test_exhaustive_is_three_valued():
    assert converted().exhaustive is None
    assert converted(exhaustive=False).exhaustive is False
    assert converted(exhaustive=True).exhaustive is True
    assert converted(shot_classes=["rust"]).shot_classes == ("rust",)


@pytest.mark.parametrize(
    ("mark", "reason", "field"),
    [
        (types.Mark(class_name="leaf"), "GEOMETRY_MISSING", "marks[0]"),
        (types.Mark(class_name="", box=box()), "INVALID_CLASS_NAME", "marks[0].class_name"),
        (types.Mark(background=False, box=box()), "LABEL_MISSING", "marks[0].background"),
        (
            types.Mark(class_name="leaf", run_length_mask=types.RunLengthMask(height=2, width=3)),
            "RUNS_MISSING",
            "marks[0].run_length_mask",
        ),
        (
            types.Mark(
                class_name="leaf",
                run_length_mask=types.RunLengthMask(
                    height=2, width=3, lengths=types.RunLengths(counts=[9])
                ),
            ),
            "INVALID_RUN_LENGTHS",
            "marks[0].run_length_mask.lengths",
        ),
        (
            types.Mark(index_mask=types.IndexMask(png=b"png", class_of_value={7: " "})),
            "INVALID_CLASS_NAME",
            "marks[0].index_mask.class_of_value[7]",
        ),
    ],
)
def test_a_wrong_mark_is_refused_with_its_path(mark, reason, field):
    request = tasks.AnnotateSupportRequest(annotation=annotation(mark))
    assert refused(requests.new_annotation, request, LIMITS) == (reason, f"annotation.{field}")


def test_an_annotation_is_needed_to_annotate():
    request = tasks.AnnotateSupportRequest(name=NAME)
    assert refused(requests.new_annotation, request, LIMITS) == ("NO_ANNOTATION", "annotation")


def test_a_shot_class_has_a_name():
    request = tasks.AnnotateSupportRequest(annotation=annotation())
    request.annotation.shot_classes.append("")
    assert refused(requests.new_annotation, request, LIMITS) == (
        "INVALID_CLASS_NAME",
        "annotation.shot_classes[0]",
    )


def test_a_task_without_expiration_never_ends():
    assert requests.expiration(tasks.Task()) is None


def test_a_task_may_end_at_a_moment():
    moment = datetime.now(UTC) + timedelta(days=1)
    task = tasks.Task()
    task.expire_time.FromDatetime(moment)
    assert requests.expiration(task) == moment


@pytest.mark.parametrize("seconds", [0, -1, 3650 * 86400 + 1, 2**62])
def test_a_time_to_live_is_positive_and_bounded(seconds):
    task = tasks.Task()
    task.ttl.seconds = seconds
    assert refused(requests.expiration, task) == ("INVALID_TTL", "ttl")


@pytest.mark.parametrize("seconds", [0, 1_000_000, 2**55, -(2**55), 250_000_000_000])
def test_a_task_ends_in_the_future(seconds):
    task = tasks.Task()
    task.expire_time.seconds = seconds
    assert refused(requests.expiration, task) == ("INVALID_EXPIRE_TIME", "expire_time")


def segment(**fields):
    return segmentation.SegmentRequest(**({"name": NAME} | fields))


def test_a_query_by_image_arrives_whole():
    options = segmentation.SegmentOptions(
        format=types.MASK_FORMAT_RAW,
        given_size=segmentation.OutputSize(height=3, width=5),
        probabilities=True,
    )
    query = requests.query(segment(image=picture(), options=options, etag="abc-1"), LIMITS)
    assert query.task == TaskName("default", "leaf")
    assert isinstance(query.image, SourceImage)
    assert query.options.format is MaskFormat.RAW
    assert query.options.size == Size(3, 5)
    assert query.options.probabilities
    assert query.etag == "abc-1"


def test_a_query_by_support_names_it():
    query = requests.query(segment(support_id="a"), LIMITS)
    assert query.image == "a"
    assert query.options.format is MaskFormat.PNG
    assert query.options.size == "original"


def test_the_mask_may_have_the_size_of_the_network():
    for asked, size in ((True, "network"), (False, "original")):
        options = segmentation.SegmentOptions(network_size=asked)
        assert requests.query(segment(support_id="a", options=options), LIMITS).options.size == size


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (segment(), "NO_QUERY", "query"),
        (segment(name="leaf", support_id="a"), "INVALID_NAME", "name"),
        (segment(support_id=""), "INVALID_SUPPORT_ID", "support_id"),
        (segment(image=types.Image()), "NO_IMAGE", "image"),
        (segment(support_id="a", etag="é"), "MALFORMED_ETAG", "etag"),
        (
            segment(support_id="a", options=segmentation.SegmentOptions(format=99)),
            "UNKNOWN_VALUE",
            "options.format",
        ),
        (
            segment(
                support_id="a",
                options=segmentation.SegmentOptions(
                    given_size=segmentation.OutputSize(height=0, width=5)
                ),
            ),
            "INVALID_SIZE",
            "options.given_size",
        ),
    ],
)
def test_a_wrong_query_is_refused(request_, reason, field):
    assert refused(requests.query, request_, LIMITS) == (reason, field)


def test_shots_are_merged_unless_they_are_to_guide_each_other():
    tasks_of = (register(task=tasks.Task(classes=["a"], shot_fusion=value)) for value in (0, 1, 2))
    fusions = [requests.registration(request, LIMITS).fusion for request in tasks_of]
    assert fusions == [ShotFusion.MERGED, ShotFusion.MERGED, ShotFusion.CROSS_GUIDED]


def test_modes_and_policies_are_known_numbers():
    assert [requests.extends(mode) for mode in (0, 1, 2)] == [False, False, True]
    assert [requests.is_pinned(policy) for policy in (0, 1, 2)] == [False, False, True]
    assert refused(requests.extends, 3) == ("UNKNOWN_VALUE", "mode")
    assert refused(requests.is_pinned, 3) == ("UNKNOWN_VALUE", "revision_policy")


async def test_large_messages_are_converted_in_a_thread():
    import threading

    seen = []

    def convert(message, limits):
        seen.append(threading.current_thread() is threading.main_thread())
        return limits

    await requests.off_the_loop(convert, types.IndexMask(png=b"x"), LIMITS)
    await requests.off_the_loop(convert, types.IndexMask(png=bytes(8 * 1024)), LIMITS)
    assert seen == [True, False]
