# SPDX-License-Identifier: Apache-2.0
"""Input sizes of networks that resize their images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from export.errors import ExportError

MIN_SIDE, MAX_SIDE = 32, 2048
"""Bounds of the network's input, in pixels."""


def feature_shape(
    trunk: Callable[[Tensor], Tensor], size: tuple[int, int], side_multiple: int = 1
) -> tuple[int, int, int]:
    """Checks an input size, and asks a trunk what it makes of it.

    Args:
        trunk: Normalised RGB float32 [batch, 3, H, W] to features [batch, C, h, w].
        size: Rows and columns of the network's input.
        side_multiple: What both sides must be multiples of.

    Returns:
        Channels, rows and columns of the features.

    Raises:
        ExportError: The size is out of bounds, or the trunk does not take it.
    """
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise ExportError(
            f"An input of {size[0]}x{size[1]} cannot be exported: both sides must lie between "
            f"{MIN_SIDE} and {MAX_SIDE}."
        )
    if any(side % side_multiple for side in size):
        raise ExportError(
            f"An input of {size[0]}x{size[1]} cannot be exported: both sides must be multiples of "
            f"{side_multiple} for this network."
        )
    try:
        with torch.no_grad():
            shape = trunk(torch.zeros(1, 3, *size)).shape
    except RuntimeError as error:
        raise ExportError(
            f"The trunk does not take an input of {size[0]}x{size[1]}; choose another --size "
            f"({error})."
        ) from error
    return shape[1], shape[2], shape[3]
