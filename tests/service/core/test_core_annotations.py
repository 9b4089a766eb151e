from __future__ import annotations

import struct
import time
import zlib
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.core.annotations import check, digest, merge, weight
from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.index_masks import read_numbers
from service.core.limits import Limits
from service.core.run_lengths import encode_run_lengths
from service.core.types import (
    BACKGROUND,
    Annotation,
    AnnotationInput,
    Box,
    Geometry,
    IndexMask,
    Mark,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
    Size,
)

IMAGE = Size(20, 30)
CLASSES = ("cup", "plate", "fork")
NAN, INF = float("nan"), float("inf")


def png(values: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([9, 8, 7] * 256)
    elif mode is not None:
        image = image.convert(mode)
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def numbers(*pairs: tuple[int, int]) -> np.ndarray:
    """A mask of IMAGE's size: (row, value) fills a row."""
    values = np.zeros((20, 30), dtype=np.uint8)
    for row, value in pairs:
        values[row] = value
    return values


def annotation(*marks: Mark, **settings: Any) -> AnnotationInput:
    return AnnotationInput(marks=marks, **settings)


def checked(*marks: Mark, **settings: Any) -> Annotation:
    return check(annotation(*marks, **settings), IMAGE, CLASSES, Limits())


def failure(*marks: Mark, limits: Limits | None = None, **settings: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidArgumentError) as caught:
        check(annotation(*marks, **settings), IMAGE, CLASSES, limits or Limits())
    return caught.value.reason, caught.value.field


def click(name: str | None = "cup", x: float = 1, y: float = 1) -> Mark:
    return Mark(Points(((x, y),)), name)


def index_mask(values: np.ndarray, names: dict[int, str], void: tuple[int, ...] = ()) -> Mark:
    return Mark(IndexMask(png(values), names, void), None)


def test_a_click_is_not_exhaustive_and_makes_a_shot_of_its_class() -> None:
    assert checked(click("plate")) == Annotation((click("plate"),), False, ("plate",))


@pytest.mark.parametrize(
    "dense",
    [
        index_mask(numbers((3, 1)), {1: "cup"}),
        Mark(encode_run_lengths(numbers((3, 1))), "cup"),
    ],
)
def test_one_dense_mark_makes_the_annotation_exhaustive(dense: Mark) -> None:
    assert checked(click(), dense).exhaustive
    assert not checked(click(), dense, exhaustive=False).exhaustive


def test_an_annotation_can_be_declared_exhaustive() -> None:
    assert checked(click(), exhaustive=True).exhaustive


def test_shot_classes_follow_the_task_s_order_and_leave_out_the_background() -> None:
    found = checked(click("fork"), click(BACKGROUND), click("cup"), click("fork"))
    assert found.shot_classes == ("cup", "fork")


def test_given_shot_classes_win_and_need_no_mark() -> None:
    assert checked(click("cup"), shot_classes=("fork", "plate", "fork")).shot_classes == (
        "plate",
        "fork",
    )


def test_an_index_mask_makes_a_shot_of_the_classes_that_occur() -> None:
    mark = index_mask(numbers((3, 7), (5, 255)), {7: "fork", 9: "cup", 8: "plate"}, (255,))
    assert checked(mark).shot_classes == ("fork",)


def test_an_annotation_of_background_alone_is_a_shot_of_nothing() -> None:
    assert checked(click(BACKGROUND)).shot_classes == ()


def test_at_least_one_mark_is_needed() -> None:
    assert failure() == ("NO_MARKS", "marks")


@pytest.mark.parametrize(
    ("geometry", "reason", "field"),
    [
        (Points(()), "TOO_FEW_VERTICES", "points.points"),
        (Points(((1, 1), (30, 1))), "OUTSIDE_IMAGE", "points.points[1]"),
        (Points(((1, 20),)), "OUTSIDE_IMAGE", "points.points[0]"),
        (Points(((-0.001, 1),)), "OUTSIDE_IMAGE", "points.points[0]"),
        (Points(((1, 1), (2, 2), (3, 3), (NAN, 1))), "NON_FINITE_COORDINATE", "points.points[3]"),
        (Points(((1, 1),), radius=NAN), "NON_FINITE_COORDINATE", "points.radius"),
        (Points(((1, 1),), radius=-1), "NEGATIVE_BRUSH", "points.radius"),
        (Scribble(()), "TOO_FEW_VERTICES", "scribble.vertices"),
        (Scribble(((1, 1), (30.001, 1))), "OUTSIDE_IMAGE", "scribble.vertices[1]"),
        (Scribble(((1, INF),)), "NON_FINITE_COORDINATE", "scribble.vertices[0]"),
        (Scribble(((1, 1),), width=INF), "NON_FINITE_COORDINATE", "scribble.width"),
        (Scribble(((1, 1),), width=-0.1), "NEGATIVE_BRUSH", "scribble.width"),
        (Polygon(()), "TOO_FEW_VERTICES", "polygon.rings"),
        (
            Polygon((((0, 0), (1, 0), (1, 1)), ((0, 0), (1, 1)))),
            "TOO_FEW_VERTICES",
            "polygon.rings[1].vertices",
        ),
        (
            Polygon((((0, 0), (31, 0), (1, 1)),)),
            "OUTSIDE_IMAGE",
            "polygon.rings[0].vertices[1]",
        ),
        (
            Polygon((((0, 0), (3, 0), (1, -INF)),)),
            "NON_FINITE_COORDINATE",
            "polygon.rings[0].vertices[2]",
        ),
        (Box(0, 0, 31, 5), "OUTSIDE_IMAGE", "box.x_max"),
        (Box(0, -1, 3, 5), "OUTSIDE_IMAGE", "box.y_min"),
        (Box(0, NAN, 3, 5), "NON_FINITE_COORDINATE", "box.y_min"),
        (Box(3, 0, 3, 5), "EMPTY_BOX", "box"),
        (Box(0, 5, 3, 4), "EMPTY_BOX", "box"),
        (RunLengthMask(Size(30, 20), b"0"), "MASK_SIZE_MISMATCH", "run_length_mask"),
        (RunLengthMask(IMAGE, b"0"), "INVALID_RUN_LENGTHS", "run_length_mask"),
    ],
)
def test_a_wrong_shape_is_named_by_its_path(geometry: Geometry, reason: str, field: str) -> None:
    assert failure(click(), Mark(geometry, "cup")) == (reason, f"marks[1].{field}")


@pytest.mark.parametrize(
    "geometry",
    [
        Points(((0, 0), (29.999, 19.999))),
        Points(((5, 5),), radius=1e308),
        Scribble(((0, 0), (30, 20))),
        Polygon((((0, 0), (30, 0), (30, 20), (0, 20)),)),
        Box(0, 0, 30, 20),
    ],
)
def test_shapes_may_reach_the_image_s_edges(geometry: Geometry) -> None:
    assert checked(Mark(geometry, "cup")).shot_classes == ("cup",)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (click("spoon"), ("UNKNOWN_CLASS", "marks[0].class_name")),
        (click(None), ("LABEL_MISSING", "marks[0].class_name")),
        (
            replace(index_mask(numbers(), {1: "cup"}), class_name="cup"),
            ("LABEL_NOT_ALLOWED", "marks[0].class_name"),
        ),
        (
            index_mask(numbers(), {1: "cup", 2: "spoon"}),
            ("UNKNOWN_CLASS", "marks[0].index_mask.class_of_value[2]"),
        ),
        (
            index_mask(numbers(), {1: "cup", 255: "plate"}, (255,)),
            ("VOID_VALUE_MAPPED", "marks[0].index_mask.void_values"),
        ),
        (index_mask(numbers(), {}), ("NO_CLASS_VALUES", "marks[0].index_mask.class_of_value")),
        (
            index_mask(numbers((2, 3)), {1: "cup"}, (255,)),
            ("UNKNOWN_MASK_VALUE", "marks[0].index_mask.png"),
        ),
        (
            index_mask(numbers().T.copy(), {1: "cup"}),
            ("MASK_SIZE_MISMATCH", "marks[0].index_mask.png"),
        ),
        (
            Mark(IndexMask(b"GIF89a", {1: "cup"}), None),
            ("NOT_A_PNG", "marks[0].index_mask.png"),
        ),
        (
            Mark(IndexMask(png(numbers())[:20], {1: "cup"}), None),
            ("NOT_A_PNG", "marks[0].index_mask.png"),
        ),
        (
            Mark(
                IndexMask(png(np.arange(600, dtype=np.uint16).reshape(20, 30))[:60], {1: "cup"}),
                None,
            ),
            ("TRUNCATED_MASK", "marks[0].index_mask.png"),
        ),
        (
            Mark(IndexMask(png(numbers(), "RGB"), {1: "cup"}), None),
            ("MASK_NOT_INDEXED", "marks[0].index_mask.png"),
        ),
        (
            Mark(IndexMask(png(numbers(), "LA"), {1: "cup"}), None),
            ("MASK_NOT_INDEXED", "marks[0].index_mask.png"),
        ),
    ],
)
def test_wrong_labels_and_masks_are_named_by_their_path(
    mark: Mark, expected: tuple[str, str]
) -> None:
    assert failure(mark) == expected


def test_an_unknown_value_and_an_unknown_class_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match="the value 3") as caught:
        checked(index_mask(numbers((2, 3)), {1: "cup"}))
    assert caught.value.metadata == {"value": "3"}
    with pytest.raises(InvalidArgumentError, match="'spoon'"):
        checked(click("spoon"))


def test_the_size_of_a_mask_is_checked_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    big = np.zeros((3_000, 3_000), dtype=np.uint8)
    assert failure(index_mask(big, {1: "cup"}))[0] == "MASK_SIZE_MISMATCH"


def test_shot_classes_must_be_classes_of_the_task() -> None:
    assert failure(click(), shot_classes=("cup", "spoon")) == (
        "UNKNOWN_CLASS",
        "shot_classes[1]",
    )


def test_marks_and_vertices_are_bounded() -> None:
    with pytest.raises(OutOfLimitsError):
        check(annotation(click(), click()), IMAGE, CLASSES, Limits(marks=1))
    tight = Limits(vertices=3)
    marks = (
        Mark(Scribble(((1, 1), (2, 2))), "cup"),
        Mark(Polygon((((0, 0), (1, 0), (1, 1)),)), "cup"),
    )
    assert failure(*marks, limits=tight) == ("TOO_MANY_VERTICES", "marks")
    assert check(annotation(marks[1]), IMAGE, CLASSES, tight).shot_classes == ("cup",)


def test_pixels_of_dense_masks_are_bounded_before_any_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = (index_mask(numbers((1, 1)), {1: "cup"}), run_length_mask())
    enough, tight = Limits(mask_pixels=2 * 600), Limits(mask_pixels=2 * 600 - 1)
    assert check(annotation(*masks, click()), IMAGE, CLASSES, enough).exhaustive
    old = check(annotation(masks[0]), IMAGE, CLASSES, tight)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert failure(*masks, limits=tight) == ("TOO_MANY_MASK_PIXELS", "marks")
    with pytest.raises(OutOfLimitsError):
        merge(old, annotation(masks[0]), IMAGE, CLASSES, tight)


def run_length_mask(name: str = "cup") -> Mark:
    return Mark(encode_run_lengths(np.eye(20, 30, dtype=np.uint8)), name)


def test_numbers_that_masks_name_are_bounded() -> None:
    mask = index_mask(numbers((1, 1)), {1: "cup", 2: "cup"}, (3, 255))
    assert check(annotation(mask), IMAGE, CLASSES, Limits(mask_values=4)).marks == (mask,)
    assert failure(mask, limits=Limits(mask_values=3)) == ("TOO_MANY_MASK_VALUES", "marks")
    assert failure(mask, mask, limits=Limits(mask_values=7))[0] == "TOO_MANY_MASK_VALUES"


@pytest.mark.parametrize(
    ("names", "void", "field"),
    [({1: "cup", 65_536: "cup"}, (), "class_of_value"), ({1: "cup"}, (2**31,), "void_values")],
)
def test_numbers_that_no_mask_can_hold_are_refused(
    names: dict[int, str], void: tuple[int, ...], field: str
) -> None:
    mask = index_mask(numbers((1, 1)), names, void)
    assert failure(mask) == ("MASK_VALUE_TOO_LARGE", f"marks[0].index_mask.{field}")


def test_all_numbers_that_a_mask_can_hold_may_be_named() -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    void = tuple(range(1, 65_536, 2))
    mask = index_mask(values, dict.fromkeys(range(0, 65_536, 2), "cup"), void)
    started = time.perf_counter()
    annotated = checked(mask)
    # Number by number this took minutes.
    assert time.perf_counter() - started < 5
    assert annotated.shot_classes == ("cup",)
    assert weight(annotated) > 65_536 * 8


def test_an_animated_mask_is_refused() -> None:
    frames = [Image.fromarray(numbers((row, 1))) for row in (1, 2)]
    file = BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    mask = Mark(IndexMask(file.getvalue(), {1: "cup"}), None)
    assert failure(mask) == ("ANIMATED_IMAGE", "marks[0].index_mask.png")


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16", "two bits", "four bits"])
def test_the_numbers_of_a_mask_are_the_stored_ones(mode: str) -> None:
    values = numbers((3, 1), (4, 1))
    match mode:
        case "1":
            data = png(values > 0)
        case "I;16":
            data = png(values.astype(np.uint16) * 40_000)
            values = values.astype(np.uint16) * 40_000
        case "two bits":
            values[5], data = 3, b""
            data = grey_png(values, 2)
        case "four bits":
            values[5] = 13
            data = grey_png(values, 4)
        case "P":
            values[5] = 200
            data = png(values, "P")
        case _:
            data = png(values)
    np.testing.assert_array_equal(read_numbers(data, IMAGE), values)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of few bits, which Pillow reads but cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    unpacked = np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_extending_paints_over_and_keeps_what_is_not_set() -> None:
    old = checked(index_mask(numbers((3, 1)), {1: "fork"}))
    extended = merge(old, annotation(click("cup")), IMAGE, CLASSES, Limits())
    assert extended.marks == (*old.marks, click("cup"))
    assert extended.exhaustive
    assert extended.shot_classes == ("cup", "fork")


def test_extending_changes_what_is_set() -> None:
    old = checked(click("fork"))
    new = annotation(click("cup"), exhaustive=True, shot_classes=("plate",))
    extended = merge(old, new, IMAGE, CLASSES, Limits())
    assert (extended.exhaustive, extended.shot_classes) == (True, ("plate",))


def test_extending_with_a_dense_mark_does_not_make_the_rest_background_by_itself() -> None:
    old = checked(click("fork"))
    dense = annotation(index_mask(numbers((3, 1)), {1: "cup"}))
    assert not merge(old, dense, IMAGE, CLASSES, Limits()).exhaustive


def test_old_and_new_marks_are_bounded_together() -> None:
    old = checked(click("fork"), click("fork"))
    with pytest.raises(OutOfLimitsError):
        merge(old, annotation(click()), IMAGE, CLASSES, Limits(marks=2))
    with pytest.raises(InvalidArgumentError) as caught:
        merge(old, annotation(click("spoon")), IMAGE, CLASSES, Limits())
    assert caught.value.field == "marks[0].class_name"


def test_equal_annotations_have_equal_digests_and_others_do_not() -> None:
    first = Mark(IndexMask(b"x", {1: "cup", 2: "fork"}), None)
    same = Mark(IndexMask(b"x", {2: "fork", 1: "cup"}), None)
    assert digest(Annotation((first,), True, ("cup",))) == digest(
        Annotation((same,), True, ("cup",))
    )
    digests = {
        digest(Annotation(marks, exhaustive, shots))
        for marks in ((first,), (click(),), (click(x=2),), (click(BACKGROUND),))
        for exhaustive in (True, False)
        for shots in ((), ("cup",))
    }
    assert len(digests) == 16
