"""Intersections and unions, summed over the queries of a run, as the papers sum them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BACKGROUND = "background"
VOID = 255


@dataclass(frozen=True, slots=True)
class Scores:
    """What a reading found, in per cent.

    Attributes:
        mean_iou: Mean over classes of intersection over union.
        fb_iou: Mean of the intersection over union of foreground, all classes taken together, and
            of background.
        per_class: Intersection over union of each class.
        mean_iou_std: Standard deviation of ``mean_iou`` over runs; 0 for one run.
        fb_iou_std: That of ``fb_iou``.
    """

    mean_iou: float
    fb_iou: float
    per_class: Mapping[str, float]
    mean_iou_std: float = 0.0
    fb_iou_std: float = 0.0


class Tally:
    """Pixels of each class that prediction and truth share or cover, over the queries of one run.

    The rule is PANet's: pixels of value 255 do not count, and a query counts for the classes of
    its episode, and for background, that its truth shows.
    """

    def __init__(self) -> None:
        """Starts with nothing."""
        self.intersections: dict[str, int] = {}
        self.unions: dict[str, int] = {}

    def add(
        self, found: NDArray[np.uint8], truth: NDArray[np.uint8], classes: Sequence[str]
    ) -> None:
        """Counts one query.

        Args:
            found: Predicted labels [H, W]; 0 is background, i the i-th of ``classes``.
            truth: True labels [H, W], in the same numbers; 255 is void.
            classes: Classes of the episode.

        Raises:
            ValueError: The two differ in size.
        """
        if found.shape != truth.shape:
            raise ValueError(f"The prediction is {found.shape}, the truth {truth.shape}.")
        counted = truth != VOID
        for label, name in enumerate((BACKGROUND, *classes)):
            true = truth == label
            if not true.any():
                continue
            guessed = (found == label) & counted
            shared = int(np.count_nonzero(guessed & true))
            covered = int(np.count_nonzero(guessed)) + int(np.count_nonzero(true)) - shared
            self.intersections[name] = self.intersections.get(name, 0) + shared
            self.unions[name] = self.unions.get(name, 0) + covered

    def iou(self, *names: str) -> float:
        """Intersection over union of some classes taken together, in [0, 1]; 0 if none occurred."""
        union = sum(self.unions.get(name, 0) for name in names)
        return sum(self.intersections.get(name, 0) for name in names) / union if union else 0.0

    @property
    def classes(self) -> list[str]:
        """Classes that occurred, background left out, in alphabetical order."""
        return sorted(self.unions.keys() - {BACKGROUND})

    @staticmethod
    def scores(runs: Sequence[Tally]) -> Scores:
        """Means over runs, of what each run makes of its own sums.

        Raises:
            ValueError: There is no run, or no query in it.
        """
        classes = sorted({name for run in runs for name in run.classes})
        if not classes:
            raise ValueError("There was no query.")
        by_run = [[100 * run.iou(name) for name in classes] for run in runs]
        means = [float(np.mean(ious)) for ious in by_run]
        halves = [50 * (run.iou(*run.classes) + run.iou(BACKGROUND)) for run in runs]
        return Scores(
            mean_iou=float(np.mean(means)),
            fb_iou=float(np.mean(halves)),
            per_class=dict(zip(classes, map(float, np.mean(by_run, axis=0)), strict=True)),
            mean_iou_std=float(np.std(means)),
            fb_iou_std=float(np.std(halves)),
        )
