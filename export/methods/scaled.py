# SPDX-License-Identifier: Apache-2.0
"""Passes over a query, at one or several scales: what CANet and SCL on CANet share.

Images keep their size. A pass takes the mask before it, the first one takes zeros. Scales are added
up at the image's size, and the next pass sees that sum at every scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from export.methods.blocks import CaffeResnet50, ImagenetInput, half_pixel_matrix
from export.methods.refinement import (
    CHANNELS,
    ComparedFeatures,
    ComparedVectors,
    Refinement,
    activated,
    convolution_at,
)

SCALES = ((7, 10), (1, 1), (13, 10))
"""Scales of the query in the official evaluation of SCL and in the paper of CANet, as fractions."""


def scale_names(*, multi_scale: bool) -> str:
    """How provenance names the scales of a query."""
    return ",".join(f"{above / below:g}" for above, below in (SCALES if multi_scale else ((1, 1),)))


class PhiNetwork(CaffeResnet50):
    """The trunk with what makes phi of two of its stages, under the official keys."""

    def __init__(self) -> None:
        """Builds the layers with random weights."""
        super().__init__()
        self.layer5 = activated(nn.Conv2d(512 + 1024, CHANNELS, 3, padding=2, dilation=2))

    def phi(self, images: Tensor) -> Tensor:
        """Computes features, float32 [batch, 256, h, w], of normalised images [batch, 3, H, W]."""
        features: Tensor = self.layer5(self.middle(images))
        return features


class ComparisonLayers(Protocol):
    """The layers after the features, under their official keys; `layer6_0` to `layer6_4` too."""

    layer55: nn.Sequential
    residule2: nn.Sequential
    residule3: nn.Sequential
    layer7: nn.Sequential
    layer9: nn.Conv2d

    def get_submodule(self, target: str) -> nn.Module:
        """A layer by its name."""


class PhiFeatures(nn.Module):
    """The `features` graph: a photograph to phi; for scaled queries the image as well."""

    def __init__(self, network: PhiNetwork, *, image: bool = False) -> None:
        """Wraps the trunk; `image` says whether to return the image."""
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network
        self.image = image

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Turns RGB uint8 [batch, H, W, 3] into phi, float32 [batch, 256, h, w], none negative."""
        normalised = self.normalise(image)
        features = self.network.phi(normalised)
        return (features, normalised) if self.image else features


class Comparison(nn.Module):
    """From the features' half of a comparison and the vectors of guidance to margins."""

    def __init__(
        self,
        layers: ComparisonLayers,
        first: nn.Sequential,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Takes the layers of one path.

        Args:
            layers: With their weights.
            first: The residual branch that takes the mask before, or that of a path without one.
            grid: Of the features [h, w], unless it is free.
        """
        super().__init__()
        self.vectors = ComparedVectors(convolution_at(layers.layer55), grid)
        self.refinement = Refinement(
            branches=(first, layers.residule2, layers.residule3),
            levels=[layers.get_submodule(f"layer6_{number}") for number in range(5)],
            merging=layers.layer7,
            last=layers.layer9,
        )

    def guided(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Compares features [batch, 256, h, w] with vectors [batch, K, C]: [batch * K, 256, ...].

        Args:
            compared: The features' half of the comparing convolution.
            vectors: Of each guidance, those that are tiled.
        """
        tiled = self.vectors(vectors, (compared.shape[2], compared.shape[3]))
        return torch.relu(compared[:, None] + tiled).flatten(0, 1)

    def forward(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Margins without a mask before, float32 [batch, K, h, w]."""
        guided = self.guided(compared, vectors)
        margins: Tensor = self.refinement(guided, self.refinement.entered(guided), None)
        return margins.reshape(*vectors.shape[:2], *margins.shape[2:])


class ScaledQuery(nn.Module):
    """The `query_features` graph: the query's half of the comparing convolution at three scales.

    The trunk is here a second time: only queries are scaled, and supports must not pay for it.
    """

    def __init__(self, network: PhiNetwork, comparing: nn.Conv2d) -> None:
        """Takes a network, and its convolution that compares."""
        super().__init__()
        self.network = network
        self.compare = ComparedFeatures(comparing)

    def forward(self, features: Tensor, normalised: Tensor) -> tuple[Tensor, ...]:
        """Compares at each scale.

        Args:
            features: phi at scale 1, float32 [batch, 256, h, w].
            normalised: The image, float32 [batch, 3, H, W].

        Returns:
            `smaller`, `compared`, `larger`, each float32 [batch, 256, rows, columns]; `rows` and
            `columns` float32 [batch, H] and [batch, W] of zeros, whose lengths are the image's.
        """
        height, width = normalised.shape[2], normalised.shape[3]
        compared = []
        for above, below in SCALES:
            size = height * above // below, width * above // below
            scaled = above != below
            maps = self.network.phi(raise_half_pixel(normalised, size)) if scaled else features
            compared.append(self.compare(maps))
        lengths = normalised[:, 0] * 0.0
        return (*compared, lengths[:, :, 0], lengths[:, 0])


class Passes(nn.Module):
    """From comparisons at one or several scales to margins, pass by pass."""

    def __init__(self, layers: ComparisonLayers, first: nn.Sequential, count: int) -> None:
        """Takes the layers of queries, see `Comparison`, and the number of passes."""
        super().__init__()
        self.comparison = Comparison(layers, first)
        self.count = count

    def forward(
        self, compared: Sequence[Tensor], vectors: Tensor, weights: Tensor, extent: Tensor | None
    ) -> list[Tensor]:
        """Returns the last pass' margins at each scale, float32 [batch, ways, h, w].

        Args:
            compared: The query's half at each scale, float32 [batch, 256, h, w].
            vectors: float32 [batch, shots, ways, C].
            weights: Of the shots in the sum of their margins, float32 [batch, shots, ways].
            extent: Rows and columns of the image, float32 [2]; None for a single pass.
        """
        return self.passes(compared, vectors, weights, extent)[-1]

    def passes(
        self, compared: Sequence[Tensor], vectors: Tensor, weights: Tensor, extent: Tensor | None
    ) -> list[list[Tensor]]:
        """All of them; see `forward`."""
        refinement, flat = self.comparison.refinement, vectors.flatten(1, 2)
        guided = [self.comparison.guided(maps, flat) for maps in compared]
        entered = [refinement.entered(maps) for maps in guided]
        found: list[list[Tensor]] = []
        for number in range(self.count):
            margins = []
            for maps, entry in zip(guided, entered, strict=True):
                history = None
                if number > 0:
                    assert extent is not None
                    history = _history(found[-1], (maps.shape[2], maps.shape[3]), extent)
                    shots = vectors.shape[1]
                    history = history[:, None].expand(-1, shots, -1, -1, -1).flatten(0, 2)[:, None]
                scores = refinement(maps, entry, history)
                scores = scores.reshape(*vectors.shape[:3], *scores.shape[2:])
                margins.append((scores * weights[..., None, None]).sum(dim=1))
            found.append(margins)
        return found


def shrunk(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resizes masks [batch, K, H, W] bilinearly, corners on corners, to [batch, K, h, w]."""
    rows = _between(_corners(grid[0], masks.shape[2]), masks.shape[2])
    columns = _between(_corners(grid[1], masks.shape[3]), masks.shape[3])
    return rows @ masks @ columns.T


def summed(margins: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Raises the margins of each scale to the image's size, and adds them: [batch, K, *size]."""
    total = raise_half_pixel(margins[0], size)
    for maps in margins[1:]:
        total = total + raise_half_pixel(maps, size)
    return total


def raise_half_pixel(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps [batch, K, h, w] bilinearly, half-pixel, to a size that may be free."""
    rows = half_pixel_matrix(maps.shape[2], size[0])
    columns = half_pixel_matrix(maps.shape[3], size[1])
    return rows @ maps @ columns.T


def _history(margins: Sequence[Tensor], grid: tuple[int, int], extent: Tensor) -> Tensor:
    """The probability of foreground at a grid's cells, corners on corners.

    The official code of SCL raises the sum of all scales to the image's size, takes the soft-max
    there, and shrinks that to the grid. A cell of the grid meets two rows and two columns of the
    image: no others are computed.

    Args:
        margins: Of the pass before at each scale, float32 [batch, ways, h, w].
        grid: Rows and columns wanted.
        extent: Rows and columns of the image, float32 [2].

    Returns:
        float32 [batch, ways, *grid].
    """
    positions = [_corners(grid[axis], extent[axis]) for axis in range(2)]
    lower = [places.floor() for places in positions]
    met = [
        torch.cat([places, torch.minimum(places + 1.0, extent[axis] - 1.0)])
        for axis, places in enumerate(lower)
    ]
    total = None
    for maps in margins:
        rows = _between(_half_pixels(met[0], maps.shape[2], extent[0]), maps.shape[2])
        columns = _between(_half_pixels(met[1], maps.shape[3], extent[1]), maps.shape[3])
        raised = rows @ maps @ columns.T
        total = raised if total is None else total + raised
    assert total is not None
    foreground = torch.sigmoid(total)
    beyond = [places - below for places, below in zip(positions, lower, strict=True)]
    down = beyond[0][:, None]
    above, below = foreground[:, :, : grid[0]], foreground[:, :, grid[0] :]
    foreground = (1.0 - down) * above + down * below
    left, right = foreground[..., : grid[1]], foreground[..., grid[1] :]
    return (1.0 - beyond[1]) * left + beyond[1] * right


def _corners(cells: int, length: int | Tensor) -> Tensor:
    """Where the cells of a grid lie on an axis, first on first and last on last."""
    return torch.arange(cells, dtype=torch.float32) * ((length - 1) / (cells - 1))


def _half_pixels(places: Tensor, source: int, length: Tensor) -> Tensor:
    """Where places on an axis of a length lie on one of `source` samples."""
    found = ((places + 0.5) * (source / length) - 0.5).clamp(min=0.0)
    return torch.minimum(found, torch.full_like(found, source - 1))


def _between(places: Tensor, source: int) -> Tensor:
    """Writes reading between the samples of an axis as a matrix [places, source]."""
    return (1.0 - (places[:, None] - torch.arange(source)[None]).abs()).clamp(min=0.0)
