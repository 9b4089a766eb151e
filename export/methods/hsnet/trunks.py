# SPDX-License-Identifier: Apache-2.0
"""The trunks of HSNet and the layers that it taps, under torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import Bottleneck, convolution_stage, residual_stage

CLASSES = 1000
"""Of ImageNet; the classifier lies in every checkpoint and is not used."""

_VGG_STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
"""Input channels, output channels and convolutions of each stage of VGG-16; a pool follows each."""

_VGG_TAPS = ((17, 19, 21), (24, 26, 28), (30,))
"""Positions in `features` whose outputs are tapped: two stages of convolutions, the last pool."""


class ResNetTaps(nn.Module):
    """ResNet-50 or -101 with the outputs of every block of its last three stages.

    A tap is the sum of both branches before the block's last ReLU.

    Attributes:
        levels: Number of taps of the fine, middle and coarse level.
    """

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        """Builds the trunk.

        Args:
            blocks: Of each stage.
        """
        super().__init__()
        self.levels = blocks[1:]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(64, 64, blocks[0])
        self.layer2 = residual_stage(256, 128, blocks[1], stride=2)
        self.layer3 = residual_stage(512, 256, blocks[2], stride=2)
        self.layer4 = residual_stage(1024, 512, blocks[3], stride=2)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the taps.

        Args:
            images: Normalised, float32 [batch, 3, H, W].

        Returns:
            Of the fine, middle and coarse level, float32 [batch, taps, C, h, w].
        """
        maps = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        levels = []
        for stage in (self.layer2, self.layer3, self.layer4):
            taps = []
            for block in stage:
                assert isinstance(block, Bottleneck)
                summed = block.summed(maps)
                taps.append(summed)
                # Not in place: the tap stays as it is.
                maps = torch.relu(summed)
            levels.append(torch.stack(taps, dim=1))
        return levels[0], levels[1], levels[2]


class VggTaps(nn.Module):
    """VGG-16 with its last two stages of convolutions, before their ReLUs, and its last pool.

    Attributes:
        levels: Number of taps of the fine, middle and coarse level.
    """

    levels = (3, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, convolutions in _VGG_STAGES:
            layers += convolution_stage(inputs, outputs, convolutions)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, CLASSES),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the taps; see `ResNetTaps.forward`."""
        maps = images
        tapped: dict[int, Tensor] = {}
        wanted = {position for level in _VGG_TAPS for position in level}
        for position, layer in enumerate(self.features):
            # Not in place where a tap would be overwritten.
            maps = torch.relu(maps) if isinstance(layer, nn.ReLU) else layer(maps)
            if position in wanted:
                tapped[position] = maps
        fine, middle, coarse = (
            torch.stack([tapped[position] for position in level], dim=1) for level in _VGG_TAPS
        )
        return fine, middle, coarse
