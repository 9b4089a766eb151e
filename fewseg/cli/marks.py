"""Supports and marks as they are written on the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fewseg.annotations import (
    BACKGROUND,
    Annotation,
    AnnotationLike,
    Box,
    IndexMask,
    Label,
    Mark,
    Points,
    Polygon,
    Scribble,
    Support,
)

#: The label of a negative mark.
NEGATIVE: Final = "background"
#: The label of values of a mask that are neither class nor background.
VOID: Final = "void"

_MAPPED_MASK = re.compile(r"(?P<file>.+):(?P<values>\d+=[^,:]+(?:,\d+=[^,:]+)*)")


def support_of(text: str) -> Support:
    """Reads ``IMAGE MARK... [id=ID] [exhaustive=yes|no] [shots=CLASS,...]``.

    Raises:
        ValueError: It is not written like that.
    """
    image, *words = shlex.split(text) or [""]
    if not image or not words:
        raise ValueError(
            f"A support is written 'IMAGE MARK...', such as 'a.png mask=m.png', not {text!r}."
        )
    given = [word for word in words if word.startswith("id=")]
    rest = [word for word in words if not word.startswith("id=")]
    identifier = given[-1].removeprefix("id=") if given else ""
    return Support(Path(image), annotation_of(rest), id=identifier)


def annotation_of(words: Sequence[str]) -> AnnotationLike:
    """Reads ``MARK... [exhaustive=yes|no] [shots=CLASS,...]``.

    Raises:
        ValueError: It is not written like that, or there is no mark.
    """
    marks: list[Mark] = []
    plain_masks: list[Path] = []
    exhaustive: bool | None = None
    shots: tuple[str, ...] = ()
    for word in words:
        kind, _, value = word.partition("=")
        if kind == "exhaustive":
            exhaustive = _truth(value)
        elif kind == "shots":
            shots = tuple(value.split(","))
        elif kind == "mask" and _MAPPED_MASK.fullmatch(value) is None:
            plain_masks.append(Path(value))
        else:
            marks.append(mark_of(kind, value))
    if plain_masks:
        if marks or len(plain_masks) > 1 or exhaustive is not None or shots:
            raise ValueError(
                "A mask without classes stands alone: write mask=FILE:1=CLASS to combine it."
            )
        return plain_masks[0]
    if not marks:
        raise ValueError("A support needs at least one mark, such as points=CLASS:x,y.")
    return Annotation(tuple(marks), exhaustive, shots)


def mark_of(kind: str, value: str) -> Mark:
    """Reads one mark.

    Raises:
        ValueError: There is no such kind, or its value is not written as it should be.
    """
    if kind not in _READERS:
        raise ValueError(f"{kind!r} is not a mark; there are: {', '.join(_READERS)}.")
    read, pattern = _READERS[kind]
    try:
        return read(value)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Write {kind}={pattern}, not {kind}={value}.") from error


def label_of(name: str) -> Label:
    """A class, or ``BACKGROUND`` for the name that stands for it."""
    if not name:
        raise ValueError("A mark needs the name of a class.")
    return BACKGROUND if name == NEGATIVE else name


def _truth(word: str) -> bool:
    if word not in ("yes", "no"):
        raise ValueError(f"Write exhaustive=yes or exhaustive=no, not exhaustive={word}.")
    return word == "yes"


def _mask(value: str) -> IndexMask:
    match = _MAPPED_MASK.fullmatch(value)
    if match is None:
        raise ValueError(value)
    named = {int(n): name for n, _, name in (p.partition("=") for p in match["values"].split(","))}
    void = [number for number, name in named.items() if name == VOID]
    classes = {number: name for number, name in named.items() if name != VOID}
    return IndexMask(Path(match["file"]), classes, void)


def _labelled(value: str) -> tuple[Label, str]:
    name, _, rest = value.rpartition(":")
    return label_of(name), rest


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _positions(text: str) -> list[tuple[float, float]]:
    positions = []
    for pair in text.split("+"):
        x, y = _numbers(pair)
        positions.append((x, y))
    return positions


def _with_size(text: str) -> tuple[list[tuple[float, float]], float]:
    positions, _, size = text.partition("@")
    return _positions(positions), float(size) if size else 0.0


def _points(value: str) -> Points:
    label, rest = _labelled(value)
    points, radius = _with_size(rest)
    return Points(points, label, radius)


def _scribble(value: str) -> Scribble:
    label, rest = _labelled(value)
    vertices, width = _with_size(rest)
    return Scribble(vertices, label, width)


def _polygon(value: str) -> Polygon:
    label, rest = _labelled(value)
    return Polygon([_positions(ring) for ring in rest.split("/")], label)


def _box(value: str) -> Box:
    label, rest = _labelled(value)
    x_min, y_min, x_max, y_max = _numbers(rest)
    return Box(x_min, y_min, x_max, y_max, label)


_READERS: Final[dict[str, tuple[Callable[[str], Mark], str]]] = {
    "mask": (_mask, "FILE or mask=FILE:VALUE=CLASS,..."),
    "points": (_points, "CLASS:x,y+x,y[@RADIUS]"),
    "scribble": (_scribble, "CLASS:x,y+x,y[@WIDTH]"),
    "polygon": (_polygon, "CLASS:x,y+x,y+x,y[/x,y+...]"),
    "box": (_box, "CLASS:x_min,y_min,x_max,y_max"),
}
