from __future__ import annotations

import time
from io import BytesIO

import numpy as np
import pytest
import torch
from core_family import multiway
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from service.core.errors import RepositoryError
from service.core.family import MaskResize
from service.core.planes import (
    UNLABELLED,
    VOID,
    label_plane,
    nearest_indices,
    torch_nearest_indices,
)
from service.core.run_lengths import encode_run_lengths
from service.core.types import (
    BACKGROUND,
    Annotation,
    Box,
    Geometry,
    IndexMask,
    Mark,
    Points,
    Polygon,
    Scribble,
    Size,
)

CLASSES = ("cup", "plate")
FAMILY = multiway()
IMAGE = Size(40, 50)
fast = settings(deadline=None, derandomize=True, max_examples=60)

sizes = st.builds(Size, st.integers(1, 60), st.integers(1, 60))


def painted(
    *shapes: Geometry,
    image: Size = IMAGE,
    plane: Size | None = None,
    labels: tuple[str, ...] = ("cup",),
    exhaustive: bool = False,
) -> np.ndarray:
    marks = tuple(
        Mark(shape, None if isinstance(shape, IndexMask) else labels[index % len(labels)])
        for index, shape in enumerate(shapes)
    )
    return label_plane(
        Annotation(marks, exhaustive, ("cup",)), image, plane or image, CLASSES, FAMILY
    )


@st.composite
def positions(draw: st.DrawFn, count: int) -> tuple[Size, Size, list[tuple[float, float]]]:
    """An image, a plane, and positions inside the image."""
    image, plane = draw(sizes), draw(sizes)
    inside = st.tuples(
        st.floats(0, image.width, exclude_max=True), st.floats(0, image.height, exclude_max=True)
    )
    return image, plane, draw(st.lists(inside, min_size=count, max_size=count))


def distances(image: Size, plane: Size, a: tuple, b: tuple) -> np.ndarray:
    """Distance in image pixels of every plane pixel's centre from the line a to b."""
    rows, columns = np.mgrid[: plane.height, : plane.width] + 0.5
    x, y = columns * image.width / plane.width, rows * image.height / plane.height
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = ((x - a[0]) * dx + (y - a[1]) * dy) / ((dx * dx + dy * dy) or 1)
    along = np.clip(along, 0, 1)
    return np.hypot(x - a[0] - along * dx, y - a[1] - along * dy)


@given(positions(1))
@fast
def test_a_point_labels_the_pixel_that_holds_it_and_no_other(
    case: tuple[Size, Size, list[tuple[float, float]]],
) -> None:
    image, plane, [(x, y)] = case
    labels = painted(Points(((x, y),)), image=image, plane=plane)
    [(row, column)] = np.argwhere(labels == 1).tolist()
    assert row == min(int(y * (plane.height / image.height)), plane.height - 1)
    assert column == min(int(x * (plane.width / image.width)), plane.width - 1)


@given(positions(2), st.floats(0.1, 30))
@fast
def test_a_radius_labels_everything_within_it(
    case: tuple[Size, Size, list[tuple[float, float]]], radius: float
) -> None:
    image, plane, points = case
    labels = painted(Points(tuple(points), radius), image=image, plane=plane)
    far = np.minimum(*(distances(image, plane, point, point) for point in points))
    assert (labels[far < radius - 1e-6] == 1).all()
    clicks = painted(Points(tuple(points)), image=image, plane=plane)
    assert (labels[(far > radius + 1e-6) & (clicks != 1)] == UNLABELLED).all()


@given(positions(3), st.floats(0, 20))
@fast
def test_a_scribble_labels_its_brush_and_a_connected_line(
    case: tuple[Size, Size, list[tuple[float, float]]], width: float
) -> None:
    image, plane, vertices = case
    labels = painted(Scribble(tuple(vertices), width), image=image, plane=plane)
    far = np.minimum(
        distances(image, plane, vertices[0], vertices[1]),
        distances(image, plane, vertices[1], vertices[2]),
    )
    radius = (width or 1) / 2
    assert (labels[far < radius - 1e-6] == 1).all()
    # The one-pixel line stays within a pixel's diagonal of the stroke.
    slack = np.hypot(image.height / plane.height, image.width / plane.width) / 2
    assert (labels[far > max(radius, slack) + 1e-6] == UNLABELLED).all()
    assert connected(labels == 1)


def connected(covered: np.ndarray) -> bool:
    """Whether all set pixels hang together by sides or corners."""
    reached = np.zeros_like(covered)
    reached[tuple(np.argwhere(covered)[0])] = True
    while True:
        grown = np.pad(reached, 1)
        height, width = covered.shape
        spread = np.logical_or.reduce(
            [grown[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        )
        spread &= covered
        if (spread == reached).all():
            return bool((reached == covered).all())
        reached = spread


def test_a_scribble_of_one_vertex_is_a_dot() -> None:
    assert np.argwhere(painted(Scribble(((10.5, 7.5),))) == 1).tolist() == [[7, 10]]
    assert (painted(Scribble(((10.5, 7.5),), width=3)) == 1).sum() == 9


def test_a_stroke_along_the_far_edge_stays_on_the_plane() -> None:
    labels = painted(Scribble(((50, 0), (50, 40), (0, 40))))
    assert (labels[:, -1] == 1).all()
    assert (labels[-1] == 1).all()
    assert (labels[:-1, :-1] == UNLABELLED).all()


@given(
    st.tuples(st.floats(0, 50), st.floats(0, 50)).filter(lambda pair: pair[0] != pair[1]),
    st.tuples(st.floats(0, 40), st.floats(0, 40)).filter(lambda pair: pair[0] != pair[1]),
    sizes,
)
@fast
def test_a_box_covers_the_centres_inside_and_at_least_one_pixel(
    across: tuple[float, float], down: tuple[float, float], plane: Size
) -> None:
    box = Box(min(across), min(down), max(across), max(down))
    labels = painted(box, plane=plane)
    x = (np.arange(plane.width) + 0.5)[None] / (plane.width / 50)
    y = (np.arange(plane.height) + 0.5)[:, None] / (plane.height / 40)
    inside_x = (x > box.x_min + 1e-9) & (x < box.x_max - 1e-9)
    inside_y = (y > box.y_min + 1e-9) & (y < box.y_max - 1e-9)
    assert (labels[inside_x & inside_y] == 1).all()
    assert (labels == 1).any()
    if inside_x.any() and inside_y.any():
        outside = (x < box.x_min - 1e-9) | (x > box.x_max + 1e-9)
        outside = outside | (y < box.y_min - 1e-9) | (y > box.y_max + 1e-9)
        assert (labels[outside] == UNLABELLED).all()


def test_boxes_are_half_open_so_that_neighbours_neither_overlap_nor_leave_a_gap() -> None:
    first, second = Box(0, 0, 10.5, 40), Box(10.5, 0, 50, 40)
    labels = painted(first, second, labels=("cup", "plate"))
    assert (labels[:, :10] == 1).all()
    assert (labels[:, 10:] == 2).all()
    assert ((painted(first) == 1) ^ (painted(second) == 1)).all()


@given(st.integers(0, 24), st.integers(25, 50), st.integers(0, 19), st.integers(20, 40), sizes)
@fast
def test_a_rectangular_outline_is_a_box(x0: int, x1: int, y0: int, y1: int, plane: Size) -> None:
    outline = Polygon((((x0, y0), (x1, y0), (x1, y1), (x0, y1)),))
    ours, box = painted(outline, plane=plane), painted(Box(x0, y0, x1, y1), plane=plane)
    if (ours == 1).sum() > 1:
        np.testing.assert_array_equal(ours, box)


@given(positions(6))
@fast
def test_an_outline_covers_the_centres_inside_it_by_the_even_odd_rule(
    case: tuple[Size, Size, list[tuple[float, float]]],
) -> None:
    image, plane, ring = case
    labels = painted(Polygon((tuple(ring),)), image=image, plane=plane)
    rows, columns = np.mgrid[: plane.height, : plane.width] + 0.5
    x, y = columns * image.width / plane.width, rows * image.height / plane.height
    inside = np.zeros((plane.height, plane.width), dtype=bool)
    near = np.zeros_like(inside)
    for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
        near |= distances(image, plane, a, b) < 1e-6
        reached = (a[1] <= y) != (b[1] <= y)
        share = (y[reached] - a[1]) / (b[1] - a[1]) if reached.any() else 0
        inside[reached] ^= x[reached] >= a[0] + share * (b[0] - a[0])
    assert (labels == 1).any()
    assert (labels[inside & ~near] == 1).all()
    if (inside & ~near).any():
        assert (labels[~inside & ~near] == UNLABELLED).all()


def test_rings_are_united_and_each_shows() -> None:
    square = ((5, 5), (15, 5), (15, 15), (5, 15))
    shifted = tuple((x + 5, y + 5) for x, y in square)
    speck = ((40.1, 30.1), (40.2, 30.1), (40.2, 30.2))
    labels = painted(Polygon((square, shifted, speck)))
    assert (labels == 1).sum() == 100 + 100 - 25 + 1
    assert labels[30, 40] == 1


def test_many_rings_are_filled_as_one_by_one() -> None:
    random = np.random.default_rng(5)
    rings = tuple(
        tuple(map(tuple, random.uniform((0, 0), (50, 40), (4, 2)).tolist())) for _ in range(20)
    )
    together = painted(Polygon(rings), plane=Size(97, 61))
    each = [painted(Polygon((ring,)), plane=Size(97, 61)) for ring in rings]
    np.testing.assert_array_equal(together, np.maximum.reduce(each))


@given(
    st.sampled_from(["points", "scribble", "polygon"]),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=5),
    st.integers(0, 20),
    st.integers(0, 15),
)
@fast
def test_a_moved_shape_covers_the_moved_pixels(
    kind: str, vertices: list[tuple[int, int]], right: int, down: int
) -> None:
    def shape(dx: int, dy: int) -> Geometry:
        moved = tuple((x + dx + 0.25, y + dy + 0.75) for x, y in vertices)
        return {
            "points": Points(moved, 2.0),
            "scribble": Scribble(moved, 3.0),
            "polygon": Polygon((moved,)),
        }[kind]

    image = Size(60, 60)
    still = painted(shape(10, 10), image=image)
    moved = painted(shape(10 + right, 10 + down), image=image)
    np.testing.assert_array_equal(moved, np.roll(still, (down, right), axis=(0, 1)))


def test_scaling_image_and_geometry_together_changes_nothing() -> None:
    vertices = ((3.5, 4.5), (30.5, 20.5), (12.5, 33.5))
    doubled = tuple((2 * x, 2 * y) for x, y in vertices)
    plane = Size(33, 33)
    for small, large in (
        (Points(vertices, 2.5), Points(doubled, 5)),
        (Scribble(vertices, 3), Scribble(doubled, 6)),
        (Polygon((vertices,)), Polygon((doubled,))),
        (Box(3, 4, 30, 20), Box(6, 8, 60, 40)),
    ):
        np.testing.assert_array_equal(
            painted(small, plane=plane), painted(large, image=Size(80, 100), plane=plane)
        )


def test_a_point_survives_where_a_resized_mask_would_lose_it() -> None:
    labels = painted(Points(((2999.5, 1999.5),)), image=Size(4000, 6000), plane=Size(33, 33))
    assert (labels == 1).sum() == 1


def test_later_marks_cover_earlier_ones() -> None:
    shapes = (Box(0, 0, 30, 30), Box(10, 10, 20, 20))
    labels = painted(*shapes, labels=("cup", BACKGROUND))
    assert (labels[10:20, 10:20] == 0).all()
    assert (labels == 1).sum() == 800
    assert not (painted(*shapes[::-1], labels=(BACKGROUND, "cup")) == 0).any()


@given(shape=st.tuples(st.integers(1, 90), st.integers(1, 90)), plane=sizes, seed=st.integers(0, 9))
@fast
def test_dense_masks_are_resized_exactly_as_pillow_does(
    shape: tuple[int, int], plane: Size, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 4, shape, dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    resized = np.asarray(
        Image.fromarray(values).resize((plane.width, plane.height), Image.Resampling.NEAREST)
    )
    image = Size(*shape)
    mask = IndexMask(file.getvalue(), {1: "plate", 2: "cup"}, (3,))
    expected = np.array([0, 2, 1, VOID])[resized]
    labels = painted(mask, image=image, plane=plane, exhaustive=True)
    np.testing.assert_array_equal(labels, expected)
    open_labels = painted(mask, image=image, plane=plane)
    np.testing.assert_array_equal(open_labels, np.where(expected == 0, UNLABELLED, expected))
    runs = painted(encode_run_lengths(values == 2), image=image, plane=plane)
    np.testing.assert_array_equal(runs == 1, resized == 2)


def test_pillow_s_nearest_is_the_formula_of_the_contract() -> None:
    for length, target in ((500, 417), (375, 417), (7, 3), (3, 7), (640, 33)):
        formula = ((2 * np.arange(target) + 1) * length) // (2 * target)
        np.testing.assert_array_equal(nearest_indices(length, target), formula)


def test_torch_s_nearest_is_torch_s() -> None:
    lengths = [(length, target) for length in range(1, 70) for target in (1, 7, 53, 126, 400)]
    for length, target in (*lengths, (500, 400), (375, 400), (640, 480), (333, 480), (1023, 97)):
        axis = torch.arange(length, dtype=torch.float32)[None, None]
        picked = functional.interpolate(axis, size=target, mode="nearest")[0, 0]
        np.testing.assert_array_equal(torch_nearest_indices(length, target), picked.numpy())


def test_dense_masks_are_resized_by_the_rule_of_the_family() -> None:
    pixels = np.arange(6, dtype=np.uint8)[None] % 2
    annotation = Annotation((Mark(encode_run_lengths(pixels), "cup"),), True, ("cup",))
    for rule, expected in ((MaskResize.PIL_NEAREST, [1, 0]), (MaskResize.TORCH_NEAREST, [0, 1])):
        family = multiway(mask_resize=rule)
        labels = label_plane(annotation, Size(1, 6), Size(1, 2), CLASSES, family)
        assert labels.tolist() == [expected]


def test_zero_can_stand_for_a_class() -> None:
    file = BytesIO()
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(file, "PNG")
    mask = IndexMask(file.getvalue(), {0: "cup", 1: "plate"})
    assert painted(mask, image=Size(1, 2)).tolist() == [[1, 2]]


def test_names_for_numbers_that_no_png_holds_do_no_harm() -> None:
    file = BytesIO()
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(file, "PNG")
    mask = IndexMask(file.getvalue(), {1: "cup", 2**32 - 1: "plate"}, (70_000,))
    assert painted(mask, image=Size(1, 2)).tolist() == [[UNLABELLED, 1]]


def test_as_many_numbers_as_a_mask_can_hold_take_one_look() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5_000
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    names = {value: CLASSES[value // 2 % 2] for value in range(0, 65_536, 2) if value != 10_000}
    mask = IndexMask(file.getvalue(), names, tuple(range(1, 65_536, 2)))
    big = Size(1_500, 2_000)
    started = time.perf_counter()
    plane = painted(Box(0, 0, 4, 3), mask, image=Size(3, 4), plane=big, labels=("plate",))
    # A comparison of the plane with each of 65,000 numbers would take minutes.
    assert time.perf_counter() - started < 5
    expected = np.where(values // 2 % 2 == 0, 1, 2)
    expected[values == 10_000] = 2  # unnamed: the box below shows
    np.testing.assert_array_equal(plane[250::500, 250::500], expected)


def test_a_family_without_a_rule_for_masks_takes_them_at_their_size_only() -> None:
    family = multiway(mask_resize=MaskResize.NONE, input_size=None)
    marks = (Mark(encode_run_lengths(np.eye(4, dtype=np.uint8)), "plate"),)
    annotation = Annotation(marks, True, ("plate",))
    labels = label_plane(annotation, Size(4, 4), Size(4, 4), CLASSES, family)
    np.testing.assert_array_equal(labels, np.eye(4) * 2)
    with pytest.raises(RepositoryError):
        label_plane(annotation, Size(4, 4), Size(5, 5), CLASSES, family)


@pytest.mark.parametrize(
    "shape",
    [
        Scribble(tuple((x % 2 * 500.0, x % 373 * 1.0) for x in range(20_000)), 300),
        Points(tuple((x % 499 + 0.5, x % 373 + 0.5) for x in range(20_000)), 1e300),
        Polygon((tuple((x % 499 + 0.5, x % 2 * 375.0) for x in range(20_000)),)),
        Polygon(tuple(((x % 499, 0), (x % 499 + 1, 0), (5, 375)) for x in range(6_666))),
    ],
    ids=["scribble", "points", "zigzag", "rings"],
)
def test_the_largest_annotation_that_is_taken_is_painted_soon(shape: Geometry) -> None:
    started = time.process_time()
    labels = painted(shape, image=Size(375, 500), plane=Size(417, 417))
    assert (labels == 1).any()
    assert time.process_time() - started < 20
