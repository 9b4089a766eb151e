# SPDX-License-Identifier: Apache-2.0
"""PFENet (Tian et al., TPAMI 2020): a prior from high-level features, and feature enrichment.

Of an image, everything up to layer3 serves both roles. layer4 runs on the whole of a query, and for
each annotation once more on the support's masked layer3; both times it is the most costly stage.
The paper masks no more than what layer4 returns: a support's layer4 then is the image's, as a
query's is.
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
from export.methods.prior import mean_prior, stored_positions, unit
from export.methods.trunks import Backbone

AREA_EPSILON = 5e-4
"""Added to the number of cells under a mask."""

FIXED_POINT = 256.0
"""What stands for 1 in an image tensor of 8.8 fixed point."""


class Masking(StrEnum):
    """What of a support is masked for the prior."""

    #: What goes into layer4 and what comes out, as in the code.
    BOTH = "both"
    #: What comes out of layer4, as in the paper.
    OUTPUT = "output"


class PfenetNetwork(EnrichmentNetwork):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self, backbone: Backbone) -> None:
        """Builds the network with random weights."""
        super().__init__(backbone)
        self.down_query = merging(self.channels.middle)
        self.down_supp = merging(self.channels.middle)
        self.init_merge = nn.ModuleList(merging(2 * CHANNELS + 1) for _ in range(SCALES))


class PfenetFeatures(nn.Module):
    """The `features` graph: a photograph to layer3, and to its reductions for both roles."""

    def __init__(self, network: PfenetNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network

    def normalised(self, image: Tensor) -> Tensor:
        """Turns RGB, uint16 = value x 256, [batch, S, S, 3] into float32 [batch, 3, S, S]."""
        pixels: Tensor = self.normalise(image.float() / FIXED_POINT)
        return pixels

    def forward(self, image: Tensor) -> Tensor:
        """Computes what does not depend on the role of an image.

        Args:
            image: RGB, uint16 = value x 256, [batch, S, S, 3].

        Returns:
            float32 [batch, C + 512, f, f]: layer3 (C channels), then what is pooled of a support
            (256) and what is enriched of a query (256).
        """
        finer, coarser = self.network.middle(self.normalised(image))
        both = torch.cat([coarser, finer], dim=1)
        return torch.cat([coarser, self.network.down_supp(both), self.network.down_query(both)], 1)


def split_features(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of `features`: layer3, of a support, of a query."""
    layer3 = features.shape[1] - 2 * CHANNELS
    return (
        features[:, :layer3],
        features[:, layer3 : layer3 + CHANNELS],
        features[:, layer3 + CHANNELS :],
    )


class _Guide(nn.Module):
    """What the `guide` graphs have in common."""

    rows: Tensor
    columns: Tensor

    def __init__(self, network: PfenetNetwork, size: int) -> None:
        """Fixes the side of the planes."""
        super().__init__()
        shrink = corner_matrix(size, network.grid(size))
        self.register_buffer("rows", shrink)
        self.register_buffer("columns", shrink.T.contiguous())

    def shrink(self, masks: Tensor) -> Tensor:
        """Resizes masks [batch, K, S, S] corners on corners, to [batch, K, f, f]."""
        return self.rows @ (masks @ self.columns)


class PfenetGuide(_Guide):
    """The `guide` graph: a prototype, and the high-level features of the foreground."""

    def __init__(self, network: PfenetNetwork, size: int) -> None:
        """Fixes the side of the planes."""
        super().__init__(network, size)
        self.layer4 = network.layer4

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distils a shot.

        Args:
            features: float32 [batch, C + 512, f, f].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1; background is not used.

        Returns:
            `prototypes` float32 [batch, ways, 256]; `positions` float16 [batch, ways, N, C4], see
            `stored_positions`; `weights` float32 [batch, ways]: 1 for a way that the shot shows,
            else 0.
        """
        layer3, support, _ = split_features(features)
        masks = planes[:, 1:]
        cells = self.shrink(masks)
        masked = layer3[:, None] * cells[:, :, None]
        high = self.layer4(masked.flatten(0, 1))
        return _distilled(support, high.reshape(*masked.shape[:2], *high.shape[1:]), masks, cells)


class PfenetWholeGuide(_Guide):
    """The `guide` graph where layer4 sees supports whole: nothing of the trunk is run again."""

    def forward(
        self, support: Tensor, high: Tensor, planes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distils a shot.

        Args:
            support: Of `PfenetWholeFeatures`, float32 [batch, 256, f, f].
            high: Of it, float16 [batch, C4, f, f].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1; background is not used.

        Returns:
            See `PfenetGuide.forward`.
        """
        masks = planes[:, 1:]
        maps = high.float().unsqueeze(1).expand(-1, masks.shape[1], -1, -1, -1)
        return _distilled(support, maps, masks, self.shrink(masks))


def _distilled(
    support: Tensor, high: Tensor, masks: Tensor, cells: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `PfenetGuide.forward`; `high` is float32 [batch, ways, C4, f, f]."""
    return (
        masked_means(support, cells, AREA_EPSILON),
        stored_positions(high, cells),
        (masks.amax(dim=(2, 3)) > 0).float(),
    )


class PfenetQuery(nn.Module):
    """The `query_features` graph: layer4, and the query's part of the first merge."""

    def __init__(self, network: PfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.layer4 = network.layer4
        self.enrichment = Enrichment(network, network.grid(size), bins)
        self.weights = nn.ParameterList(
            convolution(merge).weight[:, :CHANNELS] for merge in network.init_merge
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what no task touches.

        Args:
            features: float32 [batch, C + 512, f, f].

        Returns:
            `high`: layer4 as units, float32 [batch, C4, f, f]; `query`: the query's part of the
            first merge at each scale, float32 [batch, 256, cells of all scales].
        """
        layer3, _, query = split_features(features)
        parts = [
            nn.functional.conv2d(self.enrichment.pooled(query, scale), weight).flatten(2)
            for scale, weight in enumerate(self.weights)
        ]
        return unit(self.layer4(layer3), dim=1), torch.cat(parts, dim=2)


class PfenetWholeFeatures(nn.Module):
    """The `features` graph where layer4 sees supports whole: both roles in one.

    Supports need not the query's part of the first merge; it is less than 1 % of the work, and
    saves a graph of its own.
    """

    def __init__(self, network: PfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.features = PfenetFeatures(network)
        self.query = PfenetQuery(network, size, bins)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes all that does not depend on an annotation.

        Args:
            image: RGB, uint16 = value x 256, [batch, S, S, 3].

        Returns:
            `support`: what is pooled of a support, float32 [batch, 256, f, f]; `high`: layer4 as
            units in half precision, float16 [batch, C4, f, f]; `query`: see `PfenetQuery.forward`.
        """
        features = self.features(image)
        _, support, _ = split_features(features)
        high, query = self.query(features)
        return support.clone(), high.half(), query


class PfenetDecode(nn.Module):
    """The `decode` graph: priors, and enrichment of the query by them and by the prototype."""

    def __init__(self, network: PfenetNetwork, size: int, bins: Sequence[float]) -> None:
        """Fixes the side of the input and the scales, see `enrichment.scale_sides`."""
        super().__init__()
        self.enrichment = Enrichment(network, network.grid(size), bins)
        kernels = [convolution(merge).weight for merge in network.init_merge]
        self.prototype_weights = nn.ParameterList(
            kernel[:, CHANNELS : 2 * CHANNELS, 0, 0] for kernel in kernels
        )
        self.prior_weights = nn.ParameterList(kernel[:, 2 * CHANNELS :] for kernel in kernels)

    def forward(
        self,
        high: Tensor,
        query: Tensor,
        prototypes: Tensor,
        positions: Tensor,
        weights: Tensor,
        validity: Tensor,
    ) -> Tensor:
        """Segments.

        Args:
            high: Units of the query, float32 or float16 [batch, C4, f, f].
            query: Of `query_features`, float32 [batch, 256, cells of all scales].
            prototypes: Of the task, float32 [batch, ways, 256].
            positions: Of its shots, float16 [batch, shots, ways, N, C4].
            weights: float32 [batch, shots, ways], 1 where a shot shows the way.
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, f, f]: foreground minus background.
        """
        prior = mean_prior(high.float(), positions, weights, validity)
        sides = self.enrichment.sides
        entries = []
        for scale, part in enumerate(torch.split(query, [side**2 for side in sides], 2)):
            shown = prototypes @ self.prototype_weights[scale].T
            seen = self.enrichment.shrunk(prior, scale).flatten(0, 1).unsqueeze(1)
            guided = part.reshape(-1, 1, CHANNELS, sides[scale], sides[scale])
            entry = (guided + shown[..., None, None]).flatten(0, 1)
            entries.append(entry + nn.functional.conv2d(seen, self.prior_weights[scale]))
        margins = self.enrichment.margins(self.enrichment.levels(entries))
        return margins.reshape(*prototypes.shape[:2], 1, *high.shape[2:])
