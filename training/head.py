# SPDX-License-Identifier: Apache-2.0
"""The prototype head on torch tensors: masked averages and scaled cosines. It has no weights."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 20.0
"""Factor from cosine to score."""


@lru_cache(maxsize=64)
def resize_matrix(source: int, target: int) -> Tensor:
    """Returns the [target, source] matrix of a half-pixel bilinear resize along one axis."""
    identity = torch.eye(source).unsqueeze(0)
    return functional.interpolate(identity, size=target, mode="linear", align_corners=False)[
        0
    ].T.contiguous()


def gather_weights(planes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Spreads annotation planes onto the feature grid by the transposed bilinear resize.

    A sum of features weighted by the result equals that of upsampled features under the planes.

    Args:
        planes: Weights at image size, [..., height, width].
        grid: Height and width of the feature map.
    """
    rows, columns = (
        resize_matrix(grid[0], planes.shape[-2]),
        resize_matrix(grid[1], planes.shape[-1]),
    )
    return rows.T @ planes @ columns


def masked_average(features: Tensor, planes: Tensor) -> Tensor:
    """Returns prototypes [count, planes, channels] of features under [count, planes, H, W]."""
    weights = gather_weights(planes, (features.shape[-2], features.shape[-1]))
    total = planes.sum((-2, -1)).unsqueeze(-1) + 1e-5
    return torch.einsum("nchw,nphw->npc", features, weights) / total


def score(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns scores [count, classes, h, w] of features by prototypes [count, classes, c]."""
    features = functional.normalize(features, dim=1, eps=1e-8)
    prototypes = functional.normalize(prototypes, dim=-1, eps=1e-8)
    return SCALE * torch.einsum("nchw,npc->nphw", features, prototypes)


def inferred_background(positives: Tensor) -> Tensor:
    """Returns planes of ones outside the box around the positives, grown by a quarter.

    Args:
        positives: Foreground planes, [..., height, width].
    """
    height, width = positives.shape[-2:]
    outside = torch.ones_like(positives)
    for plane, result in zip(
        positives.view(-1, height, width), outside.view(-1, height, width), strict=True
    ):
        rows, columns = torch.nonzero(plane.any(1)).flatten(), torch.nonzero(plane.any(0)).flatten()
        if not len(rows):
            continue
        top, bottom = _grown(int(rows[0]), int(rows[-1]) + 1, height)
        left, right = _grown(int(columns[0]), int(columns[-1]) + 1, width)
        result[top:bottom, left:right] = 0
    return outside


def _grown(first: int, end: int, limit: int) -> tuple[int, int]:
    extra = round((end - first) / 8)
    return max(0, first - extra), min(limit, end + extra)
