# SPDX-License-Identifier: Apache-2.0
"""SCL on PFENet: each shot enriches the query by itself, with the two vectors of its own support.

Priors are not averaged over shots here; margins are, weighed by how well a shot segments all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import corner_matrix, masked_means
from export.methods.enrichment import CHANNELS, SCALES, Enrichment, convolution, merging
from export.methods.pfenet import (
    AREA_EPSILON,
    PfenetGuide,
    PfenetNetwork,
    split_features,
)
from export.methods.prior import prior_maps
from export.methods.scl import self_guided, shot_weights
from export.methods.trunks import Backbone

WHOLE = 1.0 - 1e-5
"""A shrunk mask above this is 1; the code compares fractions of borders with 1, and drops them."""

OFFICIAL_SHOTS = 5.0
"""What the official code divides the sum over shots by, however many there are."""


class SclPfenetNetwork(PfenetNetwork):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self, backbone: Backbone) -> None:
        """Builds the network with random weights."""
        super().__init__(backbone)
        self.init_merge = nn.ModuleList(merging(3 * CHANNELS + 1) for _ in range(SCALES))
        self.supp_init_merge = nn.ModuleList(merging(3 * CHANNELS) for _ in range(SCALES))


class SupportPass(nn.Module):
    """Segments supports by two vectors, without a prior."""

    def __init__(self, network: SclPfenetNetwork, side: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.enrichment = Enrichment(network, network.grid(side), bins)
        kernels = [convolution(merge).weight for merge in network.supp_init_merge]
        self.image_weights = nn.ParameterList(kernel[:, :CHANNELS] for kernel in kernels)
        self.vector_weights = nn.ParameterList(kernel[:, CHANNELS:, 0, 0] for kernel in kernels)

    def levels(
        self, support: Tensor, vectors: Tensor, finer: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Results of each scale, float32 [batch * K, 256, b, b]; see `Enrichment.levels`.

        Args:
            support: Features, float32 [batch, 256, f, f].
            vectors: float32 [batch, K, 512].
            finer: Results of the pass by the support's own mean, for each of batch * K.
        """
        entries = []
        for scale, weight in enumerate(self.image_weights):
            part = nn.functional.conv2d(self.enrichment.pooled(support, scale), weight)
            shown = vectors @ self.vector_weights[scale].T
            entries.append((part[:, None] + shown[..., None, None]).flatten(0, 1))
        return self.enrichment.levels(entries, finer)


class SclPfenetGuide(PfenetGuide):
    """The `guide` graph: the two vectors of each way, and high-level features of the foreground."""

    def __init__(self, network: SclPfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the planes and the scales, see `enrichment.scale_sides`."""
        super().__init__(network, size)
        self.support_pass = SupportPass(network, size, bins)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distils a shot.

        Args:
            features: float32 [batch, C + 512, f, f].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1; background is not used.

        Returns:
            `vectors` float32 [batch, ways, 512]; `positions` and `weights` as PFENet has them.
        """
        prototypes, positions, weights = super().forward(features, planes)
        _, support, _ = split_features(features)
        found = self.support_margins(support, prototypes) > 0
        whole = self.shrink(planes[:, 1:]) > WHOLE
        return self_guided(support, whole & found, whole & ~found), positions, weights

    def support_margins(self, support: Tensor, prototypes: Tensor) -> Tensor:
        """Segments supports by their own means [batch, ways, 256]: [batch, ways, f, f]."""
        levels = self.support_pass.levels(support, torch.cat([prototypes, prototypes], dim=2))
        margins = self.support_pass.enrichment.margins(levels)
        return margins.reshape(*prototypes.shape[:2], *margins.shape[1:])


class SclPfenetMerge(nn.Module):
    """The `merge` graph: how well a support is segmented under the guidance of each shot."""

    rows: Tensor
    raised: Tensor

    def __init__(self, network: SclPfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the planes and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.support_pass = SupportPass(network, size, bins)
        self.register_buffer("rows", corner_matrix(size, network.grid(size)))
        self.register_buffer("raised", corner_matrix(network.grid(size), size))

    def forward(
        self, vectors: Tensor, features: Tensor, planes: Tensor, validity: Tensor
    ) -> Tensor:
        """Judges one shot.

        At coarser scales the official code takes the finer ones of the pass by the support's own
        mean, not those of the pass that it makes.

        Args:
            vectors: Of the guiding shots, float32 [batch, shots, ways, 512].
            features: Of the judged one, float32 [batch, C + 512, f, f].
            planes: Of the judged one, float32 [batch, 1 + ways, S, S].
            validity: float32 [batch, shots], 1 for real shots.

        Returns:
            `agreement` float32 [batch, shots, ways]: mean of the overlaps of background and
            foreground at the network's size, where something is known.
        """
        _, support, _ = split_features(features)
        masks = planes[:, 1:]
        own = masked_means(support, self.rows @ (masks @ self.rows.T), AREA_EPSILON)
        levels = self.support_pass.levels(support, torch.cat([own, own], dim=2))
        shots, ways = vectors.shape[1], vectors.shape[2]
        finer = [
            level.reshape(-1, 1, ways, *level.shape[1:])
            .expand(-1, shots, -1, -1, -1, -1)
            .flatten(0, 2)
            for level in levels
        ]
        judged = self.support_pass.levels(support, vectors.flatten(1, 2), finer)
        margins = self.raised @ self.support_pass.enrichment.margins(judged) @ self.raised.T
        found = (margins > 0).float().reshape(-1, shots, ways, *planes.shape[2:])
        known = planes.amax(dim=1)[:, None, None]
        overlaps = [
            (one * other * known).sum(dim=(3, 4))
            / (torch.maximum(one, other) * known).sum(dim=(3, 4)).clamp(min=1.0)
            for one, other in ((found, masks[:, None]), (1.0 - found, 1.0 - masks[:, None]))
        ]
        return 0.5 * (overlaps[0] + overlaps[1]) * validity.unsqueeze(2)


class SclPfenetDecode(nn.Module):
    """The `decode` graph: a prior and an enrichment for each shot, and their weighed sum."""

    def __init__(self, network: SclPfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.enrichment = Enrichment(network, network.grid(size), bins)
        kernels = [convolution(merge).weight for merge in network.init_merge]
        self.vector_weights = nn.ParameterList(
            kernel[:, CHANNELS : 3 * CHANNELS, 0, 0] for kernel in kernels
        )
        self.prior_weights = nn.ParameterList(kernel[:, 3 * CHANNELS :] for kernel in kernels)

    def shot_margins(
        self, high: Tensor, query: Tensor, vectors: Tensor, positions: Tensor
    ) -> Tensor:
        """Margins under each shot, float32 [batch, shots, ways, f, f]; see `forward`."""
        prior = prior_maps(positions, high).flatten(1, 2)
        sides = self.enrichment.sides
        entries = []
        for scale, part in enumerate(torch.split(query, [side**2 for side in sides], 2)):
            shown = vectors.flatten(1, 2) @ self.vector_weights[scale].T
            seen = self.enrichment.shrunk(prior, scale).flatten(0, 1).unsqueeze(1)
            guided = part.reshape(-1, 1, CHANNELS, sides[scale], sides[scale])
            entry = (guided + shown[..., None, None]).flatten(0, 1)
            entries.append(entry + nn.functional.conv2d(seen, self.prior_weights[scale]))
        margins = self.enrichment.margins(self.enrichment.levels(entries))
        return margins.reshape(*vectors.shape[:3], *high.shape[2:])

    def forward(
        self,
        high: Tensor,
        query: Tensor,
        vectors: Tensor,
        positions: Tensor,
        weights: Tensor,
        agreement: Tensor,
        validity: Tensor,
    ) -> Tensor:
        """Segments.

        Args:
            high: Of `query_features`, float32 [batch, C4, f, f].
            query: Of `query_features`, float32 [batch, 256, cells of all scales].
            vectors: Of the shots, float32 [batch, shots, ways, 512].
            positions: float16 [batch, shots, ways, N, C4].
            weights: float32 [batch, shots, ways], 1 where a shot shows the way.
            agreement: float32 [batch, judged shots, shots, ways].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, f, f]: foreground minus background.
        """
        counts = shot_weights(agreement, weights, validity, OFFICIAL_SHOTS)
        margins = self.shot_margins(high, query, vectors, positions)
        return (margins * counts[..., None, None]).sum(dim=1).unsqueeze(2)
