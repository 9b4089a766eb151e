# SPDX-License-Identifier: Apache-2.0
"""The prior of PFENet and its kin: how near each cell of a query comes to what a support shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SPREAD_EPSILON = 1e-7
"""Added to the spread of a map that is stretched to [0, 1]."""

_TINY = 1e-12


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Divides by the length along an axis; zero stays zero."""
    return vectors / vectors.square().sum(dim=dim, keepdim=True).sqrt().clamp(min=_TINY)


def stored_positions(maps: Tensor, cells: Tensor) -> Tensor:
    """Picks the vectors of the cells under each mask, as units in half precision.

    The others could not be nearest to anything: a network that ends in a ReLU gives no negative
    similarity, and theirs is zero (spec section 5, step 3).

    Args:
        maps: float32 [batch, K, C, h, w], none negative.
        cells: Masks, float32 [batch, K, h, w]; a cell above zero is picked.

    Returns:
        float16 [batch, K, N, C] with N as the largest mask needs, 1 at least; rows of zeros at the
        end where a mask needs fewer.
    """
    inside = cells.flatten(2) > 0
    order = first_positions(inside)
    rows = maps.flatten(3).transpose(2, 3)
    chosen = torch.gather(rows, 2, order.unsqueeze(3).expand(-1, -1, -1, rows.shape[3]))
    real = torch.gather(inside, 2, order).unsqueeze(3)
    return (unit(chosen, dim=3) * real).half()


def first_positions(inside: Tensor) -> Tensor:
    """Puts the cells under each mask first.

    Args:
        inside: Booleans [batch, K, cells].

    Returns:
        Indices of cells [batch, K, N] with N as the largest mask needs, 1 at least: those under the
        mask in their own order, then others.
    """
    total = inside.shape[2]
    most = inside.sum(dim=2).flatten().amax(dim=0).clamp(min=1)
    # A symbol while it is exported, so no int() of it.
    length: Any = most.item()
    if torch.compiler.is_exporting():
        # What an exported graph may rely on; torch has no types for it.
        torch._check(length >= 1)  # type: ignore[no-untyped-call]
        torch._check(length <= total)  # type: ignore[no-untyped-call]
    # Cells that are picked come first, each part in its own order.
    rank = inside.float() * total - torch.arange(total)
    return torch.topk(rank, length, dim=2).indices


def prior_maps(positions: Tensor, high: Tensor) -> Tensor:
    """Computes the cosine of each query cell with its nearest stored position, stretched to [0, 1].

    Args:
        positions: Units or zeros, float16 [batch, shots, K, N, C].
        high: Units of the query, float32 [batch, C, h, w].

    Returns:
        float32 [batch, shots, K, h, w]; zero for a mask without a position.
    """
    cosines = positions.float() @ high.flatten(2)[:, None, None]
    nearest = cosines.amax(dim=3)
    least = nearest.amin(dim=3, keepdim=True)
    spread = nearest.amax(dim=3, keepdim=True) - least
    stretched: Tensor = (nearest - least) / (spread + SPREAD_EPSILON)
    return stretched.reshape(*stretched.shape[:3], *high.shape[2:])


def mean_prior(high: Tensor, positions: Tensor, weights: Tensor, validity: Tensor) -> Tensor:
    """Averages the priors of the shots that show a way.

    Args:
        high: Units of the query, float32 [batch, C, h, w].
        positions: Of the shots, see `stored_positions`: float16 [batch, shots, K, N, C].
        weights: float32 [batch, shots, K], 1 where a shot shows the way, else 0.
        validity: float32 [batch, shots], 1 for real shots and 0 for padded ones.

    Returns:
        float32 [batch, K, h, w] in [0, 1]; zero for a way that no shot shows.
    """
    shown = weights * validity.unsqueeze(2)
    maps = prior_maps(positions, high) * shown[..., None, None]
    return maps.sum(dim=1) / shown.sum(dim=1).clamp(min=1.0)[..., None, None]
