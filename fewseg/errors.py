"""What a call can end in, decoded from the ``google.rpc`` details of the answer."""

# ruff: noqa: N818 - the kinds bear the names of the canonical codes that they stand for.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that is at fault.

    Attributes:
        field: Its path, such as ``supports[2].annotation.marks[0].box``.
        description: What is wrong with it.
    """

    field: str
    description: str


class FewSegError(Exception):
    """A call that did not succeed.

    Attributes:
        code: Canonical name of the gRPC status, such as ``NOT_FOUND``.
        reason: UPPER_SNAKE identifier, stable across releases; empty if the
            server did not give one.
        message: One sentence for a person.
        field_violations: The fields at fault.
        retry_after: Seconds after which another attempt makes sense, or None.
        metadata: Further facts for a program.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})

    @property
    def field(self) -> str:
        """Path of the first field at fault; empty if none is."""
        return self.field_violations[0].field if self.field_violations else ""

    def __str__(self) -> str:
        facts = " ".join(filter(None, (self.code, self.reason, self.field)))
        return f"{self.message} [{facts}]"


class InvalidArgument(FewSegError, ValueError):
    """The request is wrong whatever the state of the server."""


class NotFound(FewSegError, LookupError):
    """The named thing does not exist."""


class AlreadyExists(FewSegError):
    """The name, or the request id, is taken by something else."""


class Aborted(FewSegError):
    """Another change came first: read the task again and repeat."""


class FailedPrecondition(FewSegError):
    """The request is right, but the state of the task or of this machine does not allow it."""


class ResourceExhausted(FewSegError):
    """The server is full; see ``retry_after``."""


class Unavailable(FewSegError, ConnectionError):
    """The server, its engine or its store does not answer."""


class DeadlineExceeded(FewSegError, TimeoutError):
    """The answer was not ready in time."""


class InternalError(FewSegError):
    """The server failed; its log says why."""


_KIND_OF_CODE: dict[str, type[FewSegError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "ABORTED": Aborted,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "INTERNAL": InternalError,
    "UNKNOWN": InternalError,
    "DATA_LOSS": InternalError,
}


def error_of_status(status: status_pb2.Status) -> FewSegError:
    """Decodes a ``google.rpc.Status``, such as that of one frame of a stream."""
    info, violations, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violations)
        has_retry |= detail.Unpack(retry)
    code = _name_of_code(status.code)
    return _KIND_OF_CODE.get(code, FewSegError)(
        status.message,
        code=code,
        reason=info.reason,
        field_violations=tuple(
            FieldViolation(v.field, v.description) for v in violations.field_violations
        ),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
        metadata=info.metadata,
    )


#: What gRPC says of calls whose channel was closed on this side.
_CHANNEL_CLOSED = "Channel closed!"


def error_of_call(call: grpc.RpcError) -> FewSegError:
    """Decodes what a gRPC call, of either the blocking or the asyncio kind, ended in."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # details that contradict the status line: trust the line
        status = None
    if status is None:
        code: Any = call.code()
        status = status_pb2.Status(code=code.value[0], message=call.details() or code.name)
        if code is grpc.StatusCode.CANCELLED and call.details() != _CHANNEL_CLOSED:
            # Not ours: a connection that ends under a call says so, as a stopping server's does.
            status.code = code_pb2.UNAVAILABLE
            status.message = "The server ended the connection."
    return error_of_status(status)


def _name_of_code(number: int) -> str:
    known = number in code_pb2.Code.values()
    return str(code_pb2.Code.Name(number)) if known else "UNKNOWN"
