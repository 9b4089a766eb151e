"""Annotations from the wire: counts before contents, and what must be set.

What a mark means, whether it fits its image and whether its class belongs to
the task is the core's to check (``service.core.annotations``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from fewseg.v1 import types_pb2
from service.api import names
from service.core import run_lengths
from service.core.counts import check_count
from service.core.errors import InvalidArgumentError
from service.core.limits import Limits
from service.core.types import (
    BACKGROUND,
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


def annotation_input(message: types_pb2.Annotation, limits: Limits) -> AnnotationInput:
    """Converts an annotation.

    Args:
        message: As it was sent.
        limits: Bounds on marks, vertices and classes.

    Raises:
        InvalidArgumentError: A field is missing or malformed; the path begins in the annotation.
        OutOfLimitsError: It holds more than the server accepts.
    """
    _check_counts(message, limits)
    return AnnotationInput(
        marks=tuple(_mark(mark, f"marks[{index}]") for index, mark in enumerate(message.marks)),
        exhaustive=message.exhaustive if message.HasField("exhaustive") else None,
        shot_classes=tuple(
            names.class_name(name, f"shot_classes[{index}]")
            for index, name in enumerate(message.shot_classes)
        ),
    )


def _check_counts(message: types_pb2.Annotation, limits: Limits) -> None:
    """Refuses what is too much before any of it is converted."""
    check_count("marks", len(message.marks), limits.marks, field="marks")
    check_count("classes", len(message.shot_classes), limits.classes, field="shot_classes")
    vertices = sum(_vertex_count(mark) for mark in message.marks)
    check_count("vertices", vertices, limits.vertices, field="marks")
    values = sum(_value_count(mark) for mark in message.marks)
    check_count("mask values", values, limits.mask_values, field="marks")


def _vertex_count(mark: types_pb2.Mark) -> int:
    geometry = mark.WhichOneof("geometry")
    if geometry == "polygon":
        return sum(len(ring.vertices) for ring in mark.polygon.rings)
    if geometry == "points":
        return len(mark.points.points)
    if geometry == "scribble":
        return len(mark.scribble.vertices)
    return 0


def _value_count(mark: types_pb2.Mark) -> int:
    mask = mark.index_mask
    return len(mask.class_of_value) + len(mask.void_values)


def _mark(message: types_pb2.Mark, path: str) -> Mark:
    kind = message.WhichOneof("geometry")
    if kind is None:
        raise InvalidArgumentError(
            "GEOMETRY_MISSING", "Say which pixels the mark covers: set one geometry.", field=path
        )
    label = _label(message, path)
    try:
        geometry = _GEOMETRIES[kind](getattr(message, kind))
    except InvalidArgumentError as error:
        raise error.within(f"{path}.{kind}") from None
    return Mark(geometry=geometry, class_name=label)


def _label(message: types_pb2.Mark, path: str) -> str | None:
    kind = message.WhichOneof("label")
    if kind is None:
        return None
    if kind == "class_name":
        return names.class_name(message.class_name, f"{path}.class_name")
    if not message.background:
        raise InvalidArgumentError(
            "LABEL_MISSING",
            "A mark that is not background names its class: set class_name instead.",
            field=f"{path}.background",
        )
    return BACKGROUND


def _index_mask(message: types_pb2.IndexMask) -> IndexMask:
    # Thousands of values may name the same few classes.
    known: dict[str, str] = {}
    class_of_value: dict[int, str] = {}
    for value, name in sorted(message.class_of_value.items()):
        if name not in known:
            known[name] = names.class_name(name, f"class_of_value[{value}]")
        class_of_value[value] = known[name]
    return IndexMask(
        png=message.png,
        class_of_value=class_of_value,
        void_values=tuple(sorted(set(message.void_values))),
    )


def _run_length_mask(message: types_pb2.RunLengthMask) -> RunLengthMask:
    size = Size(message.height, message.width)
    kind = message.WhichOneof("runs")
    if kind is None:
        raise InvalidArgumentError("RUNS_MISSING", "Set either compressed or lengths.")
    if kind == "compressed":
        return RunLengthMask(size=size, counts=message.compressed.encode())
    try:
        return run_lengths.from_counts(message.lengths.counts, size)
    except InvalidArgumentError as error:
        raise error.within("lengths") from None


def _polygon(message: types_pb2.Polygon) -> Polygon:
    return Polygon(rings=tuple(_positions(ring.vertices) for ring in message.rings))


def _points(message: types_pb2.Points) -> Points:
    return Points(points=_positions(message.points), radius=message.radius)


def _scribble(message: types_pb2.Scribble) -> Scribble:
    return Scribble(vertices=_positions(message.vertices), width=message.width)


def _box(message: types_pb2.Box) -> Box:
    return Box(message.x_min, message.y_min, message.x_max, message.y_max)


def _positions(points: Iterable[types_pb2.Point]) -> tuple[tuple[float, float], ...]:
    return tuple((point.x, point.y) for point in points)


_GEOMETRIES: Final[dict[str, Callable[[Any], Geometry]]] = {
    "index_mask": _index_mask,
    "run_length_mask": _run_length_mask,
    "polygon": _polygon,
    "points": _points,
    "scribble": _scribble,
    "box": _box,
}
