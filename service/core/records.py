"""Domain values as bytes, for stores and for remembered answers.

MessagePack maps by field name: a later release may add a field that has a
default and still read what an earlier one wrote. Times must be UTC; they come
back as aware datetimes, to the microsecond.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from service.core.types import Support, TaskHeader, TaskReport

# Built once: a decoder compiles its type, and holds no state between calls.
_ENCODER: Final = msgspec.msgpack.Encoder()
_HEADERS: Final = msgspec.msgpack.Decoder(TaskHeader)
_SUPPORTS: Final = msgspec.msgpack.Decoder(Support)
_REPORTS: Final = msgspec.msgpack.Decoder(TaskReport)

#: What the decoders raise on bytes that are not the encoding of such a value.
RecordError = msgspec.DecodeError


def encode_header(header: TaskHeader) -> bytes:
    """Everything about a task but its supports."""
    return _ENCODER.encode(header)


def decode_header(data: bytes) -> TaskHeader:
    """The inverse of ``encode_header``; raises ``RecordError``."""
    return _HEADERS.decode(data)


def encode_support(support: Support) -> bytes:
    """A support with its annotation, without the pixels of its image."""
    return _ENCODER.encode(support)


def decode_support(data: bytes) -> Support:
    """The inverse of ``encode_support``; raises ``RecordError``."""
    return _SUPPORTS.decode(data)


def encode_report(report: TaskReport) -> bytes:
    """The answer to a call that registered or changed a task.

    Compressed: the supports of a large set look alike, and every click of an
    interactive user is remembered for a day.
    """
    return zlib.compress(_ENCODER.encode(report), level=1)


def decode_report(data: bytes) -> TaskReport:
    """The inverse of ``encode_report``; raises ``RecordError``."""
    try:
        return _REPORTS.decode(zlib.decompress(data))
    except zlib.error as error:
        raise RecordError(str(error)) from None
