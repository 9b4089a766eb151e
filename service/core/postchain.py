"""From the network's grid to the mask's size (DESIGN, "From logits to a mask").

Every step of a post chain is linear and works on rows and columns alike, so that
the whole chain is A_y L A_x^T with one matrix per axis. The matrices are composed
step by step in float64, once per set of sizes.

A row of such a matrix is a few neighbouring taps and zeros. Nothing here ever holds
all the zeros of a long axis, so that memory grows with its length alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import PostOp, PostStep, PostTarget, ResizeMode
from service.core.types import Size

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Matrix = NDArray[np.float32]

_ALL: Final = slice(None)
_CACHE_BYTES: Final = 32 * 1024 * 1024
#: Multiplications up to which OpenBLAS stays in the calling thread (its own threshold),
#: and the rows of a block that wide outputs still get.
_BLOCK: Final = 4 * 65_536
_BLOCK_ROWS: Final = 8
#: Rows of a matrix that are kept with the zeros between their first and last tap. Each piece
#: costs a call and saves zeros: 80 x 80 cells to 375 x 500 pixels take 0.81 ms in pieces of
#: 640 rows (in blocks, see ``_multiply``), 0.28 ms in pieces of 96, and 0.34 ms in pieces of 32.
_PIECE_ROWS: Final = 96


@dataclass(frozen=True, slots=True)
class AxisPiece:
    """Neighbouring rows of an axis' matrix, without the columns in which they have no tap.

    Attributes:
        rows: Which rows of the matrix.
        columns: Which columns of the matrix.
        matrix: float32 [rows, columns], not writable.
    """

    rows: slice
    columns: slice
    matrix: _Matrix


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis' matrix from the logits' grid to the output.

    Attributes:
        length: Rows of the matrix: pixels of the output's axis.
        grid: Columns of the matrix: cells of the grid's axis.
        pieces: Cover the rows from the first to the last.
        first: int32 [length]: column of each row's first tap; it never falls.
        taps: Of each row, those of no weight included.
        least_sum: Of the taps of a row. None is negative, and no row's sum is above 1.
    """

    length: int
    grid: int
    pieces: tuple[AxisPiece, ...]
    first: NDArray[np.int32]
    taps: int
    least_sum: float

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.first.nbytes + sum(piece.matrix.nbytes for piece in self.pieces)

    def reach(self, cells: slice) -> slice:
        """The rows that have a tap in some neighbouring columns, and perhaps a few around them."""
        if cells.start >= cells.stop:
            return slice(0, 0)
        start = int(np.searchsorted(self.first, cells.start - self.taps + 1))
        return slice(start, int(np.searchsorted(self.first, cells.stop)))

    def within(self, rows: slice) -> Iterator[AxisPiece]:
        """The pieces of some rows, counted from the first of them."""
        start, stop, _ = rows.indices(self.length)
        for piece in self.pieces:
            top, bottom = max(piece.rows.start, start), min(piece.rows.stop, stop)
            if top < bottom:
                kept = piece.matrix[top - piece.rows.start : bottom - piece.rows.start]
                yield AxisPiece(slice(top - start, bottom - start), piece.columns, kept)


@dataclass(frozen=True, slots=True)
class _AxisSizes:
    """Everything that one axis' matrix depends on."""

    grid: int
    input: int
    original: int
    extent: int
    longest: int
    output: int

    def of(self, target: PostTarget | None) -> int:
        """The length that a step goes to."""
        match target:
            case PostTarget.INPUT:
                return self.input
            case PostTarget.ORIGINAL:
                return self.original
            case PostTarget.EXTENT:
                return self.extent
            case PostTarget.LONGEST_SQUARE:
                return self.longest
            case PostTarget.OUTPUT:
                return self.output
            case None:
                raise RepositoryError("BAD_POST_CHAIN", "A resize or crop names no target.")


class PostChain:
    """The linear steps of a family, composed. Threads may share one.

    Args:
        steps: See ``PostStep``.
        cache_bytes: Bytes of composed matrices that are kept.

    Raises:
        RepositoryError: BAD_POST_CHAIN: ``output`` is not the target of the last
            step and of it alone, or a step lacks its target or factor.
    """

    def __init__(self, steps: Sequence[PostStep], cache_bytes: int = _CACHE_BYTES) -> None:
        self._steps = tuple(steps)
        self._cache_bytes = cache_bytes
        self._composed: OrderedDict[_AxisSizes, Axis] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()
        targets = [step.target for step in self._steps]
        if targets.count(PostTarget.OUTPUT) != 1 or targets[-1] is not PostTarget.OUTPUT:
            raise RepositoryError(
                "BAD_POST_CHAIN", "The last step of a post chain, and only it, goes to the output."
            )
        for step in self._steps:
            _check_step(step)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices that are kept now."""
        return self._nbytes

    def axes(
        self,
        grid: Size,
        input_: Size,
        original: Size,
        output: Size | None,
        extent: Size | None = None,
    ) -> tuple[Axis, Axis]:
        """The matrices from the logits' grid to the output.

        Args:
            grid: Size of the logits.
            input_: Size of the network's input.
            original: Size of the photograph.
            output: Size of the mask; None for the network's input size.
            extent: What of the network's input the photograph covers; None for all.

        Returns:
            A_y of [output rows, grid rows] and A_x of [output columns, grid columns].

        Raises:
            RepositoryError: BAD_POST_CHAIN: a crop is larger than what it crops.
        """
        output, extent = output or input_, extent or input_
        longest = max(original.height, original.width)
        rows = (grid.height, input_.height, original.height, extent.height, longest, output.height)
        columns = (grid.width, input_.width, original.width, extent.width, longest, output.width)
        return self._axis(_AxisSizes(*rows)), self._axis(_AxisSizes(*columns))

    def _axis(self, sizes: _AxisSizes) -> Axis:
        with self._lock:
            found = self._composed.get(sizes)
            if found is not None:
                self._composed.move_to_end(sizes)
                return found
        # Composed outside the lock: two threads may do it twice, none waits for another.
        composed = self._compose(sizes)
        with self._lock:
            if sizes not in self._composed and composed.nbytes <= self._cache_bytes:
                self._composed[sizes] = composed
                self._nbytes += composed.nbytes
            while self._nbytes > self._cache_bytes:
                self._nbytes -= self._composed.popitem(last=False)[1].nbytes
        return composed

    def _compose(self, sizes: _AxisSizes) -> Axis:
        taps = _Taps(np.arange(sizes.grid), np.ones((sizes.grid, 1)))
        for step in self._steps:
            taps = _apply(step, taps, sizes)
        count = -(-taps.length // _PIECE_ROWS)
        borders = [taps.length * index // count for index in range(count + 1)]
        pieces = (_piece(taps, slice(top, bottom), sizes.grid) for top, bottom in pairwise(borders))
        first = taps.first.astype(np.int32)
        first.flags.writeable = False
        least = float(taps.weights.sum(axis=1).min())
        return Axis(taps.length, sizes.grid, tuple(pieces), first, taps.weights.shape[1], least)


def upsample(
    logits: NDArray[np.float32],
    rows_axis: Axis,
    columns_axis: Axis,
    rows: slice,
    columns: slice = _ALL,
    room: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Some rows and columns of A_y L A_x^T, for each plane.

    Args:
        logits: float32 [planes, h, w].
        rows_axis: A_y, of [height, h].
        columns_axis: A_x, of [width, w].
        rows: Which rows of the output.
        columns: Which columns.
        room: float32 [n]: where the outcome goes, if it is to take no memory of its own.

    Returns:
        float32 [planes, rows, columns].
    """
    planes, _, width = logits.shape
    height = len(range(*rows.indices(rows_axis.length)))
    breadth = len(range(*columns.indices(columns_axis.length)))
    # The short axis first: what is left is one product of two matrices for all planes.
    partial = np.empty((planes, height, width), dtype=np.float32)
    for piece in rows_axis.within(rows):
        for plane, narrow in zip(logits, partial, strict=True):
            _multiply(piece.matrix, plane[piece.columns], narrow[piece.rows])
    pixels = planes * height * breadth
    whole = np.empty(pixels, dtype=np.float32) if room is None else room[:pixels]
    upsampled = whole.reshape(planes, height, breadth)
    lines, wide = partial.reshape(-1, width), upsampled.reshape(-1, breadth)
    for piece in columns_axis.within(columns):
        _multiply(lines[:, piece.columns], piece.matrix.T, wide[:, piece.rows])
    return upsampled


def _multiply(left: _Matrix, right: _Matrix, product: _Matrix) -> None:
    """Matrix product, in blocks that BLAS does not spread over threads.

    Requests run side by side on worker threads already. BLAS threads under them gain
    nothing and wait for each other: measured on two busy cores, 0.4 ms become 100 ms.
    """
    inner, columns = right.shape
    width = min(columns, max(1, _BLOCK // (_BLOCK_ROWS * inner)))
    height = max(1, _BLOCK // (inner * width))
    for left_edge in range(0, columns, width):
        across = slice(left_edge, left_edge + width)
        for top in range(0, len(left), height):
            down = slice(top, top + height)
            np.matmul(left[down], right[:, across], out=product[down, across])


@dataclass(frozen=True, slots=True)
class _Taps:
    """A matrix whose rows hold a few neighbouring numbers each, and zeros.

    Attributes:
        first: int64 [rows]: column of each row's first tap.
        weights: float64 [rows, taps]; zero where a tap lies beyond the last column.
    """

    first: _Ints
    weights: _Floats

    @property
    def length(self) -> int:
        """Rows."""
        return len(self.first)

    def mixed(self, low: _Ints, high: _Ints, low_share: _Floats, high_share: _Floats) -> _Taps:
        """Rows that each add up two rows of this matrix.

        Args:
            low: int64 [n]: the one row of each sum.
            high: int64 [n]: the other row; it begins no further left.
            low_share: float64 [n]: factor of the one.
            high_share: float64 [n]: factor of the other.
        """
        first = self.first[low]
        shift = self.first[high] - first
        taps = self.weights.shape[1]
        weights = np.zeros((len(low), taps + int(shift.max())))
        weights[:, :taps] = self.weights[low] * low_share[:, None]
        places = shift[:, None] + np.arange(taps)
        weights[np.arange(len(low))[:, None], places] += self.weights[high] * high_share[:, None]
        return _Taps(first, weights)


def _piece(taps: _Taps, rows: slice, grid: int) -> AxisPiece:
    first, weights = taps.first[rows], taps.weights[rows]
    left = int(first.min())
    right = int(first.max()) + weights.shape[1]
    matrix = np.zeros((len(first), right - left), dtype=np.float32)
    places = (first - left)[:, None] + np.arange(weights.shape[1])
    matrix[np.arange(len(first))[:, None], places] = weights
    # Taps beyond the grid are zero.
    kept = np.ascontiguousarray(matrix[:, : grid - left])
    kept.flags.writeable = False
    return AxisPiece(rows, slice(left, min(right, grid)), kept)


def _check_step(step: PostStep) -> None:
    if step.op is PostOp.DECONVOLVE:
        if step.factor < 1 or step.target is not None:
            raise RepositoryError(
                "BAD_POST_CHAIN", "A deconvolution has a factor of 1 or more, and no target."
            )
    elif step.target is None:
        raise RepositoryError("BAD_POST_CHAIN", f"The step {step.op} names no target.")


def _apply(step: PostStep, taps: _Taps, sizes: _AxisSizes) -> _Taps:
    if step.op is PostOp.DECONVOLVE:
        return _deconvolve(taps, step.factor)
    length = sizes.of(step.target)
    if step.op is PostOp.RESIZE:
        return _resize(taps, length, step.mode)
    if length > taps.length:
        raise RepositoryError(
            "BAD_POST_CHAIN", f"A crop to {length} meets an axis of {taps.length} only."
        )
    return _Taps(taps.first[:length], taps.weights[:length])


def _resize(taps: _Taps, length: int, mode: ResizeMode) -> _Taps:
    """Bilinear resize of the rows as torch defines it: no antialiasing, edges repeated."""
    present = taps.length
    if present == length:
        return taps
    target = np.arange(length, dtype=np.float64)
    if mode is ResizeMode.ALIGN_CORNERS:
        source = target * ((present - 1) / (length - 1)) if length > 1 else target
    else:
        source = np.maximum((target + 0.5) * (present / length) - 0.5, 0.0)
    low = np.minimum(source.astype(np.int64), present - 1)
    high = np.minimum(low + 1, present - 1)
    share = source - low
    return taps.mixed(low, high, 1.0 - share, share)


def _deconvolve(taps: _Taps, factor: int) -> _Taps:
    """Transposed convolution of stride ``factor`` with the triangle of revolver.md, section 3.

    The kernel has 2 * factor taps 1 - |k - (factor - 0.5)| / factor, not normalised.
    n rows become factor * (n + 1): each output row lies under two taps, of the row
    above and of the row below, where there are such rows.
    """
    triangle = 1.0 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    below, phase = np.divmod(np.arange(factor * (taps.length + 1)), factor)
    above = below - 1
    return taps.mixed(
        np.maximum(above, 0),
        np.minimum(below, taps.length - 1),
        np.where(above >= 0, triangle[factor + phase], 0.0),
        np.where(below < taps.length, triangle[phase], 0.0),
    )
