# SPDX-License-Identifier: Apache-2.0
"""PFENet's feature enrichment (FEM): guidance and query merged at several scales, fine to coarse.

Every step between scales is linear and separable, so that the way of a finer scale's result to the
full grid and down to the next scale is one small matrix per axis, and the last merging convolution
runs at each scale before its result is enlarged: the numbers are those of the paper's order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import corner_matrix
from export.methods.trunks import Backbone, StagedTrunk

CHANNELS = 256
"""Of everything that is enriched."""

SCALES = 4


class EnrichmentNetwork(StagedTrunk):
    """A trunk and the layers that enrich, under the keys of the official checkpoints.

    What a method merges first (`init_merge`, `corr_conv`) is its own.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Builds the network with random weights."""
        super().__init__(backbone)
        self.alpha_conv = nn.ModuleList(merging(2 * CHANNELS) for _ in range(SCALES - 1))
        self.beta_conv = nn.ModuleList(refining() for _ in range(SCALES))
        # Only the training loss uses these; checkpoints hold them.
        self.inner_cls = nn.ModuleList(classifier() for _ in range(SCALES))
        self.res1 = merging(SCALES * CHANNELS)
        self.res2 = refining()
        self.cls = classifier()


class Enrichment(nn.Module):
    """Runs the layers that enrich on an f x f grid.

    Attributes:
        sides: Of the scales, fine to coarse.
    """

    def __init__(self, network: EnrichmentNetwork, side: int, bins: Sequence[float]) -> None:
        """Fixes the grid.

        Args:
            network: With its weights.
            side: f, of the features.
            bins: Of the scales, see `scale_sides`.
        """
        super().__init__()
        self.sides = scale_sides(side, bins)
        self.alpha_conv = network.alpha_conv
        self.beta_conv = network.beta_conv
        self.res2 = network.res2
        self.cls = network.cls
        weights = convolution(network.res1).weight.chunk(SCALES, dim=1)
        self.res1 = nn.ParameterList(weight.contiguous() for weight in weights)
        for scale, length in enumerate(self.sides):
            self._keep(f"pool_{scale}", pooling_matrix(side, length))
            self._keep(f"shrink_{scale}", corner_matrix(side, length))
            self._keep(f"enlarge_{scale}", corner_matrix(length, side))
            if scale:
                on = corner_matrix(side, length) @ corner_matrix(self.sides[scale - 1], side)
                self._keep(f"on_{scale}", on)

    def _keep(self, name: str, matrix: Tensor) -> None:
        """Keeps a resize of one axis, unless it changes nothing."""
        changes = not torch.equal(matrix, torch.eye(matrix.shape[1]))
        self.register_buffer(name, matrix if changes else None)

    def pooled(self, maps: Tensor, scale: int) -> Tensor:
        """Averages maps [..., f, f] to the grid of a scale [..., b, b]."""
        return self._resized(maps, f"pool_{scale}")

    def shrunk(self, maps: Tensor, scale: int) -> Tensor:
        """Resizes maps [..., f, f] to the grid of a scale, corners on corners."""
        return self._resized(maps, f"shrink_{scale}")

    def levels(
        self, entries: Sequence[Tensor], finer: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Merges the scales, fine to coarse.

        Args:
            entries: What the first merging convolution made at each scale, before its ReLU:
                float32 [batch, 256, b, b] each.
            finer: What each coarser scale takes of the one before it, if that is not its result
                here: the results of another pass.

        Returns:
            The result of each scale, float32 [batch, 256, b, b].
        """
        results: list[Tensor] = []
        for scale, entry in enumerate(entries):
            maps = torch.relu(entry)
            if scale:
                source = (results if finer is None else finer)[scale - 1]
                seen = self._resized(source, f"on_{scale}")
                maps = self.alpha_conv[scale - 1](torch.cat([maps, seen], dim=1)) + maps
            results.append(self.beta_conv[scale](maps) + maps)
        return results

    def logits(self, levels: Sequence[Tensor]) -> Tensor:
        """Classifies what all scales say: float32 [batch, 2, f, f], background and foreground."""
        parts = [
            self._resized(nn.functional.conv2d(level, weight), f"enlarge_{scale}")
            for scale, (level, weight) in enumerate(zip(levels, self.res1, strict=True))
        ]
        maps = torch.relu(torch.stack(parts).sum(dim=0))
        classified: Tensor = self.cls(self.res2(maps) + maps)
        return classified

    def margins(self, levels: Sequence[Tensor]) -> Tensor:
        """Foreground minus background of `logits`: float32 [batch, f, f]."""
        logits = self.logits(levels)
        return logits[:, 1] - logits[:, 0]

    def _resized(self, maps: Tensor, name: str) -> Tensor:
        matrix: Tensor | None = getattr(self, name)
        return maps if matrix is None else matrix @ maps @ matrix.T


def scale_sides(side: int, bins: Sequence[float]) -> tuple[int, ...]:
    """Sides of the scales (`ppm_scales`): above 1 the side itself, else that share of f."""
    return tuple(int(side * one) if one <= 1 else int(one) for one in bins)


def pooling_matrix(source: int, target: int) -> Tensor:
    """Writes torch's adaptive average pool of one axis as float32 [target, source].

    Windows overlap where the lengths do not divide, and repeat cells where the target is longer.
    """
    matrix = torch.zeros(target, source)
    for row in range(target):
        start, stop = row * source // target, -(-(row + 1) * source // target)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


def merging(inputs: int) -> nn.Sequential:
    """A 1x1 convolution without bias, and a ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, CHANNELS, 1, bias=False), nn.ReLU())


def convolution(layers: nn.Module, position: int = 0) -> nn.Conv2d:
    """The convolution at a position of a sequence."""
    assert isinstance(layers, nn.Sequential)
    found = layers[position]
    assert isinstance(found, nn.Conv2d)
    return found


def refining() -> nn.Sequential:
    """Two 3x3 convolutions without bias, each with a ReLU."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.ReLU(),
    )


def classifier() -> nn.Sequential:
    """A 3x3 convolution and one to two classes; the dropout between them keeps their numbers."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(CHANNELS, 2, 1),
    )
