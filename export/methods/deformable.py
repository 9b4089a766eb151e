# SPDX-License-Identifier: Apache-2.0
"""Deformable attention (Zhu et al., ICLR 2021), and the positions that go with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import maps_of

HEADS = 8

TEMPERATURE = 10000.0
"""Ratio of the longest wave of a position to the shortest."""

PLACE_EPSILON = 1e-6
"""Added to the number of cells that places are divided by."""

Grid = tuple[int, int]
"""Rows and columns of a map."""


class DeformableAttention(nn.Module):
    """Each token reads a few points of each map, near its own place, and weighs what it reads."""

    def __init__(self, width: int, *, levels: int, points: int, bias: bool = True) -> None:
        """Builds the layers with random weights.

        Args:
            width: Channels of a token.
            levels: Maps.
            points: That each head reads of a map.
            bias: Whether values and results have one.
        """
        super().__init__()
        self.width, self.levels, self.points = width, levels, points
        self.sampling_offsets = nn.Linear(width, HEADS * levels * points * 2)
        self.attention_weights = nn.Linear(width, HEADS * levels * points)
        self.value_proj = nn.Linear(width, width, bias=bias)
        self.output_proj = nn.Linear(width, width, bias=bias)

    def forward(
        self, queries: Tensor, values: Tensor, centres: Tensor, grids: Sequence[Grid]
    ) -> Tensor:
        """Attends.

        Args:
            queries: float32 [batch, L, width], positions added.
            values: float32 [batch, L, width]: the maps' cells, one map after the other.
            centres: float32 [L, 2]: x and y of each token in its own map, in (0, 1).
            grids: Of the maps.

        Returns:
            float32 [batch, L, width].
        """
        levels, points = self.levels, self.points
        offsets = torch.unflatten(self.sampling_offsets(queries), -1, (HEADS, levels, points, 2))
        shares = torch.unflatten(self.attention_weights(queries), -1, (HEADS, levels * points))
        shares = torch.unflatten(shares.softmax(dim=-1), -1, (levels, points))
        lengths = [rows * columns for rows, columns in grids]
        parts = torch.split(self.value_proj(values), lengths, dim=1)
        read = []
        for level, (part, grid) in enumerate(zip(parts, grids, strict=True)):
            across, down = offsets[:, :, :, level].unbind(dim=-1)
            steps = torch.stack([across / grid[1], down / grid[0]], dim=-1)
            places = centres[:, None, None] + steps
            maps = torch.unflatten(maps_of(part, grid), 1, (HEADS, self.width // HEADS))
            found = nn.functional.grid_sample(
                maps.flatten(0, 1),
                (2.0 * places - 1.0).transpose(1, 2).flatten(0, 1),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            weights = shares[:, :, :, level].transpose(1, 2).flatten(0, 1)
            read.append((found * weights[:, None]).sum(dim=-1))
        mixed = torch.unflatten(torch.stack(read).sum(dim=0), 0, (-1, HEADS)).flatten(1, 2)
        result: Tensor = self.output_proj(mixed.transpose(1, 2))
        return result


def cell_centres(grid: Grid) -> Tensor:
    """The x and y of the cells of a grid, rows first, in (0, 1): float32 [h * w, 2]."""
    rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1)


def waves(counts: Tensor, total: Tensor | int, width: int) -> Tensor:
    """Encodes places on an axis by sines and cosines of width / 2 wave lengths.

    Args:
        counts: Of cells up to the place, itself included, float32 [...].
        total: Of cells of the axis; broadcast to `counts`.
        width: Numbers of a code.

    Returns:
        float32 [..., width].
    """
    places = counts / (total + PLACE_EPSILON) * (2 * math.pi)
    exponents = 2 * (torch.arange(width) // 2) / width
    angles = places.unsqueeze(-1) / TEMPERATURE**exponents
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
