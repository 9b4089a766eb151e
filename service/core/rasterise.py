"""Points, strokes, outlines and boxes, drawn on a plane of another size than the image.

Geometry is scaled and then drawn; a drawing is never shrunk, because that loses
single pixels (docs/annotations.md). All shapes become **spans**: runs of columns
[start, stop) of a row, computed for a whole shape at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.stopping import checkpoint
from service.core.types import Box, Points, Polygon, Scribble, Size

#: Spans, or samples of a line, that are computed at once; bounds the memory of hostile strokes.
_CELLS_AT_ONCE: Final = 1 << 18

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Spans:
    """Columns [start, stop) of rows, one span per element; empty where stop <= start."""

    rows: _Ints
    starts: _Ints
    stops: _Ints


@dataclass(frozen=True, slots=True)
class Grid:
    """A plane over an image.

    Attributes:
        image: Size that coordinates refer to.
        plane: Size of what is drawn on.
    """

    image: Size
    plane: Size

    @property
    def scale(self) -> _Floats:
        """Plane pixels per image pixel, (x, y)."""
        return np.array(
            [self.plane.width / self.image.width, self.plane.height / self.image.height]
        )

    def holding(self, positions: _Floats) -> tuple[_Ints, _Ints]:
        """Rows and columns of the plane's pixels that hold positions (plane pixels, (x, y))."""
        cells = np.floor(positions).astype(np.int64)
        return (
            np.clip(cells[:, 1], 0, self.plane.height - 1),
            np.clip(cells[:, 0], 0, self.plane.width - 1),
        )

    def pixels(self, positions: _Floats) -> _Spans:
        """The single pixels that hold positions (plane pixels)."""
        rows, columns = self.holding(positions)
        return _Spans(rows, columns, columns + 1)


def paint(
    plane: NDArray[np.int16], shape: Points | Scribble | Polygon | Box, value: int, image: Size
) -> None:
    """Draws a shape.

    Args:
        plane: int16 [h, w]; changed in place.
        shape: In image pixels, inside the image.
        value: What the covered pixels become; at least one is covered.
        image: Size of the image.

    Raises:
        StoppedError: Nobody waits for the plane any more.
    """
    grid = Grid(image, Size(*plane.shape))
    if isinstance(shape, Box):
        _paint_box(plane, shape, value, grid)
        return
    for spans in _spans(shape, grid):
        checkpoint()
        _fill(plane, spans, value)


def _spans(shape: Points | Scribble | Polygon, grid: Grid) -> Iterator[_Spans]:
    match shape:
        case Points():
            centres = np.asarray(shape.points, dtype=np.float64)
            yield grid.pixels(centres * grid.scale)
            if shape.radius > 0:
                yield from _brushed(centres, centres, shape.radius, grid)
        case Scribble():
            vertices = np.asarray(shape.vertices, dtype=np.float64)
            # A single vertex is the stroke from itself to itself.
            starts, ends = (
                vertices[: max(1, len(vertices) - 1)],
                vertices[min(1, len(vertices) - 1) :],
            )
            yield from _lines(starts * grid.scale, ends * grid.scale, grid)
            yield from _brushed(starts, ends, (shape.width or 1.0) / 2, grid)
        case Polygon():
            yield from _filled(shape, grid)


def _paint_box(plane: NDArray[np.int16], box: Box, value: int, grid: Grid) -> None:
    x_scale, y_scale = grid.scale
    rows = _covered(box.y_min * y_scale, box.y_max * y_scale, grid.plane.height)
    columns = _covered(box.x_min * x_scale, box.x_max * x_scale, grid.plane.width)
    plane[rows, columns] = value


def _covered(low: float, high: float, length: int) -> slice:
    """Pixels of an axis whose centre lies in [low, high); if none does, the one in the middle."""
    start, stop = np.ceil(np.array([low, high]) - 0.5).astype(int)
    if start >= stop:
        start = min(int((low + high) / 2), length - 1)
        stop = start + 1
    return slice(int(start), int(stop))


def _filled(polygon: Polygon, grid: Grid) -> Iterator[_Spans]:
    """Pixels whose centre lies inside a ring by the even-odd rule, rings united.

    A row's crossings with a ring, sorted, are the starts and stops of its spans in
    turn. Left and top borders belong to the inside, right and bottom ones do not,
    as with boxes. A ring that holds no pixel centre labels the pixel in its middle.
    """
    rings = [np.asarray(ring, dtype=np.float64) * grid.scale for ring in polygon.rings]
    starts = np.concatenate(rings)
    ends = np.concatenate([part for ring in rings for part in (ring[1:], ring[:1])])
    ring_of_edge = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    first = np.ceil(np.minimum(starts[:, 1], ends[:, 1]) - 0.5).astype(np.int64)
    last = np.ceil(np.maximum(starts[:, 1], ends[:, 1]) - 0.5).astype(np.int64)
    drawn = np.zeros(len(rings), dtype=np.bool_)
    for top, bottom in _row_bands(first, last, grid.plane.height):
        edges, rows = _ragged(np.maximum(first, top), np.minimum(last, bottom))
        columns = _crossings(starts[edges], ends[edges], rows, grid.plane.width)
        ring_rows = ring_of_edge[edges] * grid.plane.height + rows
        # One number per crossing sorts faster than three keys.
        ordered = np.sort(ring_rows * (grid.plane.width + 1) + columns)
        ring_rows, columns = np.divmod(ordered, grid.plane.width + 1)
        of_ring, rows = np.divmod(ring_rows[0::2], grid.plane.height)
        spans = _Spans(rows, columns[0::2], columns[1::2])
        drawn[of_ring[spans.stops > spans.starts]] = True
        yield spans
    if not drawn.all():
        middles = [rings[index].mean(axis=0) for index in np.flatnonzero(~drawn)]
        yield grid.pixels(np.stack(middles))


def _crossings(starts: _Floats, ends: _Floats, rows: _Ints, width: int) -> _Ints:
    """First column whose centre is not left of where an edge crosses a row's middle."""
    (x0, y0), (x1, y1) = starts.T, ends.T
    crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    columns: _Ints = np.minimum(np.maximum(np.ceil(crossings - 0.5), 0), width).astype(np.int64)
    return columns


def _row_bands(first: _Ints, last: _Ints, height: int) -> Iterator[tuple[int, int]]:
    """Cuts the rows so that [first, last) of all edges together stay few in each band."""
    bands = 1 + int(np.maximum(last - first, 0).sum()) // _CELLS_AT_ONCE
    rows = -(-height // bands)
    for top in range(0, height, rows):
        yield top, top + rows


def _lines(starts: _Floats, ends: _Floats, grid: Grid) -> Iterator[_Spans]:
    """One-pixel lines (plane pixels), connected by sides or corners."""
    steps = np.ceil(np.abs(ends - starts).max(axis=1)).astype(np.int64)
    for part in _chunks(steps + 1):
        lines, sample = _ragged(np.zeros_like(steps[part]), steps[part] + 1)
        along = sample / np.maximum(steps[part], 1)[lines]
        begin, end = starts[part][lines], ends[part][lines]
        yield grid.pixels(begin + (end - begin) * along[:, None])


def _brushed(starts: _Floats, ends: _Floats, radius: float, grid: Grid) -> Iterator[_Spans]:
    """Pixels whose centre lies within ``radius`` of a line, all in image pixels.

    A row cuts a line's surroundings (a disc at each end and the strip between them)
    in one piece, as they are convex: from the leftmost to the rightmost of the three cuts.
    """
    # No radius beyond the image's diagonal adds anything.
    radius = min(radius, float(grid.image.height + grid.image.width))
    y_scale = grid.scale[1]
    lowest = np.minimum(starts[:, 1], ends[:, 1]) - radius
    highest = np.maximum(starts[:, 1], ends[:, 1]) + radius
    height = grid.plane.height
    first = np.clip(np.ceil(lowest * y_scale - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.floor(highest * y_scale - 0.5) + 1, 0, height).astype(np.int64)
    for part in _chunks(last - first):
        lines, rows = _ragged(first[part], last[part])
        heights = (rows + 0.5) / y_scale
        begin, end = starts[part][lines], ends[part][lines]
        cuts = [
            _disc_cut(begin, heights, radius),
            _disc_cut(end, heights, radius),
            _strip_cut(begin, end, heights, radius),
        ]
        left = np.minimum.reduce([cut[0] for cut in cuts])
        right = np.maximum.reduce([cut[1] for cut in cuts])
        yield _between(rows, left, right, grid)


def _between(rows: _Ints, left: _Floats, right: _Floats, grid: Grid) -> _Spans:
    """Spans of the pixels whose centre lies in [left, right] (image pixels)."""
    x_scale, width = grid.scale[0], grid.plane.width
    starts = np.clip(np.ceil(left * x_scale - 0.5), 0, width).astype(np.int64)
    stops = np.clip(np.floor(right * x_scale - 0.5) + 1, 0, width).astype(np.int64)
    return _Spans(rows, starts, stops)


def _disc_cut(centres: _Floats, heights: _Floats, radius: float) -> tuple[_Floats, _Floats]:
    """[left, right] of discs at the given heights; (inf, -inf) where they do not reach."""
    squares = radius**2 - (heights - centres[:, 1]) ** 2
    half = np.sqrt(np.maximum(squares, 0))
    reached = squares >= 0
    return (
        np.where(reached, centres[:, 0] - half, np.inf),
        np.where(reached, centres[:, 0] + half, -np.inf),
    )


def _strip_cut(
    starts: _Floats, ends: _Floats, heights: _Floats, radius: float
) -> tuple[_Floats, _Floats]:
    """[left, right] of the strips of half width ``radius`` between starts and ends."""
    run = ends - starts
    length = np.hypot(run[:, 0], run[:, 1])
    ux, uy = (run / np.where(length > 0, length, 1)[:, None]).T
    above = heights - starts[:, 1]
    # Along the line: 0 <= x ux + above uy <= length; across it: |above ux - x uy| <= radius.
    along = _solve(ux, -above * uy, length - above * uy)
    across = _solve(uy, above * ux - radius, above * ux + radius)
    left = np.maximum(along[0], across[0])
    right = np.minimum(along[1], across[1])
    exists = (left <= right) & (length > 0)
    return (
        np.where(exists, starts[:, 0] + left, np.inf),
        np.where(exists, starts[:, 0] + right, -np.inf),
    )


def _solve(factor: _Floats, low: _Floats, high: _Floats) -> tuple[_Floats, _Floats]:
    """The x with low <= factor * x <= high, as an interval; empty is (inf, -inf)."""
    flat = factor == 0
    divisor = np.where(flat, 1, factor)
    with np.errstate(over="ignore"):
        bounds = low / divisor, high / divisor
    everything = np.where((low <= 0) & (high >= 0), -np.inf, np.inf)
    return (
        np.where(flat, everything, np.minimum(*bounds)),
        np.where(flat, -everything, np.maximum(*bounds)),
    )


def _fill(plane: NDArray[np.int16], spans: _Spans, value: int) -> None:
    """Paints spans, working on their bounding window only."""
    real = spans.stops > spans.starts
    if not real.any():
        return
    rows, starts, stops = spans.rows[real], spans.starts[real], spans.stops[real]
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(starts.min()), int(stops.max())
    shape = (bottom - top, right - left + 1)
    base = (rows - top) * shape[1] - left
    changes = np.zeros(shape[0] * shape[1], dtype=np.int64)
    np.add.at(changes, base + starts, 1)
    np.subtract.at(changes, base + stops, 1)
    covered = np.cumsum(changes.reshape(shape), axis=1)[:, :-1] > 0
    plane[top:bottom, left:right][covered] = value


def _ragged(first: _Ints, last: _Ints) -> tuple[_Ints, _Ints]:
    """Pairs (i, n) for every n in [first[i], last[i])."""
    counts = np.maximum(last - first, 0)
    items = np.repeat(np.arange(len(counts)), counts)
    offsets = np.cumsum(counts) - counts
    return items, np.arange(counts.sum()) + (first - offsets)[items]


def _chunks(counts: _Ints) -> Iterator[slice]:
    """Cuts items into runs of bounded total count, one item at least."""
    groups = np.cumsum(np.maximum(counts, 0)) // _CELLS_AT_ONCE
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(counts)]
    for start, stop in pairwise(borders):
        yield slice(start, stop)
