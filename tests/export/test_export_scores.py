"""What a verification lets pass, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from export.goldens import Golden
from export.verification.comparing import crop, map_error, relative, sigmoid, worst
from export.verification.scores import GoldenScores, decide, resized

LOGITS = np.random.default_rng(0).normal(size=(1, 2, 12, 10)).astype(np.float32) * 10
WINDOW = np.array([2, 3, 4, 5], np.int32)


def scores(**arrays) -> GoldenScores:
    arrays = arrays or {"logits": LOGITS}
    return GoldenScores(Golden("case", {}, arrays), largest=float(np.abs(LOGITS).max()))


def probabilities(logits):
    return sigmoid(logits[1:] - logits[:1]).astype(np.float16)


@pytest.mark.parametrize("change", [1.0, 1.0 + 1e-4])
def test_small_differences_pass(change):
    logits = LOGITS[0] * np.float32(change)
    margins = logits[1:] - logits[:1]
    for found in (logits, margins):
        assert scores().measure_logits("torch", found).passed
        assert scores().measure_scores("torch", found, LOGITS[0]).passed
        assert scores().measure_mask("torch", decide(found), LOGITS[0].argmax(axis=0)).passed
    assert scores().measure_probabilities("served", probabilities(logits)).passed


def test_larger_differences_do_not():
    logits = LOGITS[0] * np.float32(1.001)
    assert not scores().measure_logits("torch", logits).passed
    assert not scores().measure_scores("torch", logits, LOGITS[0]).passed
    assert (
        not scores()
        .measure_probabilities("served", probabilities(LOGITS[0] + [[[0]], [[1]]]))
        .passed
    )
    assert not scores().measure_logits("torch", logits[:, 1:]).passed
    assert not scores().measure_logits("torch", logits * np.float32("nan")).passed


def test_ties_may_be_decided_either_way_and_nothing_else():
    logits = LOGITS.copy()
    logits[0, 0, 0, 0] = logits[0, 1, 0, 0] + np.float32(1e-4)
    golden = scores(logits=logits)
    mask = logits[0].argmax(axis=0)
    mask[0, 0] ^= 1
    assert golden.measure_mask("served", mask, logits[0].argmax(axis=0)).passed
    mask[5, 5] ^= 1
    assert golden.measure_mask("served", mask, logits[0].argmax(axis=0)).error == 1


def test_large_maps_are_compared_where_they_are_stored_exactly():
    stored = scores(
        logits_f16=LOGITS.astype(np.float16),
        logits_crop=crop(LOGITS[0], WINDOW)[None],
        logits_crop_yx=WINDOW,
    )
    assert stored.measure_logits("torch", LOGITS[0]).passed
    outside = LOGITS[0].copy()
    outside[:, 0, 0] += 5
    assert stored.measure_logits("torch", outside).passed
    inside = LOGITS[0].copy()
    inside[:, 2, 3] += 5
    assert not stored.measure_logits("torch", inside).passed
    assert stored.measure_mask("torch", decide(LOGITS[0]), LOGITS[0].argmax(axis=0)).passed


def test_errors_are_those_of_the_worst_value():
    golden = np.array([1.0, -4.0])
    assert worst(np.array([1.5, -4.0]), golden) == 0.5
    assert relative(np.array([1.5, -4.0]), golden) == 0.125
    assert worst(np.array([1.0]), golden) == float("inf")
    assert map_error(LOGITS[0], {"x": LOGITS}, "x") == 0


def test_resizing_is_torchs():
    planes = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    assert resized(planes, (4, 8)).shape == (1, 4, 8)
    corners = resized(planes, (3, 7), align_corners=True)
    assert corners[0, 0, 0] == 0
    assert corners[0, -1, -1] == 7
