# SPDX-License-Identifier: Apache-2.0
"""Where ASGNet's clusters start: the cells of a mask that lie deepest inside of it.

The official data loader computes this with a distance transform; here it is part of a graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

MOST = 5
"""Clusters of one shot, N_max of the paper's equation 7."""

CELLS_PER_CLUSTER = 100
"""S_sp of the paper's equation 7."""

_FAR = 1e9
"""A squared distance that no two cells have."""


class Seeds(NamedTuple):
    """Cells that clusters start from.

    Attributes:
        cells: Their numbers in row-major order, int64 [N, 5].
        counted: How many of them count, int64 [N].
    """

    cells: Tensor
    counted: Tensor


class Seeding(nn.Module):
    """Finds the seeds of masks on an f x f grid."""

    picked: Tensor
    rows: Tensor
    columns: Tensor
    squares: Tensor

    def __init__(self, size: int, side: int) -> None:
        """Fixes the side of the planes and of the grid."""
        super().__init__()
        # OpenCV's nearest neighbour, in double precision as there.
        step = 1.0 / (side / size)
        picked = [min(int(cell * step), size - 1) for cell in range(side)]
        self.register_buffer("picked", torch.tensor(picked))
        axis = torch.arange(side, dtype=torch.float32)
        self.register_buffer("rows", axis[:, None].expand(side, side).contiguous())
        self.register_buffer("columns", axis[None].expand(side, side).contiguous())
        self.register_buffer("squares", (axis[:, None] - axis[None]).square())

    def forward(self, masks: Tensor) -> Seeds:
        """Picks up to five cells, each as far as can be from what is outside and from the others.

        Args:
            masks: float32 [N, S, S] of 0 and 1.

        Returns:
            The seeds. Where fewer than two count, the whole mask is one cluster.
        """
        inside = masks[:, self.picked][:, :, self.picked] > 0
        box = _box(inside)
        corner = self._before_the_box(inside)
        taken = torch.zeros_like(inside)
        found = []
        for _ in range(MOST):
            free = inside & ~taken
            depth = self._depth(box & ~free, corner).masked_fill(~free, -1.0).flatten(1)
            index = _first_highest(depth)
            found.append(index)
            taken = taken | nn.functional.one_hot(index, depth.shape[1]).bool().reshape(
                inside.shape
            )
        index = torch.stack(found, dim=1)
        area = inside.sum(dim=(1, 2))
        wanted = torch.round(area / CELLS_PER_CLUSTER).clamp(max=MOST)
        return Seeds(index, self._counted(index, wanted))

    def _before_the_box(self, inside: Tensor) -> Tensor:
        """Squared distances to the cell above the box's first one, float32 [N, f, f].

        SciPy measures from there where a mask fills its box and there is nothing else to measure
        from.
        """
        top = torch.where(inside, self.rows, _FAR).amin(dim=(1, 2), keepdim=True)
        left = torch.where(inside, self.columns, _FAR).amin(dim=(1, 2), keepdim=True)
        return (self.rows - top + 1).square() + (self.columns - left).square()

    def _depth(self, outside: Tensor, corner: Tensor) -> Tensor:
        """Squared distance of each cell to the nearest one outside, float32 [N, f, f]."""
        barred = torch.where(outside, 0.0, _FAR)
        along = (barred.unsqueeze(2) + self.squares).amin(dim=3)
        depth = (along.unsqueeze(1) + self.squares[None, :, :, None]).amin(dim=2)
        anything = outside.flatten(1).any(dim=1)[:, None, None]
        return torch.where(anything, depth, corner)

    def _counted(self, index: Tensor, wanted: Tensor) -> Tensor:
        """Counts seeds as the official network does: by rows or columns that are not zero."""
        used = torch.arange(MOST) < wanted[:, None]
        side = self.rows.shape[0]
        rows = ((index // side > 0) & used).sum(dim=1)
        columns = ((index % side > 0) & used).sum(dim=1)
        return torch.maximum(rows, columns)


def _box(inside: Tensor) -> Tensor:
    """The bounding boxes of masks, bool [N, f, f]."""
    spans = []
    for axis in (2, 1):
        line = inside.any(dim=axis).long()
        begun, to_end = line.cumsum(dim=1) > 0, line.flip(1).cumsum(dim=1).flip(1) > 0
        spans.append(begun & to_end)
    return spans[0].unsqueeze(2) & spans[1].unsqueeze(1)


def _first_highest(values: Tensor) -> Tensor:
    """Index of the first of the highest values [N, P]: int64 [N]."""
    highest = values == values.amax(dim=1, keepdim=True)
    order = torch.arange(values.shape[1])
    return torch.where(highest, order, values.shape[1]).amin(dim=1)
