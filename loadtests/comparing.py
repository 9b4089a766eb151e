"""Two results side by side, and whether the second is worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from loadtests.comparable import check_comparable
from loadtests.results import Repeat, Result

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
        change: Relative; positive is worse, whatever the figure; infinite from or to nothing.
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

#: Name, unit, and where it stands. All are times or sizes: more is worse, and 0 is none known, as
#: the latency of a repeat without a good answer.
_FIGURES: tuple[tuple[str, str, _Figure], ...] = (
    ("p50", "ms", lambda repeat: repeat.latency["p50"] * 1e3),
    ("p90", "ms", lambda repeat: repeat.latency["p90"] * 1e3),
    ("p99", "ms", lambda repeat: repeat.latency["p99"] * 1e3),
    ("server p50", "ms", lambda repeat: repeat.stages.get("server", 0.0) * 1e3),
    ("engine p50", "ms", lambda repeat: repeat.stages.get("engine", 0.0) * 1e3),
    ("start to serving", "s", lambda repeat: repeat.stages.get("start_to_serving", 0.0)),
    ("first request", "ms", lambda repeat: repeat.stages.get("first_request", 0.0) * 1e3),
    ("memory", "MiB", lambda repeat: repeat.use.peak_bytes / 2**20),
)
#: Tails of a few hundred requests scatter, as does a single request after a start; they are shown,
#: and do not decide.
_SHOWN_ONLY = frozenset({"p99", "first request", "memory"})


def compare(before: Result, after: Result, threshold: float = THRESHOLD) -> list[Comparison]:
    """Compares two results of one scenario.

    A time is worse when its median grew by ``threshold`` or more and no repeat of the one lies
    within the repeats of the other. Good answers are worse likewise, when they became fewer; lost
    answers are worse when they became more at all. Times that one side lacks are left out: where
    nothing was answered, the good answers say so.

    Args:
        before: Of the scenario, and valid.
        after: Likewise.
        threshold: Relative change that counts.

    Raises:
        ResultError: They were not measured alike, or one is invalid.
    """
    check_comparable(before, after)
    compared = []
    for name, unit, figure in _FIGURES:
        known = [
            [value for value in map(figure, result.repeats) if value > 0]
            for result in (before, after)
        ]
        if all(known):
            compared.append(judge(name, unit, known[0], known[1], True, threshold))
    good = [[repeat.good_rate for repeat in result.repeats] for result in (before, after)]
    compared.append(judge("good answers", "/s", good[0], good[1], False, threshold))
    compared.append(_lost(before, after))
    return compared


def judge(
    name: str,
    unit: str,
    before: Sequence[float],
    after: Sequence[float],
    more_is_worse: bool,
    threshold: float = THRESHOLD,
) -> Comparison:
    """Compares the repeats of one figure.

    A change of the medians by ``threshold`` or more is never called the same: where the repeats
    overlap, it cannot be told from noise, and is called that.
    """
    old, new = float(np.median(before)), float(np.median(after))
    change = _growth(old, new) if more_is_worse else _growth(new, old)
    noise = max(_half_range(before), _half_range(after))
    changed = abs(change) >= threshold
    apart = min(after) > max(before) or max(after) < min(before)
    if changed and apart:
        verdict = Verdict.WORSE if change > 0 else Verdict.BETTER
    elif changed or noise > MUST_SHOW:
        verdict = Verdict.NOISY
    else:
        verdict = Verdict.SAME
    return Comparison(name, unit, old, new, change, noise, verdict)


def _lost(before: Result, after: Result) -> Comparison:
    """Lost answers of all repeats together: none is usual, and a single one more counts."""
    (lost, asked), (lost_now, asked_now) = _lost_of(before), _lost_of(after)
    # So many would be lost as before, of as many requests as after.
    more = lost_now - lost * asked_now / asked
    verdict = Verdict.SAME if abs(more) < 1 else Verdict.WORSE if more > 0 else Verdict.BETTER
    old, new = 100.0 * lost / asked, 100.0 * lost_now / asked_now
    return Comparison("lost answers", "%", old, new, _growth(old, new), 0.0, verdict)


def _lost_of(result: Result) -> tuple[int, int]:
    """How many answers were lost, of how many requests."""
    asked = sum(sum(repeat.codes.values()) for repeat in result.repeats)
    return sum(repeat.lost for repeat in result.repeats), max(1, asked)


def exit_status(compared: Sequence[Comparison]) -> int:
    """1 if a figure that decides is worse, 3 if one is too noisy to tell, else 0."""
    verdicts = {one.verdict for one in compared if one.name not in _SHOWN_ONLY}
    if Verdict.WORSE in verdicts:
        return 1
    return 3 if Verdict.NOISY in verdicts else 0


def _growth(old: float, new: float) -> float:
    if old == new:
        return 0.0
    return new / old - 1.0 if old else math.inf


def _half_range(values: Sequence[float]) -> float:
    width, median = max(values) - min(values), float(np.median(values))
    if not width:
        return 0.0
    return width / 2 / median if median else math.inf
