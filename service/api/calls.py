"""What the edge knows of a call: its id and its deadline."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final, Protocol

from service.core.calls import Call, deadline_exceeded

#: Metadata key under which a client may name its call; echoed in the answer.
REQUEST_ID_KEY: Final = "x-request-id"

_Metadata = Iterable[tuple[str, str | bytes]]

_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ServicerContext(Protocol):
    """What the edge uses of ``grpc.aio.ServicerContext``."""

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        ...

    def invocation_metadata(self) -> _Metadata | None:
        """What the client sent along with the call."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str]]) -> None:
        """Sends pairs along with the status."""
        ...

    def peer(self) -> str:
        """Address of the client."""
        ...

    async def write(self, message: Any) -> None:
        """Sends a message of a stream, once the transport has room for it."""
        ...

    async def abort(self, code: Any, details: str, trailing_metadata: _Metadata) -> None:
        """Ends the call with an error, by raising."""
        ...


#: Id of the call that the running task serves.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")


def request_id_of(metadata: _Metadata | None) -> str:
    """Takes the id that the client gave its call, or makes one.

    An id that could garble a log line or a header is replaced.
    """
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _ACCEPTABLE_ID.fullmatch(value):
            return value
    return os.urandom(16).hex()


def is_overdue(context: ServicerContext) -> bool:
    """Whether the deadline that the client set has passed."""
    remaining = context.time_remaining()
    return remaining is not None and remaining <= 0


def new_call(context: ServicerContext) -> Call:
    """Begins a call with the deadline that the client set.

    Raises:
        DeadlineExceededError: The deadline is over already.
    """
    remaining = context.time_remaining()
    if remaining is None:
        return Call()
    if remaining <= 0:
        raise deadline_exceeded()
    return Call(deadline=time.monotonic() + remaining)
