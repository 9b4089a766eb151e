# SPDX-License-Identifier: Apache-2.0
"""What CANet and the networks that grew out of it do once features are compared with vectors.

A convolution compares a query's features with vectors that are the same everywhere; residual blocks
and a pyramid of dilated convolutions make a mask of the result, with the mask before it at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CHANNELS = 256
"""Of features, of vectors and of everything after them."""

COMPARISON_DILATION = 2
"""Of the convolution that compares; its padding as well."""

PYRAMID_RATES = (6, 12, 18)
"""Dilations of the pyramid's 3x3 convolutions."""


def residual_branch(inputs: int) -> nn.Sequential:
    """ReLU and convolution, twice; the checkpoints number the convolutions 1 and 3."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    )


def activated(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution and ReLU; the checkpoints number the convolution 0."""
    return nn.Sequential(convolution, nn.ReLU())


def comparing_convolution(vectors: int) -> nn.Conv2d:
    """The convolution that compares features with so many tiled vectors, features first."""
    return nn.Conv2d(
        (1 + vectors) * CHANNELS,
        CHANNELS,
        3,
        padding=COMPARISON_DILATION,
        dilation=COMPARISON_DILATION,
    )


def pyramid() -> list[nn.Conv2d]:
    """Convolutions of the pyramid: that of the mean, 1x1, and one per dilation."""
    pointwise = [nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2)]
    return pointwise + [
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=rate, dilation=rate) for rate in PYRAMID_RATES
    ]


def convolution_at(layers: nn.Sequential, position: int = 0) -> nn.Conv2d:
    """The convolution at a position of a sequence."""
    convolution = layers[position]
    assert isinstance(convolution, nn.Conv2d)
    return convolution


class ComparedFeatures(nn.Module):
    """The features' half of the comparing convolution, which belongs to the image alone."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
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


class ComparedVectors(nn.Module):
    """The vectors' half of the comparing convolution.

    A convolution over a tiled vector is the same everywhere but at the border, where some taps meet
    padding: nine products per channel say it all.
    """

    taps: Tensor | None

    def __init__(self, convolution: nn.Conv2d, grid: tuple[int, int] | None = None) -> None:
        """Fixes the grid [h, w] that vectors are tiled over, unless it is free."""
        super().__init__()
        self.weight = nn.Parameter(convolution.weight[:, CHANNELS:].flatten(2))
        self.register_buffer("taps", None if grid is None else _tap_cover(*grid))

    def forward(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turns vectors [batch, K, channels] into float32 [batch, K, 256, h, w].

        Args:
            vectors: To be tiled.
            grid: To tile them over; that which was fixed, if one was.
        """
        taps = _tap_cover(*grid) if self.taps is None else self.taps
        products = torch.einsum("bkc,oct->bkot", vectors, self.weight)
        maps = products @ taps.flatten(1)
        return maps.reshape(*maps.shape[:3], *taps.shape[1:])


def _tap_cover(rows: int, columns: int) -> Tensor:
    """How much of each tap of a convolution over a constant map lies inside: [9, rows, columns]."""
    cover = nn.functional.conv2d(
        torch.ones(1, 1, rows, columns),
        torch.eye(9).reshape(9, 1, 3, 3),
        padding=COMPARISON_DILATION,
        dilation=COMPARISON_DILATION,
    )
    return cover[0]


class Refinement(nn.Module):
    """From a comparison, and the mask before it, to margins of foreground over background."""

    def __init__(
        self,
        *,
        branches: Sequence[nn.Sequential],
        levels: Sequence[nn.Module],
        merging: nn.Module,
        last: nn.Conv2d,
    ) -> None:
        """Takes the layers of a network.

        Args:
            branches: Three residual branches; the first one also takes two channels of history.
            levels: Of the pyramid, that of the mean first.
            merging: Of the levels.
            last: To two channels, background first.
        """
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.levels = nn.ModuleList(levels)
        self.merging = merging
        entry = convolution_at(branches[0], 1)
        self.entry_weight = nn.Parameter(entry.weight[:, :CHANNELS])
        self.entry_bias = entry.bias
        self.history_weight = nn.Parameter(entry.weight[:, CHANNELS:])
        # Only the margin decides, and the soft-max of two is its logistic function.
        assert last.bias is not None
        self.last_weight = nn.Parameter(last.weight[1:] - last.weight[:1])
        self.last_bias = nn.Parameter(last.bias[1:] - last.bias[:1])

    def entered(self, guided: Tensor) -> Tensor:
        """Convolves what is compared, float32 [N, 256, h, w], once for all passes."""
        return nn.functional.conv2d(guided, self.entry_weight, self.entry_bias, padding=1)

    def forward(self, guided: Tensor, entered: Tensor, foreground: Tensor | None) -> Tensor:
        """Refines.

        Args:
            guided: What was compared, float32 [N, 256, h, w], none negative.
            entered: Of it, see `entered`.
            foreground: Probability of foreground in the mask before, float32 [N, 1, h, w]; None
                where there was none, and both channels of the history are zero.

        Returns:
            Margins, float32 [N, 1, h, w].
        """
        if foreground is not None:
            history = torch.cat([1.0 - foreground, foreground], dim=1)
            entered = entered + nn.functional.conv2d(history, self.history_weight, padding=1)
        first, *others = self.branches
        assert isinstance(first, nn.Sequential)
        maps = guided + convolution_at(first, 3)(torch.relu(entered))
        for branch in others:
            maps = maps + branch(maps)
        mean, *levels = self.levels
        whole = mean(maps.mean(dim=(2, 3), keepdim=True)).expand_as(maps)
        merged = self.merging(torch.cat([whole, *(level(maps) for level in levels)], dim=1))
        return nn.functional.conv2d(merged, self.last_weight, self.last_bias)
