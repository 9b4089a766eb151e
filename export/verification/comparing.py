# SPDX-License-Identifier: Apache-2.0
"""How far arrays lie from golden ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HALF_PRECISION = 2.0**-11
"""Rounding of a float16, relative to its value."""


def worst(values: Array, golden: Array) -> float:
    """Largest absolute difference; infinite where shapes differ or a value is no number."""
    if values.shape != golden.shape:
        return float("inf")
    error = float(np.abs(values.astype(np.float64) - golden.astype(np.float64)).max(initial=0.0))
    return error if error == error else float("inf")


def relative(values: Array, golden: Array) -> float:
    """Largest absolute difference as a share of the largest golden value."""
    return worst(values, golden) / max(float(np.abs(golden).max()), 1e-12)


def crop(planes: Array, window: Array) -> Array:
    """Cuts a window (top, left, height, width) out of planes [P, H, W]."""
    top, left, height, width = (int(value) for value in window)
    return planes[:, top : top + height, left : left + width]


def softmax(logits: Array) -> Array:
    """Soft-max over axis 0."""
    powers = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(powers / powers.sum(axis=0, keepdims=True))


def sigmoid(margins: Array) -> Array:
    """The logistic function, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * margins)))


def stored_map(arrays: Mapping[str, Array], name: str) -> tuple[Array, Array | None]:
    """Finds a large map among golden arrays.

    Args:
        arrays: Of a case.
        name: Such as "logits".

    Returns:
        The map in float32, [1, P, H, W], and None; or a window of it, and where that lies.
    """
    if name in arrays:
        return arrays[name], None
    return arrays[f"{name}_crop"], arrays[f"{name}_crop_yx"]


def map_error(planes: Array, arrays: Mapping[str, Array], name: str) -> float:
    """Largest difference of planes [P, H, W] from a map that is stored whole or as a window."""
    golden, window = stored_map(arrays, name)
    return worst(planes if window is None else crop(planes, window), golden[0])


def decided_pixels(arrays: Mapping[str, Array], name: str, tie: float) -> Array:
    """Booleans [H, W]: where the best plane of golden logits leads by more than a tie.

    Args:
        arrays: Of a case.
        name: Of the logits, two planes or more.
        tie: Lead under which two computations may decide differently. A map that is stored whole
            in float16 only adds the rounding of two of its values.
    """
    if name in arrays:
        logits = arrays[name][0]
    else:
        logits = arrays[f"{name}_f16"][0].astype(np.float32)
        tie += 2 * HALF_PRECISION * float(np.abs(logits).max())
    best = np.sort(logits, axis=0)
    return np.asarray(best[-1] - best[-2] > tie)
