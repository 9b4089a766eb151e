from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
import torch
from core_family import resize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv_transpose2d, interpolate

from service.core.errors import RepositoryError
from service.core.family import PostOp, PostStep, PostTarget, ResizeMode
from service.core.postchain import Axis, PostChain, upsample
from service.core.types import Size

TO_OUTPUT = resize(PostTarget.OUTPUT)
fast = settings(deadline=None, derandomize=True, max_examples=50)
sizes = st.builds(Size, st.integers(1, 40), st.integers(1, 40))


def through(steps: tuple[PostStep, ...], logits: np.ndarray, **sizes: Size) -> np.ndarray:
    """All rows of a chain."""
    rows, columns = PostChain(steps).axes(
        Size(*logits.shape[1:]), sizes["input_"], sizes["original"], sizes["output"]
    )
    return upsample(logits, rows, columns, slice(None))


def dense(axis: Axis) -> np.ndarray:
    """The whole matrix of an axis, zeros and all."""
    matrix = np.zeros((axis.length, axis.grid), dtype=np.float32)
    for piece in axis.pieces:
        matrix[piece.rows, piece.columns] = piece.matrix
    return matrix


def torch_resize(logits: np.ndarray, size: Size, align: bool = False) -> np.ndarray:
    tensor = torch.from_numpy(logits.astype(np.float64))[None]
    resized = interpolate(
        tensor, size=(size.height, size.width), mode="bilinear", align_corners=align
    )
    return resized[0].numpy()


def torch_deconvolve(logits: np.ndarray, factor: int) -> np.ndarray:
    """revolver.md, section 3: the outer product of two triangles, not normalised."""
    triangle = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    kernel = torch.from_numpy(np.outer(triangle, triangle))[None, None]
    tensor = torch.from_numpy(logits.astype(np.float64))[:, None]
    return conv_transpose2d(tensor, kernel, stride=factor)[:, 0].numpy()


def random_logits(grid: Size, planes: int = 2) -> np.ndarray:
    random = np.random.default_rng(grid.height * 100 + grid.width)
    return random.normal(size=(planes, grid.height, grid.width)).astype(np.float32)


@given(grid=sizes, output=sizes, mode=st.sampled_from(ResizeMode))
@fast
def test_a_resize_is_that_of_torch(grid: Size, output: Size, mode: ResizeMode) -> None:
    logits = random_logits(grid)
    ours = through(
        (resize(PostTarget.OUTPUT, mode),), logits, input_=grid, original=grid, output=output
    )
    theirs = torch_resize(logits, output, mode is ResizeMode.ALIGN_CORNERS)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@given(
    grid=st.builds(Size, st.integers(1, 12), st.integers(1, 12)),
    factor=st.sampled_from([1, 2, 4, 8, 16]),
)
@fast
def test_a_deconvolution_is_that_of_torch(grid: Size, factor: int) -> None:
    logits = random_logits(grid)
    theirs = torch_deconvolve(logits, factor)
    output = Size(*theirs.shape[1:])
    steps = (PostStep(PostOp.DECONVOLVE, factor=factor), TO_OUTPUT)
    ours = through(steps, logits, input_=grid, original=grid, output=output)
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


@pytest.mark.parametrize("original", [Size(375, 500), Size(500, 375), Size(33, 417)])
@pytest.mark.parametrize("output", [None, Size(300, 200)])
def test_panet_is_two_half_pixel_resizes(original: Size, output: Size | None) -> None:
    logits = random_logits(Size(53, 53))
    network, output = Size(417, 417), output or original
    theirs = torch_resize(torch_resize(logits, network), output)
    ours = through(
        (resize(PostTarget.INPUT), TO_OUTPUT),
        logits,
        input_=network,
        original=original,
        output=output,
    )
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


@pytest.mark.parametrize("original", [Size(37, 50), Size(50, 37), Size(50, 50)])
def test_pfenet_is_two_align_corners_resizes_and_a_crop(original: Size) -> None:
    logits = random_logits(Size(9, 9))
    square = Size(50, 50)
    theirs = torch_resize(torch_resize(logits, Size(65, 65), align=True), square, align=True)
    theirs = theirs[:, : original.height, : original.width]
    steps = (
        resize(PostTarget.INPUT, ResizeMode.ALIGN_CORNERS),
        resize(PostTarget.LONGEST_SQUARE, ResizeMode.ALIGN_CORNERS),
        PostStep(PostOp.CROP, PostTarget.ORIGINAL),
        TO_OUTPUT,
    )
    ours = through(steps, logits, input_=Size(65, 65), original=original, output=original)
    np.testing.assert_allclose(ours, theirs, atol=3e-6)
    smaller = through(steps, logits, input_=Size(65, 65), original=original, output=Size(20, 10))
    np.testing.assert_allclose(smaller, torch_resize(theirs, Size(20, 10)), atol=3e-6)


def test_a_letterboxed_image_is_cut_out_of_its_canvas() -> None:
    logits, extent, output = random_logits(Size(9, 9)), Size(40, 64), Size(75, 120)
    theirs = torch_resize(logits, Size(65, 65), align=True)[:, :40, :64]
    steps = (
        resize(PostTarget.INPUT, ResizeMode.ALIGN_CORNERS),
        PostStep(PostOp.CROP, PostTarget.EXTENT),
        TO_OUTPUT,
    )
    rows, columns = PostChain(steps).axes(Size(9, 9), Size(65, 65), output, output, extent)
    ours = upsample(logits, rows, columns, slice(None))
    np.testing.assert_allclose(ours, torch_resize(theirs, output), atol=3e-6)


def test_revolver_is_a_deconvolution_and_a_crop() -> None:
    original = Size(75, 100)
    grid = Size(-(-75 // 32) - 1, -(-100 // 32) - 1)
    logits = random_logits(grid)
    steps = (
        PostStep(PostOp.DECONVOLVE, factor=32),
        PostStep(PostOp.CROP, PostTarget.ORIGINAL),
        TO_OUTPUT,
    )
    ours = through(steps, logits, input_=original, original=original, output=original)
    np.testing.assert_allclose(ours, torch_deconvolve(logits, 32)[:, :75, :100], atol=3e-6)


def test_no_output_size_means_the_network_s() -> None:
    chain = PostChain((resize(PostTarget.INPUT), TO_OUTPUT))
    grid, network, original = Size(5, 5), Size(33, 41), Size(70, 80)
    rows, columns = chain.axes(grid, network, original, None)
    assert (dense(rows).shape, dense(columns).shape) == ((33, 5), (41, 5))
    same = chain.axes(grid, network, original, network)
    assert same[0] is rows
    assert same[1] is columns


@pytest.mark.parametrize("output", [Size(3, 5_000), Size(5_000, 3), Size(1_501, 1_999)])
@pytest.mark.parametrize("mode", ResizeMode)
def test_a_long_axis_is_resized_as_torch_does(output: Size, mode: ResizeMode) -> None:
    logits = random_logits(Size(21, 13), planes=1)
    network = Size(167, 103)
    align = mode is ResizeMode.ALIGN_CORNERS
    theirs = torch_resize(torch_resize(logits, network, align), output, align)
    steps = (resize(PostTarget.INPUT, mode), resize(PostTarget.OUTPUT, mode))
    ours = through(steps, logits, input_=network, original=network, output=output)
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


def test_a_long_axis_takes_memory_for_its_taps_and_not_for_its_zeros() -> None:
    chain = PostChain((resize(PostTarget.INPUT), TO_OUTPUT), cache_bytes=0)
    grid, network, output = Size(900, 900), Size(7200, 7200), Size(30_000, 1)
    tracemalloc.start()
    try:
        rows, columns = chain.axes(grid, network, network, output)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(
        [piece.matrix.sum() for piece in rows.pieces],
        [piece.rows.stop - piece.rows.start for piece in rows.pieces],
        rtol=1e-5,
    )
    assert columns.nbytes <= 4 * 900
    assert rows.nbytes < 4 * 1024 * 1024
    # All 30,000 x 900 numbers would take 216 MB.
    assert peak < 20 * 1024 * 1024


@given(top=st.integers(0, 30), rows=st.integers(1, 30))
@fast
def test_a_band_is_a_part_of_the_whole(top: int, rows: int) -> None:
    logits = random_logits(Size(7, 9), planes=3)
    matrices = PostChain((TO_OUTPUT,)).axes(Size(7, 9), Size(7, 9), Size(31, 20), Size(31, 20))
    whole = upsample(logits, *matrices, slice(None))
    band = slice(top, top + rows)
    np.testing.assert_allclose(upsample(logits, *matrices, band), whole[:, band], atol=1e-6)


@given(top=st.integers(0, 30), left=st.integers(0, 19), size=st.integers(1, 12))
@fast
def test_a_window_is_a_part_of_the_whole(top: int, left: int, size: int) -> None:
    logits = random_logits(Size(7, 9), planes=3)
    matrices = PostChain((TO_OUTPUT,)).axes(Size(7, 9), Size(7, 9), Size(31, 20), Size(31, 20))
    whole = upsample(logits, *matrices, slice(None))
    rows, columns = slice(top, top + size), slice(left, left + size)
    found = upsample(logits, *matrices, rows, columns)
    np.testing.assert_allclose(found, whole[:, rows, columns], atol=1e-6)


@given(start=st.integers(0, 8), length=st.integers(0, 5), output=st.integers(1, 70))
@fast
def test_the_reach_of_cells_holds_every_row_that_has_a_tap_in_them(
    start: int, length: int, output: int
) -> None:
    grid = Size(9, 9)
    for steps in ((TO_OUTPUT,), (PostStep(PostOp.DECONVOLVE, factor=4), TO_OUTPUT)):
        axis = PostChain(steps).axes(grid, grid, grid, Size(output, output))[0]
        cells = slice(start, min(9, start + length))
        reached = axis.reach(cells)
        touched = np.flatnonzero(dense(axis)[:, cells].any(axis=1))
        assert set(touched.tolist()) <= set(range(reached.start, reached.stop))
        assert length or reached.start == reached.stop


@pytest.mark.parametrize("rows", [slice(600, 900), slice(1290, 1300), slice(639, 641)])
def test_a_band_may_lie_in_several_pieces(rows: slice) -> None:
    logits = random_logits(Size(7, 9), planes=3)
    axes = PostChain((TO_OUTPUT,)).axes(Size(7, 9), Size(7, 9), Size(7, 9), Size(1300, 20))
    assert len(axes[0].pieces) > 1
    whole = dense(axes[0])[rows] @ logits @ dense(axes[1]).T
    np.testing.assert_allclose(upsample(logits, *axes, rows), whole, atol=1e-6)


def test_matrices_are_kept_within_a_budget_and_the_oldest_go_first() -> None:
    grid = Size(4, 4)
    a_row = 4 * 4 + 4  # of the matrix, and where its first tap lies
    chain = PostChain((TO_OUTPUT,), cache_bytes=2 * 10 * a_row)
    first = chain.axes(grid, grid, grid, Size(10, 10))[0]
    chain.axes(grid, grid, grid, Size(9, 9))
    assert chain.axes(grid, grid, grid, Size(10, 10))[0] is first
    chain.axes(grid, grid, grid, Size(8, 8))
    assert chain.nbytes == (10 + 8) * a_row
    assert chain.axes(grid, grid, grid, Size(10, 10))[0] is first
    large = chain.axes(grid, grid, grid, Size(1000, 10))[0]
    assert (large.length, large.grid) == (1000, 4)
    assert chain.nbytes <= 2 * 10 * a_row


def test_matrices_cannot_be_changed_by_who_gets_them() -> None:
    rows, _ = PostChain((TO_OUTPUT,)).axes(Size(2, 2), Size(2, 2), Size(4, 4), Size(4, 4))
    with pytest.raises(ValueError, match="read-only"):
        rows.pieces[0].matrix[0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        rows.first[0] = 7


def test_threads_share_a_chain() -> None:
    chain = PostChain((TO_OUTPUT,), cache_bytes=2_000)
    grid = Size(5, 5)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for length in np.random.default_rng(seed).integers(1, 30, 200).tolist():
            rows, _ = chain.axes(grid, grid, grid, Size(length, length))
            if not np.allclose(dense(rows).sum(axis=1), np.ones(length)):
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < chain.nbytes <= 2_000


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (resize(PostTarget.INPUT),),
        (TO_OUTPUT, resize(PostTarget.INPUT)),
        (TO_OUTPUT, TO_OUTPUT),
        (PostStep(PostOp.RESIZE), TO_OUTPUT),
        (PostStep(PostOp.DECONVOLVE), TO_OUTPUT),
    ],
)
def test_a_chain_that_leads_nowhere_is_refused(steps: tuple[PostStep, ...]) -> None:
    with pytest.raises(RepositoryError) as caught:
        PostChain(steps)
    assert caught.value.reason == "BAD_POST_CHAIN"


def test_a_crop_needs_something_to_crop() -> None:
    chain = PostChain((PostStep(PostOp.CROP, PostTarget.ORIGINAL), TO_OUTPUT))
    with pytest.raises(RepositoryError, match="crop to 9"):
        chain.axes(Size(4, 4), Size(4, 4), Size(9, 4), Size(9, 4))
