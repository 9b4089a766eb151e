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
from export.methods.prior import first_positions

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
    """The `guide` graph: the unit vectors of the positions under a mask, and where those lie.

    A position that the mask leaves out correlates with nothing, so it need not be stored. The
    official code multiplies features by the mask and then divides by their length, so that a
    position which the mask just touches counts almost in full.
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
    ) -> tuple[Tensor, ...]:
        """Picks the vectors of a shot.

        Args:
            fine: See `HsnetFeatures`.
            middle: Likewise.
            coarse: Likewise.
            planes: float32 [batch, 1 + ways, H, W] of 0 and 1; background is not used.

        Returns:
            `fine_positions`, `middle_positions` and `coarse_positions` float16
            [batch, ways, N, taps x C] with an N of each level; `fine_places`, `middle_places` and
            `coarse_places` float32 [batch, ways, cells]: which of them a cell is, -1 for none; and
            `shown` float32 [batch, ways]: 1 for a way that the shot shows, else 0.
        """
        masks = planes[:, 1:]
        found = [
            self._picked(number, rows, masks) for number, rows in enumerate((fine, middle, coarse))
        ]
        positions = (level[0] for level in found)
        places = (level[1] for level in found)
        return (*positions, *places, masks.amax(dim=(2, 3)))

    def _picked(self, number: int, rows: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        level = self.levels[number]
        soft = self.get_buffer(f"rows_{number}") @ masks @ self.get_buffer(f"columns_{number}")
        cover = soft.flatten(2)
        inside = cover > 0
        order = first_positions(inside)
        owners = torch.arange(rows.shape[0])[:, None, None] * level.cells
        chosen = rows.flatten(0, 1).index_select(0, (order + owners).flatten())
        units, lengths = _parted(chosen.reshape(*order.shape, rows.shape[2]), level)
        part = torch.gather(cover, 2, order).unsqueeze(3)
        # Undoes the division that made the units, and divides by the length under the mask.
        gates = part * (lengths + LENGTH_EPSILON) / (part * lengths + LENGTH_EPSILON)
        masked = (units * gates.unsqueeze(4)).flatten(3)
        places = torch.where(inside, inside.float().cumsum(dim=2) - 1, -1.0)
        return masked.half(), places


def _parted(rows: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Units float32 [..., taps, C] and lengths [..., taps] of a level's rows."""
    units = rows[..., : level.width].float()
    vectors = units.reshape(*rows.shape[:-1], level.taps, level.channels)
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
        fine_positions: Tensor,
        middle_positions: Tensor,
        coarse_positions: Tensor,
        fine_places: Tensor,
        middle_places: Tensor,
        coarse_places: Tensor,
        shown: Tensor,
        validity: Tensor,
    ) -> Tensor:
        """Scores every cell under every shot.

        Args:
            fine: Of the query; see `HsnetFeatures`.
            middle: Likewise.
            coarse: Likewise.
            fine_positions: Of the task, float16 [batch, shots, ways, N, taps x C].
            middle_positions: Likewise, with an N of its own.
            coarse_positions: Likewise.
            fine_places: Of the task, float32 [batch, shots, ways, cells].
            middle_places: Likewise.
            coarse_places: Likewise.
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

        def margins_of(owner: Tensor, real: Tensor, *shot: Tensor) -> Tensor:
            correlations = [
                _correlation(query.index_select(0, owner)[0], positions, places, level)
                for query, positions, places, level in zip(
                    queries, shot[:3], shot[3:], self.levels, strict=True
                )
            ]
            scores = self.head(*correlations)
            return torch.where(real > 0, scores[1] - scores[0], NO_SHOT)

        margins = one_by_one(
            margins_of,
            owners,
            active.flatten(),
            fine_positions.flatten(0, 2),
            middle_positions.flatten(0, 2),
            coarse_positions.flatten(0, 2),
            fine_places.flatten(0, 2),
            middle_places.flatten(0, 2),
            coarse_places.flatten(0, 2),
        )
        return margins.reshape(batch, shots, ways, *margins.shape[1:]).transpose(1, 2)


def _correlation(query: Tensor, positions: Tensor, places: Tensor, level: Level) -> Tensor:
    """Rectified cosines of every cell of a query with every cell of a shot.

    Args:
        query: Unit vectors, float32 [taps, cells, C].
        positions: Of the shot, float16 [N, taps x C].
        places: Which of them a cell is, float32 [cells], -1 for none.
        level: Its taps, channels and grid.

    Returns:
        float32 [rows, columns, taps, rows, columns], those of the query first.
    """
    # A row of zeros at the end stands for all cells that are not stored.
    stored = nn.functional.pad(positions.float(), (0, 0, 0, 1))
    stored = stored.reshape(-1, level.taps, level.channels).permute(1, 2, 0)
    cosines = torch.relu(query @ stored).transpose(0, 1)
    last = positions.shape[0]
    spread = cosines.index_select(2, torch.where(places < 0, last, places).long())
    grid = (level.rows, level.columns)
    return spread.reshape(*grid, level.taps, *grid)
