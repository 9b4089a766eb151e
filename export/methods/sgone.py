# SPDX-License-Identifier: Apache-2.0
"""SG-One (Zhang et al., IEEE Trans. Cybernetics 2020): similarity guidance on a VGG-16.

One trunk gives every image an embedding E and, from its middle layers, a map D. A support's E,
resized to its mask, is averaged under it to a vector v; a query's D is weighed by the cosine of its
E with v, and two convolutions make scores of that.

Supports need no D. It is a sixteenth of the arithmetic, and keeping it out of `features`
would mean to keep three times as many maps of every image instead, so both travel in one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import AREA_FLOOR, ImagenetInput, convolution_stage, pooled_under

EMBEDDING_CHANNELS = 512
"""Channels of E, which come first in the tensor of features."""

SIDE_CHANNELS = 128
"""Channels of D."""

NORM_EPSILON = 1e-8
"""Lower bound of the norms that the cosine divides by."""

NO_SHOT = -1e4
"""Margin of a shot that does not show the way, or is not there."""

_STAGES = ((3, 64, 2, 2), (64, 128, 2, 2), (128, 256, 3, 2), (256, 512, 3, 1), (512, 512, 3, 1))
"""Input channels, output channels, number of convolutions and stride of the pool of each stage."""


class SgOneTrunk(nn.Module):
    """VGG-16 with side layers (`netB` of the checkpoint). The grid has an eighth of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs, convolutions, stride) in enumerate(_STAGES, 1):
            stage = convolution_stage(inputs, outputs, convolutions)
            pool = nn.MaxPool2d(3, stride, padding=1)
            self.add_module(f"features_{number}", nn.Sequential(*stage, pool))
        self.cls = nn.Sequential(nn.Conv2d(512, EMBEDDING_CHANNELS, 3, padding=1))
        self.side3_1 = nn.Sequential(nn.Conv2d(256, SIDE_CHANNELS, 3, padding=1), nn.ReLU())
        self.side4_1 = nn.Sequential(
            nn.Conv2d(SIDE_CHANNELS + 512, SIDE_CHANNELS, 3, padding=1), nn.ReLU()
        )
        self.side5_1 = nn.Sequential(nn.Conv2d(SIDE_CHANNELS + 512, SIDE_CHANNELS, 3, padding=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Computes E and D.

        Args:
            images: Normalised, float32 [batch, 3, H, W].

        Returns:
            float32 [batch, 512, h, w] and [batch, 128, h, w]; three times n becomes (n + 1) // 2.
        """
        maps = images
        side = images
        for number in range(1, len(_STAGES) + 1):
            maps = self.get_submodule(f"features_{number}")(maps)
            if number == 3:
                side = self.side3_1(maps)
            elif number == 4:
                side = self.side4_1(torch.cat([side, maps], dim=1))
            elif number == 5:
                side = self.side5_1(torch.cat([side, maps], dim=1))
        return self.cls(maps), side


class SgOneNetwork(nn.Module):
    """The network with the keys of the official checkpoints."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.netB = SgOneTrunk()
        self.classifier_6 = nn.Sequential(
            nn.Conv2d(SIDE_CHANNELS, SIDE_CHANNELS, 3, padding=1), nn.ReLU()
        )
        # A 1x1 kernel with a border of one: the grid of scores is two cells larger.
        self.exit_layer = nn.Conv2d(SIDE_CHANNELS, 2, 1, padding=1)


class SgOneFeatures(nn.Module):
    """The `features` graph: a photograph of any size to E and D."""

    def __init__(self, network: SgOneNetwork, *, bgr: bool) -> None:
        """Wraps the trunk.

        Args:
            network: With its weights.
            bgr: Whether it was trained to see blue first.
        """
        super().__init__()
        self.normalise = ImagenetInput(bgr=bgr)
        self.trunk = network.netB

    def forward(self, image: Tensor) -> Tensor:
        """Computes E and D.

        Args:
            image: RGB uint8 [batch, H, W, 3].

        Returns:
            float32 [batch, 512 + 128, h, w].
        """
        return torch.cat(self.trunk(self.normalise(image)), dim=1)


class SgOneGuide(nn.Module):
    """The `guide` graph: the mean of E under the mask of each way."""

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Averages embeddings.

        Args:
            features: float32 [batch, 512 + 128, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; background is not used.

        Returns:
            `vectors` float32 [batch, ways, 512], zero for a way that the shot does not show (the
            official code divides by zero there), and `weights` float32 [batch, ways]: 1 for a way
            that it shows, else 0.
        """
        masks = planes[:, 1:]
        area = masks.sum(dim=(2, 3))
        sums = pooled_under(features[:, :EMBEDDING_CHANNELS], masks)
        return sums / area.clamp(min=AREA_FLOOR).unsqueeze(2), (area > 0).float()


class _Scoring(nn.Module):
    """From the features of a query and any number of vectors to margins."""

    def __init__(self, network: SgOneNetwork) -> None:
        super().__init__()
        self.classifier = network.classifier_6
        exit_layer = network.exit_layer
        assert exit_layer.bias is not None
        # Only the margin decides, and upsampling is linear.
        self.weight = nn.Parameter(exit_layer.weight[1:] - exit_layer.weight[:1])
        self.bias = nn.Parameter(exit_layer.bias[1:] - exit_layer.bias[:1])

    def similarity(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Cosines of E with vectors [batch, K, 512]: float32 [batch, K, h, w] in [-1, 1]."""
        embedding = features[:, :EMBEDDING_CHANNELS]
        lengths = _lengths(vectors, dim=2)
        norms = _lengths(embedding, dim=1)
        products: Tensor = (vectors / lengths) @ embedding.flatten(2)
        return products.reshape(*products.shape[:2], *features.shape[2:]) / norms

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Scores a query under vectors [batch, K, 512]: float32 [batch, K, h + 2, w + 2]."""
        cosines = self.similarity(features, vectors)
        side = features[:, EMBEDDING_CHANNELS:]
        # The vectors of all ways and shots go through the convolutions as one batch.
        fused = (side[:, None] * cosines[:, :, None]).flatten(0, 1)
        margins: Tensor = nn.functional.conv2d(
            self.classifier(fused), self.weight, self.bias, padding=1
        )
        return margins.reshape(*vectors.shape[:2], *margins.shape[2:])


class SgOneDecode(nn.Module):
    """The `decode` graph where a task has one vector per way."""

    def __init__(self, network: SgOneNetwork) -> None:
        super().__init__()
        self.scoring = _Scoring(network)

    def forward(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Scores every cell.

        Args:
            features: Of the query, float32 [batch, 512 + 128, h, w].
            vectors: Of the task, float32 [batch, ways, 512].

        Returns:
            `logits` float32 [batch, ways, 1, h + 2, w + 2]: foreground minus background.
        """
        margins: Tensor = self.scoring(features, vectors)
        return margins.unsqueeze(2)


class SgOneShotsDecode(nn.Module):
    """The `decode` graph where every shot decides on its own, and their masks are united."""

    def __init__(self, network: SgOneNetwork) -> None:
        super().__init__()
        self.scoring = _Scoring(network)

    def forward(self, features: Tensor, vectors: Tensor, validity: Tensor) -> Tensor:
        """Scores every cell under every shot.

        Args:
            features: Of the query, float32 [batch, 512 + 128, h, w].
            vectors: Of the task, float32 [batch, shots, ways, 512].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, shots, h + 2, w + 2]: foreground minus background;
            `NO_SHOT` for padded shots and for those that do not show the way.
        """
        margins: Tensor = self.scoring(features, vectors.flatten(1, 2))
        margins = margins.reshape(*vectors.shape[:3], *margins.shape[2:]).transpose(1, 2)
        shown = (vectors.abs().amax(dim=3) > 0) & (validity.unsqueeze(2) > 0)
        shown = shown.transpose(1, 2)[..., None, None]
        return torch.where(shown, margins, torch.full_like(margins, NO_SHOT))


def _lengths(values: Tensor, dim: int) -> Tensor:
    """Euclidean norms along one axis, which stays, with length one; none is zero."""
    return (values * values).sum(dim=dim, keepdim=True).sqrt().clamp(min=NORM_EPSILON)
