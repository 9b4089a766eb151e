# SPDX-License-Identifier: Apache-2.0
"""Errors against golden vectors, each beside the error that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.errors import GoldenError
from export.goldens import Case, case_names
from export.verification.comparing import crop, map_error, relative, softmax, stored_map, worst
from export.verification.episode import Outcome, annotation_planes

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3."""

FEATURE_TOLERANCE = 1e-4
"""Of features, relative to the largest."""

PROTOTYPE_TOLERANCE = 1e-4
"""Of prototypes, relative to the largest."""

SCORE_TOLERANCE = 2e-3
"""Of scores and logits, whose scale is +-20."""

PROBABILITY_TOLERANCE = SCORE_TOLERANCE / 2 + 5e-4
"""Of probabilities: a soft-max passes on half of a logit's error at most; float16 adds its own."""

TIE_MARGIN = 4e-3
"""Lead of the best plane under which two computations may decide differently."""

HALF_ROUNDING = 2.0**-7
"""Rounding of a logit of 16 and more that the goldens store in float16."""


CASE = "golden case"
"""Stage of what is wrong with a case as a whole."""

UNRUNNABLE = (GoldenError, KeyError, ValueError)
"""What a case that lacks numbers, or holds others than it says, fails with."""

Stored = TypeVar("Stored")


@dataclass(frozen=True, slots=True)
class Measure:
    """One comparison.

    Attributes:
        case: Golden case.
        stage: Which computation.
        quantity: What was compared.
        error: The worst difference; None if it could not be run.
        tolerance: What is allowed.
        reason: Why it could not be run.
    """

    case: str
    stage: str
    quantity: str
    error: float | None
    tolerance: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it ran and the error is within the tolerance."""
        return self.error is not None and self.error <= self.tolerance


def not_run(case: str, stage: str, error: Exception) -> Measure:
    """Says why a case, or one of its stages, could not be run."""
    reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return Measure(case, stage, "all", None, 0, reason=reason or type(error).__name__)


def read_each(
    folder: Path, names: Sequence[str], read: Callable[[Path, Sequence[str]], Sequence[Stored]]
) -> tuple[list[Stored], list[Measure]]:
    """Reads the golden cases of a folder one by one.

    Returns:
        The cases, in the folder's order, and a measure for each that cannot be read.

    Raises:
        GoldenError: The folder is not one of golden vectors, or lacks a case.
    """
    cases: list[Stored] = []
    unreadable = []
    for name in case_names(folder, names):
        try:
            cases.extend(read(folder, [name]))
        except UNRUNNABLE as error:
            unreadable.append(not_run(name, CASE, error))
    return cases, unreadable


def measured(case: str, measures: Iterator[Measure]) -> Iterator[Measure]:
    """Passes on the measures of a case; one that cannot be run ends itself and nothing else."""
    try:
        yield from measures
    except UNRUNNABLE as error:
        yield not_run(case, CASE, error)


def measure_planes(case: Case) -> Measure:
    """Counts pixels of the annotation planes that differ from those fed to the official network."""
    wrong = 0
    for way in range(case.ways):
        for shot in range(case.shots):
            planes = annotation_planes(case, way, shot)
            wrong += int((planes[1 + way] != case.arrays["fg_mask"][way, shot]).sum())
            wrong += int((planes[0] != case.arrays["bg_mask"][way, shot]).sum())
    return Measure(case.name, "input", "planes, pixels", wrong, 0)


def measure_input(case: Case, normalised: Array) -> Measure:
    """Compares the normalised query [3, H, W] with what was fed to the official network."""
    error = map_error(normalised, case.arrays, "query_tensor")
    return Measure(case.name, "input", "query tensor", error, INPUT_TOLERANCE)


def measure_outcome(case: Case, stage: str, outcome: Outcome) -> list[Measure]:
    """Compares everything that an episode came to."""
    arrays = case.arrays
    ways = range(case.ways)
    foreground = np.stack([outcome.shots[way, :, 1 + way] for way in ways])
    prototypes = np.concatenate([arrays["bg_prototype"], arrays["fg_prototypes"]])
    golden = arrays["query_features_ch0_8"][0]
    decided = decided_pixels(case)
    rows: list[tuple[str, float, float]] = [
        ("query features", relative(outcome.features[:8], golden), FEATURE_TOLERANCE),
        (
            "shots, foreground",
            relative(foreground, arrays["fg_shot_prototypes"]),
            PROTOTYPE_TOLERANCE,
        ),
        (
            "shots, background",
            relative(outcome.shots[:, :, 0], arrays["bg_shot_prototypes"]),
            PROTOTYPE_TOLERANCE,
        ),
        ("prototypes", relative(outcome.prototypes, prototypes), PROTOTYPE_TOLERANCE),
        ("scores", worst(outcome.scores, arrays["lowres_scores"][0]), SCORE_TOLERANCE),
        ("logits", map_error(outcome.logits, arrays, "logits"), SCORE_TOLERANCE),
        ("mask, pixels", _mask_error(case, outcome.logits.argmax(axis=0), decided), 0.0),
    ]
    return [Measure(case.name, stage, *row) for row in rows]


def measure_served(case: Case, stage: str, mask: Array, probabilities: Array) -> list[Measure]:
    """Compares a mask [H, W] and probabilities [1 + ways, H, W] at the network's size."""
    golden, window = stored_map(case.arrays, "logits")
    if window is not None:
        probabilities = crop(probabilities, window)
    exact = softmax(golden[0].astype(np.float64))
    error = worst(probabilities.astype(np.float64), exact)
    differing = _mask_error(case, mask, decided_pixels(case))
    return [
        Measure(case.name, stage, "mask, pixels", differing, 0),
        Measure(case.name, stage, "probabilities", error, PROBABILITY_TOLERANCE),
    ]


def measure_difference(
    case: Case, stage: str, quantity: str, first: Array, second: Array
) -> Measure:
    """Compares two computations that must agree to the last bit."""
    return Measure(case.name, stage, quantity, worst(first, second), 0.0)


def decided_pixels(case: Case) -> Array:
    """Booleans [H, W]: where the golden logits are no tie."""
    if "logits" in case.arrays:
        logits, margin = case.arrays["logits"][0], TIE_MARGIN
    else:
        logits = case.arrays["logits_f16"][0].astype(np.float32)
        margin = TIE_MARGIN + 2 * HALF_ROUNDING
    best = np.sort(logits, axis=0)
    return np.asarray(best[-1] - best[-2] > margin)


def _mask_error(case: Case, mask: Array, decided: Array) -> float:
    return float(((mask != case.arrays["pred"]) & decided).sum())
