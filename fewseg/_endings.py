"""What the server ended an asyncio stream with.

In grpc.aio, a write that fails because the call has ended replaces the status of the server by
INTERNAL (github.com/grpc/grpc/issues/36066), so that NOT_FOUND would look like a broken server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import grpc
import grpc.aio

from fewseg.errors import FewSegError, InternalError, error_of_call
from fewseg.v1 import task_service_pb2 as task_pb2

_REPLACED: Final = "Internal error from Core"
#: Seconds to wait for a status that is still on its way when a write fails.
_PATIENCE: Final = 1.0


class Ending:
    """Remembers the status of a call before a failed write can replace it."""

    def __init__(self, call: Any) -> None:
        self._known = asyncio.Event()
        self._status: grpc.RpcError | None = None
        call.add_done_callback(self._note)

    async def error(self, raised: grpc.RpcError | None) -> FewSegError:
        """Decodes what the server said if it said something, else what was raised here."""
        if raised is None or raised.details() == _REPLACED:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), _PATIENCE)
        status = self._status or raised
        if status is None:
            return InternalError("The server ended the stream too early.", code="INTERNAL")
        return error_of_call(status)

    def _note(self, call: Any) -> None:
        code, details = _at_once(call.code()), _at_once(call.details())
        if code is grpc.StatusCode.OK or details == _REPLACED or self._status is not None:
            return
        self._status = grpc.aio.AioRpcError(
            code, grpc.aio.Metadata(), _at_once(call.trailing_metadata()), details
        )
        self._known.set()


def add_supports_call(channel: Any, timeout: float | None) -> Any:
    """Opens the stream that adds supports, to be written to and then read once.

    On the wire a call with one answer is a stream of one answer. It is opened as such because only
    streams of answers deliver the server's status after a write has failed.
    """
    method = channel.stream_stream(
        "/fewseg.v1.TaskService/AddSupports",
        request_serializer=task_pb2.AddSupportsRequest.SerializeToString,
        response_deserializer=task_pb2.AddSupportsResponse.FromString,
    )
    return method(timeout=timeout)


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for, as those of an ended call."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()
    raise RuntimeError("the call has not ended")
