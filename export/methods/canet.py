# SPDX-License-Identifier: Apache-2.0
"""CANet (Zhang et al., CVPR 2019): dense comparison with a support, and iterative refinement.

The released network compares a query with the mean vector z of one support, and refines its mask in
several passes: each takes the soft-max of the one before it, the first takes zeros. Only what comes
after the history's way in is run again; and of a comparison, only what depends on z.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from export.methods.blocks import CaffeResnet50, ImagenetInput, corner_matrix, masked_means
from export.methods.refinement import (
    CHANNELS,
    ComparedFeatures,
    ComparedVectors,
    Refinement,
    comparing_convolution,
    convolution_at,
    pyramid,
    residual_branch,
)

AREA_EPSILON = 5e-4
"""Added to the area of a shrunk mask."""


class CanetNetwork(CaffeResnet50):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.layer5 = _activated(nn.Conv2d(512 + 1024, CHANNELS, 3, padding=2, dilation=2))
        self.layer55 = _activated(comparing_convolution(vectors=1))
        self.residule1 = residual_branch(CHANNELS + 2)
        self.residule2 = residual_branch(CHANNELS)
        self.residule3 = residual_branch(CHANNELS)
        for number, convolution in enumerate(pyramid()):
            self.add_module(f"layer6_{number}", _activated(convolution))
        self.layer7 = _activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1))
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)

    def phi(self, images: Tensor) -> Tensor:
        """Computes features, float32 [batch, 256, h, w], of normalised images [batch, 3, H, W]."""
        features: Tensor = self.layer5(self.middle(images))
        return features


class CanetFeatures(nn.Module):
    """The `features` graph: a photograph to phi."""

    def __init__(self, network: CanetNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into phi, float32 [batch, 256, h, w], none negative."""
        return self.network.phi(self.normalise(image))


class CanetGuide(nn.Module):
    """The `guide` graph: the mean of phi under each mask, shrunk to phi's grid with soft edges."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Fixes the size of the planes [H, W] and the grid of the features [h, w]."""
        super().__init__()
        self.register_buffer("rows", corner_matrix(size[0], grid[0]))
        self.register_buffer("columns", corner_matrix(size[1], grid[1]).T.contiguous())

    def shrink(self, masks: Tensor) -> Tensor:
        """Resizes masks [batch, K, H, W] bilinearly, corners on corners, to [batch, K, h, w]."""
        return self.rows @ (masks @ self.columns)

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
        vectors = masked_means(features, self.shrink(masks), AREA_EPSILON)
        return vectors, (masks.amax(dim=(2, 3)) > 0).float()


class CanetQuery(ComparedFeatures):
    """The `query_features` graph: the query's half of the comparing convolution."""

    def __init__(self, network: CanetNetwork) -> None:
        super().__init__(convolution_at(network.layer55))


class _Refinement(nn.Module):
    """From the two halves of a comparison to margins, pass by pass."""

    def __init__(self, network: CanetNetwork, grid: tuple[int, int], iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.compared_vectors = ComparedVectors(convolution_at(network.layer55), grid)
        self.refinement = Refinement(
            branches=(network.residule1, network.residule2, network.residule3),
            levels=[network.get_submodule(f"layer6_{number}") for number in range(5)],
            merging=network.layer7,
            last=network.layer9,
        )

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
        guided = torch.relu(compared[:, None] + self.compared_vectors(vectors)).flatten(0, 1)
        entered = self.refinement.entered(guided)
        foreground = None
        for _ in range(self.iterations):
            margins = self.refinement(guided, entered, foreground)
            yield margins.reshape(*vectors.shape[:2], *margins.shape[2:])
            foreground = torch.sigmoid(margins)


class CanetDecode(nn.Module):
    """The `decode` graph where a task has one vector per way: comparison and refinement."""

    def __init__(self, network: CanetNetwork, grid: tuple[int, int], iterations: int) -> None:
        """Fixes grid and passes.

        Args:
            network: With its weights.
            grid: Of the features [h, w].
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

    def __init__(self, network: CanetNetwork, grid: tuple[int, int], iterations: int) -> None:
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
        margins = margins.reshape(*vectors.shape[:3], *margins.shape[2:])
        shown = (vectors.abs().amax(dim=3) > 0).float() * validity.unsqueeze(2)
        # The soft-max of two: P(foreground) - P(background) = tanh(margin / 2).
        differences = torch.tanh(0.5 * margins) * shown[..., None, None]
        count = shown.sum(dim=1).clamp(min=1.0)[..., None, None]
        return (differences.sum(dim=1) / count).unsqueeze(2)


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.ReLU())
