"""Pictures, as callers hold them, to what goes over the wire."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fewseg.v1 import types_pb2

#: A picture: the path of a file or its bytes (both are sent as they are), uint8 pixels
#: [H, W, 3] RGB, [H, W, 4] RGBA (alpha is dropped) or [H, W] grey, or a Pillow image.
ImageLike = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image

#: Bytes of a message that are left for everything but the pixels of its images.
MESSAGE_HEADROOM = 64 * 1024

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def to_array(image: ImageLike) -> NDArray[np.uint8]:
    """Decodes a picture to uint8 [H, W, 3] RGB, its EXIF orientation applied.

    Raises:
        OSError: The file cannot be read or is not a picture.
        TypeError: The value is not a picture.
        ValueError: It has a wrong shape, dtype or mode.
    """
    if isinstance(image, np.ndarray):
        return _rgb_of_array(image)
    if isinstance(image, Image.Image):
        return _rgb_of_pillow(image)
    source = io.BytesIO(image) if isinstance(image, bytes) else _path_of(image)
    with Image.open(source) as opened:
        return _rgb_of_pillow(opened)


def to_message(image: ImageLike, *, raw_limit: int) -> types_pb2.Image:
    """Makes the wire form of a picture.

    Files go as they are. Pixels go raw if they take at most ``raw_limit`` bytes,
    and as a quickly compressed PNG otherwise.

    Raises:
        OSError: The file cannot be read.
        TypeError: The value is not a picture.
        ValueError: It has a wrong shape, dtype or mode.
    """
    if isinstance(image, bytes):
        return types_pb2.Image(encoded=image)
    if isinstance(image, (str, os.PathLike)):
        return types_pb2.Image(encoded=_path_of(image).read_bytes())
    pixels = to_array(image)
    if pixels.nbytes > raw_limit:
        return types_pb2.Image(encoded=png_of(pixels))
    height, width = pixels.shape[:2]
    raw = types_pb2.RawImage(rgb=pixels.tobytes(), height=height, width=width)
    return types_pb2.Image(raw=raw)


def png_of(pixels: NDArray[Any]) -> bytes:
    """Writes uint8 [H, W, 3], uint8 [H, W] or uint16 [H, W] as PNG, quickly and without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _path_of(image: object) -> Path:
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    raise TypeError(
        "An image is a path, the bytes of a file, an array or a Pillow image, "
        f"not {type(image).__name__}."
    )


def _rgb_of_pillow(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"An image must have 8 bits per channel, not mode {image.mode!r}.")
    # Files are sent with their orientation for the server to apply; pixels must agree with that.
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _rgb_of_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        raise ValueError(f"The pixels of an image must be uint8, not {pixels.dtype}.")
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        return np.ascontiguousarray(pixels[:, :, :3])
    raise ValueError(
        "The pixels of an image must have the shape [H, W, 3], [H, W, 4] or [H, W], "
        f"not {list(pixels.shape)}."
    )
