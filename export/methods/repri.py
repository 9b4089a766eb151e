# SPDX-License-Identifier: Apache-2.0
"""RePRI (Boudiaf et al., CVPR 2021): a linear classifier fitted to each query.

A PSPNet makes unit vectors z of every position. For each query a prototype w and a bias b are
fitted by gradient descent: foreground probability s = sigmoid(u), u = tau cos(z, w) - b. The loss
is the cross-entropy of the supports, plus the divergence of the query's proportion of foreground
from an estimate of it, plus the entropy of the query. Its gradient is written out here (section 4
of the specification), so that a graph holds a loop of matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.methods.blocks import ImagenetInput, corner_matrix, folded
from export.methods.pfenet import FIXED_POINT
from export.methods.trunks import Backbone, StagedTrunk

TEMPERATURE = 20.0
"""tau."""

LEARNING_RATE = 0.025

UPDATES = 49
"""The official loop runs from 1 to 49, although its setting and the paper say 50."""

REFRESHED_BEFORE = 10
"""The update before which the proportion is estimated anew, and its divergence weighs one more."""

CHANNELS = 512
"""Of z."""

BINS = (1, 2, 3, 6)
"""Sides of the grids that the pyramid pools to."""

IGNORED = -1.0
"""Label of a position of a support that nothing is known about."""

_EPSILON = 1e-10

_NORM_FLOOR = 1e-12


class Pyramid(nn.Module):
    """Pooling to several grids and back, under the official keys (`ppm`)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        outputs = inputs // len(BINS)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )
            for _ in BINS
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Computes float32 [batch, 2 C, h, w] of [batch, C, h, w]: the maps, then each grid."""
        rows, columns = maps.shape[2:]
        parts = [maps]
        for side, layers in zip(BINS, self.features, strict=True):
            pooled = adaptive_matrix(rows, side) @ maps @ adaptive_matrix(columns, side).T
            small = layers(pooled)
            parts.append(corner_matrix(side, rows) @ small @ corner_matrix(side, columns).T)
        return torch.cat(parts, dim=1)


def adaptive_matrix(source: int, target: int) -> Tensor:
    """Writes torch's adaptive average pooling of one axis as float32 [target, source]."""
    matrix = torch.zeros(target, source)
    for place in range(target):
        first, last = place * source // target, -(-(place + 1) * source // target)
        matrix[place, first:last] = 1.0 / (last - first)
    return matrix


class RepriNetwork(StagedTrunk):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        """Builds the network with random weights.

        Args:
            backbone: The trunk.
            classes: Of the base classes' classifier, which is not used.
        """
        super().__init__(backbone)
        inputs = self.channels.layer4
        self.ppm = Pyramid(inputs)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(2 * inputs, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(CHANNELS, classes, 1)

    def embed(self, images: Tensor) -> Tensor:
        """Computes z before it is made a unit vector, float32 [batch, 512, h, w].

        Args:
            images: Normalised RGB, float32 [batch, 3, S, S].
        """
        maps = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(images)))))
        embedded: Tensor = self.bottleneck(self.ppm(maps))
        return embedded


class RepriFeatures(nn.Module):
    """The `features` graph: a photograph to unit vectors."""

    def __init__(self, network: RepriNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def embed(self, image: Tensor) -> Tensor:
        """Computes z [batch, 512, h, w] of RGB uint16 = value x 256 [batch, S, S, 3]."""
        embedded: Tensor = self.network.embed(self.normalise(image.float() / FIXED_POINT))
        return embedded

    def forward(self, image: Tensor) -> Tensor:
        """Computes unit vectors.

        Args:
            image: RGB, uint16 = value x 256, [batch, S, S, 3].

        Returns:
            `features` float16 [batch, cells, 512].
        """
        vectors = self.embed(image).flatten(2).transpose(1, 2)
        units: Tensor = (vectors / _norms(vectors).clamp(min=_NORM_FLOOR)).half()
        return units


def _norms(vectors: Tensor) -> Tensor:
    """Lengths along the last axis, which stays."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return lengths


def nearest_places(size: int, grid: int) -> Tensor:
    """Rows of an input of `size` pixels that torch's nearest resize to `grid` cells picks."""
    step = torch.tensor(size, dtype=torch.float32) / grid
    return (torch.arange(grid) * step).floor().long().clamp(max=size - 1)


class RepriGuide(nn.Module):
    """The `guide` graph: labels on the grid beside the vectors, and the first prototype."""

    places: Tensor

    def __init__(self, size: int, grid: int) -> None:
        """Prepares the resizing of masks.

        Args:
            size: Side of the network's input.
            grid: Side of the features' grid.
        """
        super().__init__()
        self.register_buffer("places", nearest_places(size, grid))

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels the positions of a shot.

        Args:
            features: float16 [batch, cells, 512].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1.

        Returns:
            `vectors`, which are the features; `labels` float32 [batch, ways, cells]: 1 for the
            way, 0 for everything else that is labelled, `IGNORED` for the rest and throughout for
            a way that the shot does not show; `prototypes` float32 [batch, ways, 512], the mean of
            the way's vectors, and `areas` float32 [batch, ways], how many those are.
        """
        cells = planes.index_select(2, self.places).index_select(3, self.places).flatten(2)
        ours = cells[:, 1:]
        labelled = cells.amax(dim=1, keepdim=True)
        shown = planes[:, 1:].amax(dim=(2, 3)).unsqueeze(2)
        known = labelled * shown
        labels = ours * known + IGNORED * (1 - known)
        areas = ours.sum(dim=2)
        sums = ours @ features.float()
        # A copy, because no tensor may come in and go out under two names.
        return features.clone(), labels, sums / areas.clamp(min=1).unsqueeze(2), areas


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is fitted to; all float32.

    Attributes:
        query: Unit vectors [batch, N, 512].
        inside: 1 for positions that the query's image covers [batch, 1, N].
        support: Unit vectors of all shots [batch, M, 512].
        labels: Of them, [batch, ways, M] of 0 and 1.
        known: 1 for those that have a label [batch, ways, M].
        shots: Number of shots that show the way [batch, ways, 1], 1 at least.
    """

    query: Tensor
    inside: Tensor
    support: Tensor
    labels: Tensor
    known: Tensor
    shots: Tensor


class RepriDecode(nn.Module):
    """The `decode` graph: fits a classifier to a query, for every way by itself."""

    rows: Tensor
    refreshes: Tensor

    def __init__(self, size: int, grid: int, updates: int = UPDATES) -> None:
        """Prepares the steps.

        Args:
            size: Side of the network's input.
            grid: Side of the features' grid.
            updates: How many there are, 1 at least.
        """
        super().__init__()
        self.grid = grid
        self.register_buffer("rows", nearest_places(size, grid).float())
        numbers = torch.arange(1, updates + 1)
        self.register_buffer("refreshes", (numbers == REFRESHED_BEFORE).float())

    def forward(
        self,
        features: Tensor,
        vectors: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        validity: Tensor,
        extent: Tensor,
    ) -> Tensor:
        """Scores every cell.

        Args:
            features: Of the query, float16 [batch, cells, 512].
            vectors: Of the shots, float16 [batch, shots, cells, 512].
            labels: float32 [batch, shots, ways, cells]; see `RepriGuide`.
            prototypes: The first w, float32 [batch, ways, 512].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.
            extent: Rows and columns that the query's image covers, float32 [batch, 2].

        Returns:
            `logits` float32 [batch, ways, 1, h, w]: u after the last update.
        """
        evidence = self.evidence(features, vectors, labels, validity, extent)
        weights, bias, *_ = folded(
            lambda state, refresh: update(evidence, state, refresh),
            first_state(evidence, prototypes),
            self.refreshes,
        )
        margins = scores(evidence.query, weights, bias)
        return margins.reshape(*margins.shape[:2], 1, self.grid, self.grid)

    def evidence(
        self, features: Tensor, vectors: Tensor, labels: Tensor, validity: Tensor, extent: Tensor
    ) -> Evidence:
        """Puts together what is fitted to; the arguments are those of `forward`."""
        covered = (self.rows < extent[:, :1]).float().unsqueeze(2)
        across = (self.rows < extent[:, 1:]).float().unsqueeze(1)
        inside = (covered * across).flatten(1).unsqueeze(1)
        known = (labels > IGNORED / 2).float() * validity[:, :, None, None]
        shots = known.amax(dim=3).sum(dim=1).clamp(min=1).unsqueeze(2)
        together = labels.clamp(min=0).transpose(1, 2).flatten(2)
        return Evidence(
            features.float(),
            inside,
            vectors.float().flatten(1, 2),
            together,
            known.transpose(1, 2).flatten(2),
            shots,
        )


def scores(vectors: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Computes u = tau cos(z, w) - b.

    Args:
        vectors: Unit vectors z, [batch, N, 512].
        weights: The prototypes w, [batch, ways, 512].
        bias: The bias b, [batch, ways, 1] or one number.

    Returns:
        float32 [batch, ways, N].
    """
    directions = weights / (_norms(weights) + _EPSILON)
    return TEMPERATURE * (directions @ vectors.transpose(1, 2)) - bias


def proportion(evidence: Evidence, probabilities: Tensor) -> Tensor:
    """Mean over the positions that the image covers: [batch, ways, 1] of [batch, ways, N]."""
    total = (probabilities * evidence.inside).sum(dim=2, keepdim=True)
    return total / evidence.inside.sum(dim=2, keepdim=True).clamp(min=1)


def first_state(evidence: Evidence, prototypes: Tensor) -> tuple[Tensor, ...]:
    """Makes w [batch, ways, 512], b, the estimated proportion and the weight of its divergence.

    The bias is the mean score over all positions, those beyond the image included.
    """
    bias = scores(evidence.query, prototypes, torch.zeros(())).mean(dim=2, keepdim=True)
    share = proportion(evidence, torch.sigmoid(scores(evidence.query, prototypes, bias)))
    return prototypes, bias, share, 1.0 / evidence.shots


def update(evidence: Evidence, state: tuple[Tensor, ...], refresh: Tensor) -> tuple[Tensor, ...]:
    """One step of gradient descent.

    Args:
        evidence: What is fitted to.
        state: See `first_state`.
        refresh: 1 where the proportion is estimated anew before the step, else 0.

    Returns:
        The next state.
    """
    weights, bias, share, divergence_weight = state
    length = _norms(weights) + _EPSILON
    query = scores(evidence.query, weights, bias)
    support = scores(evidence.support, weights, bias)
    seen = torch.sigmoid(query)
    now = proportion(evidence, seen)
    share = share + refresh * (now - share)
    divergence_weight = divergence_weight + refresh
    divergence = _logit(now) - _logit(share)
    positions = evidence.inside.sum(dim=2, keepdim=True).clamp(min=1)
    labelled = evidence.known.sum(dim=2, keepdim=True).clamp(min=1)
    pull = divergence_weight * divergence - query / evidence.shots
    of_query = evidence.inside * seen * (1 - seen) * pull / positions
    of_support = evidence.known * (torch.sigmoid(support) - evidence.labels) / labelled
    slope = of_query @ evidence.query + of_support @ evidence.support
    # The part along w changes nothing but its length, which a cosine does not see.
    directions = weights / length
    along = (slope * directions).sum(dim=2, keepdim=True)
    moved = weights - LEARNING_RATE * TEMPERATURE / length * (slope - along * directions)
    pushed = of_query.sum(dim=2, keepdim=True) + of_support.sum(dim=2, keepdim=True)
    shifted = bias + LEARNING_RATE * pushed
    return moved, shifted, share, divergence_weight


def _logit(share: Tensor) -> Tensor:
    """log(p / (1 - p)), finite at both ends."""
    return torch.log(share + _EPSILON) - torch.log(1 - share + _EPSILON)
