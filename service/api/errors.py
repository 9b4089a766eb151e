"""The one table from kinds of failure to what a client of the API sees.

Follows AIP-193: a canonical code, one sentence, and ``google.rpc`` details for
programs. The same table serves whole calls and single frames of a stream.
"""

from __future__ import annotations

from typing import Final

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service.api.messages import MessageTooLargeError
from service.core import errors
from service.core.calls import deadline_exceeded
from service.logs import get_logger

#: Domain of every ``google.rpc.ErrorInfo`` of this API.
DOMAIN: Final = "fewseg.dev"

_CODES: Final[dict[type, int]] = {
    # What gRPC itself says of a message that is larger by far.
    MessageTooLargeError: code_pb2.RESOURCE_EXHAUSTED,
    errors.InvalidArgumentError: code_pb2.INVALID_ARGUMENT,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    errors.FailedPreconditionError: code_pb2.FAILED_PRECONDITION,
    errors.AbortedError: code_pb2.ABORTED,
    errors.ResourceExhaustedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.DeadlineExceededError: code_pb2.DEADLINE_EXCEEDED,
    errors.RepositoryError: code_pb2.FAILED_PRECONDITION,
    errors.FewSegError: code_pb2.INTERNAL,
}

#: Type of the resource that a piece of metadata names.
_RESOURCE_TYPES: Final = {
    "name": "fewseg.dev/Task",
    "task": "fewseg.dev/Task",
    "model": "fewseg.dev/Model",
}

# Statuses travel in HTTP/2 trailers, which peers refuse above 8 KiB or so, and a
# message of the caller's own words may take three bytes for each of its own.
_MESSAGE_CHARACTERS: Final = 800
_METADATA_CHARACTERS: Final = 200
_METADATA_ENTRIES: Final = 10

_log = get_logger(__name__)


def as_known(error: BaseException, *, overdue: bool) -> errors.FewSegError | None:
    """Finds the words of the domain for an exception.

    Args:
        error: What ended a call or a frame.
        overdue: Whether the deadline of the call has passed.

    Returns:
        The error itself if it is one of the domain, its like for the timeout of an
        overdue call, or None for one that nobody expected.
    """
    if isinstance(error, errors.FewSegError):
        return error
    if isinstance(error, TimeoutError) and overdue:
        return deadline_exceeded()
    return None


def status_of(error: BaseException, request_id: str, *, overdue: bool = False) -> status_pb2.Status:
    """Translates a failure into the status that a client gets.

    An unexpected exception is logged with its traceback; the client learns
    nothing of it but the request id.

    Args:
        error: What ended a call or a frame; not a cancellation.
        request_id: Identifies the call in the log.
        overdue: Whether the deadline of the call has passed.

    Returns:
        Code, message and details.
    """
    known = as_known(error, overdue=overdue)
    request_info = error_details_pb2.RequestInfo(request_id=request_id)
    if known is None:
        _log.error("unexpected_error", request_id=request_id, exc_info=error)
        return _status(
            code_pb2.INTERNAL,
            "internal error",
            [error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN), request_info],
        )
    return _status(_code_of(known), known.message, [*_details(known), request_info])


def let_go(error: BaseException) -> None:
    """Drops what an error that was dealt with still keeps in memory.

    Its traceback holds frames, these hold requests and pixels, and whoever raises
    anew while it is handled ties all of them into a cycle that only the garbage
    collector ends, much later.
    """
    remaining: list[BaseException | None] = [error]
    while remaining:
        one = remaining.pop()
        if one is None:
            continue
        if isinstance(one, BaseExceptionGroup):
            remaining.extend(one.exceptions)
        remaining.extend((one.__cause__, one.__context__))
        one.__traceback__ = one.__cause__ = one.__context__ = None


def _code_of(error: errors.FewSegError) -> int:
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def _details(error: errors.FewSegError) -> list[message.Message]:
    metadata = list(error.metadata.items())[:_METADATA_ENTRIES]
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={key: value[:_METADATA_CHARACTERS] for key, value in metadata},
        )
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field,
            description=error.message[:_MESSAGE_CHARACTERS],
            reason=error.reason,
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.RetryableError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.NotFoundError | errors.AlreadyExistsError):
        details.extend(_resource(error))
    return details


def _resource(error: errors.FewSegError) -> list[message.Message]:
    return [
        error_details_pb2.ResourceInfo(resource_type=kind, resource_name=error.metadata[key])
        for key, kind in _RESOURCE_TYPES.items()
        if key in error.metadata
    ]


def _status(code: int, text: str, details: list[message.Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=text[:_MESSAGE_CHARACTERS])
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
