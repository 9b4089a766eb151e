"""Binary masks as COCO run lengths.

Runs go down the columns, and the first one counts zeros. A compressed string
holds the runs in groups of five bits, low ones first, one printable character
(48 + bits, plus 32 while more follow) each; from the fourth run on it holds the
difference to the run two before.

Strings are read here and not by pycocotools, which trusts them: it allocates by
what they claim, and leaves pixels that they do not reach uninitialised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.core.errors import InvalidArgumentError
from service.core.types import RunLengthMask, Size

#: Characters of one run; 7 x 5 bits hold every run of a mask below 2^34 pixels.
_LONGEST_GROUP: Final = 7


def decode_run_lengths(mask: RunLengthMask) -> NDArray[np.uint8]:
    """The mask's pixels.

    Returns:
        uint8 [height, width] of 0 and 1, contiguous by columns.

    Raises:
        InvalidArgumentError: See ``read_counts``.
    """
    counts = read_counts(mask)
    ones = (np.arange(len(counts)) & 1).astype(np.uint8)
    return np.repeat(ones, counts).reshape((mask.size.height, mask.size.width), order="F")


def read_counts(mask: RunLengthMask) -> NDArray[np.int64]:
    """The runs of a compressed string, checked: none negative, height * width in all.

    Raises:
        InvalidArgumentError: INVALID_RUN_LENGTHS.
    """
    _check_size(mask.size)
    characters = np.frombuffer(mask.counts, dtype=np.uint8).astype(np.int64) - 48
    if len(characters) == 0:
        raise _invalid("the string is empty")
    if characters.min() < 0 or characters.max() > 63:
        raise _invalid("the string holds characters outside '0' to 'o'")
    ends = np.flatnonzero(characters < 32)
    if len(ends) == 0 or ends[-1] != len(characters) - 1:
        raise _invalid("the string ends in the middle of a run")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_GROUP:
        raise _invalid("a run is longer than any mask")
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((characters & 31) << (5 * places), starts)
    # The highest bit of the last group is the sign.
    counts -= np.where(characters[ends] & 16, np.int64(1) << (5 * lengths), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    _check_counts(counts, mask.size)
    return counts


def from_counts(counts: Sequence[int], size: Size) -> RunLengthMask:
    """Compresses plain run lengths.

    Args:
        counts: Zeros, ones, zeros, ...; they add up to height * width.
        size: Rows and columns.

    Raises:
        InvalidArgumentError: INVALID_RUN_LENGTHS.
    """
    _check_size(size)
    try:
        checked = np.asarray(counts, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise _invalid("a run is not a whole number below 2^63") from error
    if checked.ndim != 1 or len(checked) == 0:
        raise _invalid("there are no runs")
    _check_counts(checked, size)
    encoded = coco.frPyObjects(
        {"counts": checked.tolist(), "size": [size.height, size.width]}, size.height, size.width
    )
    return RunLengthMask(size=size, counts=encoded["counts"])


def encode_run_lengths(pixels: NDArray[np.bool_] | NDArray[np.uint8]) -> RunLengthMask:
    """Compresses a binary mask [height, width] of 0 and 1."""
    height, width = pixels.shape
    columns = np.asfortranarray(pixels).view(np.uint8)
    return RunLengthMask(size=Size(height, width), counts=coco.encode(columns)["counts"])


def _check_size(size: Size) -> None:
    if size.height <= 0 or size.width <= 0:
        raise _invalid(f"a mask of {size} has no pixels")
    if size.pixels >= 2**32:
        raise _invalid(f"{size} is more than COCO run lengths can count")


def _check_counts(counts: NDArray[np.int64], size: Size) -> None:
    if counts.min() < 0:
        raise _invalid("a run is negative")
    # Runs above the whole would let the sum wrap around.
    if counts.max() > size.pixels or (total := int(counts.sum())) != size.pixels:
        claimed = "more" if counts.max() > size.pixels else str(total)
        raise _invalid(f"the runs cover {claimed} pixels and the mask has {size.pixels}")


def _invalid(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "INVALID_RUN_LENGTHS",
        f"The run lengths cannot be read: {why}; send what the COCO tools write.",
    )
