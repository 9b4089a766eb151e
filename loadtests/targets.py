"""Where the load goes: address, TLS, token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fewseg.v1 import segmentation_service_pb2_grpc, task_service_pb2_grpc

_MESSAGE_BYTES = 64 * 1024 * 1024

SEGMENT = "/fewseg.v1.SegmentationService/Segment"
ANNOTATE = "/fewseg.v1.TaskService/AnnotateSupport"
STREAM = "/fewseg.v1.SegmentationService/SegmentStream"


@dataclass(frozen=True, slots=True)
class Target:
    """A server; can be handed to other processes.

    Attributes:
        address: host:port, or unix:/path.
        tls: Whether the channel is encrypted.
        roots: PEM file of the authorities to trust; None for the usual ones.
        token: Sent as ``authorization: Bearer ...``; empty for none.
    """

    address: str
    tls: bool = False
    roots: Path | None = None
    token: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self) -> grpc.Channel:
        """A blocking channel."""
        if self.tls:
            return grpc.secure_channel(self.address, self._credentials(), _options())
        return grpc.insecure_channel(self.address, _options())

    def aio_channel(self) -> grpc.aio.Channel:
        """A channel for asyncio, on a connection of its own."""
        if self.tls:
            return grpc.aio.secure_channel(self.address, self._credentials(), _options())
        return grpc.aio.insecure_channel(self.address, _options())

    def _credentials(self) -> grpc.ChannelCredentials:
        roots = None if self.roots is None else self.roots.read_bytes()
        return grpc.ssl_channel_credentials(root_certificates=roots)


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        # Channels of one process would share a connection otherwise.
        ("grpc.use_local_subchannel_pool", 1),
        # A retry would hide a lost answer.
        ("grpc.enable_retries", 0),
    ]


class Connection:
    """Blocking stubs of one server.

    Args:
        target: The server.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel = target.channel()
        tasks: Any = task_service_pb2_grpc.TaskServiceStub
        segmentation: Any = segmentation_service_pb2_grpc.SegmentationServiceStub
        self.tasks = tasks(self._channel)
        self.segmentation = segmentation(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def raw(self, method: str) -> Any:
        """A unary call of bytes to bytes."""
        return self._channel.unary_unary(
            method, request_serializer=None, response_deserializer=None
        )

    def serving(self, timeout: float = 1.0) -> bool:
        """Whether the server reports SERVING."""
        try:
            answer = self._health.Check(
                health_pb2.HealthCheckRequest(),
                timeout=timeout,
                metadata=self.target.metadata,
                wait_for_ready=True,
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()
