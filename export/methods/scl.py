# SPDX-License-Identifier: Apache-2.0
"""What SCL (Zhang et al., CVPR 2021) adds to a network that compares a query with supports.

A support is first segmented by its own mean vector. What of the object is found that way and what
is not make two vectors, the primary and the auxiliary one (equations 5 and 6). With several shots,
each is weighed by how well it segments all of them (equation 16).
"""

from __future__ import annotations

import torch
from torch import Tensor

from export.methods.blocks import masked_means

AREA_EPSILON = 5e-4
"""Added to an area that is divided by."""


def self_guided(features: Tensor, primary: Tensor, auxiliary: Tensor) -> Tensor:
    """Makes the two vectors of a shot (equations 5 and 6).

    Args:
        features: Of the support, float32 [batch, C, h, w].
        primary: What of the object is found, booleans [batch, ways, h, w].
        auxiliary: What is not, likewise.

    Returns:
        float32 [batch, ways, 2 C], the primary vector first; an empty set gives zeros.
    """
    sets = (primary, auxiliary)
    means = [masked_means(features, cells.float(), AREA_EPSILON) for cells in sets]
    return torch.cat(means, dim=2)


def shot_weights(
    agreement: Tensor, shown: Tensor, validity: Tensor, divisor: float | None = None
) -> Tensor:
    """How much the logits of each shot count (equations 16 and 17).

    Args:
        agreement: Of judged shots under guiding ones, float32 [batch, judged, shots, ways].
        shown: 1 where a shot shows a way, else 0, float32 [batch, shots, ways].
        validity: 1 for real shots, float32 [batch, shots].
        divisor: What the sum over shots is divided by; the number of them if None.

    Returns:
        U_k / K over the K shots that show a way, float32 [batch, shots, ways]; 1 for a single shot,
        which the official code does not judge.
    """
    active = shown * validity.unsqueeze(2)
    count = active.sum(dim=1, keepdim=True)
    mean = (agreement * active.unsqueeze(2)).sum(dim=1) / count.clamp(min=1.0)
    shared = mean / (count.clamp(min=1.0) if divisor is None else divisor)
    return active * torch.where(count > 1.0, shared, torch.ones_like(mean))
