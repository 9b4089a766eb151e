"""The stored numbers of an index mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from service.core.errors import InvalidArgumentError
from service.core.png_chunks import PNG_SIGNATURE, without_texts
from service.core.types import IndexMask, Size

#: Byte of a PNG file that holds the bits per sample (IHDR).
_BIT_DEPTH_OFFSET: Final = 24
_NUMBERED: Final = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})
#: What 16 bits can store.
LARGEST_NUMBER: Final = 65_535
_NUMBERS_PER_BAND: Final = 1 << 20


def read_numbers(png: bytes, image: Size) -> NDArray[np.uint16]:
    """The numbers that a grey or palette PNG stores, never its colours.

    Args:
        png: The file.
        image: Size that it must have; checked before pixels are decoded.

    Returns:
        uint16 [height, width].

    Raises:
        InvalidArgumentError: NOT_A_PNG, MASK_SIZE_MISMATCH, MASK_NOT_INDEXED,
            ANIMATED_IMAGE, TRUNCATED_MASK.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise InvalidArgumentError("NOT_A_PNG", "An index mask is a PNG file; this is none.")
    try:
        opened = PngImageFile(BytesIO(without_texts(png)))
    except Exception as error:  # Pillow promises no kinds
        raise InvalidArgumentError("NOT_A_PNG", "The mask's PNG header is damaged.") from error
    check_mask_size(Size(opened.height, opened.width), image)
    if opened.mode not in _NUMBERED:
        raise InvalidArgumentError(
            "MASK_NOT_INDEXED",
            f"The mask holds colours ({opened.mode}), not one number per pixel; "
            "save it as a grey or palette PNG.",
        )
    if opened.is_animated:
        raise InvalidArgumentError(
            "ANIMATED_IMAGE", "The mask holds several frames; send the one that is meant."
        )
    try:
        opened.load()
        stored = np.asarray(opened)
    except Exception as error:  # Pillow promises no kinds
        raise InvalidArgumentError(
            "TRUNCATED_MASK", "The mask's pixels cannot be decoded; send the file again."
        ) from error
    numbers = stored.astype(np.uint16)
    bits = png[_BIT_DEPTH_OFFSET]
    if opened.mode == "L" and bits in (2, 4):
        # Pillow stretches greys of 2 and 4 bits to 0..255.
        numbers //= 255 // (2**bits - 1)
    return numbers


def check_mask_size(mask: Size, image: Size) -> None:
    """Raises ``InvalidArgumentError`` (MASK_SIZE_MISMATCH) unless the sizes are equal."""
    if mask != image:
        raise InvalidArgumentError(
            "MASK_SIZE_MISMATCH",
            f"The mask is {mask} and the image, after EXIF orientation, is {image}; "
            "a dense mask has one number for each pixel of the image.",
        )


def check_index_mask(mask: IndexMask, image: Size, classes: Sequence[str]) -> tuple[str, ...]:
    """Checks an index mask against its image and the task's classes.

    Returns:
        The classes that occur in it.

    Raises:
        InvalidArgumentError: NO_CLASS_VALUES, UNKNOWN_CLASS, VOID_VALUE_MAPPED,
            MASK_VALUE_TOO_LARGE, UNKNOWN_MASK_VALUE, and those of ``read_numbers``.
    """
    if not mask.class_of_value:
        raise InvalidArgumentError(
            "NO_CLASS_VALUES",
            "The mask does not say which class a number stands for.",
            field="class_of_value",
        )
    void = frozenset(mask.void_values)
    _check_storable(mask.class_of_value, "class_of_value")
    _check_storable(void, "void_values")
    for value, name in mask.class_of_value.items():
        if name not in classes:
            raise unknown_class(name, field=f"class_of_value[{value}]")
        if value in void:
            raise InvalidArgumentError(
                "VOID_VALUE_MAPPED",
                f"Value {value} is both void and the class {name!r}; it can be one of them.",
                field="void_values",
            )
    try:
        present = _occurring(read_numbers(mask.png, image))
    except InvalidArgumentError as error:
        raise error.within("png") from None
    for value in present:
        if value != 0 and value not in mask.class_of_value and value not in void:
            raise InvalidArgumentError(
                "UNKNOWN_MASK_VALUE",
                f"The mask holds the value {value}, which is neither 0, nor void, nor named "
                "in class_of_value.",
                field="png",
                metadata={"value": str(value)},
            )
    return tuple({mask.class_of_value[v] for v in present if v in mask.class_of_value})


def _check_storable(values: Iterable[int], field: str) -> None:
    for value in values:
        if not 0 <= value <= LARGEST_NUMBER:
            raise InvalidArgumentError(
                "MASK_VALUE_TOO_LARGE",
                f"No mask can hold the value {value}: a PNG stores 0 to {LARGEST_NUMBER}.",
                field=field,
                metadata={"value": str(value)},
            )


def unknown_class(name: str, *, field: str) -> InvalidArgumentError:
    """The error for a label that is not a class of the task."""
    return InvalidArgumentError(
        "UNKNOWN_CLASS",
        f"{name!r} is not a class of this task.",
        field=field,
        metadata={"class_name": name},
    )


def _occurring(numbers: NDArray[np.uint16]) -> list[int]:
    occurs = np.zeros(LARGEST_NUMBER + 1, dtype=np.bool_)
    flat = numbers.reshape(-1)
    # In bands: indexing widens the numbers to eight bytes each. Most equal their neighbour,
    # and comparing is ten times faster.
    for start in range(0, flat.size, _NUMBERS_PER_BAND):
        band = flat[start : start + _NUMBERS_PER_BAND]
        occurs[band[:-1][band[1:] != band[:-1]]] = True
        occurs[band[-1]] = True
    return [int(value) for value in np.flatnonzero(occurs)]
