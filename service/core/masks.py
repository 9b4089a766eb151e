"""Decided masks to the formats of the API."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.core.run_lengths import encode_run_lengths
from service.core.stopping import checkpoint
from service.core.types import DecidedMask, EncodedMask, MaskFormat, RunLengthMask, Size

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: Colour type of a palette image.
_PALETTE: Final = 3


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
            masks = tuple(_run_lengths(columns, way) for way in range(1, ways + 1))
            return EncodedMask(size, format, masks)


def _run_lengths(labels: NDArray[np.uint8], way: int) -> RunLengthMask:
    checkpoint()
    return encode_run_lengths(labels == way)


def _png(labels: NDArray[np.uint8], ways: int) -> bytes:
    """A palette PNG (ISO/IEC 15948), written here: Pillow takes four times as long for a mask."""
    height, width = labels.shape
    bits = next(bits for bits in (1, 2, 4, 8) if ways < 1 << bits)
    # Byte 0 of a line names its filter: 0, none, as the standard advises for palettes.
    lines = np.zeros((height, 1 + -(-width * bits // 8)), dtype=np.uint8)
    _pack(labels, bits, lines[:, 1:])
    # Run-length matching: on masks as fast and as small as level 1; level 6 saves a third of the
    # bytes and takes three times as long (docs/performance.md).
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    data = compressor.compress(lines.data) + compressor.flush()
    return b"".join(
        (
            _PNG_SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _PALETTE, 0, 0, 0)),
            _chunk(b"PLTE", voc_palette(1 + ways)),
            _chunk(b"IDAT", data),
            _chunk(b"IEND", b""),
        )
    )


def _pack(labels: NDArray[np.uint8], bits: int, packed: NDArray[np.uint8]) -> None:
    """Writes labels at so many bits each, the leftmost pixel in the highest bits."""
    if bits == 1:
        packed[:] = np.packbits(labels, axis=1)
        return
    per_byte = 8 // bits
    for place in range(per_byte):
        pixels = labels[:, place::per_byte]
        packed[:, : pixels.shape[1]] |= pixels << (8 - bits * (1 + place))


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


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
