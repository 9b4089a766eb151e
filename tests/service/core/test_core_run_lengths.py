from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from service.core.errors import InvalidArgumentError
from service.core.run_lengths import (
    check_run_lengths,
    decode_run_lengths,
    encode_run_lengths,
    from_counts,
    runs,
)
from service.core.types import RunLengthMask, Size

binary_masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def runs_of(pixels: np.ndarray) -> list[int]:
    """Run lengths by counting, one pixel after the other."""
    counts, current = [0], 0
    for pixel in pixels.flatten(order="F").tolist():
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    return counts


def read_counts(mask: RunLengthMask) -> np.ndarray:
    return np.concatenate(list(runs(mask)))


def compressed(counts: list[int]) -> bytes:
    """The string of the COCO tools, written down from its description, without any check."""
    text = ""
    for index, count in enumerate(counts):
        rest = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            group = rest & 31
            rest >>= 5
            more = rest != (-1 if group & 16 else 0)
            text += chr(48 + group + (32 if more else 0))
    return text.encode()


# pycocotools lags behind numpy 2 in how it copies.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(pixels=binary_masks)
@settings(deadline=None, derandomize=True, max_examples=80)
def test_a_mask_survives_the_round_trip_and_pycocotools_writes_and_reads_the_same(
    pixels: np.ndarray,
) -> None:
    size = Size(*pixels.shape)
    mask = encode_run_lengths(pixels)
    assert mask == RunLengthMask(size, coco.encode(np.asfortranarray(pixels))["counts"])
    assert mask.counts == compressed(runs_of(pixels))
    np.testing.assert_array_equal(decode_run_lengths(mask), pixels)
    np.testing.assert_array_equal(
        coco.decode({"size": list(pixels.shape), "counts": mask.counts}), pixels
    )
    assert from_counts(runs_of(pixels), size) == mask


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5), (417, 333)])
@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_masks_survive(shape: tuple[int, int], fill: int) -> None:
    pixels = np.full(shape, fill, dtype=np.uint8)
    decoded = decode_run_lengths(encode_run_lengths(pixels))
    np.testing.assert_array_equal(decoded, pixels)


def test_a_single_pixel_is_found_by_column_first() -> None:
    pixels = np.zeros((5, 4), dtype=np.uint8)
    pixels[3, 2] = 1
    assert read_counts(encode_run_lengths(pixels)).tolist() == [13, 1, 6]


def test_long_runs_take_several_characters() -> None:
    counts = [40_000_000, 1, 9_999_998, 1]
    assert read_counts(from_counts(counts, Size(5_000, 10_000))).tolist() == counts


@given(counts=st.lists(st.integers(-(2**34), 2**34), min_size=1, max_size=12))
@settings(deadline=None, derandomize=True, max_examples=80)
def test_only_counts_that_fill_the_mask_are_read(counts: list[int]) -> None:
    mask = RunLengthMask(Size(6, 7), compressed(counts))
    if min(counts) >= 0 and sum(counts) == 42:
        assert read_counts(mask).tolist() == counts
    else:
        with pytest.raises(InvalidArgumentError) as caught:
            read_counts(mask)
        assert caught.value.reason == "INVALID_RUN_LENGTHS"


@given(text=st.binary(max_size=60))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_string_is_a_whole_mask_or_an_error(text: bytes) -> None:
    mask = RunLengthMask(Size(4, 5), text)
    try:
        counts = read_counts(mask)
    except InvalidArgumentError:
        return
    assert counts.sum() == 20
    assert decode_run_lengths(mask).sum() == counts[1::2].sum()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"d",  # 20 - 32: negative
        b"P",  # a group that never ends
        b"\xff",
        b"0" * 5,  # nothing but empty runs
        b"o" * 5_000,
        b"oooooooooo0",
        "٣٤".encode(),
    ],
)
def test_hostile_strings_are_errors(text: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="run lengths cannot be read"):
        decode_run_lengths(RunLengthMask(Size(4, 5), text))


@pytest.mark.parametrize("size", [Size(0, 5), Size(5, -1), Size(2**17, 2**17)])
def test_sizes_that_no_mask_has_are_errors_before_memory_is_taken(size: Size) -> None:
    with pytest.raises(InvalidArgumentError):
        decode_run_lengths(RunLengthMask(size, b"0"))


@pytest.mark.parametrize(
    "counts", [[], [19], [21], [-1, 21], [2**40], [2**70], [2**63 - 1, 1], ["x"], [10, 0, 9]]
)
def test_plain_counts_must_add_up(counts: list[int]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        from_counts(counts, Size(4, 5))
    assert caught.value.reason == "INVALID_RUN_LENGTHS"


@given(pixels=arrays(np.uint8, (37, 41), elements=st.integers(0, 1)), part=st.integers(8, 300))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_strings_are_read_in_parts(pixels: np.ndarray, part: int) -> None:
    mask = encode_run_lengths(pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.core.run_lengths._PART", part)
        assert len(list(runs(mask))) >= len(mask.counts) // part
        assert read_counts(mask).tolist() == runs_of(pixels)
        np.testing.assert_array_equal(decode_run_lengths(mask), pixels)


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgumentError, match="more runs than"):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [b"0" * 10_000_000, b"Po" * 5_000_000])
def test_a_string_longer_than_its_mask_could_need_is_not_even_read(text: bytes) -> None:
    mask = RunLengthMask(Size(120, 160), text)
    assert peak_bytes(lambda: decode_run_lengths(mask)) < 100_000


def test_a_long_string_takes_little_memory_while_it_is_read() -> None:
    mask = RunLengthMask(Size(2_000, 1_000), b"0" * 4_000_000)
    assert peak_bytes(lambda: list(runs(mask))) < 40 * 1024 * 1024
    assert peak_bytes(lambda: check_run_lengths(mask)) < 16 * 1024 * 1024


def test_more_plain_runs_than_pixels_are_refused_before_they_are_read() -> None:
    class Endless(list[int]):
        def __len__(self) -> int:
            return 10**9

    assert peak_bytes(lambda: from_counts(Endless(), Size(120, 160))) < 100_000


def test_every_pixel_may_be_a_run_of_its_own() -> None:
    pixels = np.indices((31, 41)).sum(axis=0) % 2 == 1
    mask = encode_run_lengths(pixels)
    assert len(read_counts(mask)) == 31 * 41
    np.testing.assert_array_equal(decode_run_lengths(mask), pixels)
    mask = encode_run_lengths(~pixels)
    assert len(read_counts(mask)) == 31 * 41 + 1
    np.testing.assert_array_equal(decode_run_lengths(mask), ~pixels)


def test_empty_runs_between_others_are_allowed() -> None:
    pixels = decode_run_lengths(from_counts([0, 4, 0, 1, 1], Size(2, 3)))
    assert pixels.flatten(order="F").tolist() == [1, 1, 1, 1, 1, 0]
