# SPDX-License-Identifier: Apache-2.0
"""Canvases of letterboxed images, by torch and by exact fractions: a second opinion on serving."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.verification.scores import resized

Array = NDArray[Any]

UNKNOWN = 255
"""What official canvases of labels are filled with."""

_MULTIPLE = 8


def canvas_image(image: Array, side: int) -> Array:
    """Puts an image [H, W, 3] on a canvas: uint16 [side, side, 3], value x 256."""
    planes = image.transpose(2, 0, 1).astype(np.float64)
    content = resized(planes, _content(image, side)).transpose(1, 2, 0)
    canvas = np.zeros((side, side, 3), np.uint16)
    canvas[: content.shape[0], : content.shape[1]] = np.rint(content * 256)
    return canvas


def canvas_mask(labels: Array, side: int) -> Array:
    """Puts labels [H, W] on a canvas [side, side] of `UNKNOWN`."""
    height, width = _content(labels, side)
    rows, columns = _nearest(labels.shape[0], height), _nearest(labels.shape[1], width)
    canvas = np.full((side, side), UNKNOWN, np.uint8)
    canvas[:height, :width] = labels[np.ix_(rows, columns)]
    return canvas


def original_logits(planes: Array, side: int, original: tuple[int, int]) -> Array:
    """Takes planes [P, f, f] to the photograph [P, H, W], as the official scripts do."""
    longest = max(original)
    raised = resized(planes, (side, side), align_corners=True)
    square = resized(raised, (longest, longest), align_corners=True)
    return square[:, : original[0], : original[1]]


def _content(image: Array, side: int) -> tuple[int, int]:
    longest = max(image.shape[:2])
    rows, columns = (int(length * side / longest) // _MULTIPLE for length in image.shape[:2])
    return rows * _MULTIPLE, columns * _MULTIPLE


def _nearest(source: int, target: int) -> list[int]:
    step = 1.0 / (target / source)
    return [min(int(index * step), source - 1) for index in range(target)]
