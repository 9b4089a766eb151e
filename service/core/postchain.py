"""From the network's grid to the mask's size (DESIGN, "From logits to a mask").

Every step of a post chain is linear and works on rows and columns alike, so that
the whole chain is A_y L A_x^T with one matrix per axis. The matrices are composed
step by step in float64, once per set of sizes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import PostOp, PostStep, PostTarget, ResizeMode
from service.core.types import Size

_Matrix = NDArray[np.float64]
_Axis = NDArray[np.float32]

_CACHE_BYTES: Final = 32 * 1024 * 1024
#: Multiplications up to which OpenBLAS stays in the calling thread (its own threshold),
#: and the rows of a block that wide outputs still get.
_BLOCK: Final = 4 * 65_536
_BLOCK_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class _AxisSizes:
    """Everything that one axis' matrix depends on."""

    grid: int
    input: int
    original: int
    longest: int
    output: int

    def of(self, target: PostTarget | None) -> int:
        """The length that a step goes to."""
        match target:
            case PostTarget.INPUT:
                return self.input
            case PostTarget.ORIGINAL:
                return self.original
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
        self._composed: OrderedDict[_AxisSizes, _Axis] = OrderedDict()
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
        self, grid: Size, input_: Size, original: Size, output: Size | None
    ) -> tuple[_Axis, _Axis]:
        """The matrices from the logits' grid to the output.

        Args:
            grid: Size of the logits.
            input_: Size of the network's input.
            original: Size of the photograph.
            output: Size of the mask; None for the network's input size.

        Returns:
            A_y [output rows, grid rows] and A_x [output columns, grid columns],
            float32, not writable.

        Raises:
            RepositoryError: BAD_POST_CHAIN: a crop is larger than what it crops.
        """
        output = output or input_
        longest = max(original.height, original.width)
        return (
            self._axis(
                _AxisSizes(grid.height, input_.height, original.height, longest, output.height)
            ),
            self._axis(_AxisSizes(grid.width, input_.width, original.width, longest, output.width)),
        )

    def _axis(self, sizes: _AxisSizes) -> _Axis:
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

    def _compose(self, sizes: _AxisSizes) -> _Axis:
        matrix: _Matrix = np.eye(sizes.grid)
        for step in self._steps:
            matrix = _apply(step, matrix, sizes)
        composed = np.ascontiguousarray(matrix, dtype=np.float32)
        composed.flags.writeable = False
        return composed


def upsample(
    logits: NDArray[np.float32], rows_matrix: _Axis, columns_matrix: _Axis, rows: slice
) -> NDArray[np.float32]:
    """Some rows of A_y L A_x^T, for each plane.

    Args:
        logits: float32 [planes, h, w].
        rows_matrix: A_y, float32 [height, h].
        columns_matrix: A_x, float32 [width, w].
        rows: Which rows of the output.

    Returns:
        float32 [planes, rows, width].
    """
    planes, _, width = logits.shape
    band = rows_matrix[rows]
    # The short axis first: what is left is one product of two matrices for all planes.
    partial = np.empty((planes, len(band), width), dtype=np.float32)
    for plane, narrow in zip(logits, partial, strict=True):
        _multiply(band, plane, narrow)
    upsampled = np.empty((planes, len(band), len(columns_matrix)), dtype=np.float32)
    _multiply(
        partial.reshape(-1, width), columns_matrix.T, upsampled.reshape(-1, len(columns_matrix))
    )
    return upsampled


def _multiply(left: _Axis, right: _Axis, product: _Axis) -> None:
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


def _check_step(step: PostStep) -> None:
    if step.op is PostOp.DECONVOLVE:
        if step.factor < 1 or step.target is not None:
            raise RepositoryError(
                "BAD_POST_CHAIN", "A deconvolution has a factor of 1 or more, and no target."
            )
    elif step.target is None:
        raise RepositoryError("BAD_POST_CHAIN", f"The step {step.op} names no target.")


def _apply(step: PostStep, matrix: _Matrix, sizes: _AxisSizes) -> _Matrix:
    if step.op is PostOp.DECONVOLVE:
        return _deconvolve(matrix, step.factor)
    length = sizes.of(step.target)
    if step.op is PostOp.RESIZE:
        return _resize(matrix, length, step.mode)
    if length > len(matrix):
        raise RepositoryError(
            "BAD_POST_CHAIN", f"A crop to {length} meets an axis of {len(matrix)} only."
        )
    return matrix[:length]


def _resize(matrix: _Matrix, length: int, mode: ResizeMode) -> _Matrix:
    """Bilinear resize of the rows as torch defines it: no antialiasing, edges repeated."""
    present = len(matrix)
    if present == length:
        return matrix
    target = np.arange(length, dtype=np.float64)
    if mode is ResizeMode.ALIGN_CORNERS:
        source = target * ((present - 1) / (length - 1)) if length > 1 else target
    else:
        source = np.maximum((target + 0.5) * (present / length) - 0.5, 0.0)
    low = np.minimum(source.astype(np.int64), present - 1)
    high = np.minimum(low + 1, present - 1)
    share = (source - low)[:, None]
    resized: _Matrix = matrix[low] * (1.0 - share) + matrix[high] * share
    return resized


def _deconvolve(matrix: _Matrix, factor: int) -> _Matrix:
    """Transposed convolution of stride ``factor`` with the triangle of revolver.md, section 3.

    The kernel has 2 * factor taps 1 - |k - (factor - 0.5)| / factor, not normalised.
    n rows become factor * (n + 1): each output row lies under two taps, of the row
    above and of the row below, where there are such rows.
    """
    triangle = 1.0 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    length, columns = matrix.shape
    spread = np.zeros((length + 1, factor, columns))
    spread[:-1] += matrix[:, None, :] * triangle[:factor, None]
    spread[1:] += matrix[:, None, :] * triangle[factor:, None]
    return spread.reshape(factor * (length + 1), columns)
