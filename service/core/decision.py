"""Logits to labels: upsampling, the decision, and what the mask says of each class.

All decisions are taken on **margins**: binary families emit them; of multiway
families the background's plane is subtracted from the others before upsampling,
which is linear, so that highest plane wins means highest margin above 0 wins and
one plane less is upsampled. Work goes in bands of rows, so that the memory beyond
the answer itself stays bounded whatever the mask's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import Decision, ModelFamily, ScoreMeaning
from service.core.postchain import upsample
from service.core.types import DecidedMask

#: Of upsampled margins; as much as a core's cache holds, which is faster than more.
_BAND_BYTES: Final = 2 * 1024 * 1024
_ONE_SHOT: Final = frozenset({Decision.ARGMAX, Decision.MARGIN})
#: HSNet: the share of the image's highest vote that makes a pixel foreground.
_VOTE_SHARE: Final = 0.5

_Floats = NDArray[np.float32]
_Axes = tuple[_Floats, _Floats]


def decide(
    logits: _Floats,
    axes: _Axes,
    *,
    family: ModelFamily,
    ways: int,
    probabilities: bool = False,
    shots: int | None = None,
) -> DecidedMask:
    """Decides every pixel of the mask.

    Args:
        logits: float32 [P, S, h, w] of one query; see docs/repository.md.
        axes: A_y and A_x of ``PostChain.axes``.
        family: Names the decision, the threshold and what a score means.
        ways: Classes of the task; planes of padded ways are cut off.
        probabilities: Whether to return them per pixel.
        shots: Real shots, where S is padded; None for all.

    Returns:
        Labels and statistics. Several ways above their threshold: the one of the
        highest margin wins (``any_shot``: of its best shot; ``vote``: mean over
        shots); ties go to the lower class. Scores and probabilities are those of
        that margin. Probabilities have the background's plane first if the
        family is multiway.

    Raises:
        RepositoryError: BAD_LOGITS: fewer planes than ways, or several shots for a
            decision that takes one.
    """
    margins = _margins(logits, family, ways, shots)
    height, width = len(axes[0]), len(axes[1])
    labels = np.empty((height, width), dtype=np.uint8)
    tally = _Tally(np.zeros(ways, dtype=np.int64), np.zeros(ways, dtype=np.float64))
    likely = None
    if probabilities:
        planes = family.background_planes + ways
        likely = np.empty((planes, height, width), dtype=np.float16)
    highest = _highest_votes(margins, axes, family.threshold) if _votes(family) else None
    for rows, upsampled in _bands(margins, axes):
        weighed = _weigh(upsampled, family, highest)
        best = weighed.elect(labels[rows])
        tally.add(labels[rows], _winning_probability(best, weighed.margins, family.score))
        if likely is not None:
            likely[:, rows] = _probabilities(weighed.margins, family)
    return DecidedMask(
        labels=labels,
        areas=tally.areas,
        boxes=tuple(_box(labels == way) if tally.areas[way - 1] else None for way in _from_1(ways)),
        mean_scores=tally.scores / np.maximum(tally.areas, 1),
        probabilities=likely,
    )


@dataclass(slots=True)
class _Tally:
    """Areas and summed scores of the ways."""

    areas: NDArray[np.int64]
    scores: NDArray[np.float64]

    def add(self, labels: NDArray[np.uint8], probability: _Floats) -> None:
        """Counts a band; ``probability`` is that of each pixel's label."""
        flat = probability.reshape(-1)
        for way in _from_1(len(self.areas)):
            belongs = labels == way
            area = np.count_nonzero(belongs)
            if area:
                self.areas[way - 1] += area
                self.scores[way - 1] += np.dot(flat, belongs.reshape(-1).astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A band before the decision.

    Attributes:
        margins: [ways, rows, width], one per way: what scores are made of.
        contest: The same; -inf for ways that are out at a pixel.
        threshold: What a way must be above.
    """

    margins: _Floats
    contest: _Floats
    threshold: float

    def elect(self, labels: NDArray[np.uint8]) -> _Floats:
        """Writes the winners to ``labels``; returns the highest value of the contest."""
        best: _Floats = self.contest[0]
        labels[:] = 1
        for way, rival in enumerate(self.contest[1:], start=2):
            labels[rival > best] = way
            best = np.maximum(best, rival)
        labels *= best > self.threshold
        return best


def _from_1(ways: int) -> range:
    return range(1, ways + 1)


def _votes(family: ModelFamily) -> bool:
    return family.decision is Decision.VOTE


def _margins(logits: _Floats, family: ModelFamily, ways: int, shots: int | None) -> _Floats:
    """Foreground minus background on the network's grid: float32 [ways, S, h, w]."""
    background = family.background_planes
    if logits.ndim != 4 or logits.shape[0] < background + ways:
        raise RepositoryError(
            "BAD_LOGITS",
            f"Family {family.name} returned logits {logits.shape} for {ways} ways.",
        )
    kept = logits[: background + ways, :shots]
    if family.decision in _ONE_SHOT and kept.shape[1] != 1:
        raise RepositoryError(
            "BAD_LOGITS",
            f"Family {family.name} returned {kept.shape[1]} shots and decides by "
            f"{family.decision}, which takes one.",
        )
    if background:
        margins: _Floats = kept[1:] - kept[:1]
        return margins
    return kept


def _bands(margins: _Floats, axes: _Axes) -> Iterator[tuple[slice, _Floats]]:
    """Upsampled margins [ways, S, rows, width], band by band."""
    ways, shots, height, width = margins.shape
    rows_matrix, columns_matrix = axes
    planes = np.ascontiguousarray(margins).reshape(ways * shots, height, width)
    band = max(1, _BAND_BYTES // (4 * len(planes) * len(columns_matrix)))
    for top in range(0, len(rows_matrix), band):
        rows = slice(top, min(top + band, len(rows_matrix)))
        upsampled = upsample(planes, rows_matrix, columns_matrix, rows)
        yield rows, upsampled.reshape(ways, shots, *upsampled.shape[1:])


def _weigh(upsampled: _Floats, family: ModelFamily, highest: NDArray[np.int64] | None) -> _Weighed:
    """Shots to one margin per way, by the family's decision."""
    if highest is not None:
        mean = upsampled.mean(axis=1)
        votes = np.count_nonzero(upsampled > family.threshold, axis=1)
        elected = votes >= _VOTE_SHARE * highest[:, None, None]
        return _Weighed(mean, np.where(elected, mean, np.float32(-np.inf)), -np.inf)
    margins = upsampled[:, 0] if upsampled.shape[1] == 1 else upsampled.max(axis=1)
    threshold = 0.0 if family.decision is Decision.ARGMAX else family.threshold
    return _Weighed(margins, margins, threshold)


def _highest_votes(margins: _Floats, axes: _Axes, threshold: float) -> NDArray[np.int64]:
    """Highest vote of each way in the whole image, 1 at least (hsnet.md, section 7)."""
    highest = np.ones(len(margins), dtype=np.int64)
    if margins.shape[1] == 1:
        return highest
    for _, upsampled in _bands(margins, axes):
        votes = np.count_nonzero(upsampled > threshold, axis=1)
        np.maximum(highest, votes.max(axis=(1, 2)), out=highest)
    return highest


def _winning_probability(best: _Floats, margins: _Floats, score: ScoreMeaning) -> _Floats:
    """Probability of each pixel's winner; of no meaning where the background won."""
    if score is ScoreMeaning.SIGMOID or len(margins) == 1:
        return _sigmoid(best)
    top, total = _softmax_parts(margins)
    winning: _Floats = np.exp(best - top) / total
    return winning


def _probabilities(margins: _Floats, family: ModelFamily) -> _Floats:
    """Probabilities of all planes, the background first if the family is multiway."""
    if family.score is ScoreMeaning.SIGMOID:
        ways = _sigmoid(margins)
        background = 1 - ways.max(axis=0, keepdims=True)
    else:
        top, total = _softmax_parts(margins)
        ways = np.exp(margins - top) / total
        background = (np.exp(-top) / total)[None]
    return np.concatenate((background, ways)) if family.background_planes else ways


def _softmax_parts(margins: _Floats) -> tuple[_Floats, _Floats]:
    """The highest of background (0) and margins, and the sum of exponentials below it."""
    top = np.maximum(margins.max(axis=0), 0)
    total = np.exp(-top)
    for margin in margins:
        total += np.exp(margin - top)
    return top, total


def _sigmoid(margins: _Floats) -> _Floats:
    with np.errstate(over="ignore"):
        negative = np.exp(-margins)
    negative += 1
    return np.reciprocal(negative, out=negative)


def _box(belongs: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x_min, y_min, x_max, y_max) of what is set, half-open."""
    rows = np.flatnonzero(belongs.any(axis=1))
    columns = np.flatnonzero(belongs.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
