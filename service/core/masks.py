"""Decided masks to the formats of the API."""

from __future__ import annotations

import zlib
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core.run_lengths import encode_run_lengths
from service.core.types import DecidedMask, EncodedMask, MaskFormat, Size


def encode(mask: DecidedMask, ways: int, format: MaskFormat) -> EncodedMask:
    """Writes a mask.

    Args:
        mask: The outcome of the decision.
        ways: Classes of the task, 255 at most.
        format: PNG: class numbers in the fewest of 1, 2, 4 or 8 bits per pixel, with
            the colours of Pascal VOC as a palette. RAW: a byte per pixel, rows from
            the top. COCO_RLE: one run-length mask per class.
    """
    labels = mask.labels
    size = Size(*labels.shape)
    match format:
        case MaskFormat.PNG:
            return EncodedMask(size, format, _png(labels, ways))
        case MaskFormat.RAW:
            return EncodedMask(size, format, labels.tobytes())
        case MaskFormat.COCO_RLE:
            # Runs go down the columns: turned once, not once per class.
            columns = np.asfortranarray(labels)
            masks = tuple(encode_run_lengths(columns == way) for way in range(1, ways + 1))
            return EncodedMask(size, format, masks)


def _png(labels: NDArray[np.uint8], ways: int) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette(voc_palette(1 + ways))
    file = BytesIO()
    # Run-length matching: on masks as fast as level 1 and as small as level 6.
    image.save(file, "PNG", compress_type=zlib.Z_RLE)
    return file.getvalue()


@lru_cache(maxsize=256)
def voc_palette(colours: int) -> bytes:
    """The first colours of Pascal VOC: R, G, B of number 0, of number 1, ...

    Bits 0, 1 and 2 of a number are the highest bits of its red, green and blue;
    bits 3, 4 and 5 the next ones, and so on.
    """
    palette = np.zeros((colours, 3), dtype=np.uint8)
    numbers = np.arange(colours)
    for bit in range(8):
        channel, place = bit % 3, 7 - bit // 3
        palette[:, channel] |= ((numbers >> bit & 1) << place).astype(np.uint8)
    return palette.tobytes()
