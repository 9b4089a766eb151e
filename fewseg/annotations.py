"""What a caller says about the pixels of a support image.

Coordinates are in pixels of the image after its EXIF orientation: the origin is the top-left
corner, x runs to the right and y downwards, and the pixel of row i and column j covers
[j, j+1) x [i, i+1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypedDict

from numpy.typing import NDArray

from fewseg.images import ImageLike


class Background(Enum):
    """The label of a negative mark."""

    BACKGROUND = "background"

    def __repr__(self) -> str:
        return "BACKGROUND"


#: Says, in place of a class name, that the pixels of a mark belong to no class.
BACKGROUND: Final = Background.BACKGROUND

#: The name of a class of the task, or ``BACKGROUND``.
Label = str | Background

#: Vertices or clicks: pairs (x, y), or an array [N, 2].
Vertices = Sequence[Sequence[float]] | NDArray[Any]


class CocoRunLengths(TypedDict):
    """A mask as the COCO tools write it.

    ``size`` is (rows, columns); ``counts`` is the compressed string, as str or bytes, or the plain
    run lengths: down the columns, zeros first.
    """

    size: Sequence[int]
    counts: str | bytes | Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class IndexMask:
    """A dense mask that holds one number per pixel.

    Attributes:
        labels: Integers [H, W] of the image's size (bool, uint8 or uint16), or the path or the
            bytes of a grey or palette PNG. A palette PNG counts by its stored numbers.
        classes: Which class a number stands for. 0 is "no class" unless it is named here.
        void: Numbers that are neither class nor background, such as the 255 of VOC.
    """

    labels: NDArray[Any] | str | os.PathLike[str] | bytes
    classes: Mapping[int, str]
    void: Sequence[int] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RunLengthMask:
    """A dense mask of one class.

    Attributes:
        mask: Booleans [H, W] of the image's size, or a mask of the COCO tools.
        class_name: What the pixels are.
    """

    mask: NDArray[Any] | CocoRunLengths
    class_name: Label


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """A filled outline.

    Attributes:
        rings: Rings of three or more vertices each, which are united; or one such ring.
        class_name: What the pixels are.
    """

    rings: Sequence[Vertices] | Vertices
    class_name: Label


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Single clicks.

    Attributes:
        points: Pairs (x, y), or one pair.
        class_name: What the pixels are.
        radius: Pixels around a click that it labels as well; 0 labels the one that holds it.
    """

    points: Vertices | Sequence[float]
    class_name: Label
    radius: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Scribble:
    """A brush stroke along a line.

    Attributes:
        vertices: Pairs (x, y); a single one makes a dot.
        class_name: What the pixels are.
        width: Diameter of the brush in pixels; 0 means 1.
    """

    vertices: Vertices | Sequence[float]
    class_name: Label
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Box:
    """The filled rectangle [x_min, x_max) x [y_min, y_max)."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    class_name: Label


Mark = IndexMask | RunLengthMask | Polygon | Points | Scribble | Box


@dataclass(frozen=True, slots=True)
class Annotation:
    """What is known about the pixels of one support image.

    Attributes:
        marks: Painted first to last; a later mark covers an earlier one.
        exhaustive: Whether everything that no mark labels is background. None means: yes if a mark
            is dense (``IndexMask``, ``RunLengthMask``), no otherwise.
        shot_classes: The classes that the image is a shot of; empty for every class that a mark
            labels. Pixels of other classes are neither foreground nor background here.
    """

    marks: Sequence[Mark] = field(default_factory=tuple)
    exhaustive: bool | None = None
    shot_classes: Sequence[str] = ()


#: An annotation, or short for one: its marks; its only mark; or, in a task of a single class, a
#: mask of that class, as an array [H, W] or the path of a PNG, whose non-zero pixels are the class.
AnnotationLike = Annotation | Mark | Sequence[Mark] | NDArray[Any] | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Support:
    """An annotated image that shows a task what to segment.

    Attributes:
        image: The picture.
        annotation: What is known about its pixels.
        id: Unique in the task; empty lets the server choose.
    """

    image: ImageLike
    annotation: AnnotationLike
    id: str = ""
