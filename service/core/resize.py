"""Photographs to the network's input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.family import GraphRole, ImageResize, InputDtype, ModelFamily
from service.core.letterbox import letterbox
from service.core.types import Size


def check_size(image: Size, family: ModelFamily) -> None:
    """Refuses an image whose own size the network cannot work at.

    Raises:
        InvalidArgumentError: It is too small (IMAGE_TOO_SMALL_FOR_MODEL).
        OutOfLimitsError: It is too large (IMAGE_TOO_LARGE_FOR_MODEL).
    """
    if family.input_size is not None:
        return
    if min(image.height, image.width) < family.min_side:
        raise InvalidArgumentError(
            "IMAGE_TOO_SMALL_FOR_MODEL",
            f"This model takes images as they are, with at least {family.min_side} pixels a side; "
            f"this one has {image.height} x {image.width} (rows x columns). Enlarge it first.",
        )
    if family.max_pixels is not None and image.pixels > family.max_pixels:
        raise OutOfLimitsError(
            "IMAGE_TOO_LARGE_FOR_MODEL",
            f"This model takes images as they are, with at most {family.max_pixels} pixels; this "
            f"one has {image.height} x {image.width} (rows x columns). Shrink it first.",
        )


def to_network(pixels: NDArray[np.uint8], family: ModelFamily) -> NDArray[Any]:
    """Resizes a photograph by the family's own rule.

    Args:
        pixels: RGB, uint8 [height, width, 3].
        family: Whose network it is for.

    Returns:
        [h, w, 3], C-contiguous: uint8, or uint16 = value x 256 where the family asks for it.
    """
    return picture_to_network(Image.fromarray(pixels), family)


def picture_to_network(picture: Image.Image, family: ModelFamily) -> NDArray[Any]:
    """As ``to_network``, for pixels that Pillow holds (mode RGB), which spares copies of them."""
    image = Size(picture.height, picture.width)
    if family.image_resize is ImageResize.CV2_LETTERBOX:
        return letterbox(np.asarray(picture), family.network_size(image).height)
    target = family.network_size(image)
    if family.image_resize is ImageResize.PIL_BILINEAR and target != image:
        picture = picture.resize((target.width, target.height), Image.Resampling.BILINEAR)
    resized = np.asarray(picture)
    if family.input_dtype is InputDtype.UINT16_FIXED:
        return resized.astype(np.uint16) << 8
    return np.ascontiguousarray(resized)


def extent_input(
    family: ModelFamily, role: GraphRole, image: Size
) -> dict[str, NDArray[np.float32]]:
    """The tensor ``extent`` [1, 2] for an image of that size: the rows and columns that it covers.

    Args:
        family: Whose network it is for.
        role: The graph or ensemble that is to be run.
        image: Size of the image that the graph works on.

    Returns:
        The tensor by name; nothing where the graph does not take it.
    """
    if not family.takes_extent(role):
        return {}
    covered = family.extent(image)
    return {"extent": np.array([[covered.height, covered.width]], dtype=np.float32)}
