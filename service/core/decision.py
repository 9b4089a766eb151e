"""Logits to labels: upsampling, the decision, and what the mask says of each class.

All decisions are taken on **margins**: binary families emit them; of multiway
families the background's plane is subtracted from the others before upsampling,
which is linear, so that highest plane wins means highest margin above 0 wins and
one plane less is upsampled. Work goes in bands of rows, so that the memory beyond
the answer itself stays bounded whatever the mask's size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import Decision, ModelFamily, ScoreMeaning
from service.core.postchain import Axis, upsample
from service.core.stopping import checkpoint
from service.core.types import DecidedMask

#: Of upsampled margins; as much as a core's cache holds, which is faster than more.
_BAND_BYTES: Final = 2 * 1024 * 1024
_ONE_SHOT: Final = frozenset({Decision.ARGMAX, Decision.MARGIN})
#: HSNet: the share of the image's highest vote that makes a pixel foreground.
_VOTE_SHARE: Final = 0.5
#: Margin of a shot that is padded or does not show the way; see docs/repository.md.
_NO_SHOT: Final = -1e4
#: By rounding: sums of an axis' weights, and margins (of those beyond 1, a share).
_SUMS_ARE_OFF_BY: Final = 1e-6
_MARGINS_ARE_OFF_BY: Final = 1e-4

_Floats = NDArray[np.float32]
_Axes = tuple[Axis, Axis]
_Box = tuple[int, int, int, int]
#: Rows and columns of a mask.
_Window = tuple[slice, slice]
_NOTHING: Final[_Window] = (slice(0, 0), slice(0, 0))


def decide(
    logits: _Floats,
    axes: _Axes,
    *,
    family: ModelFamily,
    ways: int,
    probabilities: bool = False,
    shots: int | None = None,
    shown: Collection[int] | None = None,
) -> DecidedMask:
    """Decides every pixel of the mask.

    Args:
        logits: float32 [P, S, h, w] of one query; see docs/repository.md.
        axes: A_y and A_x of ``PostChain.axes``.
        family: Names the decision, the threshold and what a score means.
        ways: Classes of the task; planes of padded ways are cut off.
        probabilities: Whether to return them per pixel.
        shots: Real shots, where S is padded; None for all.
        shown: Ways, from 1, that some shot shows; others win no pixel. None for all.

    Returns:
        Labels and statistics. Several ways above their threshold: the one of the
        highest margin wins (``any_shot``: of its best shot; ``vote``: mean over
        the shots that show it); ties go to the lower class. Scores and probabilities are those of
        that margin. Probabilities have the background's plane first if the
        family is multiway.

    Raises:
        RepositoryError: BAD_LOGITS: fewer planes than ways, or several shots for a
            decision that takes one.
        StoppedError: Nobody waits for the answer any more.
    """
    margins = grid_margins(logits, family, ways, shots)
    if shown is not None:
        margins = margins.copy()
        margins[[way - 1 for way in _from_1(ways) if way not in shown]] = _NO_SHOT
    height, width = axes[0].length, axes[1].length
    labels = np.zeros((height, width), dtype=np.uint8)
    tally = _Tally.of(ways, width)
    likely = None
    if probabilities:
        planes = family.background_planes + ways
        likely = np.empty((planes, height, width), dtype=np.float16)
    window = _whole(axes) if probabilities else _window(margins, axes, _threshold(family))
    poll = _Poll.of(margins, axes, window, family.threshold) if _votes(family) else None
    columns = window[1]
    for rows, upsampled in _bands(margins, axes, window):
        weighed = _weigh(upsampled, family, poll)
        band = labels[rows, columns]
        best = weighed.elect(band)
        won = band.view(np.bool_) if ways == 1 else band > 0
        tally.add(rows, columns, band, won, _winning_probability(weighed, best, won, family.score))
        if likely is not None:
            _write_probabilities(weighed.margins, family, likely[:, rows])
    return DecidedMask(
        labels=labels,
        areas=tally.areas,
        boxes=tuple(tally.box(way) for way in _from_1(ways)),
        mean_scores=tally.scores / np.maximum(tally.areas, 1),
        probabilities=likely,
    )


@dataclass(slots=True)
class _Tally:
    """What is told of the ways, added up band by band.

    Attributes:
        areas: int64 [ways].
        scores: float64 [ways]: sums of probabilities.
        tops: int64 [ways]: first row, of ways with an area.
        bottoms: int64 [ways]: last row.
        columns: [ways, width]: columns where the way occurs.
    """

    areas: NDArray[np.int64]
    scores: NDArray[np.float64]
    tops: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    columns: NDArray[np.bool_]

    @classmethod
    def of(cls, ways: int, width: int) -> _Tally:
        """A tally of nothing."""
        none = np.zeros(ways, dtype=np.int64)
        columns = np.zeros((ways, width), dtype=np.bool_)
        return cls(none, np.zeros(ways), none.copy(), none.copy(), columns)

    def add(
        self,
        rows: slice,
        columns: slice,
        labels: NDArray[np.uint8],
        won: NDArray[np.bool_],
        probability: _Floats,
    ) -> None:
        """Counts a band.

        Args:
            rows: Of the mask.
            columns: Likewise.
            labels: [rows, columns].
            won: [rows, columns]: where some way is.
            probability: [n]: of those pixels' labels, row by row.
        """
        ways = len(self.areas)
        numbers = labels[won] if ways > 1 else None
        for index in range(ways):
            belongs = won if numbers is None else labels == index + 1
            area = np.count_nonzero(belongs)
            if area:
                occupied = np.flatnonzero(belongs.any(axis=1))
                if not self.areas[index]:
                    self.tops[index] = rows.start + occupied[0]
                self.bottoms[index] = rows.start + occupied[-1]
                self.columns[index, columns] |= belongs.any(axis=0)
                self.areas[index] += area
                if numbers is None:
                    self.scores[index] += probability.sum(dtype=np.float64)
                else:
                    own = (numbers == index + 1).astype(np.float32)
                    self.scores[index] += np.dot(probability, own)

    def box(self, way: int) -> _Box | None:
        """(x_min, y_min, x_max, y_max) of a way, half-open; None without area."""
        index = way - 1
        if not self.areas[index]:
            return None
        columns = np.flatnonzero(self.columns[index])
        top, bottom = int(self.tops[index]), int(self.bottoms[index])
        return int(columns[0]), top, int(columns[-1]) + 1, bottom + 1


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A band before the decision.

    Attributes:
        margins: [ways, rows, columns], one per way: what scores are made of.
        contest: The same; -inf for ways that are out at a pixel.
        threshold: What a way must be above.
    """

    margins: _Floats
    contest: _Floats
    threshold: float

    def elect(self, labels: NDArray[np.uint8]) -> _Floats:
        """Writes the winners to ``labels``; returns the highest value of the contest."""
        best: _Floats = self.contest[0]
        if len(self.contest) == 1:
            np.greater(best, self.threshold, out=labels.view(np.bool_))
            return best
        labels[:] = 1
        for way, rival in enumerate(self.contest[1:], start=2):
            labels[rival > best] = way
            best = np.maximum(best, rival)
        labels *= (best > self.threshold).view(np.uint8)
        return best


def _from_1(ways: int) -> range:
    return range(1, ways + 1)


def _votes(family: ModelFamily) -> bool:
    return family.decision is Decision.VOTE


def grid_margins(
    logits: _Floats, family: ModelFamily, ways: int, shots: int | None = None
) -> _Floats:
    """Foreground minus background on the network's grid: float32 [ways, S, h, w].

    Args and errors are those of ``decide``.
    """
    background = family.background_planes
    if logits.ndim != 4 or logits.shape[0] < background + ways:
        raise RepositoryError(
            "BAD_LOGITS",
            f"Family {family.name} returned logits {logits.shape} for {ways} ways.",
        )
    kept = logits[: background + ways, :shots]
    if family.decision in _ONE_SHOT and logits.shape[1] != 1:
        raise RepositoryError(
            "BAD_LOGITS",
            f"Family {family.name} returned {logits.shape[1]} shots and decides by "
            f"{family.decision}, which takes one.",
        )
    if background:
        margins: _Floats = kept[1:] - kept[:1]
        return margins
    return kept


def _threshold(family: ModelFamily) -> float:
    return 0.0 if family.decision is Decision.ARGMAX else family.threshold


def _whole(axes: _Axes) -> _Window:
    return slice(0, axes[0].length), slice(0, axes[1].length)


def _window(margins: _Floats, axes: _Axes, threshold: float) -> _Window:
    """Rows and columns of the mask outside which every pixel is background.

    A pixel's margin is a weighted sum of a few cells, of weights that are not negative and add up
    to 1, or to less at the border of a deconvolution: where all of them lie below the threshold,
    so does it. The rest need not be upsampled.
    """
    rows_axis, columns_axis = axes
    if threshold < 0 and rows_axis.least_sum * columns_axis.least_sum < 1 - _SUMS_ARE_OFF_BY:
        return _whole(axes)
    possible = margins.max(axis=(0, 1)) > threshold - _MARGINS_ARE_OFF_BY * max(1.0, abs(threshold))
    rows = rows_axis.reach(_span(possible.any(axis=1)))
    columns = columns_axis.reach(_span(possible.any(axis=0)))
    # Cells may reach no pixel: those that a crop cuts off, or of a mask smaller than the grid.
    reached = rows.start < rows.stop and columns.start < columns.stop
    return (rows, columns) if reached else _NOTHING


def _span(present: NDArray[np.bool_]) -> slice:
    """From the first to the last that is present; empty where there is none."""
    places = np.flatnonzero(present)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _bands(margins: _Floats, axes: _Axes, window: _Window) -> Iterator[tuple[slice, _Floats]]:
    """Upsampled margins [ways, S, rows, columns] of a window: each band until the next."""
    ways, shots, height, width = margins.shape
    planes = np.ascontiguousarray(margins).reshape(ways * shots, height, width)
    rows, columns = window
    # As much as the whole mask's bands take: windows of all sizes would leave holes in the heap.
    row = len(planes) * axes[1].length
    room = np.empty(row * min(max(1, _BAND_BYTES // (4 * row)), axes[0].length), np.float32)
    band = len(room) // max(1, len(planes) * (columns.stop - columns.start))
    for top in range(rows.start, rows.stop, band):
        checkpoint()
        some = slice(top, min(top + band, rows.stop))
        upsampled = upsample(planes, *axes, some, columns, room)
        yield some, upsampled.reshape(ways, shots, *upsampled.shape[1:])


@dataclass(frozen=True, slots=True)
class _Poll:
    """What a vote must know of the whole image.

    Attributes:
        highest: int64 [ways]: highest vote of each way, 1 at least (hsnet.md, section 7).
        voters: float32 [ways, S, 1, 1]: 1 for shots that show the way, else 0.
    """

    highest: NDArray[np.int64]
    voters: _Floats

    @classmethod
    def of(cls, margins: _Floats, axes: _Axes, window: _Window, threshold: float) -> _Poll:
        """Counts votes on the network's grid's margins [ways, S, h, w], upsampled."""
        voters = (margins.max(axis=(2, 3), keepdims=True) > _NO_SHOT / 2).astype(np.float32)
        return cls(_highest_votes(margins, axes, window, threshold), voters)

    def mean(self, upsampled: _Floats) -> _Floats:
        """Mean margin [ways, rows, columns] of the shots that show the way."""
        counts = self.voters.sum(axis=1)
        total: _Floats = (upsampled * self.voters).sum(axis=1)
        total /= np.maximum(counts, 1)
        total[counts[:, 0, 0] == 0] = _NO_SHOT
        return total


def _weigh(upsampled: _Floats, family: ModelFamily, poll: _Poll | None) -> _Weighed:
    """Shots to one margin per way, by the family's decision."""
    if poll is not None:
        mean = poll.mean(upsampled)
        votes = np.count_nonzero(upsampled > family.threshold, axis=1)
        elected = votes >= _VOTE_SHARE * poll.highest[:, None, None]
        return _Weighed(mean, np.where(elected, mean, np.float32(-np.inf)), -np.inf)
    margins = upsampled[:, 0] if upsampled.shape[1] == 1 else upsampled.max(axis=1)
    return _Weighed(margins, margins, _threshold(family))


def _highest_votes(
    margins: _Floats, axes: _Axes, window: _Window, threshold: float
) -> NDArray[np.int64]:
    """Highest vote of each way in the whole image, 1 at least (hsnet.md, section 7)."""
    highest = np.ones(len(margins), dtype=np.int64)
    if margins.shape[1] == 1:
        return highest
    for _, upsampled in _bands(margins, axes, window):
        votes = np.count_nonzero(upsampled > threshold, axis=1)
        np.maximum(highest, votes.max(axis=(1, 2)), out=highest)
    return highest


def _winning_probability(
    weighed: _Weighed, best: _Floats, won: NDArray[np.bool_], score: ScoreMeaning
) -> _Floats:
    """Probabilities [n] of the winners where some way is."""
    if score is ScoreMeaning.SOFTMAX and len(weighed.margins) > 1:
        top, total = _softmax_parts(weighed.margins)
        winning: _Floats = (np.exp(best - top) / total)[won]
        return winning
    # Most of a mask is background, whose exponentials nobody asks for.
    best = best[won]
    return _linear(best) if score is ScoreMeaning.LINEAR else _sigmoid(best, out=best)


def _write_probabilities(
    margins: _Floats, family: ModelFamily, likely: NDArray[np.float16]
) -> None:
    """Writes those of all planes, the background's first if the family is multiway."""
    background = family.background_planes
    if family.score is ScoreMeaning.SOFTMAX:
        top, total = _softmax_parts(margins)
        if background:
            likely[0] = np.exp(-top) / total
        for margin, plane in zip(margins, likely[background:], strict=True):
            plane[:] = np.exp(margin - top) / total
        return
    of_margin = _linear if family.score is ScoreMeaning.LINEAR else _sigmoid
    for margin, plane in zip(margins, likely[background:], strict=True):
        plane[:] = of_margin(margin)
    if background:
        likely[0] = 1 - of_margin(margins.max(axis=0))


def _softmax_parts(margins: _Floats) -> tuple[_Floats, _Floats]:
    """The highest of background (0) and margins, and the sum of exponentials below it."""
    top = np.maximum(margins.max(axis=0), 0)
    total = np.exp(-top)
    for margin in margins:
        total += np.exp(margin - top)
    return top, total


def _linear(margins: _Floats) -> _Floats:
    probabilities: _Floats = np.clip((margins + 1) / 2, 0, 1)
    return probabilities


def _sigmoid(margins: _Floats, out: _Floats | None = None) -> _Floats:
    negative = np.negative(margins, out=out)
    with np.errstate(over="ignore"):
        np.exp(negative, out=negative)
    negative += 1
    return np.reciprocal(negative, out=negative)
