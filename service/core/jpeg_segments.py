"""The segments of a JPEG file, before Pillow sees them."""

from __future__ import annotations

from typing import Final

_SOI_BYTES: Final = 2
_SCAN: Final = b"\xff\xda"
#: Markers without contents (ITU-T T.81, table B.1): TEM, RST0 to RST7, SOI, EOI.
_BARE: Final = frozenset({0x01, *range(0xD0, 0xDA)})
#: Stray bytes and padding, over which Pillow steps one by one.
_STRAY: Final = frozenset({0x00, 0xFF})
#: Cameras write some dozen segments; metadata of many megabytes take some hundred.
_MOST_STEPS: Final = 10_000


def check_segments(jpeg: bytes, most_steps: int = _MOST_STEPS) -> None:
    """Refuses a file that takes long to read before its pixels begin.

    Args:
        jpeg: The file, which may be damaged or cut off.
        most_steps: How many segments and stray bytes it may have.

    Raises:
        ValueError: Segments and stray bytes are more than any picture has.
    """
    position = _SOI_BYTES
    for _ in range(most_steps):
        marker = jpeg[position : position + 2]
        if len(marker) < 2 or marker == _SCAN:
            return
        if marker[0] != 0xFF or marker[1] in _STRAY:
            position += 1
        elif marker[1] in _BARE:
            position += 2
        else:
            # The length counts its own two bytes.
            position += 2 + max(2, int.from_bytes(jpeg[position + 2 : position + 4], "big"))
    raise ValueError("a JPEG file of more segments than any picture has")
