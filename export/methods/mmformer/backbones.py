# SPDX-License-Identifier: Apache-2.0
"""The two trunks of MM-Former: the paper's ResNet-50, and a later one with a deep stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import FrozenNorm, residual_stage
from export.methods.mmformer.parts import NormedConvolution

_BLOCKS = (3, 4, 6, 3)
"""Of the four stages of a ResNet-50."""

Maps = tuple[Tensor, Tensor, Tensor, Tensor]
"""float32 [batch, C, h, w] of the four stages: C = 256, 512, 1024 and 2048."""


class PaperBackbone(nn.Module):
    """ResNet-50 under detectron2's names; strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1 = NormedConvolution(3, 64, 7, FrozenNorm(64), stride=2)
        inputs = 64
        for number, blocks in enumerate(_BLOCKS):
            planes, stride = 64 << number, 1 if number == 0 else 2
            stage = [_Block(inputs, planes, stride)]
            inputs = 4 * planes
            stage += [_Block(inputs, planes) for _ in range(blocks - 1)]
            self.add_module(f"res{number + 2}", nn.Sequential(*stage))

    def forward(self, images: Tensor) -> Maps:
        """Computes the maps of normalised images [batch, 3, H, W]."""
        stem = torch.relu(self.stem.get_submodule("conv1")(images))
        maps = nn.functional.max_pool2d(stem, 3, stride=2, padding=1)
        first = self.get_submodule("res2")(maps)
        second = self.get_submodule("res3")(first)
        third = self.get_submodule("res4")(second)
        return first, second, third, self.get_submodule("res5")(third)


class DilatedBackbone(nn.Module):
    """ResNet-50 with a stem of three convolutions and strides 4, 8, 8 and 8.

    In the official checkpoints each convolution is a product of three, see
    `export.mmformer_source`.
    """

    def __init__(self) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        self.layer0 = nn.Sequential(
            *_stem_layer(3, 64, 2), *_stem_layer(64, 64), *_stem_layer(64, 128)
        )
        self.layer1 = residual_stage(128, 64, 3)
        self.layer2 = residual_stage(256, 128, 4, stride=2)
        self.layer3 = residual_stage(512, 256, 6, dilation=2, first_dilation=1)
        self.layer4 = residual_stage(1024, 512, 3, dilation=4, first_dilation=2)

    def forward(self, images: Tensor) -> Maps:
        """Computes the maps of normalised images [batch, 3, H, W]."""
        maps = nn.functional.max_pool2d(self.layer0(images), 3, stride=2, padding=1)
        first = self.layer1(maps)
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)


class _Block(nn.Module):
    """A residual block under detectron2's names, its stride in the 3x3 convolution."""

    def __init__(self, inputs: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * planes
        self.shortcut: NormedConvolution | None = None
        if inputs != outputs:
            self.shortcut = NormedConvolution(
                inputs, outputs, 1, FrozenNorm(outputs), stride=stride
            )
        self.conv1 = NormedConvolution(inputs, planes, 1, FrozenNorm(planes))
        self.conv2 = NormedConvolution(planes, planes, 3, FrozenNorm(planes), stride=stride)
        self.conv3 = NormedConvolution(planes, outputs, 1, FrozenNorm(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        shortcut = maps if self.shortcut is None else self.shortcut(maps)
        inner = torch.relu(self.conv2(torch.relu(self.conv1(maps))))
        return torch.relu(self.conv3(inner) + shortcut)


def _stem_layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()
