"""Masks over pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewseg.images import ImageLike, to_array
from fewseg.results import SegmentResult

#: RGB by mask value minus one; strong, and far apart for eyes that confuse red and green too.
PALETTE: Final = np.array(
    [
        (0, 158, 255),
        (255, 122, 0),
        (236, 40, 132),
        (0, 200, 130),
        (255, 214, 10),
        (140, 82, 255),
        (0, 214, 214),
        (220, 50, 47),
        (150, 200, 40),
        (255, 130, 190),
        (60, 90, 200),
        (170, 110, 60),
    ],
    dtype=np.uint8,
)

_LEGEND_SHARE = 0.5
_SMALLEST_TEXT, _LARGEST_TEXT = 10, 36


def overlay(
    image: ImageLike,
    mask: NDArray[np.uint8] | SegmentResult,
    classes: Sequence[str] | None = None,
    *,
    alpha: float = 0.5,
    outline: bool = True,
    legend: bool = True,
) -> Image.Image:
    """Paints a mask over its picture.

    Args:
        image: The picture.
        mask: Class numbers, uint8 [H, W], 0 for background, or the result that holds them. A mask
            of another size is stretched to the picture.
        classes: Names for the legend; those of the result if it is one.
        alpha: How much the colours cover, in [0, 1].
        outline: Whether to draw the borders of the classes.
        legend: Whether to name the classes that the mask shows. It is left out where it would hide
            more than half of the picture's height.

    Returns:
        An RGB picture of the size of ``image``.

    Raises:
        ValueError: ``alpha`` or the shape of the mask is wrong.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}.")
    if isinstance(mask, SegmentResult):
        classes = [c.class_name for c in mask.classes] if classes is None else classes
        mask = mask.mask
    pixels = to_array(image)
    labels = _stretched(mask, pixels.shape[0], pixels.shape[1])
    painted = _tinted(pixels, labels, alpha)
    if outline:
        edges = _edges(labels, thickness=min(max(1, min(labels.shape) // 400), 3))
        painted[edges] = colours_of(labels[edges])
    picture = Image.fromarray(painted)
    if legend and classes:
        shown = [v for v in np.unique(labels).tolist() if 0 < v <= len(classes)]
        if shown:
            _draw_legend(picture, [(v, classes[v - 1]) for v in shown])
    return picture


def colours_of(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of class numbers from 1 on: [...] to uint8 [..., 3]."""
    return PALETTE[(values.astype(np.intp) - 1) % len(PALETTE)]


def _stretched(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if mask.ndim != 2:
        raise ValueError(f"A mask must have the shape [H, W], not {list(mask.shape)}.")
    labels = mask.astype(np.uint8, copy=False)
    if labels.shape == (height, width):
        return labels
    resized = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized)


def _tinted(
    pixels: NDArray[np.uint8], labels: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]:
    """Blends colours in where there is a class, in fixed point with 8 bits of fraction."""
    painted = pixels.copy()
    inside = labels > 0
    share = round(alpha * 256)
    under = painted[inside].astype(np.uint16)
    over = colours_of(labels[inside]).astype(np.uint16)
    painted[inside] = ((under * (256 - share) + over * share) >> 8).astype(np.uint8)
    return painted


def _edges(labels: NDArray[np.uint8], thickness: int) -> NDArray[np.bool_]:
    """Booleans [H, W]: class pixels that lie within ``thickness`` of another label."""
    edges = np.zeros(labels.shape, dtype=np.bool_)
    for step in range(1, thickness + 1):
        down = labels[step:] != labels[:-step]
        right = labels[:, step:] != labels[:, :-step]
        edges[step:] |= down
        edges[:-step] |= down
        edges[:, step:] |= right
        edges[:, :-step] |= right
    return edges & (labels > 0)


@dataclass(frozen=True, slots=True)
class _Legend:
    """Measures of a legend in pixels: of its text and panel."""

    text: int
    width: int
    height: int

    @property
    def pad(self) -> int:
        return self.text // 2

    @property
    def line(self) -> int:
        return round(self.text * 1.45)

    @property
    def chip(self) -> int:
        return self.text - 2


def _fitting_legend(size: tuple[int, int], names: Sequence[str]) -> _Legend | None:
    """The largest legend that leaves most of the picture visible, or None."""
    largest = min(max(min(size) // 24, _SMALLEST_TEXT + 2), _LARGEST_TEXT)
    for text in range(largest, _SMALLEST_TEXT - 1, -1):
        font = ImageFont.load_default(text)
        legend = _Legend(text, 0, 0)
        widest = max(round(font.getlength(name)) for name in names)
        width = 3 * legend.pad + legend.chip + widest
        height = 2 * legend.pad + legend.line * (len(names) - 1) + text
        if width <= size[0] * 0.9 and height <= size[1] * _LEGEND_SHARE:
            return _Legend(text, width, height)
    return None


def _draw_legend(picture: Image.Image, entries: Sequence[tuple[int, str]]) -> None:
    """Writes chips and names on a dark panel in the lower left corner, if there is room."""
    legend = _fitting_legend(picture.size, [name for _, name in entries])
    if legend is None:
        return
    pad, chip = legend.pad, legend.chip
    left, top = pad, picture.height - pad - legend.height
    _darken(picture, (left, top, left + legend.width, top + legend.height), radius=pad)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(legend.text)
    for row, (value, name) in enumerate(entries):
        x, y = left + pad, top + pad + row * legend.line + 1
        colour = tuple(PALETTE[(value - 1) % len(PALETTE)].tolist())
        draw.rounded_rectangle((x, y, x + chip, y + chip), radius=chip // 4, fill=colour)
        draw.text((x + chip + pad, y + chip / 2), name, font=font, fill="white", anchor="lm")


def _darken(picture: Image.Image, box: tuple[int, int, int, int], radius: int) -> None:
    panel = Image.new("L", picture.size, 0)
    ImageDraw.Draw(panel).rounded_rectangle(box, radius=radius, fill=176)
    picture.paste((18, 20, 24), (0, 0), panel)
