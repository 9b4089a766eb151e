# SPDX-License-Identifier: Apache-2.0
"""The head of HSNet: 4-D convolutions that squeeze correlations over the support's positions.

A 4-D map of one query and one shot is [ha, wa, channels, hb, wb]: rows and columns of the query
first, those of the support last. The convolution over the support then takes it as it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import corner_matrix

GROUPS = 4
"""Of every normalisation."""

WIDTHS = (16, 64, 128)
"""Channels after each convolution that squeezes."""

_EPSILON = 1e-5

_SQUEEZES = {
    "encoder_layer2": ((5, 5, 3), (4, 4, 2)),
    "encoder_layer3": ((5, 3, 3), (4, 2, 2)),
    "encoder_layer4": ((3, 3, 3), (2, 2, 2)),
}
"""Kernels, and strides over the support, of the three convolutions of each level."""

STAGES = tuple(_SQUEEZES)
"""The parts that squeeze the fine, the middle and the coarse level."""


class CenterPivot(nn.Module):
    """A 4-D convolution without the weights off its two centres: two 2-D convolutions, added.

    Attributes:
        stride: Over the support's positions; those of the query stay.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolves [ha, wa, inputs, hb, wb] to [ha, wa, outputs, hb', wb'], rounded up."""
        query, stride = maps.shape[:2], self.stride
        kept = maps[..., ::stride, ::stride].permute(3, 4, 2, 0, 1)
        support = kept.shape[:2]
        over_query: Tensor = self.conv1(kept.flatten(0, 1))
        over_support: Tensor = self.conv2(maps.flatten(0, 1))
        turned = over_query.reshape(*support, *over_query.shape[1:]).permute(3, 4, 2, 0, 1)
        return over_support.reshape(*query, *over_support.shape[1:]) + turned


class GroupNorm4d(nn.Module):
    """Normalises groups of channels over all four axes of a 4-D map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Normalises [ha, wa, channels, hb, wb]."""
        positions = maps.flatten(0, 1)
        grouped = positions.reshape(len(positions), GROUPS, -1)
        centred = grouped - grouped.mean(dim=(0, 2), keepdim=True)
        variance = (centred * centred).mean(dim=(0, 2), keepdim=True)
        normal = (centred * (variance + _EPSILON).rsqrt()).reshape(positions.shape)
        scaled = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.reshape(maps.shape)


def squeezing(inputs: int, kernels: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Makes three convolutions, each normalised and rectified.

    Args:
        inputs: Channels that go in; `WIDTHS` come out one after another.
        kernels: Of each convolution.
        strides: Of each, over the support.
    """
    layers: list[nn.Module] = []
    for outputs, kernel, stride in zip(WIDTHS, kernels, strides, strict=True):
        layers += [CenterPivot(inputs, outputs, kernel, stride), GroupNorm4d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)


def mixing() -> nn.Sequential:
    """Makes three convolutions that keep every axis."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [CenterPivot(WIDTHS[-1], WIDTHS[-1], 3, 1), GroupNorm4d(WIDTHS[-1]), nn.ReLU()]
    return nn.Sequential(*layers)


class HpnLearner(nn.Module):
    """From the correlations of three levels to a map of two scores."""

    def __init__(self, levels: tuple[int, int, int]) -> None:
        """Builds the head.

        Args:
            levels: Number of taps of the fine, middle and coarse level.
        """
        super().__init__()
        fine, middle, coarse = levels
        self.encoder_layer4 = squeezing(coarse, *_SQUEEZES["encoder_layer4"])
        self.encoder_layer3 = squeezing(middle, *_SQUEEZES["encoder_layer3"])
        self.encoder_layer2 = squeezing(fine, *_SQUEEZES["encoder_layer2"])
        self.encoder_layer4to3 = mixing()
        self.encoder_layer3to2 = mixing()
        width = WIDTHS[-1]
        self.decoder1 = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.ReLU(),
        )
        self.decoder2 = nn.Sequential(
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, 2, 3, padding=1),
        )

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Scores the query under one shot.

        Args:
            fine: Correlations of the fine level, float32 [ha, wa, taps, hb, wb].
            middle: Those of the middle level, on its own grid.
            coarse: Those of the coarse level.

        Returns:
            float32 [2, 2 ha, 2 wa] on twice the fine grid: background, foreground.
        """
        mixed = self.encoder_layer4(coarse)
        for maps, squeeze, mix in (
            (middle, self.encoder_layer3, self.encoder_layer4to3),
            (fine, self.encoder_layer2, self.encoder_layer3to2),
        ):
            squeezed = squeeze(maps)
            mixed = mix(squeezed + _raised(mixed, squeezed.shape[0], squeezed.shape[1]))
        encoded = mixed.mean(dim=(3, 4)).permute(2, 0, 1)[None]
        size = (2 * fine.shape[0], 2 * fine.shape[1])
        raised = nn.functional.interpolate(
            self.decoder1(encoded), size=size, mode="bilinear", align_corners=True
        )
        scores: Tensor = self.decoder2(raised)
        return scores[0]


def squeezed_size(stage: str, side: int) -> int:
    """What is left of an axis of the support after the convolutions of one of `STAGES`."""
    for stride in _SQUEEZES[stage][1]:
        side = -(-side // stride)
    return side


def _raised(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Resizes the query's axes of a 4-D map, corners on corners."""
    down = corner_matrix(maps.shape[0], rows)
    across = corner_matrix(maps.shape[1], columns)
    tall = (down @ maps.flatten(1)).reshape(rows, *maps.shape[1:])
    return (across @ tall.flatten(2)).reshape(rows, columns, *maps.shape[2:])
