# SPDX-License-Identifier: Apache-2.0
"""The two encoders: deformable self-attention, and cycle-consistent attention to the supports."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.methods.cyctr.network import ENCODERS, CrossAttention, Transformer
from export.methods.deformable import HEADS, cell_centres, waves
from export.methods.enrichment import CHANNELS

BARRED = -1e4
"""Added to the score of a token that is invalid, or whose cycle does not end on its own label."""

_ABSENT = -1e9
"""Score of a token that is not there; far below that of any other, barred ones included."""

_HEAD = CHANNELS // HEADS


class Places(nn.Module):
    """Which cells an image covers, and the positions that are counted over them."""

    starts: Tensor

    def __init__(self, starts: Tensor) -> None:
        """Takes the row of the input that each row of the grid stands for, float32 [f]."""
        super().__init__()
        self.register_buffer("starts", starts)

    def covered(self, extent: Tensor) -> Tensor:
        """Tells the cells of an image from padding, float32 [batch, f, f] of 0 and 1."""
        rows = (self.starts < extent[:, :1]).float().unsqueeze(2)
        return rows * (self.starts < extent[:, 1:]).float().unsqueeze(1)

    def forward(self, covered: Tensor) -> Tensor:
        """Encodes y, then x, float32 [batch, f * f, 256], of `covered`."""
        codes = []
        for axis in (1, 2):
            counts = covered.cumsum(dim=axis)
            codes.append(waves(counts, covered.sum(dim=axis, keepdim=True), CHANNELS // 2))
        return torch.cat(codes, dim=3).flatten(1, 2)


class Encoders(nn.Module):
    """Runs the encoders on the cells of one query under one way."""

    centres: Tensor

    def __init__(self, transformer: Transformer, side: int) -> None:
        """Fixes the side of the grid."""
        super().__init__()
        self.transformer = transformer
        self.grid = (side, side)
        self.register_buffer("centres", cell_centres(self.grid))

    def forward(
        self, query: Tensor, positions: Tensor, covered: Tensor, tokens: Tensor, marks: Tensor
    ) -> Tensor:
        """Lets a query see itself and the supports, twice.

        Args:
            query: Its cells, float32 [f * f, 256].
            positions: Of `Places`, float32 [f * f, 256].
            covered: 1 for cells of the image, 0 for padding, float32 [f * f].
            tokens: Of the supports, float32 [N, 256].
            marks: Their label, whether they are valid, and whether they are there: float32 [N, 3]
                of 0 and 1.

        Returns:
            float32 [f * f, 256].
        """
        parts = self.transformer
        placed = positions + parts.level_embed
        for number in range(ENCODERS):
            norms = parts.layer_norms[4 * number : 4 * number + 4]
            after_self, after_cross = parts.ffns[2 * number : 2 * number + 2]
            cross = parts.cross_layers[number]
            assert isinstance(cross, CrossAttention)
            # Without a bias, projected zeros are zeros: padding can be masked before.
            seen = parts.qry_self_layers[number](
                (query + placed)[None], (query * covered[:, None])[None], self.centres, (self.grid,)
            )
            query = norms[1](after_self(norms[0](query + seen[0])))
            query = norms[2](query + attended(cross, query, tokens, marks))
            query = norms[3](after_cross(query))
        return query


def attended(cross: CrossAttention, query: Tensor, tokens: Tensor, marks: Tensor) -> Tensor:
    """Attends to tokens of which the way there and back ends on the same label.

    One head after another, since a score for every cell and token is the largest tensor of all.

    Args:
        cross: The weights.
        query: float32 [P, 256].
        tokens: float32 [N, 256].
        marks: float32 [N, 3], see `Encoders.forward`.

    Returns:
        float32 [P, 256].
    """
    asked = cross.q_fc(query) / math.sqrt(_HEAD)
    keys, values = cross.k_fc(tokens), cross.v_fc(tokens)
    label, valid, present = (marks > 0.5).unbind(dim=1)
    mixed = []
    for head in range(HEADS):
        part = slice(head * _HEAD, (head + 1) * _HEAD)
        scores = torch.where(present, asked[:, part] @ keys[:, part].T, _ABSENT)
        back = scores.argmax(dim=1).gather(0, scores.argmax(dim=0))
        agrees = label.gather(0, back) == label
        scores = scores + (~(agrees & valid)).float() * BARRED
        mixed.append(scores.softmax(dim=1) @ values[:, part])
    result: Tensor = cross.proj(torch.cat(mixed, dim=1))
    return result
