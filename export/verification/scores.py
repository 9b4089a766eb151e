# SPDX-License-Identifier: Apache-2.0
"""Scores of background and foreground against golden ones, relative to the largest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.goldens import Golden
from export.verification.comparing import (
    HALF_PRECISION,
    crop,
    decided_pixels,
    sigmoid,
    softmax,
    stored_map,
    worst,
)
from export.verification.measures import Measure

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """Golden logits of two planes, background first, and what may differ from them.

    What is compared with them may be two planes as well, or one of margins.

    Attributes:
        golden: The case.
        largest: Absolute value of the largest logit, which errors are shares of.
        tolerance: What is allowed.
        tie: Lead of the best plane that leaves the decision open.
        name: Of the array of logits.
    """

    golden: Golden
    largest: float
    tolerance: float = 2e-4
    tie: float = 4e-4
    name: str = "logits"

    def measure_scores(self, stage: str, scores: Array, wanted: Array) -> Measure:
        """Compares scores [1 or 2, h, w] on the network's grid with golden ones [2, h, w]."""
        error = worst(scores, _like(scores, wanted)) / self.largest
        return Measure(self.golden.name, stage, "scores", error, self.tolerance)

    def measure_logits(self, stage: str, logits: Array) -> Measure:
        """Compares logits [1 or 2, H, W] at the network's input size."""
        stored, window = stored_map(self.golden.arrays, self.name)
        found = logits if window is None else crop(logits, window)
        error = worst(found, _like(found, stored[0])) / self.largest
        return Measure(self.golden.name, stage, "logits", error, self.tolerance)

    def measure_mask(self, stage: str, mask: Array, wanted: Array) -> Measure:
        """Counts pixels of a mask [H, W] that differ where the golden logits are no tie."""
        decided = decided_pixels(self.golden.arrays, self.name, self.tie * self.largest)
        wrong = float(((mask != wanted) & decided).sum())
        return Measure(self.golden.name, stage, "mask, pixels", wrong, 0.0)

    def measure_probabilities(self, stage: str, probabilities: Array) -> Measure:
        """Compares float16 probabilities [1 or 2, H, W] with the soft-max of the golden logits."""
        stored, window = stored_map(self.golden.arrays, self.name)
        found = probabilities if window is None else crop(probabilities, window)
        logits = stored[0].astype(np.float64)
        exact = softmax(logits) if len(found) == 2 else sigmoid(logits[1:] - logits[:1])
        error = worst(found.astype(np.float64), exact)
        # A soft-max of two passes on half of a logit's error at most.
        allowed = self.tolerance * self.largest / 2 + HALF_PRECISION
        return Measure(self.golden.name, stage, "probabilities", error, allowed)


def decide(logits: Array) -> Array:
    """The mask [H, W] of logits: two planes compete, one of margins is foreground above zero."""
    return np.asarray(logits.argmax(axis=0) if len(logits) == 2 else logits[0] > 0)


def resized(planes: Array, size: tuple[int, int], *, align_corners: bool = False) -> Array:
    """Resizes planes [P, h, w] bilinearly to [P, H, W], as torch does."""
    raised = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], size=size, mode="bilinear", align_corners=align_corners
    )
    values: Array = raised[0].numpy()
    return values


def _like(found: Array, golden: Array) -> Array:
    """The golden planes, or their margin, whichever was found."""
    return golden if len(found) == len(golden) else golden[1:] - golden[:1]
