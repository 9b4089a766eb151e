# SPDX-License-Identifier: Apache-2.0
"""What families share whose images keep their aspect on a square canvas (PFENet and its kin)."""

from __future__ import annotations

from typing import Any

from export.errors import ExportError

LETTERBOX: dict[str, Any] = {
    "input_dtype": "uint16_8.8",
    "image_resize": "cv2_letterbox",
    "mask_resize": "cv2_letterbox_nearest",
}
"""Fields of `Serving`."""

POST_CHAIN = (
    {"op": "resize", "mode": "align_corners", "target": "input"},
    {"op": "resize", "mode": "align_corners", "target": "longest_square"},
    {"op": "crop", "target": "original"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)
"""The official scripts enlarge the canvas to a square of the photograph's longer side."""

_STRIDE = 8


def letterbox_side(size: tuple[int, int]) -> int:
    """The side of a canvas, which is one more than a multiple of 8.

    Raises:
        ExportError: The size is another one.
    """
    rows, columns = size
    if rows != columns or rows % _STRIDE != 1:
        raise ExportError(
            f"An input of {rows}x{columns} cannot be exported: this network takes squares whose "
            "side is one more than a multiple of 8, such as 473 or 641."
        )
    return rows


def position_buckets(cells: int) -> tuple[int, ...]:
    """Numbers of stored positions that decode is given, up to all cells of a grid.

    Steps of a third to a half: what is padded costs memory and time, and a bucket a warm-up.
    """
    steps = [base * 2**power for power in range(6, 16) for base in (1, 1.5)]
    return (*(int(step) for step in steps if step < cells), cells)
