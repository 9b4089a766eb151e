"""Two results side by side, and whether the second is worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from loadtests.results import Repeat, Result, ResultError

#: Changes from this on are called a change: half of the 10 % that must never pass unseen, so that a
#: slowdown of 10 % shows even when half of it is hidden by the noise of the median.
THRESHOLD = 0.05
#: What must show. Where the repeats scatter by more, nothing can be said.
MUST_SHOW = 0.10


class Verdict(StrEnum):
    """What became of a figure."""

    SAME = "same"
    BETTER = "better"
    WORSE = "WORSE"
    NOISY = "noisy: cannot tell"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two results.

    Attributes:
        name: Of the figure.
        unit: Of both values.
        before, after: Medians of the repeats.
        change: Relative; positive is worse, whatever the figure.
        noise: Half the range of the repeats, relative to their median; the larger of both.
        verdict: What it amounts to.
    """

    name: str
    unit: str
    before: float
    after: float
    change: float
    noise: float
    verdict: Verdict


_Figure = Callable[[Repeat], float]

#: Name, unit, whether more is worse, and where it stands.
_FIGURES: tuple[tuple[str, str, bool, _Figure], ...] = (
    ("p50", "ms", True, lambda repeat: repeat.latency["p50"] * 1e3),
    ("p90", "ms", True, lambda repeat: repeat.latency["p90"] * 1e3),
    ("p99", "ms", True, lambda repeat: repeat.latency["p99"] * 1e3),
    ("server p50", "ms", True, lambda repeat: repeat.stages.get("server", 0.0) * 1e3),
    ("engine p50", "ms", True, lambda repeat: repeat.stages.get("engine", 0.0) * 1e3),
    ("good answers", "/s", False, lambda repeat: repeat.good_rate),
    ("memory", "MiB", True, lambda repeat: repeat.use.peak_bytes / 2**20),
)
#: Tails of a few hundred requests scatter; they are shown, and do not decide.
_SHOWN_ONLY = frozenset({"p99", "memory"})


def compare(before: Result, after: Result, threshold: float = THRESHOLD) -> list[Comparison]:
    """Compares two results of one scenario.

    A figure is worse when its median moved by ``threshold`` or more and no repeat of the one lies
    within the repeats of the other.

    Args:
        before: Of the scenario, and valid.
        after: Likewise.
        threshold: Relative change that counts.

    Raises:
        ResultError: They are not of the same scenario, or one is invalid.
    """
    if before.scenario.name != after.scenario.name or before.scenario.work != after.scenario.work:
        raise ResultError(
            f"{before.scenario.name} and {after.scenario.name} are different scenarios"
        )
    for result in (before, after):
        if not result.valid:
            raise ResultError(
                f"the run of {result.created} is invalid: "
                + "; ".join({repeat.problem for repeat in result.repeats if repeat.problem})
            )
    compared = []
    for name, unit, more_is_worse, figure in _FIGURES:
        values = [[figure(repeat) for repeat in result.repeats] for result in (before, after)]
        if all(any(value > 0 for value in side) for side in values):
            compared.append(judge(name, unit, values[0], values[1], more_is_worse, threshold))
    return compared


def judge(
    name: str,
    unit: str,
    before: Sequence[float],
    after: Sequence[float],
    more_is_worse: bool,
    threshold: float = THRESHOLD,
) -> Comparison:
    """Compares the repeats of one figure."""
    old, new = float(np.median(before)), float(np.median(after))
    change = (new / old - 1.0) if more_is_worse else (old / max(new, 1e-12) - 1.0)
    noise = max(_half_range(before), _half_range(after))
    apart = min(after) > max(before) or max(after) < min(before)
    if abs(change) >= threshold and apart:
        verdict = Verdict.WORSE if change > 0 else Verdict.BETTER
    elif noise > MUST_SHOW:
        verdict = Verdict.NOISY
    else:
        verdict = Verdict.SAME
    return Comparison(name, unit, old, new, change, noise, verdict)


def exit_status(compared: Sequence[Comparison]) -> int:
    """1 if a figure that decides is worse, 3 if one is too noisy to tell, else 0."""
    verdicts = {one.verdict for one in compared if one.name not in _SHOWN_ONLY}
    if Verdict.WORSE in verdicts:
        return 1
    return 3 if Verdict.NOISY in verdicts else 0


def _half_range(values: Sequence[float]) -> float:
    median = float(np.median(values))
    return (max(values) - min(values)) / 2 / median if median else 0.0
