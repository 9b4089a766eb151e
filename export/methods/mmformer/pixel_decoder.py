# SPDX-License-Identifier: Apache-2.0
"""The pixel decoder: deformable attention over three maps, and an embedding of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.mmformer.parts import (
    WIDTH,
    NormedConvolution,
    Resize,
    grid_positions,
    maps_of,
    tokens_of,
)

HEADS, LEVELS, POINTS = 8, 3, 4
_LAYERS = 6
_HIDDEN = 1024
_GROUPS = 32
"""Of the group normalisations."""

Grid = tuple[int, int]
"""Rows and columns of a map."""


class DeformableAttention(nn.Module):
    """Each token reads four points of each map, near its own place, and weighs what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(WIDTH, WIDTH)
        self.output_proj = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, queries: Tensor, values: Tensor, centres: Tensor, grids: Sequence[Grid]
    ) -> Tensor:
        """Attends.

        Args:
            queries: float32 [batch, L, 256], positions added.
            values: float32 [batch, L, 256]: the maps' cells, one map after the other.
            centres: float32 [L, 2]: x and y of each token in its own map, in (0, 1).
            grids: Of the maps.

        Returns:
            float32 [batch, L, 256].
        """
        offsets = torch.unflatten(self.sampling_offsets(queries), -1, (HEADS, LEVELS, POINTS, 2))
        shares = torch.unflatten(self.attention_weights(queries), -1, (HEADS, LEVELS * POINTS))
        shares = torch.unflatten(shares.softmax(dim=-1), -1, (LEVELS, POINTS))
        lengths = [rows * columns for rows, columns in grids]
        parts = torch.split(self.value_proj(values), lengths, dim=1)
        read = []
        for level, (part, grid) in enumerate(zip(parts, grids, strict=True)):
            size = torch.tensor([grid[1], grid[0]], dtype=torch.float32)
            places = centres[:, None, None] + offsets[:, :, :, level] / size
            maps = torch.unflatten(maps_of(part, grid), 1, (HEADS, WIDTH // HEADS))
            points = nn.functional.grid_sample(
                maps.flatten(0, 1),
                (2.0 * places - 1.0).transpose(1, 2).flatten(0, 1),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            weights = shares[:, :, :, level].transpose(1, 2).flatten(0, 1)
            read.append((points * weights[:, None]).sum(dim=-1))
        mixed = torch.unflatten(torch.stack(read).sum(dim=0), 0, (-1, HEADS)).flatten(1, 2)
        result: Tensor = self.output_proj(mixed.transpose(1, 2))
        return result


class _EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = DeformableAttention()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(
        self, tokens: Tensor, positions: Tensor, centres: Tensor, grids: Sequence[Grid]
    ) -> Tensor:
        attended = self.self_attn(tokens + positions, tokens, centres, grids)
        tokens = self.norm1(tokens + attended)
        result: Tensor = self.norm2(tokens + self.linear2(torch.relu(self.linear1(tokens))))
        return result


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer() for _ in range(_LAYERS))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(LEVELS, WIDTH))
        self.encoder = _Encoder()


class PixelDecoder(nn.Module):
    """Weights of the pixel decoder; `PixelDecoding` runs them at a size."""

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.GroupNorm(_GROUPS, WIDTH))
            for channels in (2048, 1024, 512)
        )
        self.transformer = _Transformer()
        self.adapter_1 = NormedConvolution(WIDTH, WIDTH, 1, nn.GroupNorm(_GROUPS, WIDTH))
        self.layer_1 = NormedConvolution(WIDTH, WIDTH, 3, nn.GroupNorm(_GROUPS, WIDTH))
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 1)


class PixelDecoding(nn.Module):
    """From three projected maps and the finest one to tokens and the embedding of every pixel."""

    positions: Tensor
    centres: Tensor

    def __init__(self, decoder: PixelDecoder, grids: Sequence[Grid], finest: Grid) -> None:
        """Fixes the grids of the three maps, coarsest first, and of the finest map."""
        super().__init__()
        self.decoder = decoder
        self.grids = tuple(grids)
        embedded = [
            grid_positions(grid) + embedding
            for grid, embedding in zip(grids, decoder.transformer.level_embed.detach(), strict=True)
        ]
        self.register_buffer("positions", torch.cat(embedded))
        self.register_buffer("centres", torch.cat([_centres(grid) for grid in grids]))
        self.enlarge = Resize(self.grids[2], finest, align_corners=False)

    def encode(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Attends between three maps [batch, 256, h, w]; returns tokens [batch, h * w, 256]."""
        tokens = torch.cat([tokens_of(values) for values in maps], dim=1)
        for layer in self.decoder.transformer.encoder.layers:
            tokens = layer(tokens, self.positions, self.centres, self.grids)
        return torch.split(tokens, [rows * columns for rows, columns in self.grids], dim=1)

    def embed(self, tokens: Tensor, lateral: Tensor) -> Tensor:
        """Embeds every pixel.

        Args:
            tokens: Of the third map, float32 [batch, h * w, 256].
            lateral: The finest map of the trunk, float32 [batch, 256, H, W].

        Returns:
            float32 [batch, 256, H, W].
        """
        decoder = self.decoder
        maps = decoder.adapter_1(lateral) + self.enlarge(maps_of(tokens, self.grids[2]))
        result: Tensor = decoder.mask_features(torch.relu(decoder.layer_1(maps)))
        return result


def _centres(grid: Grid) -> Tensor:
    """The x and y of the cells of a grid, rows first, in (0, 1): float32 [h * w, 2]."""
    rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1)
