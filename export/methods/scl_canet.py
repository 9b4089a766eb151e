# SPDX-License-Identifier: Apache-2.0
"""SCL on CANet: a query is compared with two vectors of each support, in passes and at scales.

Images keep their size. A pass takes the mask before it, the first one takes zeros. The official
evaluation adds up three scales of the query and makes five passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.methods.blocks import CaffeResnet50, ImagenetInput, half_pixel_matrix, masked_means
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
from export.methods.scl import AREA_EPSILON, self_guided, shot_weights

SNAP = 1e-5
"""A shrunk mask this close to 1 is 1: the weights of a resize do not always add up to it."""

SCALES = ((7, 10), (1, 1), (13, 10))
"""Scales of the query in the official evaluation, as fractions."""


class FpmDecoder(nn.Module):
    """The layers after the features, under their official keys."""

    def __init__(self) -> None:
        """Builds the layers with random weights."""
        super().__init__()
        self.layer55 = _activated(comparing_convolution(vectors=2))
        self.residule1 = residual_branch(CHANNELS + 2)
        self.supp_residule1 = residual_branch(CHANNELS)
        self.residule2 = residual_branch(CHANNELS)
        self.residule3 = residual_branch(CHANNELS)
        for number, convolution in enumerate(pyramid()):
            self.add_module(f"layer6_{number}", _activated(convolution))
        self.layer7 = _activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1))
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)


class SclCanetNetwork(CaffeResnet50):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.layer5 = _activated(nn.Conv2d(512 + 1024, CHANNELS, 3, padding=2, dilation=2))
        self.FPM_Decoder = FpmDecoder()

    def phi(self, images: Tensor) -> Tensor:
        """Computes features, float32 [batch, 256, h, w], of normalised images [batch, 3, H, W]."""
        features: Tensor = self.layer5(self.middle(images))
        return features


class Comparison(nn.Module):
    """From the features' half of a comparison and the vectors of guidance to margins."""

    def __init__(self, decoder: FpmDecoder, *, history: bool) -> None:
        """Takes the layers of one path.

        Args:
            decoder: With its weights.
            history: Whether to take those of queries, which see the mask before; else those of
                supports.
        """
        super().__init__()
        self.vectors = ComparedVectors(convolution_at(decoder.layer55))
        first = decoder.residule1 if history else decoder.supp_residule1
        self.refinement = Refinement(
            branches=(first, decoder.residule2, decoder.residule3),
            levels=[decoder.get_submodule(f"layer6_{number}") for number in range(5)],
            merging=decoder.layer7,
            last=decoder.layer9,
        )

    def guided(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Compares features [batch, 256, h, w] with vectors [batch, K, 512]: [batch * K, 256, ...].

        Args:
            compared: The features' half of the comparing convolution.
            vectors: Of each guidance, the two that are tiled.
        """
        tiled = self.vectors(vectors, (compared.shape[2], compared.shape[3]))
        return torch.relu(compared[:, None] + tiled).flatten(0, 1)

    def forward(self, compared: Tensor, vectors: Tensor) -> Tensor:
        """Margins without a mask before, float32 [batch, K, h, w]."""
        guided = self.guided(compared, vectors)
        margins: Tensor = self.refinement(guided, self.refinement.entered(guided), None)
        return margins.reshape(*vectors.shape[:2], *margins.shape[2:])


class SclCanetFeatures(nn.Module):
    """The `features` graph: a photograph to phi; for scaled queries the image as well."""

    def __init__(self, network: SclCanetNetwork, *, image: bool) -> None:
        """Wraps the trunk; `image` says whether to return the image."""
        super().__init__()
        self.normalise = ImagenetInput()
        self.network = network
        self.image = image

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Turns RGB uint8 [batch, H, W, 3] into phi, float32 [batch, 256, h, w], none negative."""
        normalised = self.normalise(image)
        features = self.network.phi(normalised)
        return (features, normalised) if self.image else features


class SclCanetGuide(nn.Module):
    """The `guide` graph: the two vectors of each way, by segmenting the support itself."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.compare = ComparedFeatures(convolution_at(network.FPM_Decoder.layer55))
        self.comparison = Comparison(network.FPM_Decoder, history=False)

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
        self.compare = ComparedFeatures(convolution_at(network.FPM_Decoder.layer55))
        self.comparison = Comparison(network.FPM_Decoder, history=False)

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


class SclCanetQuery(nn.Module):
    """The `query_features` graph: the query's half of the comparing convolution."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.compare = ComparedFeatures(convolution_at(network.FPM_Decoder.layer55))

    def forward(self, features: Tensor) -> Tensor:
        """Convolves phi [batch, 256, h, w] to `compared` of the same shape."""
        compared: Tensor = self.compare(features)
        return compared


class SclCanetScaledQuery(nn.Module):
    """The same where the query is seen at three scales.

    The trunk is here a second time: only queries are scaled, and supports must not pay for it.
    """

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.network = network
        self.compare = ComparedFeatures(convolution_at(network.FPM_Decoder.layer55))

    def forward(self, features: Tensor, normalised: Tensor) -> tuple[Tensor, ...]:
        """Compares at each scale.

        Args:
            features: phi at scale 1, float32 [batch, 256, h, w].
            normalised: The image, float32 [batch, 3, H, W].

        Returns:
            `smaller`, `compared`, `larger`, each float32 [batch, 256, rows, columns]; `rows` and
            `columns` float32 [batch, H] and [batch, W] of zeros, whose lengths are the image's.
        """
        height, width = normalised.shape[2], normalised.shape[3]
        compared = []
        for above, below in SCALES:
            size = height * above // below, width * above // below
            scaled = above != below
            maps = self.network.phi(raise_half_pixel(normalised, size)) if scaled else features
            compared.append(self.compare(maps))
        lengths = normalised[:, 0] * 0.0
        return (*compared, lengths[:, :, 0], lengths[:, 0])


class _Passes(nn.Module):
    """From comparisons at one or several scales to margins, pass by pass."""

    def __init__(self, network: SclCanetNetwork, passes: int) -> None:
        super().__init__()
        self.comparison = Comparison(network.FPM_Decoder, history=True)
        self.count = passes

    def forward(
        self, compared: Sequence[Tensor], vectors: Tensor, weights: Tensor, extent: Tensor | None
    ) -> list[Tensor]:
        """Returns the last pass' margins at each scale, float32 [batch, ways, h, w].

        Args:
            compared: The query's half at each scale, float32 [batch, 256, h, w].
            vectors: float32 [batch, shots, ways, 512].
            weights: Of the shots, float32 [batch, shots, ways].
            extent: Rows and columns of the image, float32 [2]; None for a single pass.
        """
        return self.passes(compared, vectors, weights, extent)[-1]

    def passes(
        self, compared: Sequence[Tensor], vectors: Tensor, weights: Tensor, extent: Tensor | None
    ) -> list[list[Tensor]]:
        """All of them; see `forward`."""
        refinement, flat = self.comparison.refinement, vectors.flatten(1, 2)
        guided = [self.comparison.guided(maps, flat) for maps in compared]
        entered = [refinement.entered(maps) for maps in guided]
        found: list[list[Tensor]] = []
        for number in range(self.count):
            margins = []
            for maps, entry in zip(guided, entered, strict=True):
                history = None
                if number > 0:
                    assert extent is not None
                    history = _history(found[-1], (maps.shape[2], maps.shape[3]), extent)
                    shots = vectors.shape[1]
                    history = history[:, None].expand(-1, shots, -1, -1, -1).flatten(0, 2)[:, None]
                scores = refinement(maps, entry, history)
                scores = scores.reshape(*vectors.shape[:3], *scores.shape[2:])
                margins.append((scores * weights[..., None, None]).sum(dim=1))
            found.append(margins)
        return found


class SclCanetDecode(nn.Module):
    """The `decode` graph of one pass at one scale."""

    def __init__(self, network: SclCanetNetwork) -> None:
        super().__init__()
        self.passes = _Passes(network, 1)

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
        self.passes = _Passes(network, passes)

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
        self.passes = _Passes(network, passes)

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
        """See `SclCanetDecode.forward` and `SclCanetScaledQuery.forward`.

        Returns:
            `logits` float32 [batch, ways, 1, H, W], summed over scales at the image's size.
        """
        weights = shot_weights(agreement, shown, validity)
        scales = (smaller, compared, larger)
        margins = self.passes(scales, vectors, weights, extent[0])
        size = rows.shape[1], columns.shape[1]
        total = raise_half_pixel(margins[0], size)
        for maps in margins[1:]:
            total = total + raise_half_pixel(maps, size)
        return total.unsqueeze(2)


def shrunk(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resizes masks [batch, K, H, W] bilinearly, corners on corners, to [batch, K, h, w]."""
    rows = _between(_corners(grid[0], masks.shape[2]), masks.shape[2])
    columns = _between(_corners(grid[1], masks.shape[3]), masks.shape[3])
    return rows @ masks @ columns.T


def raise_half_pixel(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes maps [batch, K, h, w] bilinearly, half-pixel, to a size that may be free."""
    rows = half_pixel_matrix(maps.shape[2], size[0])
    columns = half_pixel_matrix(maps.shape[3], size[1])
    return rows @ maps @ columns.T


def _history(margins: Sequence[Tensor], grid: tuple[int, int], extent: Tensor) -> Tensor:
    """The probability of foreground at a grid's cells, corners on corners.

    The official code raises the sum of all scales to the image's size, takes the soft-max there,
    and shrinks that to the grid. A cell of the grid meets two rows and two columns of the image: no
    others are computed.

    Args:
        margins: Of the pass before at each scale, float32 [batch, ways, h, w].
        grid: Rows and columns wanted.
        extent: Rows and columns of the image, float32 [2].

    Returns:
        float32 [batch, ways, *grid].
    """
    positions = [_corners(grid[axis], extent[axis]) for axis in range(2)]
    lower = [places.floor() for places in positions]
    met = [
        torch.cat([places, torch.minimum(places + 1.0, extent[axis] - 1.0)])
        for axis, places in enumerate(lower)
    ]
    total = None
    for maps in margins:
        rows = _between(_half_pixels(met[0], maps.shape[2], extent[0]), maps.shape[2])
        columns = _between(_half_pixels(met[1], maps.shape[3], extent[1]), maps.shape[3])
        raised = rows @ maps @ columns.T
        total = raised if total is None else total + raised
    assert total is not None
    foreground = torch.sigmoid(total)
    beyond = [places - below for places, below in zip(positions, lower, strict=True)]
    down = beyond[0][:, None]
    above, below = foreground[:, :, : grid[0]], foreground[:, :, grid[0] :]
    foreground = (1.0 - down) * above + down * below
    left, right = foreground[..., : grid[1]], foreground[..., grid[1] :]
    return (1.0 - beyond[1]) * left + beyond[1] * right


def _corners(cells: int, length: int | Tensor) -> Tensor:
    """Where the cells of a grid lie on an axis, first on first and last on last."""
    return torch.arange(cells, dtype=torch.float32) * ((length - 1) / (cells - 1))


def _half_pixels(places: Tensor, source: int, length: Tensor) -> Tensor:
    """Where places on an axis of a length lie on one of `source` samples."""
    found = ((places + 0.5) * (source / length) - 0.5).clamp(min=0.0)
    return torch.minimum(found, torch.full_like(found, source - 1))


def _between(places: Tensor, source: int) -> Tensor:
    """Writes reading between the samples of an axis as a matrix [places, source]."""
    return (1.0 - (places[:, None] - torch.arange(source)[None]).abs()).clamp(min=0.0)


def _activated(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.ReLU())
