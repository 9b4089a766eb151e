# SPDX-License-Identifier: Apache-2.0
"""Puts runs of the second stage together into the weights that ship.

Runs that began at the same weights mostly lie in one valley of the loss, and the mean of their
weights is a model of its own that takes one run's time (Wortsman et al. 2022, Model soups). What
it gains and loses, and what a weaker correction does, stands in docs/models/compact.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.methods.compact import CompactModel
from training.runs import save_weights

# The layer that says how much is added to the margins of cosines; it is linear.
_CORRECTION = ("decode.correction.weight", "decode.correction.bias")


@torch.no_grad()
def blended(runs: Sequence[tuple[CompactModel, float]], correction: float) -> dict[str, Tensor]:
    """Returns the mean weights of runs, batch-norm statistics included, with a weaker correction.

    Args:
        runs: Models and their shares; the shares need not add up to one.
        correction: Part that is left of what is added to the margins of cosines, in [0, 1].

    Raises:
        ValueError: No run, a share that is no number above zero, or a correction outside [0, 1].
    """
    if not runs or not all(math.isfinite(share) and share > 0 for _, share in runs):
        raise ValueError("at least one run is needed, and shares above zero")
    if not 0 <= correction <= 1:
        raise ValueError(f"the correction's part must lie in [0, 1], not {correction}")
    whole = sum(share for _, share in runs)
    mean: dict[str, Tensor] = {}
    for model, share in runs:
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                # How many batches a statistic has seen plays no part any more.
                mean.setdefault(name, value)
                continue
            part = value.double() * (share / whole)
            mean[name] = mean[name] + part if name in mean else part
    for name in _CORRECTION:
        mean[name] = mean[name] * correction
    return {
        name: value.float() if value.is_floating_point() else value for name, value in mean.items()
    }


def blend_files(runs: Sequence[tuple[Path, float]], correction: float, weights: Path) -> None:
    """Writes what `blended` makes of safetensors files; raises as it does."""
    models = [(CompactModel.from_file(path), share) for path, share in runs]
    save_weights(blended(models, correction), weights)
