# SPDX-License-Identifier: Apache-2.0
"""CyCTR as four graphs.

Of a support, nothing depends on the query: `guide` makes its prototype and the cells for the prior,
`merge` draws the tokens of all shots together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import (
    ImagenetInput,
    corner_matrix,
    maps_of,
    masked_means,
    one_by_one,
    tokens_of,
)
from export.methods.cyctr.encoders import Encoders, Places
from export.methods.cyctr.network import CyctrNetwork, grid_side
from export.methods.cyctr.sampling import Sampling, TokenLabels
from export.methods.enrichment import CHANNELS, convolution
from export.methods.pfenet import AREA_EPSILON, FIXED_POINT
from export.methods.prior import mean_prior, stored_positions, unit


def picked_rows(size: int) -> Tensor:
    """Rows of an input that torch's nearest resize to the grid picks, int64 [f]."""
    side = grid_side(size)
    rows = torch.arange(size, dtype=torch.float32)[None, None]
    return nn.functional.interpolate(rows, size=side, mode="nearest")[0, 0].long()


class CyctrFeatures(nn.Module):
    """The `features` graph: a photograph to all that does not depend on an annotation."""

    def __init__(self, network: CyctrNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.body = network.backbone.body
        self.support = network.adjust_feature_supp
        self.query = network.adjust_feature_qry
        merge = convolution(network.qry_merge_feat).weight
        self.query_weight = nn.Parameter(merge[:, :CHANNELS])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes both roles of RGB uint16 = value x 256, [batch, S, S, 3].

        Returns:
            `support`: what is pooled of a support, float32 [batch, 256, f, f]; `query`: the query's
            part of the first merge, float32 [batch, 256, f, f]; `high`: layer4 as units in half
            precision, float16 [batch, 2048, f, f].
        """
        second, third, fourth = self.body(self.normalise(image.float() / FIXED_POINT))
        both = torch.cat([second, third], dim=1)
        query = nn.functional.conv2d(self.query(both), self.query_weight)
        return self.support(both), query, unit(fourth, dim=1).half()


class CyctrGuide(nn.Module):
    """The `guide` graph: what one annotated shot gives by itself."""

    shrink: Tensor
    picked: Tensor

    def __init__(self, size: int) -> None:
        """Fixes the side of the planes."""
        super().__init__()
        self.side = grid_side(size)
        self.register_buffer("shrink", corner_matrix(size, self.side))
        self.register_buffer("picked", picked_rows(size))
        self.places = Places(self.picked.float())
        middle = torch.zeros(self.side, self.side, dtype=torch.bool)
        start = self.side // 2 - 1
        middle[start : start + 2, start : start + 2] = True
        corners = torch.zeros_like(middle)
        corners[:: self.side - 1, :: self.side - 1] = True
        self.register_buffer("middle", middle)
        self.register_buffer("corners", corners)

    def forward(
        self, support: Tensor, high: Tensor, planes: Tensor, extent: Tensor
    ) -> tuple[Tensor, ...]:
        """Distils a shot.

        Args:
            support: float32 [batch, 256, f, f].
            high: float16 [batch, 2048, f, f].
            planes: float32 [batch, 1 + ways, S, S] of 0 and 1.
            extent: Rows and columns that the image covers, float32 [batch, 2].

        Returns:
            `prototypes` float32 [batch, ways, 256]; `positions` float16 [batch, ways, N, 2048], see
            `stored_positions`; `weights` float32 [batch, ways], 1 for a way that the shot shows,
            else 0; `labels` float16 [batch, ways, f * f], 1 for cells of the object, else 0;
            `valid` float16 [batch, f * f], 1 for cells that may be attended to, else 0.
        """
        masks = planes[:, 1:]
        cells = self.shrink @ (masks @ self.shrink.T)
        maps = high.float().unsqueeze(1).expand(-1, masks.shape[1], -1, -1, -1)
        nearest = planes[:, :, self.picked][:, :, :, self.picked]
        return (
            masked_means(support, cells, AREA_EPSILON),
            stored_positions(maps, cells),
            (masks.amax(dim=(2, 3)) > 0).float(),
            self._labels(nearest[:, 1:]).flatten(2).half(),
            self._valid(planes, nearest, extent).flatten(1).half(),
        )

    def _labels(self, masks: Tensor) -> Tensor:
        """Tells object from background; neither is ever empty. float32 [batch, ways, f, f]."""
        inside = masks > 0.5
        inside = inside | (
            ~inside.flatten(2).any(dim=2)[..., None, None] & self.get_buffer("middle")
        )
        full = inside.flatten(2).all(dim=2)[..., None, None]
        return (inside & ~(full & self.get_buffer("corners"))).float()

    def _valid(self, planes: Tensor, nearest: Tensor, extent: Tensor) -> Tensor:
        """Cells that are labelled; of an annotation without background, those of the image."""
        background = planes[:, 0].amax(dim=(1, 2))[:, None, None] > 0
        return torch.where(background, nearest.amax(dim=1), self.places.covered(extent))


class CyctrMerge(nn.Module):
    """The `merge` graph: support tokens, drawn over all shots of a way.

    Their projections to keys and values are left to `decode`: less than 1 % of its work, and four
    times as much to keep.
    """

    def __init__(
        self,
        network: CyctrNetwork,
        size: int,
        shots: int,
        seed: int,
        token_labels: TokenLabels = TokenLabels.BY_NUMBER,
    ) -> None:
        """Fixes the side of the input, the most shots, and how tokens are drawn and labelled."""
        super().__init__()
        self.cells = grid_side(size) ** 2
        self.sampling = Sampling(self.cells, shots, seed, token_labels)
        weight = convolution(network.supp_merge_feat).weight[:, :, 0, 0]
        self.cell_weight = nn.Parameter(weight[:, :CHANNELS])
        self.prototype_weight = nn.Parameter(weight[:, CHANNELS:])

    def forward(
        self,
        support: Tensor,
        prototypes: Tensor,
        weights: Tensor,
        labels: Tensor,
        valid: Tensor,
        validity: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Draws tokens.

        Args:
            support: Of `features`, float32 [batch, shots, 256, f, f].
            prototypes: Of `guide`, float32 [batch, shots, ways, 256].
            weights: Of `guide`, float32 [batch, shots, ways].
            labels: Of `guide`, float16 [batch, shots, ways, f * f].
            valid: Of `guide`, float16 [batch, shots, f * f].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `tokens` float32 [batch, shots, ways, T, 256], and `marks` float32
            [batch, shots, ways, T, 3]: label, whether valid, whether there. Tokens of all shots are
            mixed; that they are counted by shots is for their number.
        """
        batch, shots, ways = weights.shape
        shown = ((weights * validity.unsqueeze(2)) > 0.5).transpose(1, 2).float()
        # Shots that show the way come first, in their order.
        order = torch.sort(torch.arange(shots) - shown * shots, dim=2).indices
        ranked = order.unsqueeze(3).expand(-1, -1, -1, self.cells)
        sorted_labels = labels.float().transpose(1, 2).gather(2, ranked)
        sample = self.sampling(sorted_labels.flatten(0, 1), shown.sum(dim=2).flatten())
        numbers = sample.cells.reshape(batch, ways, -1)
        owner = order.gather(2, numbers // self.cells)
        index = (owner * self.cells + numbers % self.cells).flatten(1)
        wide = index.unsqueeze(2).expand(-1, -1, CHANNELS)
        cells = tokens_of(support).flatten(1, 2)
        drawn = cells.gather(1, wide).reshape(batch, ways, -1, CHANNELS)
        own = prototypes.transpose(1, 2).gather(2, owner.unsqueeze(3).expand(-1, -1, -1, CHANNELS))
        tokens = torch.relu(drawn @ self.cell_weight.T + own @ self.prototype_weight.T)
        usable = valid.float().flatten(1).gather(1, index)
        flags = (sample.labels, usable, sample.present.float())
        marks = torch.stack([flag.reshape(batch, ways, -1) for flag in flags], dim=3)
        return self._by_shot(tokens, shots), self._by_shot(marks, shots)

    def _by_shot(self, values: Tensor, shots: int) -> Tensor:
        """Turns [batch, ways, shots * T, n] into [batch, shots, ways, T, n]."""
        split = values.reshape(*values.shape[:2], shots, self.sampling.tokens, values.shape[3])
        return split.transpose(1, 2)


class CyctrDecode(nn.Module):
    """The `decode` graph: prior, first merge, encoders and classifier, one way after another."""

    def __init__(self, network: CyctrNetwork, size: int) -> None:
        """Fixes the side of the input."""
        super().__init__()
        self.network = network
        self.side = grid_side(size)
        weight = convolution(network.qry_merge_feat).weight[:, CHANNELS:, 0, 0]
        self.prototype_weight = nn.Parameter(weight[:, :CHANNELS])
        self.prior_weight = nn.Parameter(weight[:, CHANNELS])
        self.places = Places(picked_rows(size).float())
        self.encoders = Encoders(network.transformer, self.side)

    def forward(
        self,
        query: Tensor,
        high: Tensor,
        prototypes: Tensor,
        positions: Tensor,
        weights: Tensor,
        tokens: Tensor,
        marks: Tensor,
        validity: Tensor,
        extent: Tensor,
    ) -> Tensor:
        """Segments.

        Args:
            query: Of `features`, float32 [batch, 256, f, f].
            high: Of `features`, float16 [batch, 2048, f, f].
            prototypes: Of the task, float32 [batch, ways, 256].
            positions: Of its shots, float16 [batch, shots, ways, N, 2048].
            weights: float32 [batch, shots, ways], 1 where a shot shows the way.
            tokens: Of `merge`, float32 [batch, shots, ways, T, 256].
            marks: Of `merge`, float32 [batch, shots, ways, T, 3].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.
            extent: Rows and columns that the query covers, float32 [batch, 2].

        Returns:
            `logits` float32 [batch, ways, 1, f, f]: foreground minus background.
        """
        batch, ways = prototypes.shape[:2]
        prior = mean_prior(high.float(), positions, weights, validity).flatten(2).unsqueeze(3)
        given = (prototypes @ self.prototype_weight.T).unsqueeze(2) + prior * self.prior_weight
        merged = torch.relu(tokens_of(query).unsqueeze(1) + given)
        covered = self.places.covered(extent)
        placed = self.places(covered)
        owners = torch.arange(batch)[:, None].expand(batch, ways).reshape(-1, 1)

        def encoded(owner: Tensor, cells: Tensor, seen: Tensor, marked: Tensor) -> Tensor:
            own = [part.index_select(0, owner)[0] for part in (placed, covered.flatten(1))]
            result: Tensor = self.encoders(cells, *own, seen, marked)
            return result

        found = one_by_one(
            encoded,
            owners,
            merged.flatten(0, 1),
            tokens.transpose(1, 2).flatten(2, 3).flatten(0, 1),
            marks.transpose(1, 2).flatten(2, 3).flatten(0, 1),
        )
        margins = self.network.classified(maps_of(found, (self.side, self.side)))
        return margins.reshape(batch, ways, 1, self.side, self.side)
