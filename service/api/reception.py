"""What every call of the API goes through: an id, bounds, the error table, metrics, the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from service.api.calls import (
    REQUEST_ID_KEY,
    ServicerContext,
    current_request_id,
    is_overdue,
    new_call,
    request_id_of,
)
from service.api.errors import let_go, status_of
from service.api.fields import placed
from service.api.messages import MessageMemory, Messages, Patience
from service.core.calls import Call
from service.core.errors import FewSegError, InvalidArgumentError, UnavailableError
from service.core.limits import Limits
from service.core.refusals import COME_BACK_SECONDS, OVERLOADED, overloaded, stopping
from service.logs import get_logger

# While the server stops, a client has so long for a message that it has begun to send.
# Frames of a stream are no parts of one thing: it can end between any two.
_LAST_MESSAGE_SECONDS: Final = 1.0
_NEXT_FRAME_SECONDS: Final = 0.0

_CALLS_PER_REQUEST_IN_FLIGHT: Final = 8
_LARGEST_MESSAGES: Final = 16

_log = get_logger(__name__)

_Behaviour = Callable[[Any, ServicerContext], Awaitable[Any]]


class CallObserver(Protocol):
    """Hears of calls, for metrics."""

    def watch_calls(self, method: str, count: Callable[[], int]) -> None:
        """What tells, in any thread, how many calls of ``package.Service/Method`` run."""
        ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call ended with that canonical code, such as "OK", after so long."""
        ...


@dataclass(frozen=True, slots=True)
class CallBounds:
    """What all open calls may take together, before the core is asked.

    The core refuses what it cannot do in time; these bounds are wider, and keep
    calls from filling the memory before they get that far.

    Attributes:
        message_bytes: Bytes of one message.
        calls: Calls that are open, streams included.
        request_bytes: Bytes of the messages of calls that send one each.
    """

    message_bytes: int
    calls: int
    request_bytes: int

    @classmethod
    def of(cls, limits: Limits) -> CallBounds:
        """The bounds that fit the limits of requests."""
        return cls(
            message_bytes=limits.message_bytes,
            calls=_CALLS_PER_REQUEST_IN_FLIGHT * limits.in_flight,
            request_bytes=_LARGEST_MESSAGES * limits.message_bytes,
        )


class Reception:
    """Gives each call its id, its error status, its metrics and its line in the log.

    Args:
        observer: Hears of calls.
        bounds: What they may take together.
        doors: By method, what refuses a call before its message is read.
    """

    def __init__(
        self,
        observer: CallObserver,
        bounds: CallBounds,
        doors: Mapping[str, Callable[[Call], None]] = MappingProxyType({}),
    ) -> None:
        self._observer = observer
        self._bounds = bounds
        self._doors = doors
        self._memory = MessageMemory(bounds.request_bytes)
        self._patience = Patience()
        self._refuse: Callable[[], UnavailableError] | None = _starting
        self._open: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def _running(self) -> int:
        return self._open.total()

    def admit(self) -> None:
        """Lets calls through from now on; before, they are told to come back."""
        self._refuse = None

    def refuse(self) -> None:
        """Tells calls that come, or wait for messages, from now on that the server is stopping."""
        self._refuse = stopping
        self._patience.end()

    async def idle(self) -> None:
        """Waits until no call runs."""
        await self._idle.wait()

    def receiving(
        self, handler: grpc.RpcMethodHandler[Any, Any], method: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler whose calls go through here.

        Args:
            handler: Of the method.
            method: ``package.Service/Method``.
        """
        self._observer.watch_calls(method, lambda: self._open[method])
        # Handlers of streams write through the context instead of yielding, so
        # that all kinds are coroutines and a cancellation always enters them. And
        # all are streams of bytes to gRPC, so that a call can be refused before
        # its message is read, and a message before it is parsed.
        behaviour = (
            handler.unary_unary
            or handler.stream_unary
            or handler.unary_stream
            or handler.stream_stream
        )
        make, seconds = (
            (grpc.stream_stream_rpc_method_handler, _NEXT_FRAME_SECONDS)
            if handler.response_streaming
            else (grpc.stream_unary_rpc_method_handler, _LAST_MESSAGE_SECONDS)
        )
        run = partial(self._run if handler.request_streaming else self._run_single, behaviour)

        async def served(raw: AsyncIterable[bytes], context: ServicerContext) -> Any:
            messages = Messages(
                raw,
                handler.request_deserializer,
                limit=self._bounds.message_bytes,
                patience=self._patience,
                seconds=seconds,
            )
            request_id = _named(method, context)
            try:
                outcome = await self._observed(method, context, partial(run, messages))
            finally:
                await messages.close()
                del raw, messages
            # What ends a call in gRPC lies in a cycle with the frames that it passes. It is
            # raised here, where no frame holds a message, or their reader, any more.
            if outcome.status is not None:
                await _abort(context, outcome.status, request_id)
            return outcome.answer

        return make(served, response_serializer=handler.response_serializer)

    async def _run(
        self, behaviour: _Behaviour, messages: Messages, context: ServicerContext
    ) -> Any:
        return await behaviour(messages, context)

    async def _run_single(
        self, behaviour: _Behaviour, messages: Messages, context: ServicerContext
    ) -> Any:
        """Runs a method that takes one message."""
        try:
            data = await messages.read_only_one()
        except StopAsyncIteration:
            raise InvalidArgumentError("EMPTY_MESSAGE", "Send a message.") from None
        with self._memory.lend(len(data)):
            request = messages.parsed(data)
            del data
            try:
                return await behaviour(request, context)
            except FewSegError as error:
                raise placed(error, request.DESCRIPTOR) from None

    async def _observed(
        self,
        method: str,
        context: ServicerContext,
        run: Callable[[ServicerContext], Awaitable[Any]],
    ) -> _Outcome:
        """Runs a call, counts it, and tells how it ended."""
        outcome = _Outcome()
        started = time.perf_counter()
        self._enter(method)
        try:
            self._check_room()
            if method in self._doors:
                self._doors[method](new_call(context))
            outcome.answer = await run(context)
        except asyncio.CancelledError:
            outcome.cancelled = True
            raise
        except Exception as error:
            overdue = is_overdue(context)
            outcome.status = status_of(error, current_request_id.get(), overdue=overdue)
            outcome.overloaded = isinstance(error, FewSegError) and error.reason == OVERLOADED
            let_go(error)
        finally:
            seconds = time.perf_counter() - started
            self._leave(method, outcome.code(context), seconds)
            outcome.log(context, seconds)
        return outcome

    def _check_room(self) -> None:
        if self._refuse is not None:
            raise self._refuse()
        if self._running > self._bounds.calls:
            raise overloaded()

    def _enter(self, method: str) -> None:
        self._open[method] += 1
        self._idle.clear()

    def _leave(self, method: str, code: str, seconds: float) -> None:
        self._open[method] -= 1
        if self._running == 0:
            self._idle.set()
        # In the loop's next turn: the answer leaves first.
        asyncio.get_running_loop().call_soon(self._observer.call_ended, method, code, seconds)


class _Outcome:
    """How a call ended."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.status: status_pb2.Status | None = None
        self.cancelled = False
        self.overloaded = False

    def code(self, context: ServicerContext) -> str:
        """The canonical code that the client sees."""
        if self.status is not None:
            return str(rpc_status.code_to_grpc_status_code(self.status.code).name)
        if not self.cancelled:
            return "OK"
        # gRPC cancels a handler both when the client leaves and when its time is over.
        return "DEADLINE_EXCEEDED" if is_overdue(context) else "CANCELLED"

    def log(self, context: ServicerContext, seconds: float) -> None:
        """Writes the line of the access log."""
        if self.status is None and not _log.isEnabledFor(logging.DEBUG):
            return
        facts = {"code": self.code(context), "seconds": round(seconds, 6), "peer": context.peer()}
        if self.status is None:
            _log.debug("call", **facts)
        elif self.overloaded:
            # A full server has better things to do than to write; metrics count what it refused.
            _log.debug("call_refused", error=self.status.message, **facts)
        else:
            _log.info("call_failed", error=self.status.message, **facts)


def _starting() -> UnavailableError:
    return UnavailableError("STARTING", "The server is starting.", retry_after=COME_BACK_SECONDS)


def _named(method: str, context: ServicerContext) -> str:
    """Names the running call, in the log and to its client."""
    request_id = request_id_of(context.invocation_metadata())
    current_request_id.set(request_id)
    structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    return request_id


async def _abort(context: ServicerContext, status: status_pb2.Status, request_id: str) -> None:
    wire = rpc_status.to_status(status)
    await context.abort(
        wire.code,
        wire.details,
        trailing_metadata=(*wire.trailing_metadata, (REQUEST_ID_KEY, request_id)),
    )
