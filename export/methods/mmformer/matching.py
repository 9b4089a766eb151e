# SPDX-License-Identifier: Apache-2.0
"""Matching: maps of query and support are aligned with each other, and proposals are compared.

Both sides of an alignment look at a small version of the other image, whose shorter side is 15
cells whatever the input size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import maps_of, tokens_of
from export.methods.mmformer.parts import (
    WIDTH,
    CrossAttention,
    FeedForward,
    Resize,
    axis_positions,
    grid_positions,
)

SHORT_SIDE = 15
"""Rows or columns, whichever are fewer, of the maps that are looked at."""

AREA_EPSILON = 1e-7
"""Added to the area of an annotation."""

NORM_EPSILON = 1e-8
"""Lower bound of the norms that a cosine divides by."""

CELL_NUMBERS = WIDTH + 4
"""Of a support's cell: its masked features, the two weights of the annotation (which features are
masked with, and averaged by), its row and its column. All zero where there is no cell."""

_LAYERS = 2
_HEADS = 4
_HIDDEN = 512

Grid = tuple[int, int]


class Alignment(nn.Module):
    """Tokens of one image look at the other's, twice; what they look at stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(_HEADS) for _ in range(_LAYERS)
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(_HIDDEN) for _ in range(_LAYERS))

    def forward(
        self, tokens: Tensor, positions: Tensor, sources: Tensor, source_positions: Tensor
    ) -> Tensor:
        """Aligns.

        Args:
            tokens: float32 [..., N, 256].
            positions: Of the tokens, float32 [..., N, 256].
            sources: Of the other image, float32 [..., M, 256].
            source_positions: Of the sources, float32 [..., M, 256].

        Returns:
            float32 [..., N, 256].
        """
        keys = sources + source_positions
        for attention, feed_forward in zip(
            self.transformer_cross_attention_layers, self.transformer_ffn_layers, strict=True
        ):
            tokens = feed_forward(attention(tokens, positions, keys, sources))
        return tokens


def self_aligned(maps: Tensor) -> Tensor:
    """Weighs channels by how they go with the cells that are strong over all channels.

    Args:
        maps: float32 [batch, C, h, w].

    Returns:
        The same shape. Softmax and sigmoid are the code's; the paper's formula has neither.
    """
    cells = maps.flatten(2)
    shares = cells.mean(dim=1).softmax(dim=1)
    gates = torch.sigmoid(cells @ shares.unsqueeze(2))
    return maps * gates.unsqueeze(3)


def source_grid(grid: Grid) -> Grid:
    """The grid of the small version of a map of that grid."""
    rows, columns = grid
    if SHORT_SIDE in grid:
        return grid
    if rows > columns:
        return int(rows * SHORT_SIDE / columns), SHORT_SIDE
    return SHORT_SIDE, int(columns * SHORT_SIDE / rows)


class Sources(nn.Module):
    """Makes the small version of a map."""

    positions: Tensor

    def __init__(self, grid: Grid) -> None:
        """Fixes the grid of the map."""
        super().__init__()
        self.resize = Resize(grid, source_grid(grid), align_corners=False)
        self.register_buffer("positions", maps_of(grid_positions(grid), grid).contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        """Turns maps [..., C, h, w] into small tokens [..., M, C]."""
        small: Tensor = self.resize(maps)
        return tokens_of(small)

    def positions_under(self, masks: Tensor) -> Tensor:
        """Positions of the small version: those of the map under masks [..., h, w], made small."""
        small: Tensor = self(masks.unsqueeze(-3) * self.positions)
        return small


class Level(nn.Module):
    """One level of the trunk: its alignment, at a size. G counts shots times ways."""

    positions: Tensor
    source_positions: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, alignment: Alignment, grid: Grid, finest: Grid) -> None:
        """Fixes the grids of the level and of the proposals."""
        super().__init__()
        self.alignment = alignment
        self.grid = grid
        self.sources = Sources(grid)
        self.shrink = Resize(finest, grid, align_corners=True)
        self.register_buffer("positions", grid_positions(grid))
        self.register_buffer("source_positions", self.sources(self.sources.positions))
        self.register_buffer("rows", axis_positions(grid[0]))
        self.register_buffer("columns", axis_positions(grid[1]))

    def object_vectors(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """Averages the supports' cells under their annotations, aligned with the query.

        A cell looks at the query only, not at other cells: those that are not averaged need not be.

        Args:
            tokens: Of the query, float32 [batch, h * w, 256].
            cells: Of the supports, float32 [batch, G, N, 260]; see `CELL_NUMBERS`.

        Returns:
            float32 [batch, G, 256].
        """
        objects, masks, weights, rows, columns = torch.split(cells, [WIDTH, 1, 1, 1, 1], dim=-1)
        placed = torch.cat(
            [self.rows[rows.squeeze(-1).long()], self.columns[columns.squeeze(-1).long()]], dim=-1
        )
        sources = self.sources(maps_of(tokens, self.grid)).unsqueeze(1)
        aligned = self.alignment(objects, placed * masks, sources, self.source_positions)
        sums: Tensor = (aligned * weights).sum(dim=-2)
        return sums / (weights.sum(dim=-2) + AREA_EPSILON)

    def proposal_vectors(
        self, tokens: Tensor, proposals: Tensor, sources: Tensor, masks: Tensor
    ) -> Tensor:
        """Averages the query's cells under each proposal, aligned with each support.

        Args:
            tokens: Of the query, float32 [batch, h * w, 256].
            proposals: float32 [batch, 100, H, W] in [0, 1].
            sources: Of the supports, float32 [batch, G, M, 256].
            masks: Which they were masked with, float32 [batch, G, h, w].

        Returns:
            float32 [batch, G, 100, 256].
        """
        source_positions = self.sources.positions_under(masks)
        aligned = self.alignment(tokens.unsqueeze(1), self.positions, sources, source_positions)
        weights = self.shrink(proposals).flatten(2)
        shares = weights / weights.sum(dim=2, keepdim=True)
        vectors: Tensor = shares.unsqueeze(1) @ aligned
        return vectors


def cosines(objects: Tensor, proposals: Tensor) -> Tensor:
    """Compares vectors.

    Args:
        objects: float32 [..., C].
        proposals: float32 [..., 100, C].

    Returns:
        float32 [..., 100] in [-1, 1].
    """
    lengths = [
        (values * values).sum(dim=-1).sqrt().clamp(min=NORM_EPSILON)
        for values in (objects, proposals)
    ]
    # By index: squeezed, an exported graph asks at run time whether the length is 1.
    products = (proposals @ objects.unsqueeze(-1))[..., 0]
    return products / (lengths[0].unsqueeze(-1) * lengths[1])
