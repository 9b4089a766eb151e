"""Binary masks as COCO run lengths.

Runs go down the columns, and the first one counts zeros. A compressed string
holds the runs in groups of five bits, low ones first, one printable character
(48 + bits, plus 32 while more follow) each; from the fourth run on it holds the
difference to the run two before.

Strings are read here and not by pycocotools, which trusts them: it allocates by
what they claim, and leaves pixels that they do not reach uninitialised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.core.errors import InvalidArgumentError
from service.core.stopping import checkpoint
from service.core.types import RunLengthMask, Size

#: Bits of a run that a character holds; the highest one of the last is the sign.
_CHARACTER_BITS: Final = 5
#: Characters that are read at once; each takes some hundred bytes meanwhile.
_PART: Final = 1 << 16

_Runs = NDArray[np.int64]


def decode_run_lengths(mask: RunLengthMask) -> NDArray[np.uint8]:
    """The mask's pixels.

    Returns:
        uint8 [height, width] of 0 and 1, contiguous by columns.

    Raises:
        InvalidArgumentError: See ``runs``.
    """
    painted: list[NDArray[np.uint8]] = []
    first = 0
    for part in runs(mask):
        ones = (np.arange(first, first + len(part)) & 1).astype(np.uint8)
        painted.append(np.repeat(ones, part))
        first += len(part)
    # Most masks are one part: there is nothing to copy.
    pixels = painted[0] if len(painted) == 1 else np.concatenate(painted)
    return pixels.reshape((mask.size.height, mask.size.width), order="F")


def check_run_lengths(mask: RunLengthMask) -> None:
    """Raises ``InvalidArgumentError`` (INVALID_RUN_LENGTHS) unless the mask can be decoded."""
    for _ in runs(mask):
        pass


def runs(mask: RunLengthMask) -> Iterator[_Runs]:
    """The runs of a compressed string, part by part, so that no string takes much memory.

    Yields:
        int64: runs of 0 or more; no more pixels so far than the mask has. That they
        fill it is known at the end.

    Raises:
        InvalidArgumentError: INVALID_RUN_LENGTHS.
        StoppedError: Nobody waits for them any more.
    """
    _check_size(mask.size)
    pixels = mask.size.pixels
    # Any difference of two runs, and its sign.
    longest = -(-(pixels.bit_length() + 1) // _CHARACTER_BITS)
    _check_count(-(-len(mask.counts) // longest), pixels)
    before = np.zeros(2, dtype=np.int64)
    covered = count = 0
    for characters, lengths in _groups(mask.counts, longest):
        checkpoint()
        part = _differences(characters, lengths)
        _add_up(part, before, count)
        count += len(part)
        covered += _covered(part, pixels - covered)
        _check_count(count, pixels)
        yield part
    if covered != pixels:
        raise _unfilled(covered, pixels)


def _groups(text: bytes, longest: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Parts of the string that end with a run: bits and flags, and characters of each run."""
    if not text:
        raise _invalid("the string is empty")
    start = 0
    while start < len(text):
        characters = np.frombuffer(text, np.uint8, min(_PART, len(text) - start), start) - 48
        if characters.max() > 63:
            raise _invalid("the string holds characters outside '0' to 'o'")
        ends = np.flatnonzero(characters < 32)
        lengths = np.diff(ends, prepend=-1)
        if len(ends) == 0 or lengths.max() > longest:
            cut_off = len(ends) == 0 and len(characters) <= longest
            raise _invalid(
                "the string ends in the middle of a run"
                if cut_off
                else "a run is longer than the mask"
            )
        start += int(ends[-1]) + 1
        yield characters[: ends[-1] + 1], lengths


def _differences(characters: NDArray[np.uint8], lengths: _Runs) -> _Runs:
    """The signed numbers of whole groups."""
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(characters)) - np.repeat(starts, lengths)
    bits = (characters & 31).astype(np.int64) << (_CHARACTER_BITS * places)
    numbers: _Runs = np.add.reduceat(bits, starts)
    negative = (characters[starts + lengths - 1] & 16) != 0
    numbers -= np.where(negative, np.int64(1) << (_CHARACTER_BITS * lengths), 0)
    return numbers


def _add_up(part: _Runs, before: _Runs, count: int) -> None:
    """Turns differences into runs, in place.

    Args:
        part: From the fourth run of the string on, differences to the run two before.
        before: The last run of even and of odd index so far; brought up to date.
        count: Runs before this part.
    """
    # The very first run is no other's base.
    differing, index = (part, count) if count else (part[1:], 1)
    for parity in (0, 1):
        chain = differing[(index + parity) % 2 :: 2]
        if len(chain):
            chain[0] += before[parity]
            chain[:] = np.cumsum(chain)
            before[parity] = chain[-1]


def from_counts(counts: Collection[int], size: Size) -> RunLengthMask:
    """Compresses plain run lengths.

    Args:
        counts: Zeros, ones, zeros, ...; they add up to height * width.
        size: Rows and columns.

    Raises:
        InvalidArgumentError: INVALID_RUN_LENGTHS.
    """
    _check_size(size)
    _check_count(len(counts), size.pixels)
    try:
        checked = np.fromiter(counts, dtype=np.int64, count=len(counts))
    except (OverflowError, TypeError, ValueError) as error:
        raise _invalid("a run is not a whole number below 2^63") from error
    if len(checked) == 0:
        raise _invalid("there are no runs")
    covered = _covered(checked, size.pixels)
    if covered != size.pixels:
        raise _unfilled(covered, size.pixels)
    encoded = coco.frPyObjects(
        {"counts": checked, "size": [size.height, size.width]}, size.height, size.width
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


def _check_count(count: int, pixels: int) -> None:
    """Refuses more runs than a mask can have, even with one of no zeros at its start."""
    if count > pixels + 1:
        raise _invalid(f"there are more runs than the {pixels} pixels of the mask")


def _covered(part: _Runs, room: int) -> int:
    """Pixels that runs cover, checked: none negative, ``room`` at most."""
    if part.min() < 0:
        raise _invalid("a run is negative")
    # Runs above the whole would let the sum wrap around.
    if part.max() > room or (total := int(part.sum())) > room:
        raise _invalid("the runs cover more pixels than the mask has")
    return total


def _unfilled(covered: int, pixels: int) -> InvalidArgumentError:
    return _invalid(f"the runs cover {covered} pixels and the mask has {pixels}")


def _invalid(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "INVALID_RUN_LENGTHS",
        f"The run lengths cannot be read: {why}; send what the COCO tools write.",
    )
