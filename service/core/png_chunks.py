"""The chunks of a PNG file, before Pillow sees them."""

from __future__ import annotations

from typing import Final

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

#: Pillow unpacks these as it opens a file, a megabyte from a few bytes each. They hold
#: nothing that is used here: comments, and colour profiles, which are not applied.
_UNPACKED: Final = frozenset({b"iCCP", b"iTXt", b"tEXt", b"zTXt"})
_PIXELS: Final = frozenset({b"IDAT", b"fdAT"})
#: Encoders cut pixels into some thousand chunks at most, and write some dozen others.
_MOST_CHUNKS: Final = 100_000
_MOST_OTHERS: Final = 10_000
#: Length, kind and checksum around a chunk's contents.
_FRAME_BYTES: Final = 12


def without_texts(png: bytes) -> bytes:
    """A PNG file without what costs time to open and is not used.

    Args:
        png: The file, which may be damaged or cut off.

    Returns:
        The same file if it holds no such chunks.

    Raises:
        ValueError: It is cut into so many chunks that reading them is the harm.
    """
    kept: list[bytes | memoryview] = []
    view = memoryview(png)
    others = 0
    begin = position = len(PNG_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        kind = png[position + 4 : position + 8]
        if len(kind) < 4 or others > _MOST_OTHERS:
            break
        end = position + _FRAME_BYTES + int.from_bytes(png[position : position + 4], "big")
        if kind in _UNPACKED:
            kept.append(view[begin:position])
            begin = end
        others += kind not in _PIXELS
        position = end
    else:
        others = _MOST_OTHERS + 1
    if others > _MOST_OTHERS:
        raise ValueError("a PNG file of more chunks than any picture has")
    if begin == len(PNG_SIGNATURE):
        return png
    return b"".join((PNG_SIGNATURE, *kept, view[begin:]))
