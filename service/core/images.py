"""Encoded pictures to RGB pixels (docs/images.md).

Pillow's plugins are called directly, never ``Image.open``: which formats are
read and how many pixels are too many is decided here, and no process-wide
setting of Pillow is touched, so that an application which embeds the service
keeps its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.jpeg_segments import check_segments
from service.core.limits import Limits
from service.core.png_chunks import PNG_SIGNATURE, without_texts
from service.core.types import Size, SourceImage

_Plugin = Callable[[BytesIO], ImageFile.ImageFile]

_JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
# A tenth of a millisecond of hashing; the segments of a photograph without much about it.
_QUICK_BYTES: Final = 128 * 1024
_QUICK_SEGMENTS: Final = 64

_READ: Final[tuple[tuple[bytes, _Plugin], ...]] = (
    (_JPEG_SIGNATURE, JpegImageFile),
    (PNG_SIGNATURE, PngImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"BM", BmpImageFile),
)

#: Pictures that people do send, told apart from what is no picture at all.
_NAMED_ONLY: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"GIF8", "GIF"),
    (4, b"ftyp", "HEIC or AVIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
)

#: Pillow decodes these in Python, pixel run by pixel run: a large one would hold up everyone.
_BMP_RUN_LENGTHS: Final = frozenset({1, 2})

_TIFF_PHOTOMETRIC: Final = 262

_MAX_SIDE: Final = Limits().image_side

_FORMATS_HELP: Final = "send a JPEG, PNG, WebP, TIFF or BMP file"

_EXIF_ORIENTATION: Final = 0x0112
_TRANSPOSE_OF_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_AXES: Final = frozenset({5, 6, 7, 8})

_SIXTEEN_BITS: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_WITH_ALPHA: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_TO_RGB: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})


def inspect(data: bytes, *, max_pixels: int, max_side: int = _MAX_SIDE) -> SourceImage:
    """Checks a file's header and names its size, without decoding pixels.

    Args:
        data: A JPEG, PNG, WebP, TIFF or BMP file with a single frame.
        max_pixels: Most pixels that will be decoded.
        max_side: Most rows, and most columns.

    Returns:
        The image, its size after EXIF orientation.

    Raises:
        InvalidArgumentError: EMPTY_IMAGE, NOT_AN_IMAGE, UNSUPPORTED_IMAGE_FORMAT,
            ANIMATED_IMAGE.
        OutOfLimitsError: IMAGE_TOO_LARGE.
    """
    image = _open(data, max_pixels, max_side)
    size = Size(image.height, image.width)
    if _orientation(image) in _SWAPS_AXES:
        size = Size(size.width, size.height)
    digest = hashlib.sha256(data).hexdigest()
    source = SourceImage(data=data, size=size, raw=False, digest=digest)
    if isinstance(image, JpegImageFile):
        # Others hold a decoder, or a copy of the file, while they are open.
        source.opened.append(image)
    return source


def is_quick_to_inspect(data: bytes) -> bool:
    """Whether ``inspect`` takes less time than a visit to a thread, whatever the bytes hold."""
    if len(data) > _QUICK_BYTES or not data.startswith(_JPEG_SIGNATURE):
        return False
    try:
        check_segments(data, _QUICK_SEGMENTS)
    except ValueError:
        return False
    return True


def raw_image(rgb: bytes, size: Size, *, max_pixels: int, max_side: int = _MAX_SIDE) -> SourceImage:
    """Takes pixels without a container.

    Args:
        rgb: height * width * 3 bytes, rows from the top.
        size: Rows and columns.
        max_pixels: Most pixels that are taken.
        max_side: Most rows, and most columns.

    Raises:
        InvalidArgumentError: EMPTY_IMAGE, or WRONG_RAW_LENGTH.
        OutOfLimitsError: IMAGE_TOO_LARGE.
    """
    _check_size(size, max_pixels, max_side)
    if len(rgb) != size.pixels * 3:
        raise InvalidArgumentError(
            "WRONG_RAW_LENGTH",
            f"A raw image of {size} pixels takes {size.pixels * 3} bytes of RGB; {len(rgb)} came.",
        )
    meaning = hashlib.sha256(f"raw RGB {size}:".encode())
    meaning.update(rgb)
    return SourceImage(data=rgb, size=size, raw=True, digest=meaning.hexdigest())


def decode(image: SourceImage) -> NDArray[np.uint8]:
    """Decodes an image that was inspected before.

    Returns:
        RGB, uint8 [height, width, 3], C-contiguous, not writable: upright after EXIF
        orientation, transparency over white, 16-bit greys scaled to 8 bits.

    Raises:
        InvalidArgumentError: TRUNCATED_IMAGE when the pixels are incomplete or
            damaged, UNSUPPORTED_PIXELS when they are floats or of a colour space
            that has no one RGB meaning.
    """
    if image.raw:
        shape = (image.size.height, image.size.width, 3)
        return np.frombuffer(image.data, dtype=np.uint8).reshape(shape)
    return np.asarray(upright(image))


def upright(image: SourceImage) -> Image.Image:
    """Decodes an image as ``decode`` does, into a picture of mode RGB that is not to be changed.

    Raises:
        InvalidArgumentError: As ``decode``.
    """
    if image.raw:
        size = (image.size.width, image.size.height)
        return Image.frombuffer("RGB", size, image.data, "raw", "RGB", 0, 1)
    opened = _opened(image)
    orientation = _orientation(opened)
    try:
        opened.load()
        picture = _to_rgb(opened)
        if orientation in _TRANSPOSE_OF_ORIENTATION:
            picture = picture.transpose(_TRANSPOSE_OF_ORIENTATION[orientation])
    except InvalidArgumentError:
        raise
    except Exception as error:
        # Pillow promises no kinds here: OSError, SyntaxError, EOFError, struct.error,
        # zlib.error, ValueError, MemoryError all mean that the file cannot be decoded.
        raise _truncated() from error
    if picture.size != (image.size.width, image.size.height):
        raise _truncated()
    return picture


def _opened(image: SourceImage) -> ImageFile.ImageFile:
    """The file with its header read: as ``inspect`` left it, for the first who asks."""
    try:
        opened: ImageFile.ImageFile = image.opened.pop()
    except IndexError:
        return _open(image.data, image.size.pixels, max(image.size.height, image.size.width))
    return opened


def _truncated() -> InvalidArgumentError:
    return InvalidArgumentError(
        "TRUNCATED_IMAGE",
        "The image's pixels cannot be decoded; the file is truncated or damaged: send it again.",
    )


def _open(data: bytes, max_pixels: int, max_side: int) -> ImageFile.ImageFile:
    """Reads the header with the plugin of the file's signature."""
    if not data:
        raise InvalidArgumentError("EMPTY_IMAGE", f"The image holds no bytes; {_FORMATS_HELP}.")
    plugin = _plugin_for(data, max_pixels, max_side)
    try:
        if plugin is JpegImageFile:
            check_segments(data)
        image = plugin(BytesIO(without_texts(data) if plugin is PngImageFile else data))
        animated = bool(getattr(image, "is_animated", False))
    except Exception as error:  # see decode: Pillow promises no kinds
        raise _not_an_image() from error
    _check_size(Size(image.height, image.width), max_pixels, max_side)
    if animated:
        raise InvalidArgumentError(
            "ANIMATED_IMAGE", "The image holds several frames; send the one that is meant."
        )
    if isinstance(image, BmpImageFile) and image.info.get("compression") in _BMP_RUN_LENGTHS:
        raise InvalidArgumentError(
            "UNSUPPORTED_IMAGE_FORMAT", "Run-length coded BMP files are not read; send a PNG file."
        )
    return image


def _plugin_for(data: bytes, max_pixels: int, max_side: int) -> _Plugin:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # The plugin sets up a decoder as large as the picture when it opens the file.
        _check_size(_webp_size(data), max_pixels, max_side)
        return WebPImageFile
    for signature, plugin in _READ:
        if data.startswith(signature):
            return plugin
    for offset, signature, name in _NAMED_ONLY:
        if data[offset : offset + len(signature)] == signature:
            raise InvalidArgumentError(
                "UNSUPPORTED_IMAGE_FORMAT", f"{name} files are not read; {_FORMATS_HELP}."
            )
    raise _not_an_image()


def _not_an_image() -> InvalidArgumentError:
    return InvalidArgumentError(
        "NOT_AN_IMAGE", f"The bytes are not a readable image file; {_FORMATS_HELP}."
    )


def _check_size(size: Size, max_pixels: int, max_side: int) -> None:
    if size.height <= 0 or size.width <= 0:
        raise InvalidArgumentError("EMPTY_IMAGE", f"The image has no pixels (it is {size}).")
    if size.pixels > max_pixels:
        raise OutOfLimitsError(
            "IMAGE_TOO_LARGE",
            f"The image has {size} pixels; at most {max_pixels} are taken: shrink it.",
            metadata={"pixels": str(size.pixels), "max_pixels": str(max_pixels)},
        )
    side = max(size.height, size.width)
    if side > max_side:
        raise OutOfLimitsError(
            "IMAGE_TOO_LARGE",
            f"The image is {size}; at most {max_side} rows or columns are taken: shrink it.",
            metadata={"side": str(side), "max_side": str(max_side)},
        )


def _webp_size(data: bytes) -> Size:
    """Canvas size of a WebP file from its first chunk (RFC 9649, sections 2.5 to 2.7)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return Size(
            int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
        )
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return Size((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8 " and len(body) == 10:
        width, height = struct.unpack("<HH", body[6:10])
        return Size(height & 0x3FFF, width & 0x3FFF)
    raise _not_an_image()


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation that is still to be applied; 1 is upright.

    Only EXIF data that stand before the pixels count, so that the header alone
    tells the size. A TIFF file is turned by Pillow itself while it is read.
    """
    if isinstance(image, TiffImageFile) or "exif" not in image.info:
        return 1
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        orientation = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata do not make the pixels worse
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and isinstance(image, PngImageFile)):
        return _from_sixteen_bits(image)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _over_white(image)
    if image.mode in _TO_RGB:
        # Pillow copies what is RGB already.
        return image if image.mode == "RGB" else image.convert("RGB")
    raise InvalidArgumentError(
        "UNSUPPORTED_PIXELS",
        f"Pixels of the kind {image.mode!r} have no one meaning as colours; "
        "send 8-bit RGB or grey, or 16-bit grey.",
    )


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    # 65535 = 255 * 257: the nearest of the 256 levels.
    grey = ((values + 128) // 257).astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        grey = 255 - grey  # white is zero: Pillow turns 8 bits round and leaves 16 alone
    if isinstance(image, PngImageFile) and "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    covered = image.convert("RGBA")
    canvas = Image.new("RGB", covered.size, "white")
    canvas.paste(covered, mask=covered.getchannel("A"))
    return canvas
