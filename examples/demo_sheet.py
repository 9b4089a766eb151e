"""Pictures of the demo: marks on supports, masks on queries, one sheet of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewseg import BACKGROUND, Annotation, IndexMask, Points, Scribble, overlay
from fewseg.overlay import PALETTE

Picture = NDArray[np.uint8]

_TILE_HEIGHT, _TILE_WIDTH = 300, 480
_MARGIN = 18
_CAPTION = 30
_TITLE = 44
_SMALL = 15
_PAPER, _INK, _PALE = (250, 250, 248), (30, 30, 34), (110, 110, 118)


@dataclass(frozen=True)
class Tile:
    """A picture with a line of text under it."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Row:
    """One task on the sheet."""

    title: str
    remark: str
    tiles: Sequence[Tile]


def marked(picture: Picture, annotation: Annotation, classes: Sequence[str]) -> Image.Image:
    """A support with its marks drawn on it; negative marks are black with a white rim."""
    canvas = Image.fromarray(picture).convert("RGB")
    for mark in annotation.marks:
        if isinstance(mark, IndexMask):
            canvas = overlay(np.asarray(canvas), np.asarray(mark.labels), classes, legend=False)
    pen = ImageDraw.Draw(canvas)
    unit = max(1.0, max(canvas.size) / 400)
    for mark in annotation.marks:
        if isinstance(mark, Points):
            for x, y in mark.points:
                radius = max(mark.radius, 5 * unit)
                box = (x - radius, y - radius, x + radius, y + radius)
                pen.ellipse(box, _colour(mark.class_name, classes), (255, 255, 255), round(unit))
        elif isinstance(mark, Scribble):
            line = [(float(x), float(y)) for x, y in mark.vertices]
            width = max(mark.width, 3 * unit)
            pen.line(line, (255, 255, 255), round(width + 2 * unit), "curve")
            pen.line(line, _colour(mark.class_name, classes), round(width), "curve")
    return canvas


def _colour(name: object, classes: Sequence[str]) -> tuple[int, int, int]:
    if name is BACKGROUND:
        return (0, 0, 0)
    red, green, blue = PALETTE[list(classes).index(str(name)) % len(PALETTE)]
    return int(red), int(green), int(blue)


def sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows under each other."""
    scaled = [[_scaled(tile.picture) for tile in row.tiles] for row in rows]
    widths = [[_tile_width(p, tile) for p, tile in zip(ps, row.tiles, strict=True)]
              for ps, row in zip(scaled, rows, strict=True)]  # fmt: skip
    heights = [max(p.height for p in pictures) for pictures in scaled]
    paper = Image.new(
        "RGB",
        (
            max(sum(row) + _MARGIN * (len(row) + 1) for row in widths),
            sum(height + _TITLE + _CAPTION + _MARGIN for height in heights) + _MARGIN,
        ),
        _PAPER,
    )
    top = _MARGIN
    for row, pictures, row_widths, height in zip(rows, scaled, widths, heights, strict=True):
        _draw_row(paper, row, pictures, row_widths, top, height)
        top += height + _TITLE + _CAPTION + _MARGIN
    return paper


def _draw_row(
    paper: Image.Image,
    row: Row,
    pictures: Sequence[Image.Image],
    widths: Sequence[int],
    top: int,
    height: int,
) -> None:
    pen = ImageDraw.Draw(paper)
    pen.text((_MARGIN, top), row.title, _INK, _font(22))
    start = _MARGIN + pen.textlength(row.title, _font(22)) + 14
    pen.text((start, top + 6), row.remark, _PALE, _font(_SMALL))
    left = _MARGIN
    for tile, picture, width in zip(row.tiles, pictures, widths, strict=True):
        paper.paste(picture, (left, top + _TITLE))
        pen.text((left, top + _TITLE + height + 6), tile.caption, _PALE, _font(_SMALL))
        left += width + _MARGIN


def _tile_width(picture: Image.Image, tile: Tile) -> int:
    return max(picture.width, round(_font(_SMALL).getlength(tile.caption)))


def _scaled(picture: Image.Image) -> Image.Image:
    ratio = min(_TILE_HEIGHT / picture.height, _TILE_WIDTH / picture.width)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
