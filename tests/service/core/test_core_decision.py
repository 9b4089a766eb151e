from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from core_family import binary, multiway, resize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.core import decision
from service.core.decision import decide
from service.core.errors import RepositoryError
from service.core.family import (
    ClassHandling,
    Decision,
    ModelFamily,
    PostOp,
    PostStep,
    PostTarget,
    ScoreMeaning,
)
from service.core.postchain import Axis, PostChain, upsample
from service.core.types import DecidedMask, Size

Axes = tuple[Axis, Axis]


def chained(grid: Size, output: Size) -> Axes:
    return PostChain((resize(PostTarget.OUTPUT),)).axes(grid, grid, output, output)


def identity(height: int, width: int) -> Axes:
    return chained(Size(height, width), Size(height, width))


def row(*planes: list[float]) -> np.ndarray:
    """Logits [P, 1, 1, n] of a mask of one row."""
    return np.array(planes, dtype=np.float32)[:, None, None]


def shots(*ways: list[list[float]]) -> np.ndarray:
    """Logits [P, S, 1, n]: per way, per shot, a row."""
    return np.array(ways, dtype=np.float32)[:, :, None]


def decided_row(logits: np.ndarray, family: ModelFamily, ways: int = 1, **more: Any) -> list[int]:
    mask = decide(logits, identity(1, logits.shape[-1]), family=family, ways=ways, **more)
    return mask.labels[0].tolist()


small_logits = arrays(np.float32, (3, 1, 4, 5), elements=st.floats(-8, 8, width=32))


def random_logits(planes: int, shot_count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(planes, shot_count, 9, 7)).astype(np.float32)


@given(logits=small_logits)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_argmax_takes_the_highest_plane_after_upsampling(logits: np.ndarray) -> None:
    axes = chained(Size(4, 5), Size(11, 13))
    mask = decide(logits, axes, family=multiway(), ways=2)
    upsampled = upsample(logits[:, 0].astype(np.float64), *axes, slice(None))
    ordered = np.sort(upsampled, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    np.testing.assert_array_equal(mask.labels[clear], upsampled.argmax(axis=0)[clear])


def test_argmax_ties_go_to_the_background_and_then_to_the_lower_class() -> None:
    logits = row([1, 1, 0, 5], [1, 2, 3, 5], [1, 2, 3, 6])
    assert decided_row(logits, multiway(), ways=2) == [0, 1, 1, 2]


def test_the_highest_margin_above_the_threshold_wins() -> None:
    logits = row([-1, 0, 0.5, 2, 2], [-2, 0, 0.6, 2, 1])
    assert decided_row(logits, binary(), ways=2) == [0, 0, 2, 1, 1]
    assert decided_row(logits, binary(threshold=0.55), ways=2) == [0, 0, 2, 1, 1]
    assert decided_row(logits, binary(threshold=1.0), ways=2) == [0, 0, 0, 1, 1]


def test_margins_of_probabilities_are_scored_as_such() -> None:
    family = binary(score=ScoreMeaning.LINEAR)
    logits = row([-1, 0, 0.5, 1], [-0.5, 0, 0.25, 0])
    mask = decide(logits, identity(1, 4), family=family, ways=2, probabilities=True)
    assert mask.labels[0].tolist() == [0, 0, 1, 1]
    assert mask.probabilities is not None
    np.testing.assert_array_equal(
        mask.probabilities[:, 0], [[0, 0.5, 0.75, 1], [0.25, 0.5, 0.625, 0.5]]
    )
    np.testing.assert_allclose(mask.mean_scores, [0.875, 0])


def test_argmax_knows_no_threshold() -> None:
    assert decided_row(row([0, 0], [0.1, -0.1]), multiway(threshold=3.0)) == [1, 0]


def test_padded_ways_and_shots_are_cut_off() -> None:
    assert decided_row(row([0, 0], [-1, 1], [9, 9]), multiway(), ways=1) == [0, 1]
    padded = shots([[-1, 1], [9, 9]])
    any_shot = binary(decision=Decision.ANY_SHOT)
    assert decided_row(padded, any_shot, shots=1) == [0, 1]
    assert decided_row(padded, any_shot) == [1, 1]


def test_a_way_that_no_shot_shows_wins_no_pixel() -> None:
    logits = row([5.0, 5.0, -1.0], [2.0, -2.0, -2.0])
    assert decided_row(logits, binary(), ways=2) == [1, 1, 0]
    assert decided_row(logits, binary(), ways=2, shown=(2,)) == [2, 0, 0]
    assert logits[0, 0, 0].tolist() == [5.0, 5.0, -1.0], "what was given stays as it is"


def test_any_shot_is_an_or_over_shots() -> None:
    logits = shots(
        [[-1, 1, -1, 3], [-1, -1, -1, -5]],
        [[-1, -1, 0, 2], [-1, 2, 0, 2]],
    )
    assert decided_row(logits, binary(decision=Decision.ANY_SHOT), ways=2) == [0, 2, 0, 1]


@pytest.mark.parametrize("shot_count", [1, 2, 3, 5])
def test_votes_are_counted_as_hsnet_does(shot_count: int) -> None:
    family = binary(decision=Decision.VOTE)
    axes = chained(Size(9, 7), Size(20, 16))
    for seed in range(5):
        logits = random_logits(1, shot_count, seed) - 0.4
        upsampled = upsample(logits[0], *axes, slice(None))
        votes = (upsampled > 0).sum(axis=0)
        expected = votes / max(1, votes.max()) >= 0.5
        mask = decide(logits, axes, family=family, ways=1)
        np.testing.assert_array_equal(mask.labels, expected)


def test_half_of_the_highest_vote_is_foreground_and_no_vote_is_background() -> None:
    family = binary(decision=Decision.VOTE)
    logits = shots([[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]])
    assert decided_row(logits, family) == [1, 1, 0]
    assert decided_row(shots([[0, 0], [0, 0]]), family) == [0, 0]


def test_ways_that_pass_the_vote_are_weighed_by_their_mean_margin() -> None:
    family = binary(decision=Decision.VOTE)
    logits = shots([[1, 5, 1], [1, 5, -9]], [[2, 1, 1], [2, 1, 1]])
    assert decided_row(logits, family, ways=2) == [2, 1, 2]


def test_shots_that_do_not_show_a_way_neither_vote_nor_weigh() -> None:
    family = binary(decision=Decision.VOTE)
    absent = [-1e4, -1e4, -1e4]
    logits = shots(
        [[3, 2, -1], absent, [3, 2, -1], absent], [[1, 1, -1], [1, 5, -1], absent, absent]
    )
    assert decided_row(logits, family, ways=2) == [1, 2, 0]
    axes = identity(1, 3)
    mask = decide(logits, axes, family=family, ways=2, probabilities=True)
    assert mask.probabilities is not None
    expected = 1 / (1 + np.exp(-np.array([[3, 2, -1], [1, 3, -1]])))
    np.testing.assert_allclose(mask.probabilities[:, 0], expected, atol=1e-3)


FAMILIES = {
    "argmax": (multiway(), 1),
    "margin": (binary(), 1),
    "any": (binary(decision=Decision.ANY_SHOT), 3),
    "vote": (binary(decision=Decision.VOTE), 3),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ways", [1, 2, 3])
def test_bands_change_nothing(name: str, ways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family, shot_count = FAMILIES[name]
    logits = random_logits(ways + 1, shot_count)
    axes = chained(Size(9, 7), Size(50, 40))

    def run() -> DecidedMask:
        return decide(logits, axes, family=family, ways=ways, probabilities=True)

    whole = run()
    monkeypatch.setattr(decision, "_BAND_BYTES", 4 * 40 * 7 * ways * shot_count)
    banded = run()
    np.testing.assert_array_equal(banded.labels, whole.labels)
    np.testing.assert_array_equal(banded.areas, whole.areas)
    np.testing.assert_allclose(banded.mean_scores, whole.mean_scores, rtol=1e-5)
    assert banded.boxes == whole.boxes
    assert whole.probabilities is not None
    assert banded.probabilities is not None
    np.testing.assert_allclose(banded.probabilities, whole.probabilities, atol=1e-3)


SPOTS = {
    "inside": (slice(2, 4), slice(3, 5)),
    "corner": (slice(0, 1), slice(6, 7)),
    "column": (slice(0, 9), slice(0, 1)),
    "nowhere": (slice(0, 0), slice(0, 0)),
    "everywhere": (slice(None), slice(None)),
}
SUMS_BELOW_1 = (PostStep(PostOp.DECONVOLVE, factor=4), resize(PostTarget.OUTPUT))


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("steps", [(resize(PostTarget.OUTPUT),), SUMS_BELOW_1])
@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_upsampled_is_background(
    name: str, spot: str, steps: tuple[PostStep, ...], threshold: float
) -> None:
    family, shot_count = FAMILIES[name]
    if family.decision is not Decision.ARGMAX:
        family = replace(family, threshold=threshold)
    ways = 2
    logits = 0.1 * random_logits(ways + family.background_planes, shot_count)
    logits[-ways:] -= 0.9
    logits[-1, :, *SPOTS[spot]] += 3
    size, output = Size(9, 7), Size(50, 40)
    axes = PostChain(steps).axes(size, size, output, output)
    whole = decide(logits, axes, family=family, ways=ways, probabilities=True)
    found = decide(logits, axes, family=family, ways=ways)
    np.testing.assert_array_equal(found.labels, whole.labels)
    np.testing.assert_array_equal(found.areas, whole.areas)
    np.testing.assert_allclose(found.mean_scores, whole.mean_scores, rtol=1e-5)
    assert found.boxes == whole.boxes


@pytest.mark.parametrize("output", [Size(1, 1), Size(3, 3), Size(1, 40), Size(40, 1)])
@pytest.mark.parametrize("cell", [(0, 0), (4, 4), (8, 3), (2, 8), (8, 8)])
def test_cells_that_reach_no_pixel_are_background(cell: tuple[int, int], output: Size) -> None:
    logits = np.full((1, 1, 9, 9), -3, np.float32)
    logits[0, 0, *cell] = 3
    cut = PostStep(PostOp.CROP, target=PostTarget.EXTENT)
    for steps in ((resize(PostTarget.INPUT), cut), ()):
        chain = PostChain((*steps, resize(PostTarget.OUTPUT)))
        sizes = Size(9, 9), Size(65, 65), Size(120, 75), output, Size(65, 40)
        axes = chain.axes(*sizes)
        whole = decide(logits, axes, family=binary(), ways=1, probabilities=True)
        found = decide(logits, axes, family=binary(), ways=1)
        np.testing.assert_array_equal(found.labels, whole.labels)
        assert found.boxes == whole.boxes


def test_only_what_can_be_of_a_class_is_upsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels: list[int] = []

    def counting(*args: Any) -> np.ndarray:
        upsampled = upsample(*args)
        pixels.append(upsampled.size)
        return upsampled

    monkeypatch.setattr(decision, "upsample", counting)
    logits = np.full((1, 1, 9, 9), -2, np.float32)
    logits[0, 0, 4, 4] = 2
    axes = chained(Size(9, 9), Size(90, 90))
    assert decide(logits, axes, family=binary(), ways=1).areas[0] > 50
    assert 0 < sum(pixels) <= 30 * 30
    pixels.clear()
    assert decide(-np.abs(logits), axes, family=binary(), ways=1).areas[0] == 0
    assert not pixels


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("score", [ScoreMeaning.SOFTMAX, ScoreMeaning.SIGMOID])
@pytest.mark.parametrize("handling", ClassHandling)
def test_scores_are_mean_probabilities(
    ways: int, score: ScoreMeaning, handling: ClassHandling
) -> None:
    multi = handling is ClassHandling.MULTIWAY
    family = multiway(score=score) if multi else binary(score=score)
    logits = random_logits(ways + multi)
    axes = chained(Size(9, 7), Size(30, 20))
    mask = decide(logits, axes, family=family, ways=ways, probabilities=True)
    planes = upsample(logits[:, 0].astype(np.float64), *axes, slice(None))
    margins = planes[1:] - planes[0] if multi else planes
    if score is ScoreMeaning.SOFTMAX:
        weights = np.exp(np.concatenate((np.zeros((1, 30, 20)), margins)))
        expected = weights / weights.sum(axis=0)
    else:
        sigmoids = 1 / (1 + np.exp(-margins))
        expected = np.concatenate((1 - sigmoids.max(axis=0, keepdims=True), sigmoids))
    assert mask.probabilities is not None
    assert mask.probabilities.dtype == np.float16
    np.testing.assert_allclose(mask.probabilities, expected[0 if multi else 1 :], atol=1e-3)
    for way in range(1, ways + 1):
        belongs = mask.labels == way
        assert mask.areas[way - 1] == belongs.sum() > 0
        assert mask.mean_scores[way - 1] == pytest.approx(expected[way][belongs].mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_probabilities_take_little_more_memory_than_they_fill(name: str) -> None:
    family = multiway() if name == "softmax" else binary()
    logits = random_logits(8 + family.background_planes)
    axes = chained(Size(9, 7), Size(1_000, 1_000))
    tracemalloc.start()
    try:
        mask = decide(logits, axes, family=family, ways=8, probabilities=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask.probabilities is not None
    assert peak < mask.probabilities.nbytes + mask.labels.nbytes + 12 * 1024 * 1024


def test_boxes_of_many_bands_are_those_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "_BAND_BYTES", 4 * 40 * 3)
    mask = decide(random_logits(4), chained(Size(9, 7), Size(50, 40)), family=multiway(), ways=3)
    for way, box in enumerate(mask.boxes, start=1):
        rows, columns = np.nonzero(mask.labels == way)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box == tuple(map(int, edges))


def test_boxes_are_half_open_and_absent_without_area() -> None:
    logits = np.full((2, 1, 6, 8), -1, dtype=np.float32)
    logits[0, 0, 2, 3] = logits[0, 0, 4, 6] = 1
    mask = decide(logits, identity(6, 8), family=binary(), ways=2)
    assert mask.boxes == ((3, 2, 7, 5), None)
    assert mask.areas.tolist() == [2, 0]
    assert mask.mean_scores[1] == 0


def test_extreme_logits_stay_probabilities(recwarn: pytest.WarningsRecorder) -> None:
    for family, planes in ((multiway(), 3), (binary(), 2)):
        logits = np.zeros((planes, 1, 1, 3), dtype=np.float32)
        logits[-1, 0, 0] = (1e4, -1e4, 0)
        mask = decide(logits, identity(1, 3), family=family, ways=2, probabilities=True)
        assert mask.probabilities is not None
        assert np.isfinite(mask.probabilities).all()
        assert mask.labels.tolist() == [[2, 0, 0]]
        assert mask.mean_scores[1] == pytest.approx(1)
    assert not recwarn.list


def test_many_ways_and_one_image_stay_within_eight_bits() -> None:
    logits = np.eye(65, dtype=np.float32)[:, None, None]
    mask = decide(logits, identity(1, 65), family=multiway(), ways=64)
    assert mask.labels[0].tolist() == list(range(65))


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        (multiway(), (2, 1, 3, 3)),
        (multiway(), (3, 2, 3, 3)),
        (binary(), (1, 1, 3, 3)),
        (binary(), (2, 3, 3, 3)),
        (binary(), (2, 3, 3)),
    ],
)
def test_logits_that_do_not_fit_the_family_are_refused(
    family: ModelFamily, shape: tuple[int, ...]
) -> None:
    with pytest.raises(RepositoryError) as caught:
        decide(np.zeros(shape, np.float32), identity(3, 3), family=family, ways=2)
    assert caught.value.reason == "BAD_LOGITS"
