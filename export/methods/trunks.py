# SPDX-License-Identifier: Apache-2.0
"""Trunks of the methods that grew out of PFENet: dilated ResNets of a deep stem, and VGG-16."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from export.methods.blocks import residual_stage


class Backbone(StrEnum):
    """Which trunk."""

    RESNET50 = "resnet50"
    RESNET101 = "resnet101"
    VGG16 = "vgg16_bn"


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels of the maps of the last three stages."""

    layer2: int
    layer3: int
    layer4: int

    @property
    def middle(self) -> int:
        """Of layer3 and layer2 together."""
        return self.layer3 + self.layer2


CHANNELS = {
    Backbone.RESNET50: Channels(512, 1024, 2048),
    Backbone.RESNET101: Channels(512, 1024, 2048),
    Backbone.VGG16: Channels(256, 512, 512),
}

BLOCKS = {Backbone.RESNET50: (3, 4, 6, 3), Backbone.RESNET101: (3, 4, 23, 3)}
"""Of the four stages of a ResNet."""


def backbone_of(keys: Collection[str], prefix: str = "") -> Backbone:
    """Tells the trunk from the keys of a checkpoint, whose trunk has this prefix."""
    if f"{prefix}layer0.0.bias" in keys:
        return Backbone.VGG16
    deep = f"{prefix}layer3.22.conv1.weight" in keys
    return Backbone.RESNET101 if deep else Backbone.RESNET50


class StagedTrunk(nn.Module):
    """A trunk of five stages, `layer0` to `layer4`, which networks inherit: these are their keys.

    ResNets keep the grid of layer2 by dilation: side (S - 1) / 8 + 1. VGG-16 has stride 16 after
    layer3, and layer2 twice as fine a grid.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Builds the stages of a backbone with random weights."""
        super().__init__()
        self.backbone = backbone
        stages = _vgg_stages() if backbone is Backbone.VGG16 else _resnet_stages(BLOCKS[backbone])
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages

    @property
    def channels(self) -> Channels:
        """Channels of the last stages."""
        return CHANNELS[self.backbone]

    def middle(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Runs layer0 to layer3.

        Args:
            images: Normalised RGB, float32 [batch, 3, S, S].

        Returns:
            Maps of layer2, resized to the grid of layer3 corners on corners, and of layer3.
        """
        finer = self.layer2(self.layer1(self.layer0(images)))
        coarser = self.layer3(finer)
        if finer.shape[2:] != coarser.shape[2:]:
            finer = nn.functional.interpolate(
                finer, size=coarser.shape[2:], mode="bilinear", align_corners=True
            )
        return finer, coarser

    def grid(self, side: int) -> int:
        """Side of layer3's maps, of an input of `side` pixels."""
        # Convolutions and max-pools of stride 2 round as they are padded; VGG's pools round up.
        return -(-side // 16) if self.backbone is Backbone.VGG16 else (side - 1) // 8 + 1


def _resnet_stages(blocks: Sequence[int]) -> list[nn.Sequential]:
    return [
        deep_stem(),
        residual_stage(128, 64, blocks[0]),
        residual_stage(256, 128, blocks[1], stride=2),
        residual_stage(512, 256, blocks[2], dilation=2),
        residual_stage(1024, 512, blocks[3], dilation=4),
    ]


def deep_stem() -> nn.Sequential:
    """Makes the stem of three 3x3 convolutions and a max-pool: stride 4, 128 channels."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    )


def _vgg_stages() -> list[nn.Sequential]:
    return [
        _vgg_stage(3, 64, 2),
        _vgg_stage(64, 128, 2),
        _vgg_stage(128, 256, 3),
        _vgg_stage(256, 512, 3),
        # The fifth pool of VGG-16 is left out.
        _vgg_stage(512, 512, 3, pool=False),
    ]


def _vgg_stage(inputs: int, outputs: int, convolutions: int, *, pool: bool = True) -> nn.Sequential:
    """Convolution, batch norm and ReLU, several times; then a pool that rounds up."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        channels = inputs if number == 0 else outputs
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    if pool:
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    return nn.Sequential(*layers)
