"""Dense masks reduced to what an annotator in a hurry would draw, the same on every run."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewseg.annotations import (
    BACKGROUND,
    Annotation,
    Box,
    IndexMask,
    Label,
    Mark,
    Points,
    RunLengthMask,
)

AnnotationRule = Callable[[NDArray[np.uint8], str, str], Annotation]
"""Labels [H, W] (1 class, 0 not, 255 void), name of the class, key of chance -> annotation."""

_STROKE_STEPS: Final = 6
_STROKE_SHARE: Final = 0.012


def annotation_rule(text: str) -> AnnotationRule:
    """Reads ``mask``, ``points:N``, ``foreground-points:N``, ``scribble`` or ``box``.

    Raises:
        ValueError: It is none of them.
    """
    match = re.fullmatch(r"(foreground-)?points:([1-9]\d*)", text)
    if match:
        count, both = int(match[2]), match[1] is None
        return lambda labels, name, key: _points(labels, name, key, count, both)
    if text not in _RULES:
        raise ValueError(
            f"An annotation is mask, points:N, foreground-points:N, scribble or box, not {text!r}."
        )
    return _RULES[text]


def _mask(labels: NDArray[np.uint8], name: str, key: str) -> Annotation:
    return Annotation([IndexMask(labels, {1: name}, void=[255])])


def _points(labels: NDArray[np.uint8], name: str, key: str, count: int, both: bool) -> Annotation:
    """Clicks on random pixels, as many on background as on the class."""
    chance = np.random.default_rng(zlib.crc32(key.encode()))
    marks: list[Mark] = []
    wanted: tuple[tuple[int, Label], ...] = ((1, name), (0, BACKGROUND))
    for value, label in wanted if both else wanted[:1]:
        rows, columns = np.nonzero(labels == value)
        if len(rows):
            chosen = chance.permutation(len(rows))[:count]
            marks.append(Points(np.stack([columns[chosen], rows[chosen]], 1) + 0.5, label))
    return Annotation(marks)


def _scribble(labels: NDArray[np.uint8], name: str, key: str) -> Annotation:
    """A stroke down the middle of the class, and one down the middle of the rest."""
    marks: list[Mark] = []
    wanted: tuple[tuple[int, Label], ...] = ((1, name), (0, BACKGROUND))
    for value, label in wanted:
        stroke = _stroke(labels == value)
        if stroke.any():
            marks.append(RunLengthMask(stroke, label))
    return Annotation(marks, exhaustive=False)


def _stroke(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Part of a region along a line through the middles of its longest runs in some rows."""
    rows = np.flatnonzero(region.any(axis=1))
    stroke = np.zeros_like(region)
    if not len(rows):
        return stroke
    places = np.linspace(0.1, 0.9, _STROKE_STEPS) * (len(rows) - 1)
    chosen = np.unique(rows[np.round(places).astype(int)])
    middles = [_middle(region[row]) for row in chosen]
    half = max(1, round(_STROKE_SHARE * max(region.shape)))
    for row in range(chosen[0], chosen[-1] + 1):
        middle = round(float(np.interp(row, chosen, middles)))
        stroke[row, max(0, middle - half) : middle + half + 1] = True
    drawn: NDArray[np.bool_] = stroke & region
    return drawn


def _middle(row: NDArray[np.bool_]) -> float:
    """Column in the middle of the longest run of a row that has one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return float(starts[longest] + ends[longest] - 1) / 2


def _box(labels: NDArray[np.uint8], name: str, key: str) -> Annotation:
    """The rectangle around the class; the service infers background."""
    rows, columns = np.nonzero(labels == 1)
    box = Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, name)
    return Annotation([box])


_RULES: Final[dict[str, AnnotationRule]] = {"mask": _mask, "scribble": _scribble, "box": _box}
