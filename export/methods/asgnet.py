# SPDX-License-Identifier: Apache-2.0
"""ASGNet (Li et al., CVPR 2021): superpixel-guided clusters, and prototypes given to each cell.

A large object is described by up to five prototypes, a small one by its mean. Each cell of a query
is guided by the prototype that it resembles most.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor, nn

from export.methods.blocks import ImagenetInput, corner_matrix, masked_means
from export.methods.enrichment import (
    CHANNELS,
    SCALES,
    Enrichment,
    EnrichmentNetwork,
    convolution,
    merging,
)
from export.methods.pfenet import AREA_EPSILON, FIXED_POINT
from export.methods.prior import unit
from export.methods.seeding import MOST, Seeding
from export.methods.trunks import Backbone

ROUNDS = 5
"""Of clustering (`eval_iter`)."""

PLACE_WEIGHT = 100.0
"""What squared distances between cells are divided by, r squared in the paper's equation 1."""

_WHOLE = 1.0 - 1e-5
"""At and above it a resized mask covers a cell; corners on corners resizes are not exact."""

_NOWHERE = -2.0
"""Below every cosine."""


class AsgnetNetwork(EnrichmentNetwork):
    """The network with the keys of the official checkpoints (without their leading `module.`).

    Only the variant with the pyramid was published. layer4 is in the checkpoints and not used.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Builds the network with random weights."""
        super().__init__(backbone)
        reduction = nn.Conv2d(self.channels.middle, CHANNELS, 1, bias=False)
        self.down_conv = nn.Sequential(reduction, nn.Dropout2d(0.5))
        self.corr_conv = nn.ModuleList(merging(2 * CHANNELS + 1) for _ in range(SCALES))


class Association(StrEnum):
    """How a point's part in a cluster falls off with its distance from the centre."""

    #: With the exponential of the distance, as in the code.
    DISTANCE = "distance"
    #: With that of its square, as the paper's equation 2 may be read.
    SQUARE = "square"


class AsgnetFeatures(nn.Module):
    """The `features` graph: a photograph to features that serve both roles."""

    def __init__(self, network: AsgnetNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Turns RGB uint16 = value x 256, [batch, S, S, 3], into float32 [batch, 256, f, f]."""
        finer, coarser = self.network.middle(self.normalise(image.float() / FIXED_POINT))
        features: Tensor = self.network.down_conv(torch.cat([coarser, finer], dim=1))
        return features


class AsgnetGuide(nn.Module):
    """The `guide` graph: the prototypes of each way in one shot (paper, equations 1 to 3, 7)."""

    shrink: Tensor
    places: Tensor

    def __init__(
        self,
        network: AsgnetNetwork,
        size: int,
        association: Association = Association.DISTANCE,
    ) -> None:
        """Fixes the side of the planes, and how points belong to clusters."""
        super().__init__()
        side = network.grid(size)
        self.association = association
        self.seeding = Seeding(size, side)
        self.register_buffer("shrink", corner_matrix(size, side))
        axis = torch.arange(side, dtype=torch.float32)
        places = torch.stack([axis.repeat_interleave(side), axis.repeat(side)], dim=1)
        self.register_buffer("places", places)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters the cells under each mask.

        Args:
            features: float32 [batch, 256, f, f].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1; background is not used.

        Returns:
            `prototypes` float32 [batch, ways, 5, 256], and `real` float32 [batch, ways, 5]: 1 for
            prototypes that there are; none for a way that the shot does not show.
        """
        masks = planes[:, 1:]
        cells = self.shrink @ (masks @ self.shrink.T)
        seeds = self.seeding(masks.flatten(0, 1))
        index = seeds.cells.reshape(*masks.shape[:2], MOST)
        count = seeds.counted.reshape(*masks.shape[:2], 1)
        covered = (cells >= _WHOLE).flatten(2)
        clusters = self._clustered(features.flatten(2).transpose(1, 2), covered, index)
        mean = masked_means(features, cells, AREA_EPSILON).unsqueeze(2)
        alone = (count < 2) | ~covered.any(dim=2, keepdim=True)
        single = torch.cat([mean, torch.zeros_like(clusters[:, :, 1:])], dim=2)
        prototypes = torch.where(alone.unsqueeze(3), single, clusters)
        shown = masks.amax(dim=(2, 3)) > 0
        kept = torch.where(alone, torch.ones_like(count), count)
        real = (torch.arange(MOST) < kept) & shown.unsqueeze(2)
        return prototypes * real.unsqueeze(3), real.float()

    def _clustered(self, vectors: Tensor, covered: Tensor, index: Tensor) -> Tensor:
        """Moves centres of clusters through features and places.

        Args:
            vectors: float32 [batch, P, 256].
            covered: Cells under each mask, bool [batch, ways, P].
            index: Cells that clusters start from, int64 [batch, ways, 5].

        Returns:
            float32 [batch, ways, 5, 256].
        """
        ways = index.shape[1]
        rows = index.flatten(1).unsqueeze(2)
        centres = vectors.gather(1, rows.expand(-1, -1, vectors.shape[2]))
        centres = centres.reshape(-1, ways, MOST, CHANNELS)
        places = self.places[index]
        for _ in range(ROUNDS):
            far = (centres.unsqueeze(3) - vectors[:, None, None]).square().sum(dim=4)
            apart = (places.unsqueeze(3) - self.places).square().sum(dim=4)
            distance = far + apart / PLACE_WEIGHT
            if self.association is Association.DISTANCE:
                distance = distance.sqrt()
            # Over the points of a centre, which makes the nearest one's distance fall out.
            likely = (-distance).masked_fill(~covered.unsqueeze(2), -torch.inf)
            nearest = likely.amax(dim=3, keepdim=True).clamp(min=-1e30)
            shares = torch.exp(likely - nearest)
            shares = shares / shares.sum(dim=3, keepdim=True).clamp(min=1e-30)
            centres, places = shares @ vectors[:, None], shares @ self.places
        return centres


class AsgnetQuery(nn.Module):
    """The `query_features` graph: units, and the query's part of the first merge."""

    def __init__(self, network: AsgnetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.enrichment = Enrichment(network, network.grid(size), bins)
        self.weights = nn.ParameterList(
            convolution(merge).weight[:, :CHANNELS] for merge in network.corr_conv
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what no task touches.

        Args:
            features: float32 [batch, 256, f, f].

        Returns:
            `units`: float32 [batch, 256, f, f]; `query`: the query's part of the first merge at
            each scale, float32 [batch, 256, cells of all scales].
        """
        parts = [
            nn.functional.conv2d(self.enrichment.pooled(features, scale), weight).flatten(2)
            for scale, weight in enumerate(self.weights)
        ]
        return unit(features, dim=1), torch.cat(parts, dim=2)


class AsgnetDecode(nn.Module):
    """The `decode` graph: allocation of prototypes (paper, equations 4 to 6), and enrichment."""

    def __init__(self, network: AsgnetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.enrichment = Enrichment(network, network.grid(size), bins)
        kernels = [convolution(merge).weight for merge in network.corr_conv]
        self.guide_weights = nn.ParameterList(
            kernel[:, CHANNELS : 2 * CHANNELS] for kernel in kernels
        )
        self.alike_weights = nn.ParameterList(kernel[:, 2 * CHANNELS :] for kernel in kernels)

    def forward(
        self, units: Tensor, query: Tensor, prototypes: Tensor, real: Tensor, validity: Tensor
    ) -> Tensor:
        """Segments.

        Args:
            units: Of `query_features`, float32 [batch, 256, f, f].
            query: Of `query_features`, float32 [batch, 256, cells of all scales].
            prototypes: Of the task's shots, float32 [batch, shots, ways, 5, 256].
            real: float32 [batch, shots, ways, 5], 1 for prototypes that there are.
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, f, f]: foreground minus background.
        """
        ways = prototypes.shape[2]
        there = (real * validity[:, :, None, None]).transpose(1, 2).flatten(2)
        guided, alike = self._allocated(units, prototypes.transpose(1, 2).flatten(2, 3), there)
        sides = self.enrichment.sides
        entries = []
        for scale, part in enumerate(torch.split(query, [side**2 for side in sides], 2)):
            own = part.reshape(-1, 1, CHANNELS, sides[scale], sides[scale])
            own = own.expand(-1, ways, -1, -1, -1).flatten(0, 1)
            given = nn.functional.conv2d(
                self.enrichment.pooled(guided, scale), self.guide_weights[scale]
            )
            near = nn.functional.conv2d(
                self.enrichment.shrunk(alike, scale), self.alike_weights[scale]
            )
            entries.append(own + given + near)
        margins = self.enrichment.margins(self.enrichment.levels(entries))
        return margins.reshape(*there.shape[:2], 1, *units.shape[2:])

    def _allocated(self, units: Tensor, prototypes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Gives each cell its nearest prototype.

        Args:
            units: float32 [batch, 256, f, f].
            prototypes: float32 [batch, ways, N, 256].
            there: float32 [batch, ways, N], 1 for those that there are.

        Returns:
            The prototypes, float32 [batch * ways, 256, f, f], and the sums of all cosines, float32
            [batch * ways, 1, f, f].
        """
        cosines = unit(prototypes, dim=3) @ units.flatten(2).unsqueeze(1)
        marked = there.unsqueeze(3)
        nearest = torch.where(marked > 0, cosines, _NOWHERE).argmax(dim=2)
        chosen = prototypes.gather(2, nearest.unsqueeze(3).expand(-1, -1, -1, CHANNELS))
        side = units.shape[2]
        guided = chosen.transpose(2, 3).reshape(-1, CHANNELS, side, side)
        return guided, (cosines * marked).sum(dim=2).reshape(-1, 1, side, side)
