"""Annotations to their wire form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from fewseg.annotations import (
    Annotation,
    AnnotationLike,
    Background,
    Box,
    CocoRunLengths,
    IndexMask,
    Label,
    Mark,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
)
from fewseg.images import png_of
from fewseg.v1 import types_pb2


def annotation_message(annotation: AnnotationLike, classes: Sequence[str]) -> types_pb2.Annotation:
    """Makes the wire form of an annotation.

    Args:
        annotation: What is known about the pixels, or short for it.
        classes: Those of the task as far as they are known; a plain mask needs exactly one.

    Raises:
        OSError: The file of a mask cannot be read.
        TypeError: The value is not an annotation.
        ValueError: A mark has a wrong shape, dtype or label.
    """
    full = _full_annotation(annotation, classes)
    return types_pb2.Annotation(
        marks=[_mark_message(mark) for mark in full.marks],
        exhaustive=full.exhaustive,
        shot_classes=full.shot_classes,
    )


def _full_annotation(annotation: AnnotationLike, classes: Sequence[str]) -> Annotation:
    if isinstance(annotation, Annotation):
        return annotation
    if isinstance(annotation, Mark):
        return Annotation((annotation,))
    if isinstance(annotation, str | os.PathLike | np.ndarray):
        return Annotation((RunLengthMask(_foreground(annotation), _only_class(classes)),))
    if isinstance(annotation, list | tuple):
        return Annotation(annotation)
    raise TypeError(
        "An annotation is an Annotation, a mark, a list of marks or a mask, "
        f"not {type(annotation).__name__}."
    )


def _only_class(classes: Sequence[str]) -> str:
    if len(classes) == 1:
        return classes[0]
    raise ValueError(
        "A plain mask stands for the only class of a task: give the Task instead of its name, or "
        "say the class by IndexMask(labels, {1: name}) or RunLengthMask(mask, name)."
    )


def _foreground(mask: NDArray[Any] | str | os.PathLike[str]) -> NDArray[np.bool_]:
    if isinstance(mask, np.ndarray):
        labels = mask
    else:
        with Image.open(mask) as opened:
            labels = np.asarray(opened)
    if labels.ndim != 2:
        raise ValueError(f"A mask must have the shape [H, W], not {list(labels.shape)}.")
    return np.asarray(labels != 0)


def _mark_message(mark: Mark) -> types_pb2.Mark:
    match mark:
        case IndexMask():
            return types_pb2.Mark(index_mask=_index_mask(mark))
        case RunLengthMask():
            message = types_pb2.Mark(run_length_mask=_run_length_mask(mark.mask))
        case Polygon():
            rings = [types_pb2.Ring(vertices=_points(ring)) for ring in _rings(mark.rings)]
            message = types_pb2.Mark(polygon=types_pb2.Polygon(rings=rings))
        case Points():
            points = types_pb2.Points(points=_points(mark.points), radius=mark.radius)
            message = types_pb2.Mark(points=points)
        case Scribble():
            scribble = types_pb2.Scribble(vertices=_points(mark.vertices), width=mark.width)
            message = types_pb2.Mark(scribble=scribble)
        case Box():
            message = types_pb2.Mark(
                box=types_pb2.Box(
                    x_min=mark.x_min, y_min=mark.y_min, x_max=mark.x_max, y_max=mark.y_max
                )
            )
        case _:
            raise TypeError(f"{type(mark).__name__} is not a mark.")
    return _labelled(message, mark.class_name)


def _labelled(message: types_pb2.Mark, label: Label) -> types_pb2.Mark:
    if isinstance(label, Background):
        message.background = True
    elif isinstance(label, str) and label:
        message.class_name = label
    else:
        raise ValueError(f"A mark needs the name of a class, or BACKGROUND, not {label!r}.")
    return message


def _index_mask(mark: IndexMask) -> types_pb2.IndexMask:
    return types_pb2.IndexMask(
        png=_index_png(mark.labels),
        class_of_value={int(value): name for value, name in mark.classes.items()},
        void_values=[int(value) for value in mark.void],
    )


def _index_png(labels: NDArray[Any] | str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(labels, bytes):
        return labels
    if not isinstance(labels, np.ndarray):
        return Path(labels).read_bytes()
    if labels.dtype == np.bool_:
        labels = labels.astype(np.uint8)
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            "The labels of an index mask must be bool, uint8 or uint16 of the shape [H, W], "
            f"not {labels.dtype} of the shape {list(labels.shape)}."
        )
    return png_of(labels)


def _run_length_mask(mask: NDArray[Any] | CocoRunLengths) -> types_pb2.RunLengthMask:
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(
                "A mask must be bool or uint8 of the shape [H, W], "
                f"not {mask.dtype} of the shape {list(mask.shape)}."
            )
        mask = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    if not {"size", "counts"} <= set(mask):
        raise ValueError('Run lengths are {"size": (rows, columns), "counts": ...}.')
    height, width = (int(side) for side in mask["size"])
    counts = mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, str):
        return types_pb2.RunLengthMask(height=height, width=width, compressed=counts)
    lengths = types_pb2.RunLengths(counts=counts)
    return types_pb2.RunLengthMask(height=height, width=width, lengths=lengths)


def _rings(rings: Any) -> Iterable[Any]:
    """The rings of a polygon; a single ring is told by its vertices being pairs of numbers."""
    single = len(rings) > 0 and len(rings[0]) > 0 and np.ndim(rings[0][0]) == 0
    return [rings] if single else rings


def _points(pairs: Any) -> list[types_pb2.Point]:
    array = np.asarray(pairs, dtype=np.float64)
    if array.ndim == 1 and array.size == 2:
        array = array.reshape(1, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"Positions are pairs (x, y): an array [N, 2], not {list(array.shape)}.")
    return [types_pb2.Point(x=x, y=y) for x, y in array.tolist()]
