# SPDX-License-Identifier: Apache-2.0
"""Tensors of CANet and its kin, where images go in at their own size or at a fixed one."""

from __future__ import annotations

from typing import Final, TypeAlias

from export.family import Free, TensorSpec
from export.methods.refinement import CHANNELS

Grid: TypeAlias = tuple[int, int]


def image_specs(
    size: Grid | None, grid: Grid | None
) -> tuple[TensorSpec, TensorSpec, TensorSpec, TensorSpec]:
    """Returns `image`, `planes`, `features` and `compared`.

    Args:
        size: Rows and columns of the network's input; None for the image's own.
        grid: Those of its features; None for what comes of that.
    """
    sides, cells = size or (Free.HEIGHT, Free.WIDTH), grid or (Free.ROWS, Free.COLUMNS)
    return (
        TensorSpec("image", (*sides, 3), "uint8"),
        TensorSpec("planes", (Free.PLANES, *sides)),
        TensorSpec("features", (CHANNELS, *cells)),
        TensorSpec("compared", (CHANNELS, *cells)),
    )


IMAGE, PLANES, FEATURES, COMPARED = image_specs(None, None)

NORMALISED: Final = TensorSpec("normalised", (3, Free.HEIGHT, Free.WIDTH))
"""The image, which is scaled anew for every query."""

SCALED: Final = (
    TensorSpec("smaller", (CHANNELS, Free.SMALLER_ROWS, Free.SMALLER_COLUMNS)),
    COMPARED,
    TensorSpec("larger", (CHANNELS, Free.LARGER_ROWS, Free.LARGER_COLUMNS)),
    TensorSpec("rows", (Free.HEIGHT,)),
    TensorSpec("columns", (Free.WIDTH,)),
)
"""What `ScaledQuery` returns."""

LOGITS: Final = TensorSpec("logits", (Free.WAYS, 1, Free.ROWS, Free.COLUMNS))

SUMMED_LOGITS: Final = TensorSpec("logits", (Free.WAYS, 1, Free.HEIGHT, Free.WIDTH))
"""Of several scales, which are added up at the image's size."""
