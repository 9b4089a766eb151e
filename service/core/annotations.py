"""Annotations as callers give them, checked and completed (docs/annotations.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from service.core.counts import check_count
from service.core.errors import FewSegError, InvalidArgumentError
from service.core.index_masks import check_index_mask, check_mask_size, unknown_class
from service.core.limits import Limits
from service.core.run_lengths import check_run_lengths
from service.core.stopping import checkpoint
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

_FIELD_OF_GEOMETRY = {
    IndexMask: "index_mask",
    RunLengthMask: "run_length_mask",
    Polygon: "polygon",
    Points: "points",
    Scribble: "scribble",
    Box: "box",
}

#: Two numbers in memory.
_VERTEX_BYTES = 16
#: A number in memory, and what points to it.
_VALUE_BYTES = 16

#: Marks, and vertices, of an annotation that people draw by hand.
_LIGHT = 256

_Vertices = Sequence[tuple[float, float]]


def check(
    annotation: AnnotationInput, image: Size, classes: Sequence[str], limits: Limits
) -> Annotation:
    """Checks an annotation and completes what it leaves open.

    Args:
        annotation: As given.
        image: Size of the image it belongs to, after EXIF orientation.
        classes: The task's classes, in task order.
        limits: Bounds on marks, vertices and masks.

    Returns:
        The annotation: exhaustive by the rule (a mark is dense) if it was unset, shot
        classes those that a mark labels if they were empty, in task order.

    Raises:
        InvalidArgumentError: Wrong; ``field`` names the place, such as
            ``marks[0].points.points[3]``.
        OutOfLimitsError: TOO_MANY_MARKS, TOO_MANY_VERTICES, TOO_MANY_MASK_VALUES or
            TOO_MANY_MASK_PIXELS.
        StoppedError: Nobody waits for the answer any more.
    """
    labelled = _check_marks(annotation.marks, image, classes, limits)
    shot_classes = _check_shot_classes(annotation.shot_classes, classes) or labelled
    exhaustive = annotation.exhaustive
    if exhaustive is None:
        exhaustive = any(_dense(mark.geometry) for mark in annotation.marks)
    return Annotation(
        marks=annotation.marks,
        exhaustive=exhaustive,
        shot_classes=_in_task_order(shot_classes, classes),
    )


def merge(
    old: Annotation, new: AnnotationInput, image: Size, classes: Sequence[str], limits: Limits
) -> Annotation:
    """Paints new marks over an annotation (ANNOTATION_MODE_EXTEND).

    ``exhaustive`` and ``shot_classes`` change only if they are set; unset shot
    classes are the old ones and those that the new marks label.

    Raises:
        InvalidArgumentError: See ``check``; the paths count the new marks.
        OutOfLimitsError: Old and new marks together are too many.
    """
    marks = old.marks + new.marks
    _check_counts(marks, image, limits)
    labelled = _check_marks(new.marks, image, classes, limits)
    given = _check_shot_classes(new.shot_classes, classes)
    return Annotation(
        marks=marks,
        exhaustive=old.exhaustive if new.exhaustive is None else new.exhaustive,
        shot_classes=_in_task_order(given or {*old.shot_classes, *labelled}, classes),
    )


def weight(annotation: Annotation) -> int:
    """Bytes that an annotation takes, about: its masks, their numbers, its vertices."""
    return sum(_geometry_weight(mark.geometry) for mark in annotation.marks)


def is_light(annotation: AnnotationInput) -> bool:
    """Whether it is checked and hashed in a fraction of a millisecond: a few strokes, no masks."""
    marks = annotation.marks
    return (
        len(marks) <= _LIGHT
        and not any(_dense(mark.geometry) for mark in marks)
        and sum(_vertex_count(mark.geometry) for mark in marks) <= _LIGHT
    )


def _geometry_weight(geometry: Geometry) -> int:
    match geometry:
        case IndexMask():
            names = sum(map(len, geometry.class_of_value.values()))
            return len(geometry.png) + names + _VALUE_BYTES * _value_count(geometry)
        case RunLengthMask():
            return len(geometry.counts)
        case Polygon():
            return _VERTEX_BYTES * sum(map(len, geometry.rings))
        case Points():
            return _VERTEX_BYTES * len(geometry.points)
        case Scribble():
            return _VERTEX_BYTES * len(geometry.vertices)
        case Box():
            return 2 * _VERTEX_BYTES


def digest(annotation: Annotation) -> str:
    """Hexadecimal SHA-256 of what an annotation says; equal for equal annotations."""
    ordered = replace(annotation, marks=tuple(map(_in_value_order, annotation.marks)))
    return hashlib.sha256(msgspec.msgpack.encode(ordered)).hexdigest()


def _in_value_order(mark: Mark) -> Mark:
    """The mark with its mapping sorted: equal mappings are to be encoded alike."""
    if not isinstance(mark.geometry, IndexMask):
        return mark
    ordered = dict(sorted(mark.geometry.class_of_value.items()))
    return replace(mark, geometry=msgspec.structs.replace(mark.geometry, class_of_value=ordered))


def _dense(geometry: Geometry) -> bool:
    return isinstance(geometry, IndexMask | RunLengthMask)


def _in_task_order(names: Iterable[str], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=list(classes).index))


def _check_shot_classes(names: Sequence[str], classes: Sequence[str]) -> set[str]:
    for index, name in enumerate(names):
        if name not in classes:
            raise unknown_class(name, field=f"shot_classes[{index}]")
    return set(names)


def _check_marks(
    marks: Sequence[Mark], image: Size, classes: Sequence[str], limits: Limits
) -> set[str]:
    """Checks all marks; returns the classes that they label."""
    if not marks:
        raise InvalidArgumentError(
            "NO_MARKS", "An annotation holds at least one mark.", field="marks"
        )
    _check_counts(marks, image, limits)
    labelled: set[str] = set()
    for index, mark in enumerate(marks):
        checkpoint()
        try:
            labelled.update(_check_mark(mark, image, classes))
        except FewSegError as error:
            raise error.within(f"marks[{index}]") from None
    return labelled


def _check_counts(marks: Sequence[Mark], image: Size, limits: Limits) -> None:
    """Refuses what is too much before any of it is looked into."""
    geometries = [mark.geometry for mark in marks]
    # A dense mask must be of the image's size.
    mask_pixels = image.pixels * sum(map(_dense, geometries))
    for what, count, limit in (
        ("marks", len(marks), limits.marks),
        ("vertices", sum(map(_vertex_count, geometries)), limits.vertices),
        ("mask values", sum(map(_value_count, geometries)), limits.mask_values),
        ("mask pixels", mask_pixels, limits.mask_pixels),
    ):
        check_count(what, count, limit, field="marks")


def _value_count(geometry: Geometry) -> int:
    if isinstance(geometry, IndexMask):
        return len(geometry.class_of_value) + len(geometry.void_values)
    return 0


def _vertex_count(geometry: Geometry) -> int:
    match geometry:
        case Polygon(rings=rings):
            return sum(len(ring) for ring in rings)
        case Points(points=vertices) | Scribble(vertices=vertices):
            return len(vertices)
        case _:
            return 0


def _check_mark(mark: Mark, image: Size, classes: Sequence[str]) -> tuple[str, ...]:
    """Checks one mark; returns the classes that it labels."""
    geometry = mark.geometry
    indexed = isinstance(geometry, IndexMask)
    if indexed and mark.class_name is not None:
        raise InvalidArgumentError(
            "LABEL_NOT_ALLOWED",
            "An index mask names its own classes; leave the mark's label unset.",
            field="class_name",
        )
    if not indexed:
        _check_label(mark.class_name, classes)
    try:
        occurring = _check_geometry(geometry, image, classes)
    except FewSegError as error:
        raise error.within(_FIELD_OF_GEOMETRY[type(geometry)]) from None
    return occurring if mark.class_name is None else tuple(filter(None, (mark.class_name,)))


def _check_label(name: str | None, classes: Sequence[str]) -> None:
    if name is None:
        raise InvalidArgumentError(
            "LABEL_MISSING",
            "The mark does not say whether its pixels are of a class or background.",
            field="class_name",
        )
    if name != BACKGROUND and name not in classes:
        raise unknown_class(name, field="class_name")


def _check_geometry(geometry: Geometry, image: Size, classes: Sequence[str]) -> tuple[str, ...]:
    """Checks where a mark lies; returns the classes that it names itself."""
    match geometry:
        case IndexMask():
            return check_index_mask(geometry, image, classes)
        case RunLengthMask():
            check_mask_size(geometry.size, image)
            check_run_lengths(geometry)
        case Polygon():
            _check_polygon(geometry, image)
        case Points():
            _check_vertices(geometry.points, image, "points", at_least=1, closed=False)
            _check_brush(geometry.radius, "radius")
        case Scribble():
            _check_vertices(geometry.vertices, image, "vertices", at_least=1)
            _check_brush(geometry.width, "width")
        case Box():
            _check_box(geometry, image)
    return ()


def _check_polygon(polygon: Polygon, image: Size) -> None:
    if not polygon.rings:
        raise InvalidArgumentError(
            "TOO_FEW_VERTICES", "A polygon has at least one ring.", field="rings"
        )
    for index, ring in enumerate(polygon.rings):
        _check_vertices(ring, image, f"rings[{index}].vertices", at_least=3)


def _check_vertices(
    vertices: _Vertices, image: Size, field: str, *, at_least: int, closed: bool = True
) -> None:
    """Checks that enough finite positions lie inside the image.

    Args:
        vertices: (x, y) each.
        image: The image's size.
        field: Path of the vertices.
        at_least: How many there must be.
        closed: Whether the right and bottom edges of the image still count: they
            do for outlines, and not for points, which must have a pixel.
    """
    if len(vertices) < at_least:
        raise InvalidArgumentError(
            "TOO_FEW_VERTICES",
            f"There are {len(vertices)} positions; at least {at_least} are needed.",
            field=field,
        )
    positions = np.asarray(vertices, dtype=np.float64).reshape(-1, 2)
    edge = (image.width, image.height)
    within = (positions >= 0) & (positions <= edge if closed else positions < edge)
    if within.all():
        return
    # What is not finite is not within either.
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        raise _non_finite(f"{field}[{int(np.flatnonzero(~finite)[0])}]")
    index = int(np.flatnonzero(~within.all(axis=1))[0])
    x, y = vertices[index]
    raise _outside(f"({x:g}, {y:g})", image, f"{field}[{index}]")


def _check_box(box: Box, image: Size) -> None:
    for name in ("x_min", "y_min", "x_max", "y_max"):
        value = getattr(box, name)
        edge = image.width if name.startswith("x") else image.height
        if not math.isfinite(value):
            raise _non_finite(name)
        if not 0 <= value <= edge:
            raise _outside(f"{value:g}", image, name)
    if box.x_min >= box.x_max or box.y_min >= box.y_max:
        raise InvalidArgumentError(
            "EMPTY_BOX", "The box is empty: x_min < x_max and y_min < y_max must hold."
        )


def _check_brush(size: float, field: str) -> None:
    if not math.isfinite(size):
        raise _non_finite(field)
    if size < 0:
        raise InvalidArgumentError(
            "NEGATIVE_BRUSH", f"The {field} is {size:g} and must be 0 or more.", field=field
        )


def _non_finite(field: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "NON_FINITE_COORDINATE", "A coordinate is not a finite number.", field=field
    )


def _outside(position: str, image: Size, field: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "OUTSIDE_IMAGE",
        f"{position} lies outside the image, which is {image} after EXIF orientation.",
        field=field,
    )
