"""Letterboxed input: against torch's bilinear, exact fractions, and numbers worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from core_family import multiway
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.calls import Call
from service.core.family import ImageResize, InputDtype, MaskResize, ModelFamily
from service.core.letterbox import cv2_nearest_indices, letterboxed, linear
from service.core.planes import shot_planes
from service.core.resize import to_network
from service.core.types import (
    Annotation,
    AnnotationInput,
    Box,
    IndexMask,
    Mark,
    Points,
    Scribble,
    Size,
    Support,
    SupportInput,
)
from tests.helpers.gateway import (
    GREEN,
    RED,
    box_mark,
    intersection_over_union,
    labels_of,
    png,
    query,
    red_registration,
    running_gateway,
    source,
)
from tests.helpers.tiny_repository import write_tiny_repository

fast = settings(deadline=None, derandomize=True, max_examples=40)
lengths = st.integers(1, 90)


def family(side: int, **changes: object) -> ModelFamily:
    return multiway(
        input_size=Size(side, side),
        input_dtype=InputDtype.UINT16_FIXED,
        image_resize=ImageResize.CV2_LETTERBOX,
        mask_resize=MaskResize.CV2_LETTERBOX_NEAREST,
        **changes,
    )


@pytest.mark.parametrize(
    ("image", "side", "extent"),
    [
        # 375 * 473 / 500 = 354.75 -> 354 -> 352; 473 -> 472.
        (Size(375, 500), 473, Size(352, 472)),
        (Size(500, 375), 473, Size(472, 352)),
        (Size(480, 640), 641, Size(480, 640)),
        (Size(7, 7), 473, Size(472, 472)),
        # 10 * 473 / 1000 = 4.73 -> 4 -> nothing: 8 is kept.
        (Size(1000, 10), 473, Size(472, 8)),
        (Size(300, 417), 417, Size(296, 416)),
    ],
)
def test_the_part_of_the_canvas_that_an_image_covers(image: Size, side: int, extent: Size) -> None:
    assert letterboxed(image, side) == extent
    assert family(side).extent(image) == extent
    assert multiway(input_size=Size(side, side)).extent(image) == Size(side, side)


@given(height=lengths, width=lengths, target=st.builds(Size, lengths, lengths))
@fast
def test_linear_is_the_half_pixel_bilinear_of_torch(height: int, width: int, target: Size) -> None:
    pixels = np.random.default_rng(height * 91 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    planar = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(
        planar, size=(target.height, target.width), mode="bilinear", align_corners=False
    )[0].permute(1, 2, 0)
    np.testing.assert_allclose(linear(pixels, target), expected.numpy(), rtol=0, atol=2e-3)


def test_linear_by_hand() -> None:
    # Four samples to three: centres at 1/6, 3/2 and 17/6 of the source.
    line = np.array([0, 60, 120, 240], np.uint8)[None, :, None]
    np.testing.assert_allclose(linear(line, Size(1, 3))[0, :, 0], [10, 90, 220], atol=1e-4)


@given(length=lengths, target=lengths)
@fast
def test_nearest_is_the_floor_of_the_scaled_index(length: int, target: int) -> None:
    picked = cv2_nearest_indices(length, target)
    for index, source_index in enumerate(picked):
        exact = Fraction(index * length, target)
        # Where the exact product is a whole number, rounding may fall one short of it.
        allowed = {int(exact)} if exact.denominator > 1 else {int(exact), int(exact) - 1}
        assert source_index in allowed
    assert picked[0] == 0


def test_the_canvas_beside_the_image_is_black() -> None:
    pixels = np.full((50, 30, 3), 255, np.uint8)
    canvas = to_network(pixels, family(33))
    assert (canvas.dtype, canvas.shape) == (np.uint16, (33, 33, 3))
    # 30 * 33 / 50 = 19 -> 16 columns; 33 -> 32 rows.
    assert (canvas[:32, :16] == 255 * 256).all()
    assert not canvas[32:].any()
    assert not canvas[:, 16:].any()


def test_values_are_rounded_to_256ths() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    exact = linear(pixels, Size(32, 32))
    canvas = to_network(pixels, family(33))[:32, :32] / 256
    assert np.abs(canvas - exact).max() <= 0.5 / 256 + 1e-6


def support_of(annotation: Annotation, size: Size) -> Support:
    return Support("id", "0" * 64, size, annotation, "1" * 64)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        # An image of 100 x 60 covers 64 x 32 of 65 x 65: one pixel is 0.64 x 0.53 (y, x) of a cell.
        (Points(((59.5, 99.5),)), slice(63, 64), slice(31, 32)),
        (Points(((0.5, 0.5),)), slice(0, 1), slice(0, 1)),
        (Box(30.0, 50.0, 60.0, 100.0), slice(32, 64), slice(16, 32)),
        (Scribble(((0.0, 99.9), (60.0, 99.9)), width=0), slice(63, 64), slice(0, 32)),
    ],
)
def test_marks_are_drawn_on_the_image_and_not_beside_it(shape, rows, columns) -> None:
    annotation = Annotation((Mark(shape, "cup"),), True, ("cup",))
    marked = shot_planes(support_of(annotation, Size(100, 60)), ("cup",), family(65), False).planes
    expected = np.zeros((65, 65), np.float32)
    expected[rows, columns] = 1
    np.testing.assert_array_equal(marked[1], expected)
    # Exhaustive: the rest of the image is background; the canvas beside it is nothing.
    assert marked[0, :64, :32].sum() + marked[1].sum() == 64 * 32
    assert not marked[0, 64:].any()
    assert not marked[0, :, 32:].any()


def test_a_dense_mask_is_resized_by_the_index_rule() -> None:
    numbers = np.zeros((100, 60), np.uint8)
    numbers[40:, 25:] = 1
    numbers[:10] = 9
    mask = IndexMask(png(numbers), {1: "cup"}, (9,))
    annotation = Annotation((Mark(mask, None),), True, ("cup",))
    marked = shot_planes(support_of(annotation, Size(100, 60)), ("cup",), family(65), False).planes
    rows, columns = np.arange(64) * 100 // 64, np.arange(32) * 60 // 32
    small = numbers[rows[:, None], columns]
    np.testing.assert_array_equal(marked[1, :64, :32], small == 1)
    # Void is background to this family, and the canvas beside the image is not.
    np.testing.assert_array_equal(marked[0, :64, :32], small != 1)
    assert marked.sum() == 64 * 32


def test_inferred_background_stays_on_the_image() -> None:
    annotation = Annotation((Mark(Box(10.0, 10.0, 20.0, 20.0), "cup"),), False, ("cup",))
    marked = shot_planes(support_of(annotation, Size(100, 60)), ("cup",), family(65), True).planes
    assert marked[0, :64, :32].any()
    assert marked[0].sum() == marked[0, :64, :32].sum()


def wide_scene(box: tuple[int, int, int, int], seed: int) -> np.ndarray:
    """A red box on green, 40 rows and 64 columns: it covers 40 x 64 of a canvas of 64 x 64."""
    pixels = np.full((40, 64, 3), GREEN, np.uint8)
    x_min, y_min, x_max, y_max = box
    pixels[y_min:y_max, x_min:x_max] = RED
    return pixels + np.random.default_rng(seed).integers(0, 4, pixels.shape).astype(np.uint8)


def wide_support(support_id: str, box: tuple[int, int, int, int]) -> SupportInput:
    image = source(wide_scene(box, seed=len(support_id)))
    return SupportInput(support_id, image, AnnotationInput((box_mark("red", box),)))


BOXES = {"left": (8, 8, 32, 32), "right": (40, 0, 64, 24)}
FOUND_BOX = (24, 16, 56, 40)


async def test_a_letterboxed_family_serves_images_and_judges_and_segments_supports(
    tmp_path: Path,
) -> None:
    write_tiny_repository(tmp_path, size=64, letterbox=True)
    async with running_gateway(tmp_path) as gateway:
        supports = tuple(wide_support(*item) for item in BOXES.items())
        task = await gateway.tasks.register(red_registration(supports=supports), Call())
        assert task.leave_one_out.keys() == BOXES.keys()
        assert all(agreed[0].iou > 0.8 for agreed in task.leave_one_out.values())
        found = await gateway.segmenter.segment(
            query(source(wide_scene(FOUND_BOX, seed=9))), Call()
        )
        assert found.mask.size == Size(40, 64)
        assert intersection_over_union(labels_of(found), FOUND_BOX) > 0.8
        for support_id, box in BOXES.items():
            mine = await gateway.segmenter.segment(query(support_id, size="network"), Call())
            assert mine.mask.size == Size(40, 64)
            assert intersection_over_union(labels_of(mine), box) > 0.8
