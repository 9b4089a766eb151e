from __future__ import annotations

import numpy as np
from core_family import multiway

from service.core.family import VoidRule
from service.core.planes import UNLABELLED, VOID, agreement, inferred_background, planes


def test_planes_hold_the_evidence_of_each_way() -> None:
    labels = np.array([[UNLABELLED, VOID, 0], [1, 2, 3]], dtype=np.int16)
    evidence = planes(labels, 4, {1, 3}, multiway(void=VoidRule.UNKNOWN))
    assert evidence.dtype == np.bool_
    assert evidence.shape == (5, 2, 3)
    assert evidence[0].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert evidence[1].tolist() == [[0, 0, 0], [1, 0, 0]]
    assert not evidence[2].any()
    assert evidence[3].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert not evidence[4].any()


def test_void_counts_as_background_where_the_method_says_so() -> None:
    labels = np.array([[UNLABELLED, VOID, 0, 1]], dtype=np.int16)
    evidence = planes(labels, 1, {1}, multiway(void=VoidRule.BACKGROUND))
    assert evidence[0].tolist() == [[0, 1, 1, 0]]


def positive_planes(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    evidence = np.zeros((1 + len(boxes), *shape), dtype=np.bool_)
    for way, (top, bottom, left, right) in enumerate(boxes, start=1):
        evidence[way, top:bottom, left:right] = 1
    return evidence


def test_inferred_background_leaves_a_quarter_around_the_positives() -> None:
    inferred = inferred_background(positive_planes((40, 50), (10, 18, 20, 26)))
    expected = np.ones((40, 50))
    expected[8:20, 18:28] = 0  # a quarter of 8 rows is 2, of 6 columns 1.5: 2
    np.testing.assert_array_equal(inferred, expected)


def test_inferred_background_takes_one_box_around_all_ways() -> None:
    inferred = inferred_background(positive_planes((40, 50), (10, 11, 10, 11), (30, 31, 40, 41)))
    assert inferred[:4].all()
    assert not inferred[5:36, 3:48].any()


def test_inferred_background_keeps_one_pixel_around_a_click() -> None:
    inferred = inferred_background(positive_planes((9, 9), (4, 5, 4, 5)))
    assert inferred.sum() == 81 - 9
    assert not inferred[3:6, 3:6].any()


def test_inferred_background_shrinks_to_what_is_left() -> None:
    nearly_all = inferred_background(positive_planes((10, 10), (1, 10, 0, 10)))
    assert nearly_all.sum() == 10
    assert nearly_all[0].all()
    corners = inferred_background(positive_planes((10, 10), (0, 1, 0, 1), (9, 10, 9, 10)))
    assert corners.sum() == 98
    assert not inferred_background(positive_planes((10, 10), (0, 10, 0, 10))).any()


def test_nothing_positive_infers_nothing() -> None:
    assert not inferred_background(positive_planes((10, 10), (0, 0, 0, 0))).any()


def test_agreement_counts_labelled_pixels_only() -> None:
    prediction = np.array([[1, 1, 1, 0, 2, 1, 1]], dtype=np.uint8)
    labels = np.array([[1, 0, 2, 1, 2, UNLABELLED, VOID]], dtype=np.int16)
    assert agreement(prediction, labels, 1) == 1 / 4
    assert agreement(prediction, labels, 2) == 1 / 2
    assert agreement(prediction, labels, 3) is None
