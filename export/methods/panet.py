# SPDX-License-Identifier: Apache-2.0
"""PANet's VGG-16 trunk, with the keys of the official checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from export.methods.blocks import convolution_stage

FEATURE_CHANNELS = 512
"""Channels of the map that the trunk returns."""

OFFICIAL_SIZE = 417
"""Height and width that the paper's evaluation resizes images to."""

TORCHVISION_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of the convolutions in `features` of torchvision's VGG-16, in order."""

_STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
"""Input channels, output channels and number of convolutions of each stage."""


class _Encoder(nn.Module):
    """Holds the name `features` between `backbone` and the blocks."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for number, (inputs, outputs, convolutions) in enumerate(_STAGES):
            last = number == len(_STAGES) - 1
            layers = convolution_stage(inputs, outputs, convolutions, dilation=2 if last else 1)
            # The last ReLU is left out: features may be negative.
            blocks.append(nn.Sequential(*(layers[:-1] if last else layers)))
            if not last:
                # The fourth pool keeps the grid; the last stage is dilated instead.
                stride = 1 if number == len(_STAGES) - 2 else 2
                blocks.append(nn.MaxPool2d(3, stride, padding=1))
        self.features = nn.Sequential(*blocks)


class PanetTrunk(nn.Module):
    """VGG-16 without its fifth pool and last ReLU, stride eight.

    The state dict has the 26 keys `encoder.backbone.features.<block>.<layer>.{weight,bias}` of the
    official checkpoints (without their leading `module.`).
    """

    feature_channels: int = FEATURE_CHANNELS

    def __init__(self) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = _Encoder()

    def forward(self, images: Tensor) -> Tensor:
        """Computes features.

        Args:
            images: Normalised RGB, float32 [batch, 3, H, W].

        Returns:
            float32 [batch, 512, h, w]; see `grid_size`.
        """
        features: Tensor = self.encoder.backbone.features(images)  # type: ignore[union-attr, operator]
        return features

    @classmethod
    def from_torchvision_keys(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames the convolutions of torchvision's VGG-16, which PANet starts from, in order.

        Args:
            tensors: State dict of torchvision's VGG-16.

        Returns:
            Those of its convolutions under the official keys; the classifier is left out.
        """
        pairs = zip(TORCHVISION_LAYERS, cls._convolutions(), strict=True)
        return {
            f"{official}.{part}": tensors[name]
            for index, official in pairs
            for part in ("weight", "bias")
            if (name := f"features.{index}.{part}") in tensors
        }

    @staticmethod
    def _convolutions() -> list[str]:
        return [
            f"encoder.backbone.features.{2 * stage}.{2 * number}"
            for stage, (_, _, convolutions) in enumerate(_STAGES)
            for number in range(convolutions)
        ]

    @staticmethod
    def grid_size(height: int, width: int) -> tuple[int, int]:
        """Returns rows and columns of the features: three pools make n to (n + 1) // 2."""
        for _ in range(3):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width
