# SPDX-License-Identifier: Apache-2.0
"""Tensors of queries that go in at their own size, at one or several scales."""

from __future__ import annotations

from typing import Final

from export.family import Free, TensorSpec
from export.methods.refinement import CHANNELS

IMAGE: Final = TensorSpec("image", (Free.HEIGHT, Free.WIDTH, 3), "uint8")

PLANES: Final = TensorSpec("planes", (Free.PLANES, Free.HEIGHT, Free.WIDTH))

FEATURES: Final = TensorSpec("features", (CHANNELS, Free.ROWS, Free.COLUMNS))

NORMALISED: Final = TensorSpec("normalised", (3, Free.HEIGHT, Free.WIDTH))
"""The image, which is scaled anew for every query."""

COMPARED: Final = TensorSpec("compared", FEATURES.dims)

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
