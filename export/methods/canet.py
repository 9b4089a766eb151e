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

from export.methods.blocks import ImagenetInput, corner_matrix, residual_stage

CHANNELS = 256
"""Of phi, of z and of everything after them."""

AREA_EPSILON = 5e-4
"""Added to the area of a shrunk mask."""

COMPARISON_DILATION = 2
"""Of the convolution that compares; its padding as well."""

_RATES = (6, 12, 18)
"""Dilations of the pyramid's 3x3 convolutions."""


class CanetNetwork(nn.Module):
    """The network with the keys of the official checkpoints (without their leading `module.`)."""

    def __init__(self) -> None:
        """Builds the network with random weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.layer1 = residual_stage(64, 64, 3)
        self.layer2 = residual_stage(256, 128, 4, stride=2, stride_first=True)
        self.layer3 = residual_stage(512, 256, 6, dilation=2)
        self.layer5 = _activated(nn.Conv2d(512 + 1024, CHANNELS, 3, padding=2, dilation=2))
        self.layer55 = _activated(
            nn.Conv2d(
                2 * CHANNELS,
                CHANNELS,
                3,
                padding=COMPARISON_DILATION,
                dilation=COMPARISON_DILATION,
            )
        )
        self.residule1 = _residual(CHANNELS + 2)
        self.residule2 = _residual(CHANNELS)
        self.residule3 = _residual(CHANNELS)
        self.layer6_0 = _activated(nn.Conv2d(CHANNELS, CHANNELS, 1))
        self.layer6_1 = _activated(nn.Conv2d(CHANNELS, CHANNELS, 1))
        for number, rate in enumerate(_RATES, 2):
            convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=rate, dilation=rate)
            self.add_module(f"layer6_{number}", _activated(convolution))
        self.layer7 = _activated(nn.Conv2d(5 * CHANNELS, CHANNELS, 1))
        self.layer9 = nn.Conv2d(CHANNELS, 2, 1)

    def phi(self, images: Tensor) -> Tensor:
        """Computes features, float32 [batch, 256, h, w], of normalised images [batch, 3, H, W]."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        middle = self.layer2(self.layer1(maps))
        features: Tensor = self.layer5(torch.cat([middle, self.layer3(middle)], dim=1))
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
        cells = self.shrink(masks).flatten(2)
        sums = cells @ features.flatten(2).transpose(1, 2)
        vectors = sums / (cells.sum(dim=2, keepdim=True) + AREA_EPSILON)
        return vectors, (masks.amax(dim=(2, 3)) > 0).float()


class CanetQuery(nn.Module):
    """The `query_features` graph: the query's half of the comparing convolution."""

    def __init__(self, network: CanetNetwork) -> None:
        super().__init__()
        convolution = _convolution(network.layer55)
        self.weight = nn.Parameter(convolution.weight[:, :CHANNELS])
        self.bias = convolution.bias

    def forward(self, features: Tensor) -> Tensor:
        """Convolves phi [batch, 256, h, w] to float32 [batch, 256, h, w]."""
        return nn.functional.conv2d(
            features,
            self.weight,
            self.bias,
            padding=COMPARISON_DILATION,
            dilation=COMPARISON_DILATION,
        )


class _Refinement(nn.Module):
    """From the two halves of a comparison to margins, pass by pass."""

    taps: Tensor

    def __init__(self, network: CanetNetwork, grid: tuple[int, int], iterations: int) -> None:
        super().__init__()
        self.network = network
        self.iterations = iterations
        self.weight = nn.Parameter(_convolution(network.layer55).weight[:, CHANNELS:].flatten(2))
        # How much of each tap of a convolution over a constant map lies inside of it.
        taps = nn.functional.conv2d(
            torch.ones(1, 1, *grid),
            torch.eye(9).reshape(9, 1, 3, 3),
            padding=COMPARISON_DILATION,
            dilation=COMPARISON_DILATION,
        )
        self.register_buffer("taps", taps[0])
        entry = _convolution(network.residule1, 1)
        self.entry_weight = nn.Parameter(entry.weight[:, :CHANNELS])
        self.entry_bias = entry.bias
        self.history_weight = nn.Parameter(entry.weight[:, CHANNELS:])
        # Only the margin decides, and the soft-max of two is its logistic function.
        last = network.layer9
        assert last.bias is not None
        self.last_weight = nn.Parameter(last.weight[1:] - last.weight[:1])
        self.last_bias = nn.Parameter(last.bias[1:] - last.bias[:1])

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
        guided = torch.relu(compared[:, None] + self._tiled(vectors)).flatten(0, 1)
        entry = nn.functional.conv2d(guided, self.entry_weight, self.entry_bias, padding=1)
        margins = self._refined(guided, entry)
        yield margins.reshape(*vectors.shape[:2], *margins.shape[2:])
        for _ in range(1, self.iterations):
            foreground = torch.sigmoid(margins)
            history = torch.cat([1.0 - foreground, foreground], dim=1)
            seen = nn.functional.conv2d(history, self.history_weight, padding=1)
            margins = self._refined(guided, entry + seen)
            yield margins.reshape(*vectors.shape[:2], *margins.shape[2:])

    def _tiled(self, vectors: Tensor) -> Tensor:
        """The guidance's half of the comparison: float32 [batch, K, 256, h, w].

        A convolution over a tiled vector is the same everywhere but at the border, where some taps
        meet padding: nine products per channel say it all.
        """
        products = torch.einsum("bkc,oct->bkot", vectors, self.weight)
        maps = products @ self.taps.flatten(1)
        return maps.reshape(*maps.shape[:3], *self.taps.shape[1:])

    def _refined(self, guided: Tensor, entry: Tensor) -> Tensor:
        """Runs what follows the history's way in: margins [batch * K, 1, h, w]."""
        network = self.network
        maps = guided + _convolution(network.residule1, 3)(torch.relu(entry))
        maps = maps + network.residule2(maps)
        maps = maps + network.residule3(maps)
        whole = network.layer6_0(maps.mean(dim=(2, 3), keepdim=True)).expand_as(maps)
        levels = [network.get_submodule(f"layer6_{number}")(maps) for number in range(1, 5)]
        merged = network.layer7(torch.cat([whole, *levels], dim=1))
        return nn.functional.conv2d(merged, self.last_weight, self.last_bias)


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


def _residual(inputs: int) -> nn.Sequential:
    """ReLU and convolution, twice; the checkpoint numbers the convolutions 1 and 3."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    )


def _convolution(layers: nn.Sequential, position: int = 0) -> nn.Conv2d:
    convolution = layers[position]
    assert isinstance(convolution, nn.Conv2d)
    return convolution
