# SPDX-License-Identifier: Apache-2.0
"""CANet (Zhang et al., CVPR 2019): dense comparison with a support, and iterative refinement.

The released network compares a query with the mean vector z of one support, and refines its mask in
several passes: each takes the soft-max of the one before it, the first takes zeros. Only what comes
after the history's way in is run again; and of a comparison, only what depends on z. Published
numbers are of images at their own size, and of queries at three scales, which is optional here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from export.methods.blocks import corner_matrix, masked_means
from export.methods.refinement import (
    CHANNELS,
    ComparedFeatures,
    activated,
    comparing_convolution,
    convolution_at,
    pyramid,
    residual_branch,
)
from export.methods.scaled import SCALES, Comparison, Passes, PhiNetwork, shrunk, summed

AREA_EPSILON = 5e-4
"""Added to the area of a shrunk mask."""

Grid = tuple[int, int]


class CanetNetwork(PhiNetwork):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.layer55 = activated(comparing_convolution(vectors=1))
        self.residule1 = residual_branch(CHANNELS + 2)
        self.residule2 = residual_branch(CHANNELS)
        self.residule3 = residual_branch(CHANNELS)
        for number, convolution in enumerate(pyramid()):
            self.add_module(f"layer6_{number}", activated(convolution))
        self.layer7 = activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1))
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)


class CanetGuide(nn.Module):
    """The `guide` graph: the mean of phi under each mask, shrunk to phi's grid with soft edges."""

    rows: Tensor
    columns: Tensor

    def __init__(self, fixed: tuple[Grid, Grid] | None) -> None:
        """Fixes the size of the planes [H, W] and the grid of the features [h, w], if not free."""
        super().__init__()
        self.fixed = fixed is not None
        if fixed is not None:
            size, grid = fixed
            self.register_buffer("rows", corner_matrix(size[0], grid[0]))
            self.register_buffer("columns", corner_matrix(size[1], grid[1]).T.contiguous())

    def shrink(self, masks: Tensor, grid: tuple[int, int]) -> Tensor:
        """Resizes masks [batch, K, H, W] bilinearly, corners on corners, to [batch, K, h, w]."""
        return self.rows @ (masks @ self.columns) if self.fixed else shrunk(masks, grid)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Averages features.

        Args:
            features: float32 [batch, 256, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; background is not used.

        Returns:
            `vectors` z, float32 [batch, ways, 256], and `weights` float32 [batch, ways]: 1 for a
            way that the shot shows, else 0.
        """
        masks = planes[:, 1:]
        vectors = masked_means(
            features,
            self.shrink(masks, (features.shape[2], features.shape[3])),
            AREA_EPSILON,
        )
        return vectors, (masks.amax(dim=(2, 3)) > 0).float()


class CanetQuery(ComparedFeatures):
    """The `query_features` graph: the query's half of the comparing convolution."""

    def __init__(self, network: CanetNetwork) -> None:
        super().__init__(convolution_at(network.layer55))


class _Refinement(nn.Module):
    """From the two halves of a comparison to margins, pass by pass."""

    def __init__(self, network: CanetNetwork, grid: Grid | None, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.comparison = Comparison(network, network.residule1, grid)

    def forward(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Returns the last pass' margins.

        Args:
            compared: Of `query_features`, float32 [batch, 256, h, w].
            vectors: z, float32 [batch, K, 256].

        Returns:
            float32 [batch, K, h, w].
        """
        *_, margins = self.passes(compared, vectors)
        return margins

    def passes(self, compared: Tensor, vectors: Tensor) -> Iterator[Tensor]:
        """Yields the margins of each pass, float32 [batch, K, h, w]."""
        refinement = self.comparison.refinement
        guided = self.comparison.guided(compared, vectors)
        entered = refinement.entered(guided)
        foreground = None
        for _ in range(self.iterations):
            margins = refinement(guided, entered, foreground)
            yield margins.reshape(*vectors.shape[:2], *margins.shape[2:])
            foreground = torch.sigmoid(margins)


class CanetDecode(nn.Module):
    """The `decode` graph where a task has one vector per way: comparison and refinement."""

    def __init__(self, network: CanetNetwork, grid: Grid | None, iterations: int) -> None:
        """Fixes grid and passes.

        Args:
            network: With its weights.
            grid: Of the features [h, w], unless it is free.
            iterations: Passes; the first one has no history.
        """
        super().__init__()
        self.refinement = _Refinement(network, grid, iterations)

    def forward(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Segments.

        Args:
            compared: Of the query, float32 [batch, 256, h, w].
            vectors: Of the task, float32 [batch, ways, 256].

        Returns:
            `logits` float32 [batch, ways, 1, h, w]: foreground minus background.
        """
        margins: Tensor = self.refinement(compared, vectors)
        return margins.unsqueeze(2)


class CanetShotsDecode(nn.Module):
    """The `decode` graph where every shot is compared alone, and their probabilities averaged."""

    def __init__(self, network: CanetNetwork, grid: Grid | None, iterations: int) -> None:
        """See `CanetDecode`."""
        super().__init__()
        self.refinement = _Refinement(network, grid, iterations)

    def forward(self, compared: Tensor, vectors: Tensor, validity: Tensor) -> Tensor:
        """Segments.

        Args:
            compared: Of the query, float32 [batch, 256, h, w].
            vectors: Of the task, float32 [batch, shots, ways, 256].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, h, w] in [-1, 1]: the probability of foreground minus
            that of background, averaged over the shots that show the way.
        """
        margins: Tensor = self.refinement(compared, vectors.flatten(1, 2))
        return _mean_probabilities(margins, vectors, validity).unsqueeze(2)


class CanetScaledDecode(nn.Module):
    """The `decode` graph of several scales, whatever several shots come to.

    How the scales of a pass come together is no more known than that they are averaged: margins
    are, at the image's size, and the next pass sees their mean, as SCL's evaluation does with sums.
    """

    def __init__(self, network: CanetNetwork, iterations: int) -> None:
        """Takes the weights and the number of passes."""
        super().__init__()
        self.passes = Passes(network, network.residule1, iterations)

    def forward(
        self,
        smaller: Tensor,
        compared: Tensor,
        larger: Tensor,
        rows: Tensor,
        columns: Tensor,
        vectors: Tensor,
        extent: Tensor,
        validity: Tensor | None = None,
    ) -> Tensor:
        """See `ScaledQuery.forward`, and `CanetShotsDecode.forward` if there is a validity.

        Without one, `vectors` are those of `CanetDecode.forward`. `extent` is the image's size,
        float32 [batch, 2]; a batch holds images of one size.

        Returns:
            `logits` float32 [batch, ways, 1, H, W] of the same meaning, at the image's size.
        """
        runs = vectors if validity is None else vectors.flatten(1, 2)
        together = runs.unsqueeze(1)
        shares = torch.ones_like(together[..., 0]) / len(SCALES)
        scales = self.passes((smaller, compared, larger), together, shares, extent[0])
        margins = summed(scales, (rows.shape[1], columns.shape[1]))
        if validity is not None:
            margins = _mean_probabilities(margins, vectors, validity)
        return margins.unsqueeze(2)


def _mean_probabilities(margins: Tensor, vectors: Tensor, validity: Tensor) -> Tensor:
    """Averages the probability of foreground minus that of background, [batch, ways, h, w].

    Args:
        margins: float32 [batch, shots * ways, h, w].
        vectors: float32 [batch, shots, ways, 256], zero for ways that a shot does not show.
        validity: float32 [batch, shots].
    """
    apart = margins.reshape(*vectors.shape[:3], *margins.shape[2:])
    shown = (vectors.abs().amax(dim=3) > 0).float() * validity.unsqueeze(2)
    # The soft-max of two: P(foreground) - P(background) = tanh(margin / 2).
    differences = torch.tanh(0.5 * apart) * shown[..., None, None]
    count = shown.sum(dim=1).clamp(min=1.0)[..., None, None]
    return differences.sum(dim=1) / count
