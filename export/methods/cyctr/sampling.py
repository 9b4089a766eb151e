# SPDX-License-Identifier: Apache-2.0
"""Which support cells the query attends to: a random sample over all shots of a way."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor, nn

GROUP = 300
"""Tokens of object, and as many of background, for each shot."""


class TokenLabels(StrEnum):
    """What the check of cycles takes a drawn token for."""

    #: Of a group that is not taken whole: the label of the cell whose number is the token's number
    #: within the group, as the re-implementation looks it up.
    BY_NUMBER = "by-number"
    #: The label of the token's own cell, as in the paper.
    OWN = "own"


class Sample(NamedTuple):
    """Cells that were drawn, object first.

    Attributes:
        cells: Their numbers, int64 [N, shots * T].
        labels: What the check of cycles takes them for, float32 [N, shots * T] of 0 and 1.
        present: Whether there is such a token, bool [N, shots * T].
    """

    cells: Tensor
    labels: Tensor
    present: Tensor


class Sampling(nn.Module):
    """Draws cells in an order that is fixed once (the official code draws anew each time).

    Attributes:
        tokens: T, for each shot.
    """

    orders: Tensor

    def __init__(
        self, cells: int, shots: int, seed: int, token_labels: TokenLabels = TokenLabels.BY_NUMBER
    ) -> None:
        """Fixes the order.

        Args:
            cells: Of a shot's grid.
            shots: Most of them.
            seed: Of the order.
            token_labels: What the check of cycles takes tokens for.
        """
        super().__init__()
        self.cells = cells
        self.token_labels = token_labels
        self.tokens = min(2 * GROUP, cells)
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(shots * cells, generator=generator) for _ in range(2)]
        # Whole numbers below 2 ** 24, which single precision tells apart.
        self.register_buffer("orders", torch.stack(orders).float())

    def forward(self, labels: Tensor, shots: Tensor) -> Sample:
        """Draws without replacement.

        Args:
            labels: Of the cells of all shots, those of absent shots last: float32
                [N, shots, cells], 1 for object, else 0.
            shots: How many of them are there, float32 [N].

        Returns:
            Up to 300 cells of each group for each shot that is there; where one group is smaller,
            all of it, and more of the other.
        """
        total = labels.shape[1] * self.tokens
        labels = labels.flatten(1)
        places = torch.arange(labels.shape[1])
        shots = shots.unsqueeze(1)
        there = places < shots * self.cells
        groups = [there & (labels > 0.5), there & (labels <= 0.5)]
        sizes = [group.sum(dim=1, keepdim=True).float() for group in groups]
        counts = [
            torch.minimum(size, torch.maximum(GROUP * shots, 2 * GROUP * shots - other))
            for size, other in (sizes, sizes[::-1])
        ]
        slots = torch.arange(total).expand(labels.shape[0], -1)
        of_object = slots < counts[0]
        parts = [
            self._drawn(group, order, slots)
            for group, order, slots in zip(
                groups,
                self.orders,
                (slots, (slots - counts[0]).clamp(min=0).long()),
                strict=True,
            )
        ]
        (numbers, cells), (other_numbers, other_cells) = parts
        numbers = torch.where(of_object, numbers, other_numbers)
        cells = torch.where(of_object, cells, other_cells)
        found = of_object.float()
        if self.token_labels is TokenLabels.BY_NUMBER:
            looked_up = labels.gather(1, numbers)
            reduced = [count < size for count, size in zip(counts, sizes, strict=True)]
            # ONNX Runtime has no Where of truth values.
            from_reduced = (of_object & reduced[0]) | (~of_object & reduced[1])
            found = torch.where(from_reduced, looked_up, found)
        return Sample(cells, found, slots < counts[0] + counts[1])

    def _drawn(self, group: Tensor, order: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers within a group that its slots hold, and the cells of these numbers."""
        total = group.shape[1]
        places = torch.arange(total)
        size = group.sum(dim=1, keepdim=True)
        # By index, as a slice would tell an exporter how many shots there are.
        rank = order[places] + (places >= size) * float(order.shape[0])
        drawn = torch.sort(rank, dim=1).indices
        members = torch.sort(torch.where(group, places, places + total), dim=1).indices
        numbers = drawn.gather(1, slots)
        return numbers, members.gather(1, numbers)
