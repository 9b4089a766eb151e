import numpy as np
import pytest
from PIL import Image

from fewseg import ClassResult, Reuse, SegmentResult, overlay
from fewseg.overlay import PALETTE


@pytest.fixture
def grey():
    return np.full((120, 200, 3), 100, np.uint8)


@pytest.fixture
def mask():
    mask = np.zeros((120, 200), np.uint8)
    mask[20:60, 30:90] = 1
    mask[20:60, 100:160] = 2
    return mask


def test_background_stays_and_classes_are_tinted(grey, mask):
    painted = np.asarray(overlay(grey, mask, outline=False))

    np.testing.assert_array_equal(painted[mask == 0], grey[mask == 0])
    for value in (1, 2):
        expected = (100 + PALETTE[value - 1].astype(int)) / 2
        np.testing.assert_allclose(painted[mask == value], np.tile(expected, (2400, 1)), atol=1)


def test_the_outline_has_the_full_colour_and_stays_inside_its_class(grey, mask):
    painted = np.asarray(overlay(grey, mask))
    np.testing.assert_array_equal(painted[20, 50], PALETTE[0])
    np.testing.assert_array_equal(painted[40, 159], PALETTE[1])
    np.testing.assert_array_equal(painted[19, 50], grey[19, 50])


def test_no_colour_at_all_leaves_the_picture(grey, mask):
    painted = np.asarray(overlay(grey, mask, alpha=0.0, outline=False))
    np.testing.assert_array_equal(painted, grey)


def test_the_legend_names_what_the_mask_shows(grey, mask):
    plain = np.asarray(overlay(grey, mask))
    named = np.asarray(overlay(grey, mask, ["coin", "note"]))
    changed = (plain != named).any(axis=2)
    assert changed[60:, :100].any()
    assert not changed[:60].any()
    assert not changed[:, 100:].any()
    empty = np.asarray(overlay(grey, np.zeros_like(mask), ["coin", "note"]))
    np.testing.assert_array_equal(empty, grey)


def test_a_legend_that_would_hide_the_picture_is_left_out(grey, mask):
    small = np.asarray(overlay(grey[:30, :30], mask[15:45, 20:50], ["a very long name indeed"]))
    bare = np.asarray(overlay(grey[:30, :30], mask[15:45, 20:50]))
    np.testing.assert_array_equal(small, bare)


def test_a_result_brings_its_names_and_a_small_mask_is_stretched(grey, mask):
    classes = tuple(ClassResult(n, v, 1, None, 0.5) for v, n in ((1, "coin"), (2, "note")))
    result = SegmentResult(mask, classes, None, "f", "e", False, {}, Reuse(False, False))
    named = np.asarray(overlay(grey, mask, ["coin", "note"]))
    np.testing.assert_array_equal(np.asarray(overlay(grey, result)), named)
    half = overlay(Image.fromarray(grey), mask[::2, ::2], outline=False)
    np.testing.assert_array_equal(np.asarray(half), np.asarray(overlay(grey, mask, outline=False)))


def test_more_classes_than_colours_go_round(grey):
    mask = np.full((120, 200), len(PALETTE) + 1, np.uint8)
    painted = np.asarray(overlay(grey, mask, alpha=1.0, outline=False))
    np.testing.assert_array_equal(painted[0, 0], PALETTE[0])


def test_what_cannot_be_painted_is_refused(grey, mask):
    with pytest.raises(ValueError, match="alpha"):
        overlay(grey, mask, alpha=2)
    with pytest.raises(ValueError, match="shape"):
        overlay(grey, grey)
