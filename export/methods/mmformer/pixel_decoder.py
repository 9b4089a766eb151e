# SPDX-License-Identifier: Apache-2.0
"""The pixel decoder: deformable attention over three maps, and an embedding of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import maps_of, tokens_of
from export.methods.deformable import DeformableAttention, Grid, cell_centres
from export.methods.mmformer.parts import (
    WIDTH,
    NormedConvolution,
    Resize,
    grid_positions,
)

LEVELS, POINTS = 3, 4
_LAYERS = 6
_HIDDEN = 1024
_GROUPS = 32
"""Of the group normalisations."""


class _EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(WIDTH, levels=LEVELS, points=POINTS)
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
        self.register_buffer("centres", torch.cat([cell_centres(grid) for grid in grids]))
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
