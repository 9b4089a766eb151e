"""The server: the core behind gRPC, with health, reflection and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from fewseg.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    segmentation_service_pb2,
    segmentation_service_pb2_grpc,
    task_service_pb2,
    task_service_pb2_grpc,
)
from service.api.handlers import Handlers
from service.api.models import Identity, ModelServicer
from service.api.reception import CallBounds, Reception
from service.api.segmentation import SegmentationServicer
from service.api.tasks import TaskServicer
from service.config import Settings
from service.core.calls import Call
from service.core.errors import FewSegError
from service.core.gateway import Gateway
from service.logs import get_logger
from service.metrics import Metrics, MetricsEndpoint

_SERVICES: Final = (
    *task_service_pb2.DESCRIPTOR.services_by_name.values(),
    *segmentation_service_pb2.DESCRIPTOR.services_by_name.values(),
    *model_service_pb2.DESCRIPTOR.services_by_name.values(),
)
_SERVICE_NAMES: Final = tuple(service.full_name for service in _SERVICES)
#: Seconds in which the clients of a server that stops hear of it at their next call.
LATE_CALLS_SECONDS: Final = 0.5
# A message a little above the limit is read, so that its refusal can say what the limit is.
_REFUSED_MESSAGE_BYTES: Final = 1024 * 1024
# An answer leaves shortly after its handler has ended.
_LAST_ANSWERS_SECONDS: Final = 1.0
_MILLISECONDS: Final = 1000

_log = get_logger(__name__)


class ListenError(Exception):
    """An address cannot be listened on; the message says which and what to do."""


class Server:
    """The core behind gRPC.

    Args:
        gateway: The core, not started yet.
        settings: Where to listen, and how long to wait.
        metrics: Hears of calls; its endpoint is opened here.
        identity: What the server says of itself.

    Attributes:
        port: The TCP port in use; 0 before ``start`` and without TCP.
        metrics_port: The port of the Prometheus endpoint; 0 likewise.
    """

    def __init__(
        self, gateway: Gateway, settings: Settings, metrics: Metrics, identity: Identity
    ) -> None:
        self.port = 0
        self.metrics_port = 0
        self._gateway = gateway
        self._settings = settings
        self._metrics = metrics
        self._reception = Reception(metrics, _bounds(settings), _doors(gateway))
        self._health = health.aio.HealthServicer()
        self._grpc = grpc.aio.server(options=_options(settings.limits.message_bytes))
        self._endpoint: MetricsEndpoint | None = None
        self._watching: asyncio.Task[None] | None = None
        self._add_services(identity)

    def _add_services(self, identity: Identity) -> None:
        ours = Handlers(self._grpc, self._reception.receiving)
        for add_to_server, servicer in (
            (task_service_pb2_grpc.add_TaskServiceServicer_to_server, TaskServicer(self._gateway)),
            (
                segmentation_service_pb2_grpc.add_SegmentationServiceServicer_to_server,
                SegmentationServicer(self._gateway),
            ),
            (
                model_service_pb2_grpc.add_ModelServiceServicer_to_server,
                ModelServicer(self._gateway, identity),
            ),
        ):
            cast(Any, add_to_server)(servicer, ours)
        others = Handlers(self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, others)
        names = (*_SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names), others
        )

    async def start(self) -> None:
        """Listens, starts the core, and then reports SERVING.

        Raises:
            ListenError: An address is taken or not this machine's.
            FewSegError: The core cannot start.
        """
        try:
            self._listen()
            await self._set_health(serving=False)
            await self._grpc.start()
            await self._gateway.start()
        except BaseException:
            await self._let_go(grace=None)
            raise
        self._reception.admit()
        await self._set_health(serving=True)
        self._watching = asyncio.create_task(self._watch())

    def _listen(self) -> None:
        settings = self._settings
        if settings.host:
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            self.port = self._add_port(f"{host}:{settings.port}", _credentials(settings))
        if settings.unix_socket is not None:
            self._add_port(f"unix:{settings.unix_socket}", None)
        if settings.metrics_host:
            host, port = settings.metrics_host, settings.metrics_port
            try:
                self._endpoint = MetricsEndpoint.open(self._metrics, host, port)
            except OSError as error:
                raise ListenError(
                    f"metrics cannot be served on {host}:{port} ({error.strerror}); choose another "
                    "--metrics-port, 0 for any free one, or an empty --metrics-host for none"
                ) from error
            self.metrics_port = self._endpoint.port

    def _add_port(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return int(self._grpc.add_insecure_port(address))
            return int(self._grpc.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {address}; is the address taken, or not this machine's?"
            ) from error

    async def _watch(self) -> None:
        """Keeps the health status true to what the models do."""
        while True:
            await asyncio.sleep(self._settings.ready_seconds)
            try:
                ready = await self._gateway.catalog.ready()
            except Exception as error:
                _log.error("readiness_check_failed", exc_info=error)
                ready = False
            await self._set_health(serving=ready)

    async def _set_health(self, *, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *_SERVICE_NAMES):
            await self._health.set(name, status)

    async def refresh(self) -> None:
        """Looks into the model repository again; what cannot be served is logged."""
        try:
            problems = await self._gateway.catalog.refresh()
        except FewSegError as error:
            problems = (error.message,)
        families = [family.name for family in self._gateway.catalog.families().values()]
        _log.info("models_refreshed", families=families, problems=list(problems))

    async def stop(self, *, late_calls_seconds: float = LATE_CALLS_SECONDS) -> None:
        """Reports NOT_SERVING, takes no more calls, waits for those that run, lets go.

        Args:
            late_calls_seconds: How long calls are still told to go elsewhere once none runs.
        """
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._health.enter_graceful_shutdown()
        await self._let_go(self._settings.drain_seconds, late_calls_seconds)

    async def _let_go(self, grace: float | None, late_calls_seconds: float = 0.0) -> None:
        try:
            if grace is not None:
                await self._drain(grace, late_calls_seconds)
            await self._grpc.stop(None)
        finally:
            try:
                await self._gateway.stop()
            finally:
                if self._endpoint is not None:
                    await asyncio.to_thread(self._endpoint.close)

    async def _drain(self, grace: float, late_calls_seconds: float) -> None:
        # The transport closes last: a late call then hears UNAVAILABLE from us,
        # where a closing transport at times says CANCELLED. Health watchers never
        # end by themselves: only calls of this API are worth the wait.
        self._reception.refuse()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._reception.idle()
        # Clients that call again and again have not all heard it yet.
        await asyncio.sleep(late_calls_seconds)
        await self._grpc.stop(_LAST_ANSWERS_SECONDS)


def _doors(gateway: Gateway) -> Mapping[str, Callable[[Call], None]]:
    segmentation = segmentation_service_pb2.DESCRIPTOR.services_by_name["SegmentationService"]
    return {f"{segmentation.full_name}/Segment": gateway.segmenter.check_room}


def _bounds(settings: Settings) -> CallBounds:
    bounds = CallBounds.of(settings.bounds())
    return replace(bounds, calls=settings.open_calls) if settings.open_calls else bounds


def _options(message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", message_bytes + _REFUSED_MESSAGE_BYTES),
        ("grpc.max_send_message_length", message_bytes),
        # Two servers on one port would share its calls at random.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 60 * _MILLISECONDS),
        ("grpc.keepalive_timeout_ms", 20 * _MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10 * _MILLISECONDS),
    ]


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        certificate = settings.tls_certificate.read_bytes()
        key = settings.tls_key.read_bytes()
        authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca else None
    except OSError as error:
        raise ListenError(f"{error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials(
        [(key, certificate)],
        root_certificates=authority,
        require_client_auth=authority is not None,
    )
