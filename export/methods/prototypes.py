# SPDX-License-Identifier: Apache-2.0
"""Prototype segmentation as three graphs: masked averages of features, and scaled cosines to them.

PANet (Wang et al., ICCV 2019); `compact` takes its averages. The head has no weights, so the number
of ways and of queries in a batch is free; height and width are fixed when it is built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import IMAGE_MEAN, IMAGE_STD

COSINE_SCALE = 20.0
"""Factor from cosine to logit (alpha in equation 3 of the paper)."""

AREA_EPSILON = 1e-5
"""Added to the area of a mask, so that an empty one gives the zero prototype."""

NORM_EPSILON = 1e-8
"""Lower bound of the norms that a cosine divides by, so that a zero prototype scores zero."""


def interpolation_matrix(source: int, target: int) -> Tensor:
    """Writes a half-pixel bilinear resize of one axis as a matrix.

    Args:
        source: Samples before.
        target: Samples after.

    Returns:
        float32 [target, source]; every row adds up to one.
    """
    identity = torch.eye(source).unsqueeze(0)
    resized = nn.functional.interpolate(identity, size=target, mode="linear", align_corners=False)
    return resized[0].T.contiguous()


class PrototypeFeatures(nn.Module):
    """The `features` graph: a photograph's bytes to the trunk's map."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module) -> None:
        """Wraps a trunk that takes normalised RGB [batch, 3, H, W]."""
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1))

    def normalise(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into what the trunk takes, float32 [batch, 3, H, W]."""
        return (image.permute(0, 3, 1, 2).float() / 255.0 - self.mean) / self.std

    def forward(self, image: Tensor) -> Tensor:
        """Computes features.

        Args:
            image: RGB uint8 [batch, H, W, 3].

        Returns:
            float32 [batch, C, h, w]; values may be negative.
        """
        features: Tensor = self.trunk(self.normalise(image))
        return features


class PrototypeGuide(nn.Module):
    """The `guide` graph: masked averages of one shot, taken at the resolution of its mask.

    The paper averages features that were upsampled to the mask. Upsampling U is linear, so
    sum(U(F) * m) = sum(F * U'(m)): the transposed resize is applied to the mask, as one small
    matrix per axis, and no map of C x H x W is ever made. Shrinking the mask by nearest or bilinear
    instead would not be the same number.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Fixes the size of the planes [H, W] and the grid of the features [h, w]."""
        super().__init__()
        self.register_buffer("rows", interpolation_matrix(grid[0], size[0]).T.contiguous())
        self.register_buffer("columns", interpolation_matrix(grid[1], size[1]))

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Averages features under each plane.

        Args:
            features: float32 [batch, C, h, w].
            planes: float32 [batch, 1 + ways, H, W] in [0, 1]; plane 0 is background.

        Returns:
            `prototypes` float32 [batch, 1 + ways, C], zero where a plane is empty, and `weights`
            float32 [batch, 1 + ways]: 1 for a way that the shot shows, else 0; for the background
            the number of such ways (at least 1) if it is labelled at all, else 0.
        """
        cells = self.rows @ (planes @ self.columns)
        sums = cells.flatten(2) @ features.flatten(2).transpose(1, 2)
        area = planes.sum(dim=(2, 3))
        prototypes = sums / (area + AREA_EPSILON).unsqueeze(-1)
        shown = (planes.amax(dim=(2, 3)) > 0).float()
        background, ways = shown[:, :1], shown[:, 1:]
        counted = ways.sum(dim=1, keepdim=True).clamp(min=1.0)
        return prototypes, torch.cat([background * counted, ways], dim=1)


class PrototypeDecode(nn.Module):
    """The `decode` graph: scaled cosines between the cells of a query and the prototypes."""

    def forward(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Scores every cell for background and ways.

        Args:
            features: float32 [batch, C, h, w].
            prototypes: float32 [batch, 1 + ways, C].

        Returns:
            `logits` float32 [batch, 1 + ways, 1, h, w] in [-20, 20].
        """
        lengths = (prototypes * prototypes).sum(dim=2, keepdim=True).sqrt().clamp(min=NORM_EPSILON)
        norms = (features * features).sum(dim=1).sqrt().clamp(min=NORM_EPSILON)
        products = (prototypes / lengths) @ features.flatten(2)
        cosines = products.reshape(*products.shape[:2], 1, *features.shape[2:])
        return cosines * (COSINE_SCALE / norms)[:, None, None]
