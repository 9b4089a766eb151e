# SPDX-License-Identifier: Apache-2.0
"""The trunk of FewSeg's own default model, `compact`.

`compact` is a prototype segmentor: masked-average prototypes and 20 * cosine scores on the features
of this trunk. The trunk is built for a processor with few cores and for sharp masks:

* Every halving of the grid uses an even kernel (4x4 in the stem, 2x2 below), so cell (i, j) of a
  map of stride s is centred on pixel s * (i + 1/2) - 1/2. Feature grids and half-pixel bilinear
  resizes then agree exactly; a 3x3 kernel with padding one would shift every map by almost half a
  cell, and masks with it.
* A residual block is a depthwise convolution followed by two pointwise ones. No gates and no
  attention: after the batch norms are folded, the graph is convolutions, ReLU, additions and two
  bilinear resizes.
* Most weights sit at stride 16, where 5x5 depthwise kernels see nearly the whole image. A top-down
  path brings that meaning back to stride 4 and mixes it with colour and texture, because many
  pictures to segment (coins, stained tissue, galaxies) hold no everyday object at all.

The only dependency is torch, so that the exporter can use this file without the training code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB values in [0, 1] that the input is normalised with."""

IMAGE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of RGB values in [0, 1] that the input is normalised with."""


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    active: bool = True,
    gain: float = 1.0,
) -> nn.Sequential:
    """Returns convolution, batch norm and, where `active`, ReLU; grids stay or halve exactly."""
    padding = (kernel - stride) // 2
    norm = nn.BatchNorm2d(outputs)
    nn.init.constant_(norm.weight, gain)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        norm,
    ]
    if active:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Depthwise convolution, then a pointwise pair of twice the width, added to the input."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Builds a block of `channels` with an odd depthwise `kernel`."""
        super().__init__()
        self.spatial = _convolution(channels, channels, kernel, groups=channels, active=False)
        self.expand = _convolution(channels, 2 * channels)
        self.project = _convolution(2 * channels, channels, active=False, gain=0.3)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        added: Tensor = self.project(self.expand(self.spatial(maps)))
        return maps + added


class TopDownFusion(nn.Module):
    """Brings a coarse map to twice its grid, adds the finer map there and mixes the two."""

    def __init__(self, coarse: int, fine: int, channels: int) -> None:
        """Joins maps of `coarse` and `fine` channels into `channels`."""
        super().__init__()
        self.coarse = _convolution(coarse, channels, active=False)
        self.fine = _convolution(fine, channels, active=False)
        self.mix = ResidualBlock(channels, kernel=3)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Returns the joined map on the grid of `fine`."""
        size = (fine.shape[-2], fine.shape[-1])
        raised = functional.interpolate(
            self.coarse(coarse), size=size, mode="bilinear", align_corners=False
        )
        joined: Tensor = self.mix(functional.relu(raised + self.fine(fine)))
        return joined


class CompactTrunk(nn.Module):
    """Light convolutional trunk: a normalised RGB image to one map of stride four.

    The height and width of the image must be multiples of 16.

    Attributes:
        feature_channels: Channels of the map that `forward` returns.
        stride: Pixels per cell of that map.
    """

    feature_channels: int = 96
    stride: int = 4

    def __init__(self) -> None:
        """Builds the trunk with random weights."""
        super().__init__()
        self.stem = _convolution(3, 32, 4, stride=2)
        self.fine = nn.Sequential(_convolution(32, 64, 2, stride=2), ResidualBlock(64, 3))
        self.middle = nn.Sequential(
            _convolution(64, 128, 2, stride=2), ResidualBlock(128, 5), ResidualBlock(128, 5)
        )
        self.coarse = nn.Sequential(
            _convolution(128, 256, 2, stride=2), *(ResidualBlock(256, 5) for _ in range(6))
        )
        self.fuse_middle = TopDownFusion(256, 128, 128)
        self.fuse_fine = TopDownFusion(128, 64, self.feature_channels)
        self.head = nn.Conv2d(self.feature_channels, self.feature_channels, 1)

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the bottom-up maps of strides 4, 8 and 16 (64, 128 and 256 channels)."""
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)

    def fuse(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Returns the feature map of the three maps that `pyramid` gives."""
        features: Tensor = self.head(self.fuse_fine(self.fuse_middle(coarse, middle), fine))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Computes features.

        Args:
            images: Normalised RGB, float [batch, 3, height, width].

        Returns:
            Features, float [batch, feature_channels, height / 4, width / 4], of either sign.
        """
        return self.fuse(*self.pyramid(images))

    @classmethod
    def from_file(cls, path: str | Path) -> CompactTrunk:
        """Returns a trunk in evaluation mode with the weights of a safetensors file."""
        from safetensors.torch import load_file

        trunk = cls()
        trunk.load_state_dict(load_file(path))
        return trunk.eval()


def normalise(pixels: Tensor) -> Tensor:
    """Turns uint8 RGB [batch, 3, height, width] into the trunk's input."""
    mean = torch.tensor(IMAGE_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255.0 - mean) / std
