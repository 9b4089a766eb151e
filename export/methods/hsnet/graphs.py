# SPDX-License-Identifier: Apache-2.0
"""The graphs of HSNet.

What travels of a level is a tensor of rows, one for each position of its grid: first the vectors of
all taps, made unit vectors, then the lengths that they had. Half precision holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.methods.blocks import ImagenetInput, corner_matrix, one_by_one
from export.methods.hsnet.squeeze import HpnLearner
from export.methods.hsnet.trunks import ResNetTaps, VggTaps

NO_SHOT = -1e4
"""Margin of a shot that does not show the way, or is not there."""

LENGTH_EPSILON = 1e-5
"""Added to the lengths that vectors are divided by."""

_HALF_MAX = 65504.0

TRUNKS: Mapping[str, Callable[[], ResNetTaps | VggTaps]] = {
    "resnet50": lambda: ResNetTaps((3, 4, 6, 3)),
    "resnet101": lambda: ResNetTaps((3, 4, 23, 3)),
    "vgg16": VggTaps,
}
"""The trunks that there are checkpoints of."""


class HsnetNetwork(nn.Module):
    """The network with the keys of the official checkpoints."""

    def __init__(self, trunk: ResNetTaps | VggTaps) -> None:
        """Builds the network with random weights, on a trunk such as one of `TRUNKS`."""
        super().__init__()
        self.backbone = trunk
        self.hpn_learner = HpnLearner(self.backbone.levels)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of features.

    Attributes:
        taps: Number of layers.
        channels: Of each.
        rows, columns: Of the grid.
    """

    taps: int
    channels: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """Positions of the grid."""
        return self.rows * self.columns

    @property
    def width(self) -> int:
        """Numbers of all taps at a position, without their lengths."""
        return self.taps * self.channels


class HsnetFeatures(nn.Module):
    """The `features` graph: a photograph to the unit vectors of every tap."""

    def __init__(self, network: HsnetNetwork) -> None:
        super().__init__()
        self.normalise = ImagenetInput()
        self.trunk = network.backbone

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the taps.

        Args:
            image: RGB uint8 [batch, H, W, 3].

        Returns:
            `fine`, `middle` and `coarse` float16 [batch, cells, taps x C + taps]: the unit vectors
            of all taps, and their lengths.
        """
        fine, middle, coarse = self.trunk(self.normalise(image))
        return _rows(fine), _rows(middle), _rows(coarse)


def _rows(taps: Tensor) -> Tensor:
    """Turns taps [batch, taps, C, h, w] into rows of unit vectors and lengths."""
    vectors = taps.flatten(3).permute(0, 3, 1, 2)
    lengths = torch.linalg.vector_norm(vectors, dim=3)
    units = vectors / (lengths.unsqueeze(3) + LENGTH_EPSILON)
    return torch.cat([units.flatten(2), lengths.clamp(max=_HALF_MAX)], dim=2).half()


class HsnetGuide(nn.Module):
    """The `guide` graph: the unit vectors of the cells under a mask.

    The official code multiplies features by the mask and then divides by their length, so that a
    cell which the mask just touches counts almost in full.
    """

    def __init__(self, size: tuple[int, int], levels: Sequence[Level]) -> None:
        """Prepares the resizing of masks.

        Args:
            size: Rows and columns of the network's input.
            levels: Fine, middle and coarse.
        """
        super().__init__()
        self.levels = tuple(levels)
        for number, level in enumerate(levels):
            self.register_buffer(f"rows_{number}", corner_matrix(size[0], level.rows))
            columns = corner_matrix(size[1], level.columns).T.contiguous()
            self.register_buffer(f"columns_{number}", columns)

    def forward(
        self, fine: Tensor, middle: Tensor, coarse: Tensor, planes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masks the vectors of a shot.

        Args:
            fine: See `HsnetFeatures`.
            middle: Likewise.
            coarse: Likewise.
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; background is not used.

        Returns:
            `fine_masked`, `middle_masked` and `coarse_masked` float16
            [batch, ways, cells, taps x C], and `shown` float32 [batch, ways]: 1 for a way that the
            shot shows, else 0.
        """
        masks = planes[:, 1:]
        masked = [
            self._masked(number, rows, masks) for number, rows in enumerate((fine, middle, coarse))
        ]
        return masked[0], masked[1], masked[2], masks.amax(dim=(2, 3))

    def _masked(self, number: int, rows: Tensor, masks: Tensor) -> Tensor:
        level = self.levels[number]
        soft = self.get_buffer(f"rows_{number}") @ masks @ self.get_buffer(f"columns_{number}")
        cover = soft.flatten(2).unsqueeze(3)
        units, lengths = _parted(rows, level)
        lengths = lengths.unsqueeze(1)
        # Undoes the division that made the units, and divides by the length under the mask.
        gates = cover * (lengths + LENGTH_EPSILON) / (cover * lengths + LENGTH_EPSILON)
        masked = units.unsqueeze(1) * gates.unsqueeze(4)
        return masked.flatten(3).half()


def _parted(rows: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Units float32 [batch, cells, taps, C] and lengths [batch, cells, taps] of a level's rows."""
    units = rows[..., : level.width].float()
    vectors = units.reshape(*rows.shape[:2], level.taps, level.channels)
    return vectors, rows[..., level.width :].float()


class HsnetDecode(nn.Module):
    """The `decode` graph: every shot and way by itself, one after another.

    A single correlation of the fine level takes a hundred megabytes at the usual size, so that no
    two of them are in memory together.
    """

    def __init__(self, network: HsnetNetwork, levels: Sequence[Level]) -> None:
        super().__init__()
        self.head = network.hpn_learner
        self.levels = tuple(levels)

    def forward(
        self,
        fine: Tensor,
        middle: Tensor,
        coarse: Tensor,
        fine_masked: Tensor,
        middle_masked: Tensor,
        coarse_masked: Tensor,
        shown: Tensor,
        validity: Tensor,
    ) -> Tensor:
        """Scores every cell under every shot.

        Args:
            fine: Of the query; see `HsnetFeatures`.
            middle: Likewise.
            coarse: Likewise.
            fine_masked: Of the task, float16 [batch, shots, ways, cells, taps x C].
            middle_masked: Likewise.
            coarse_masked: Likewise.
            shown: float32 [batch, shots, ways], 1 for ways that a shot shows.
            validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

        Returns:
            `logits` float32 [batch, ways, shots, h, w]: foreground minus background; `NO_SHOT` for
            padded shots and for those that do not show the way.
        """
        queries = [
            _parted(rows, level)[0].permute(0, 2, 1, 3)
            for rows, level in zip((fine, middle, coarse), self.levels, strict=True)
        ]
        batch, shots, ways = shown.shape
        active = shown * validity.unsqueeze(2)
        owners = torch.arange(batch)[:, None].expand(batch, shots * ways).reshape(-1, 1)

        def margins_of(owner: Tensor, real: Tensor, *masked: Tensor) -> Tensor:
            correlations = [
                _correlation(query.index_select(0, owner)[0], rows, level)
                for query, rows, level in zip(queries, masked, self.levels, strict=True)
            ]
            scores = self.head(*correlations)
            return torch.where(real > 0, scores[1] - scores[0], NO_SHOT)

        margins = one_by_one(
            margins_of,
            owners,
            active.flatten(),
            fine_masked.flatten(0, 2),
            middle_masked.flatten(0, 2),
            coarse_masked.flatten(0, 2),
        )
        return margins.reshape(batch, shots, ways, *margins.shape[1:]).transpose(1, 2)


def _correlation(query: Tensor, masked: Tensor, level: Level) -> Tensor:
    """Rectified cosines of every cell of a query with every cell of a shot.

    Args:
        query: Unit vectors, float32 [taps, cells, C].
        masked: Of the shot, float16 [cells, taps x C].
        level: Its taps, channels and grid.

    Returns:
        float32 [rows, columns, taps, rows, columns], those of the query first.
    """
    shot = masked.float().reshape(-1, level.taps, level.channels).permute(1, 2, 0)
    cosines = torch.relu(query @ shot)
    grid = (level.rows, level.columns)
    return cosines.transpose(0, 1).reshape(*grid, level.taps, *grid)
