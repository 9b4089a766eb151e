# SPDX-License-Identifier: Apache-2.0
"""Prototype mixture models, PMMs and RPMMs (Yang et al., ECCV 2020).

A class is a mixture of k directions, found by expectation and maximisation over the features of
all shots; so is what surrounds it. RPMMs runs the network for k = 1, 3 and 6 in turn, each with the
mask before it at hand. The directions that the search starts from are not in the checkpoints: the
official code draws them without a seed. Here they are drawn once, when a model is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.methods.blocks import CaffeResnet50, ImagenetInput, corner_matrix
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

CONCENTRATION = 20.0
"""kappa of the mixture (paper, equation 3)."""

ROUNDS = 10
"""Of expectation and maximisation."""

EPSILON = 1e-6
"""Added to sums of responsibilities and to lengths of directions."""

MIXED = (3,)
"""Directions of the mixture in PMMs."""

RECURRENT = (1, 3, 6)
"""Directions of the mixtures of the three stages in RPMMs."""


class PmmsNetwork(nn.Module):
    """The network with the keys of the official checkpoints.

    Attributes:
        recurrent: Whether it is RPMMs.
        mixtures: Directions of each stage's mixture.
    """

    def __init__(self, *, recurrent: bool) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.recurrent = recurrent
        self.mixtures = list(RECURRENT if recurrent else MIXED)
        normalised = not recurrent
        joined = CHANNELS + (2 if recurrent else 0)
        self.model_res = CaffeResnet50()
        projection = nn.Conv2d(512 + 1024, CHANNELS, 3, padding=2, dilation=2)
        self.layer5 = _activated(projection, normalised=True)
        self.layer55 = _activated(comparing_convolution(vectors=1), normalised=normalised)
        self.layer56 = _activated(nn.Conv2d(joined, CHANNELS, 3, padding=1), normalised=normalised)
        self.residule1 = residual_branch(CHANNELS + 2)
        self.residule2 = residual_branch(CHANNELS)
        self.residule3 = residual_branch(CHANNELS)
        self.layer6 = nn.Module()
        for number, convolution in enumerate(pyramid()):
            self.layer6.add_module(f"layer6_{number}", _activated(convolution, normalised=False))
        self.layer7 = _activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1), normalised=normalised)
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)

    def phi(self, images: Tensor) -> Tensor:
        """Computes features, float32 [batch, 256, h, w], of normalised images [batch, 3, H, W]."""
        features: Tensor = self.layer5(self.model_res.middle(images))
        return features


class PmmsFeatures(nn.Module):
    """The `features` graph: a photograph to phi."""

    def __init__(self, network: PmmsNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint8 [batch, H, W, 3] into phi, float32 [batch, 256, h, w], none negative."""
        return self.network.phi(self.normalise(image))


class PmmsQuery(nn.Module):
    """The `query_features` graph: phi, and its half of the comparing convolution."""

    def __init__(self, network: PmmsNetwork) -> None:
        super().__init__()
        self.compared = ComparedFeatures(_comparing(network))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turns phi [batch, 256, h, w] into itself and `compared`, of the same shape."""
        return features.clone(), self.compared(features)


class PmmsGuide(nn.Module):
    """The `guide` graph: how much of each cell of the grid a shot says is a way, and is not."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Fixes the size of the planes [H, W] and the grid of the features [h, w]."""
        super().__init__()
        self.register_buffer("rows", corner_matrix(size[0], grid[0]))
        self.register_buffer("columns", corner_matrix(size[1], grid[1]).T.contiguous())

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Shrinks masks with soft edges.

        Args:
            features: Not used: mixtures are of all shots together, which `merge` sees.
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1, background first.

        Returns:
            `foreground` and `background`, float32 [batch, ways, h, w] in [0, 1]. The background of
            a way is plane 0 and the other ways; a way that the shot does not show has neither.
        """
        masks = planes[:, 1:]
        shown = (masks.amax(dim=(2, 3), keepdim=True) > 0).float()
        others = (planes.sum(dim=1, keepdim=True) - masks).clamp(max=1.0) * shown
        return self._shrunk(masks), self._shrunk(others)

    def _shrunk(self, masks: Tensor) -> Tensor:
        return self.rows @ (masks @ self.columns)


class PmmsMerge(nn.Module):
    """The `merge` graph: the mixtures of all shots (paper, equations 3 to 5)."""

    start: Tensor

    def __init__(self, mixtures: Sequence[int], seed: int) -> None:
        """Draws the directions that the search starts from.

        Args:
            mixtures: Directions of each mixture; each has a start of its own.
            seed: Of torch's generator.
        """
        super().__init__()
        self.mixtures = list(mixtures)
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(count, CHANNELS, generator=generator) for count in self.mixtures]
        self.register_buffer("start", nn.functional.normalize(torch.cat(drawn), dim=1))

    def forward(
        self, features: Tensor, foreground: Tensor, background: Tensor, validity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Finds the mixtures.

        Args:
            features: Of the shots, float32 [batch, shots, 256, h, w].
            foreground: Of `guide`, float32 [batch, shots, ways, h, w].
            background: Likewise.
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `foreground_mixtures` and `background_mixtures`, float32 [batch, ways, sum of the
            mixtures' directions, 256].
        """
        points = features.flatten(3).permute(0, 1, 3, 2).flatten(1, 2).unsqueeze(1)
        real = validity[:, :, None].expand(-1, -1, features.shape[3] * features.shape[4])
        real = real.flatten(1)[:, None, :, None]
        return tuple(self._mixed(points, cells, real) for cells in (foreground, background))  # type: ignore[return-value]

    def _mixed(self, points: Tensor, cells: Tensor, real: Tensor) -> Tensor:
        """Mixtures of points [batch, 1, P, 256] under cells [batch, shots, ways, h, w]."""
        shares = cells.flatten(3).transpose(1, 2).flatten(2).unsqueeze(3)
        found = [
            _directions(points, shares, real, self.start[stage]) for stage in _stages(self.mixtures)
        ]
        return torch.cat(found, dim=2)


def _directions(points: Tensor, shares: Tensor, real: Tensor, start: Tensor) -> Tensor:
    """Expectation and maximisation.

    Features are not normalised, and one that a mask excludes is a zero vector: it belongs to all
    directions alike and moves none.

    Args:
        points: float32 [batch, 1, P, 256].
        shares: How much of each point counts, float32 [batch, ways, P, 1].
        real: 1 for points of real shots, else 0, float32 [batch, 1, P, 1].
        start: float32 [k, 256].

    Returns:
        float32 [batch, ways, k, 256].
    """
    directions = start.expand(*shares.shape[:2], -1, -1)
    for _ in range(ROUNDS):
        similar = shares * (points @ directions.transpose(2, 3))
        belonging = torch.softmax(CONCENTRATION * similar, dim=3) * real
        belonging = belonging / (EPSILON + belonging.sum(dim=2, keepdim=True))
        sums = (belonging * shares).transpose(2, 3) @ points
        directions = sums / (EPSILON + sums.norm(dim=3, keepdim=True))
    return directions


class PmmsDecode(nn.Module):
    """The `decode` graph: comparison with every direction, probability map, refinement."""

    def __init__(self, network: PmmsNetwork, grid: tuple[int, int], *, summed: bool) -> None:
        """Fixes the grid.

        Args:
            network: With its weights, in evaluation mode.
            grid: Of the features [h, w].
            summed: Whether the stages' probabilities are averaged, as the official code does it
                for five shots, rather than the last stage's taken.
        """
        super().__init__()
        self.summed = summed
        self.mixtures = network.mixtures
        self.recurrent = network.recurrent
        self.vectors = ComparedVectors(_comparing(network), grid)
        self.layer56 = network.layer56
        self.refinement = Refinement(
            branches=(network.residule1, network.residule2, network.residule3),
            levels=[network.layer6.get_submodule(f"layer6_{number}") for number in range(5)],
            merging=network.layer7,
            last=network.layer9,
        )

    def forward(
        self, query: Tensor, compared: Tensor, foreground: Tensor, background: Tensor
    ) -> Tensor:
        """Segments.

        Args:
            query: phi of the query, float32 [batch, 256, h, w].
            compared: Of `query_features`, float32 [batch, 256, h, w].
            foreground: Mixtures of the task, float32 [batch, ways, directions, 256].
            background: Likewise.

        Returns:
            `logits` float32 [batch, ways, 1, h, w]: foreground minus background; of probabilities,
            in [-1, 1], where the stages are averaged.
        """
        seen: Tensor | None = None
        differences = []
        for stage in _stages(self.mixtures):
            objects, others = foreground[:, :, stage], background[:, :, stage]
            probability = _probability(query, objects, others)
            guided = self._guided(compared, objects, probability)
            history = seen if self.recurrent else probability
            margins = self.refinement(guided, self.refinement.entered(guided), history)
            seen = torch.sigmoid(margins)
            differences.append(torch.tanh(0.5 * margins))
        last = torch.stack(differences).mean(dim=0) if self.summed else margins
        return last.reshape(*foreground.shape[:2], 1, *query.shape[2:])

    def _guided(self, compared: Tensor, objects: Tensor, probability: Tensor) -> Tensor:
        """Adds up the comparisons with all directions: float32 [batch * ways, 256, h, w]."""
        grid = (compared.shape[2], compared.shape[3])
        alike = [
            torch.relu(compared[:, None] + self.vectors(objects[:, :, number], grid))
            for number in range(objects.shape[2])
        ]
        maps = torch.stack(alike).sum(dim=0).flatten(0, 1)
        if self.recurrent:
            maps = torch.cat([maps, 1.0 - probability, probability], dim=1)
        guided: Tensor = self.layer56(maps)
        return guided


def _stages(mixtures: Sequence[int]) -> list[slice]:
    """Where the directions of each stage's mixture lie among those of all stages."""
    ends = list(accumulate(mixtures))
    return [slice(end - count, end) for count, end in zip(mixtures, ends, strict=True)]


def _probability(query: Tensor, objects: Tensor, others: Tensor) -> Tensor:
    """That of foreground by the mixtures alone, without kappa: float32 [batch * ways, 1, h, w]."""
    directions = torch.cat([objects, others], dim=2)
    belonging = torch.softmax(directions @ query.flatten(2).unsqueeze(1), dim=2)
    foreground = belonging[:, :, : objects.shape[2]].sum(dim=2)
    return foreground.reshape(-1, 1, *query.shape[2:])


def _comparing(network: PmmsNetwork) -> nn.Conv2d:
    """The comparing convolution, with the batch norm after it folded in."""
    convolution = convolution_at(network.layer55)
    if network.recurrent:
        return convolution
    norm = network.layer55[1]
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(convolution, norm)


def _activated(convolution: nn.Conv2d, *, normalised: bool) -> nn.Sequential:
    norms = [nn.BatchNorm2d(convolution.out_channels)] if normalised else []
    return nn.Sequential(convolution, *norms, nn.ReLU())
