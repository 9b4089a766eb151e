"""What every call of the API goes through: an id, the error table, metrics, the access log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from service.api.calls import REQUEST_ID_KEY, ServicerContext, current_request_id, request_id_of
from service.api.errors import status_of
from service.core.errors import UnavailableError
from service.logs import get_logger

_OURS: Final = "/fewseg.v1."
_COME_BACK_SECONDS: Final = 1.0

_log = get_logger(__name__)

_Behaviour = Callable[[Any, ServicerContext], Awaitable[Any]]


class CallObserver(Protocol):
    """Hears of calls, for metrics."""

    def call_started(self, method: str) -> None:
        """A call of ``package.Service/Method`` came in."""
        ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """It ended with that canonical code, such as "OK", after so long."""
        ...


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Gives each call its id, its error status, its metrics and its line in the log.

    Calls of other services (health, reflection) pass untouched.

    Args:
        observer: Hears of calls.
    """

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer
        self._refusal: tuple[str, str] | None = ("STARTING", "The server is starting.")
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def admit(self) -> None:
        """Lets calls through from now on; before, they are told to come back."""
        self._refusal = None

    def refuse(self) -> None:
        """Tells calls that come from now on that the server is stopping."""
        self._refusal = ("STOPPING", "The server is stopping.")

    async def idle(self) -> None:
        """Waits until no call runs."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler of a method of this API."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        return self._wrapped(handler, method[1:])

    def _wrapped(
        self, handler: grpc.RpcMethodHandler[Any, Any], method: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        # Handlers of streams write through the context instead of yielding, so
        # that all kinds are coroutines and a cancellation always enters them.
        make, behaviour = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[handler.request_streaming, handler.response_streaming]

        async def served(request: Any, context: ServicerContext) -> Any:
            async with self._serve(method, context):
                if self._refusal is not None:
                    raise UnavailableError(*self._refusal, retry_after=_COME_BACK_SECONDS)
                return await behaviour(request, context)

        return make(
            served,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @asynccontextmanager
    async def _serve(self, method: str, context: ServicerContext) -> AsyncIterator[None]:
        request_id = request_id_of(context.invocation_metadata())
        current_request_id.set(request_id)
        structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        with self._observed(method, context) as outcome:
            try:
                yield
            except Exception as error:
                status = status_of(error, request_id)
                outcome.status = status
                await _abort(context, status, request_id)

    @contextmanager
    def _observed(self, method: str, context: ServicerContext) -> Iterator[_Outcome]:
        outcome = _Outcome()
        started = time.perf_counter()
        self._enter(method)
        try:
            yield outcome
        except asyncio.CancelledError:
            outcome.cancelled = True
            raise
        finally:
            seconds = time.perf_counter() - started
            self._leave(method, outcome.code(context), seconds)
            outcome.log(context, seconds)

    def _enter(self, method: str) -> None:
        self._running += 1
        self._idle.clear()
        self._observer.call_started(method)

    def _leave(self, method: str, code: str, seconds: float) -> None:
        self._running -= 1
        if self._running == 0:
            self._idle.set()
        self._observer.call_ended(method, code, seconds)


class _Outcome:
    """How a call ended."""

    def __init__(self) -> None:
        self.status: status_pb2.Status | None = None
        self.cancelled = False

    def code(self, context: ServicerContext) -> str:
        """The canonical code that the client sees."""
        if self.status is not None:
            return str(rpc_status.code_to_grpc_status_code(self.status.code).name)
        if not self.cancelled:
            return "OK"
        # gRPC cancels a handler both when the client leaves and when its time is over.
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            return "DEADLINE_EXCEEDED"
        return "CANCELLED"

    def log(self, context: ServicerContext, seconds: float) -> None:
        """Writes the line of the access log."""
        facts = {"code": self.code(context), "seconds": round(seconds, 6), "peer": context.peer()}
        if self.status is None:
            _log.debug("call", **facts)
        else:
            _log.info("call_failed", error=self.status.message, **facts)


async def _abort(context: ServicerContext, status: status_pb2.Status, request_id: str) -> None:
    wire = rpc_status.to_status(status)
    await context.abort(
        wire.code,
        wire.details,
        trailing_metadata=(*wire.trailing_metadata, (REQUEST_ID_KEY, request_id)),
    )
