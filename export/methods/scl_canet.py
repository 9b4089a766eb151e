# SPDX-License-Identifier: Apache-2.0
"""SCL on CANet: a query is compared with two vectors of each support, in passes and at scales.

Images keep their size. A pass takes the mask before it, the first one takes zeros. The official
evaluation adds up three scales of the query and makes five passes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.methods.blocks import masked_means
from export.methods.refinement import (
    CHANNELS,
    ComparedFeatures,
    activated,
    comparing_convolution,
    convolution_at,
    pyramid,
    residual_branch,
)
from export.methods.scaled import (
    Comparison,
    Passes,
    PhiNetwork,
    raise_half_pixel,
    shrunk,
    summed,
)
from export.methods.scl import AREA_EPSILON, self_guided, shot_weights

SNAP = 1e-5
"""A shrunk mask this close to 1 is 1: the weights of a resize do not always add up to it."""


class FpmDecoder(nn.Module):
    """The layers after the features, under their official keys."""

    def __init__(self) -> None:
        """Builds the layers with random weights."""
        super().__init__()
        self.layer55 = activated(comparing_convolution(vectors=2))
        self.residule1 = residual_branch(CHANNELS + 2)
        self.supp_residule1 = residual_branch(CHANNELS)
        self.residule2 = residual_branch(CHANNELS)
        self.residule3 = residual_branch(CHANNELS)
        for number, convolution in enumerate(pyramid()):
            self.add_module(f"layer6_{number}", activated(convolution))
        self.layer7 = activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1))
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)


class SclCanetNetwork(PhiNetwork):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.FPM_Decoder = FpmDecoder()

    @property
    def comparing(self) -> nn.Conv2d:
        """The convolution that compares."""
        return convolution_at(self.FPM_Decoder.layer55)


class SclCanetGuide(nn.Module):
    """The `guide` graph: the two vectors of each way, by segmenting the support itself."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.compare = ComparedFeatures(network.comparing)
        self.comparison = _support_comparison(network)

    def forward(self, features: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Splits each object into what its own mean finds of it, and the rest.

        Args:
            features: float32 [batch, 256, h, w].
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; background is not used.

        Returns:
            `vectors` float32 [batch, ways, 512] and `shown` float32 [batch, ways]: 1 for a way that
            the shot shows, else 0.
        """
        masks = planes[:, 1:]
        cells = shrunk(masks, (features.shape[2], features.shape[3]))
        mean = masked_means(features, cells, AREA_EPSILON)
        found = self.support_margins(features, mean) > 0
        whole = cells > 1.0 - SNAP
        # Truncating M + m, as the code does, counts a cell on the border as auxiliary if found.
        auxiliary = (whole & ~found) | ((cells > 0) & ~whole & found)
        vectors = self_guided(features, whole & found, auxiliary)
        return vectors, (masks.amax(dim=(2, 3)) > 0).float()

    def support_margins(self, features: Tensor, mean: Tensor) -> Tensor:
        """Segments supports by their own mean vectors [batch, ways, 256]: [batch, ways, h, w]."""
        margins: Tensor = self.comparison(self.compare(features), torch.cat([mean, mean], dim=2))
        return margins


class SclCanetMerge(nn.Module):
    """The `merge` graph: how well a support is segmented under the guidance of each shot."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.compare = ComparedFeatures(network.comparing)
        self.comparison = _support_comparison(network)

    def forward(
        self, vectors: Tensor, features: Tensor, planes: Tensor, validity: Tensor
    ) -> Tensor:
        """Judges one shot, by the path of supports.

        Args:
            vectors: Of the guiding shots, float32 [batch, shots, ways, 512].
            features: Of the judged one, float32 [batch, 256, h, w].
            planes: Of the judged one, float32 [batch, 1 + ways, H, W].
            validity: float32 [batch, shots], 1 for real shots.

        Returns:
            `agreement` float32 [batch, shots, ways]: intersection over union of the foreground at
            the image's size; 0 where both are empty.
        """
        margins = self.comparison(self.compare(features), vectors.flatten(1, 2))
        masks = planes[:, None, 1:]
        raised = raise_half_pixel(margins, (planes.shape[2], planes.shape[3]))
        found = (raised > 0).float().reshape(*vectors.shape[:3], *planes.shape[2:])
        both = (found * masks).sum(dim=(3, 4))
        either = torch.maximum(found, masks).sum(dim=(3, 4))
        return both / either.clamp(min=1.0) * validity.unsqueeze(2)


class SclCanetDecode(nn.Module):
    """The `decode` graph of one pass at one scale."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.passes = _passes(network, 1)

    def forward(
        self, compared: Tensor, vectors: Tensor, shown: Tensor, agreement: Tensor, validity: Tensor
    ) -> Tensor:
        """Segments.

        Args:
            compared: Of the query, float32 [batch, 256, h, w].
            vectors: float32 [batch, shots, ways, 512].
            shown: float32 [batch, shots, ways], 1 where a shot shows a way.
            agreement: float32 [batch, judged shots, shots, ways].
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, 1, h, w]: foreground minus background.
        """
        weights = shot_weights(agreement, shown, validity)
        margins: Tensor
        (margins,) = self.passes([compared], vectors, weights, None)
        return margins.unsqueeze(2)


class SclCanetRefiningDecode(nn.Module):
    """The `decode` graph of several passes at one scale."""

    def __init__(self, network: SclCanetNetwork, passes: int) -> None:
        super().__init__()
        self.passes = _passes(network, passes)

    def forward(
        self,
        compared: Tensor,
        vectors: Tensor,
        shown: Tensor,
        agreement: Tensor,
        validity: Tensor,
        extent: Tensor,
    ) -> Tensor:
        """See `SclCanetDecode.forward`; `extent` float32 [batch, 2] is the image's size."""
        weights = shot_weights(agreement, shown, validity)
        margins: Tensor
        # A batch holds images of one size.
        (margins,) = self.passes([compared], vectors, weights, extent[0])
        return margins.unsqueeze(2)


class SclCanetScaledDecode(nn.Module):
    """The `decode` graph of several scales."""

    def __init__(self, network: SclCanetNetwork, passes: int) -> None:
        super().__init__()
        self.passes = _passes(network, passes)

    def forward(
        self,
        smaller: Tensor,
        compared: Tensor,
        larger: Tensor,
        rows: Tensor,
        columns: Tensor,
        vectors: Tensor,
        shown: Tensor,
        agreement: Tensor,
        validity: Tensor,
        extent: Tensor,
    ) -> Tensor:
        """See `SclCanetDecode.forward` and `ScaledQuery.forward`.

        Returns:
            `logits` float32 [batch, ways, 1, H, W], summed over scales at the image's size.
        """
        weights = shot_weights(agreement, shown, validity)
        scales = (smaller, compared, larger)
        margins = self.passes(scales, vectors, weights, extent[0])
        return summed(margins, (rows.shape[1], columns.shape[1])).unsqueeze(2)


def _support_comparison(network: SclCanetNetwork) -> Comparison:
    """The path of supports, which sees no mask."""
    return Comparison(network.FPM_Decoder, network.FPM_Decoder.supp_residule1)


def _passes(network: SclCanetNetwork, count: int) -> Passes:
    """The path of queries."""
    return Passes(network.FPM_Decoder, network.FPM_Decoder.residule1, count)
