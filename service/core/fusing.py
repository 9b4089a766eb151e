"""Cross-guided weighting: shots that decode apart, weighed by how well each finds all of them.

Zhang, Xiao, Qin: *Self-Guided and Cross-Guided Learning for Few-Shot Segmentation*, CVPR 2021,
equations 16 and 17. The paper divides the weighted sum by the number of shots; here weights add up
to one, so that one shot alone, or several that agree, have the margins that they have when they are
merged: thresholds and probabilities keep their meaning. At a threshold of 0 the masks are the same.

Every family can be fused so. Where shots each decide a pixel (``any_shot``, ``vote``), one alone is
a margin above the threshold, and so is what they say together; a graph that weighs shots by each
other (``merge_judged``) leaves one alone as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.decision import grid_margins
from service.core.family import ModelFamily


def shot_weights(
    agreements: NDArray[np.float64], shown: Sequence[Collection[int]]
) -> NDArray[np.float32]:
    """Weighs shots by equation 16: the mean agreement of what each finds alone, itself included.

    Args:
        agreements: [judged shots, guiding shots, ways]: intersection over union in [0, 1]; NaN
            where the judged shot is no shot of the way.
        shown: Of each shot, the ways from 1 that it shows.

    Returns:
        float32 [shots, ways], in [0, 1], that add up to one over the shots of each way. Shots that
        do not show a way have none of it; if none of those that show it finds any of it, they
        weigh alike.
    """
    _, shots, ways = agreements.shape
    shows = np.array([[way in of_shot for way in range(1, ways + 1)] for of_shot in shown])
    found = np.where(shows, _mean(agreements), 0.0)
    found = np.where(found.sum(axis=0) > 0, found, shows)
    total = found.sum(axis=0)
    weights = np.zeros((shots, ways), np.float32)
    np.divide(found, total, out=weights, where=total > 0, casting="same_kind")
    return weights


def by_the_others(
    agreements: NDArray[np.float64], weights: NDArray[np.float32], judged: int, way: int
) -> float | None:
    """How well the other shots find one, each alone, weighed as in queries.

    Args:
        agreements: See ``shot_weights``.
        weights: What it returned.
        judged: Index of the shot.
        way: From 1.

    Returns:
        In [0, 1]; None if the shot is no shot of the way, or no other one weighs in it.
    """
    found = agreements[judged, :, way - 1]
    weight = np.where(np.isnan(found), 0.0, weights[:, way - 1])
    weight[judged] = 0.0
    if not weight.any():
        return None
    return float(np.nansum(found * weight) / weight.sum())


def fuse(
    logits: Sequence[NDArray[np.float32]],
    weights: NDArray[np.float32],
    family: ModelFamily,
    ways: int,
) -> NDArray[np.float32]:
    """Adds up what each shot says of a query: equation 17 before its soft-max.

    Of families whose ways compete with a background, the margins over it are weighed: weights are
    per way, and a shot's logits mean nothing but by their differences. So the background is 0.

    Args:
        logits: float32 [P, S, h, w] of each shot, which comes first of S if others pad it.
        weights: float32 [shots, ways]; see ``shot_weights``.
        family: Whose logits they are.
        ways: Classes of the task.

    Returns:
        float32 [P, 1, h, w] without padded ways.

    Raises:
        RepositoryError: The logits are not those of one shot (BAD_LOGITS).
    """
    fused: Any = 0.0
    for shot, of_shot in zip(logits, weights, strict=True):
        fused = fused + of_shot[:, None, None, None] * grid_margins(shot, family, ways, 1)
    background = np.zeros((family.background_planes, *fused.shape[1:]), np.float32)
    together: NDArray[np.float32] = np.concatenate([background, fused])
    return together


def _mean(agreements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the judged shots, of those that count; 0 where none does."""
    counted = ~np.isnan(agreements)
    counts = np.maximum(counted.sum(axis=0), 1)
    mean: NDArray[np.float64] = np.where(counted, agreements, 0.0).sum(axis=0) / counts
    return mean
