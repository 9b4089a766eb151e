# SPDX-License-Identifier: Apache-2.0
"""Layers of MM-Former's transformers, under the names of the official checkpoints.

Attention is written as plain matrix products. Tokens have any leading axes, which are broadcast:
one query under many supports is projected once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.methods.blocks import corner_matrix
from export.methods.deformable import waves
from export.methods.prototypes import interpolation_matrix

WIDTH = 256
"""Channels of every token."""

BLOCKED = -1e4
"""Added to the score of a key that attention must not see; its share is exactly zero."""


class NormedConvolution(nn.Conv2d):
    """A convolution without bias, and the normalisation `norm` after it."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, norm: nn.Module, *, stride: int = 1
    ) -> None:
        """Pads such that a stride of one keeps the grid."""
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Computes float32 [batch, outputs, h, w] of [batch, inputs, H, W]."""
        result: Tensor = self.norm(super().forward(input))
        return result


class Attention(nn.Module):
    """Multi-head attention with the packed weights of torch's own module."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Attends.

        Args:
            queries: float32 [..., N, 256].
            keys: float32 [..., M, 256].
            values: float32 [..., M, 256].
            allowed: bool [..., 1, N, M]; where it is false, a query does not see the key. None
                lets every query see every key.

        Returns:
            float32 [..., N, 256].
        """
        scale = 1.0 / math.sqrt(WIDTH // self.heads)
        scores = (self._heads(queries, 0) * scale) @ self._heads(keys, 1).transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, BLOCKED)
        mixed = scores.softmax(dim=-1) @ self._heads(values, 2)
        result: Tensor = self.out_proj(mixed.transpose(-2, -3).flatten(-2))
        return result

    def _heads(self, tokens: Tensor, part: int) -> Tensor:
        """Projects tokens by a third of the packed weights: [..., heads, N, 256 / heads]."""
        rows = slice(part * WIDTH, (part + 1) * WIDTH)
        projected = nn.functional.linear(tokens, self.in_proj_weight[rows], self.in_proj_bias[rows])
        split = torch.unflatten(projected, -1, (self.heads, WIDTH // self.heads))
        return split.transpose(-2, -3)


class CrossAttention(nn.Module):
    """Attention to other tokens, its input added and normalised."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(heads)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Computes [..., N, 256]; see `Attention`. Positions are added to the tokens that ask."""
        seen = self.multihead_attn(tokens + positions, keys, values, allowed)
        result: Tensor = self.norm(tokens + seen)
        return result


class SelfAttention(nn.Module):
    """Attention among tokens, its input added and normalised."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(heads)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes [..., N, 256]; positions are added to what asks and to what is asked."""
        placed = tokens + positions
        result: Tensor = self.norm(tokens + self.self_attn(placed, placed, tokens))
        return result


class FeedForward(nn.Module):
    """Two layers for each token by itself, its input added and normalised."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WIDTH, hidden)
        self.linear2 = nn.Linear(hidden, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Computes float32 [..., N, 256] of the same."""
        result: Tensor = self.norm(tokens + self.linear2(torch.relu(self.linear1(tokens))))
        return result


def axis_positions(length: int) -> Tensor:
    """Encodes the cells of one axis, float32 [length, 128]; see `waves`."""
    return waves(torch.arange(1, length + 1, dtype=torch.float32), length, WIDTH // 2)


def grid_positions(grid: tuple[int, int]) -> Tensor:
    """Encodes the cells of a grid [h, w], rows first, as float32 [h * w, 256]: y, then x."""
    rows, columns = axis_positions(grid[0]), axis_positions(grid[1])
    upright = rows[:, None].expand(-1, grid[1], -1)
    across = columns[None].expand(grid[0], -1, -1)
    return torch.cat([upright, across], dim=2).flatten(0, 1)


class Resize(nn.Module):
    """A bilinear resize between two fixed grids, as one small matrix per axis."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self, source: tuple[int, int], target: tuple[int, int], *, align_corners: bool
    ) -> None:
        super().__init__()
        self.register_buffer("rows", _matrix(source[0], target[0], align_corners))
        columns = _matrix(source[1], target[1], align_corners)
        self.register_buffer("columns", columns.T.contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        """Resizes [..., h, w] to [..., H, W], as torch does without antialiasing."""
        return self.rows @ (maps @ self.columns)


def _matrix(source: int, target: int, align_corners: bool) -> Tensor:
    return corner_matrix(source, target) if align_corners else interpolation_matrix(source, target)
