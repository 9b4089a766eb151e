"""Resizing as methods that were trained with OpenCV do it, without OpenCV (PFENet and its kin).

An image keeps its aspect and lies on the top left of a square canvas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.types import Size

#: Both sides of what an image becomes are multiples of it.
_MULTIPLE: Final = 8


def letterboxed(image: Size, side: int) -> Size:
    """Size of an image on a canvas of ``side`` x ``side``.

    The longer side becomes ``side``, the other one in proportion, rounded down; then each is
    rounded down to a multiple of 8. Where the authors' code would leave nothing of the shorter
    side, it keeps 8.
    """
    longest = max(image.height, image.width)
    height, width = (
        max(_MULTIPLE, length * side // longest // _MULTIPLE * _MULTIPLE)
        for length in (image.height, image.width)
    )
    return Size(height, width)


def letterbox(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint16]:
    """Resizes an image as floats, and puts it on the top left of a black canvas.

    Args:
        pixels: RGB, uint8 [height, width, 3].
        side: Of the canvas.

    Returns:
        uint16 [side, side, 3]: value x 256, rounded.
    """
    target = letterboxed(Size(*pixels.shape[:2]), side)
    canvas = np.zeros((side, side, 3), dtype=np.uint16)
    canvas[: target.height, : target.width] = np.rint(linear(pixels, target) * np.float32(256))
    return canvas


def linear(pixels: NDArray[Any], target: Size) -> NDArray[np.float32]:
    """OpenCV's INTER_LINEAR of floats: half-pixel centres, edges repeated, no antialiasing.

    Args:
        pixels: [height, width, channels]; taken as float32.
        target: Size of the result.

    Returns:
        float32 [h, w, channels].
    """
    height, width, _ = pixels.shape
    rows, columns = _linear_taps(height, target.height), _linear_taps(width, target.width)
    share = columns.share[:, None]

    def across(chosen: NDArray[np.intp]) -> NDArray[np.float32]:
        lines = pixels[chosen]
        left = lines[:, columns.first].astype(np.float32)
        right = lines[:, columns.second].astype(np.float32)
        return left * (1 - share) + right * share

    down = rows.share[:, None, None]
    blended: NDArray[np.float32] = across(rows.first) * (1 - down) + across(rows.second) * down
    return blended


@lru_cache(maxsize=256)
def cv2_nearest_indices(length: int, target: int) -> NDArray[np.intp]:
    """Indices that OpenCV's INTER_NEAREST picks on an axis: floor(i / (target / length)).

    The quotients are rounded as OpenCV rounds them, in double precision.
    """
    step = 1.0 / (target / length)
    scaled = np.floor(np.arange(target) * step)
    picked: NDArray[np.intp] = np.minimum(scaled, length - 1).astype(np.intp)
    picked.flags.writeable = False
    return picked


class _Taps(NamedTuple):
    """What each sample of a resized axis is made of: first * (1 - share) + second * share."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    share: NDArray[np.float32]


@lru_cache(maxsize=256)
def _linear_taps(length: int, target: int) -> _Taps:
    """As OpenCV computes them: positions in double precision, rounded to single."""
    step = 1.0 / (target / length)
    positions = ((np.arange(target) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(positions)
    share = positions - first
    share[(first < 0) | (first >= length - 1)] = 0
    first = np.clip(first, 0, length - 1).astype(np.intp)
    taps = _Taps(first, np.minimum(first + 1, length - 1), share)
    for values in taps:
        values.flags.writeable = False
    return taps
