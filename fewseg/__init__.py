"""FewSeg: segment anything from a few examples.

Register a task once, with a few annotated images; then segment any number of images under it::

    from fewseg import Client, Points, Support

    with Client("localhost:50051") as client:
        task = client.register(["coin"], [Support("coins.png", Points([(120, 45)], "coin"))])
        result = client.segment(task, "more-coins.jpg")
"""

from fewseg._channel import TlsFiles
from fewseg.aio import AsyncClient
from fewseg.annotations import (
    BACKGROUND,
    Annotation,
    Box,
    IndexMask,
    Points,
    Polygon,
    RunLengthMask,
    Scribble,
    Support,
)
from fewseg.client import Client
from fewseg.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    FewSegError,
    FieldViolation,
    InternalError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from fewseg.overlay import overlay
from fewseg.results import (
    ClassResult,
    ModelInfo,
    ModelRefresh,
    Reuse,
    SegmentResult,
    ServerInfo,
    Task,
    TaskSupport,
)

__all__ = [
    "BACKGROUND",
    "Aborted",
    "AlreadyExists",
    "Annotation",
    "AsyncClient",
    "Box",
    "ClassResult",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FewSegError",
    "FieldViolation",
    "IndexMask",
    "InternalError",
    "InvalidArgument",
    "ModelInfo",
    "ModelRefresh",
    "NotFound",
    "Points",
    "Polygon",
    "ResourceExhausted",
    "Reuse",
    "RunLengthMask",
    "Scribble",
    "SegmentResult",
    "ServerInfo",
    "Support",
    "Task",
    "TaskSupport",
    "TlsFiles",
    "Unavailable",
    "overlay",
]
