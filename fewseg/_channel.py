"""How a channel to a server is set up."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc

from fewseg.errors import FailedPrecondition
from fewseg.v1 import model_service_pb2_grpc as model_grpc
from fewseg.v1 import segmentation_service_pb2_grpc as segmentation_grpc
from fewseg.v1 import task_service_pb2_grpc as task_grpc

#: Target of the service that runs inside this process.
EMBEDDED = ":embedded:"
DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT = 30.0
DEFAULT_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_RETRIES = 4


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for an encrypted channel.

    Attributes:
        roots: Certificates to trust; None for those that gRPC trusts by default.
        certificate: Certificate chain of the client, if the server asks for one.
        key: Private key of the client, if the server asks for a certificate.
    """

    roots: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """What both clients are told about the connection.

    Raises:
        ValueError: ``retries`` is negative, or a size or a timeout is not positive.
        TypeError: Options of the embedded service are given for a remote one.
    """

    target: str
    timeout: float | None
    tls: bool | TlsFiles | None
    retries: int
    max_message_bytes: int
    embedded_options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, not {self.retries}.")
        if self.max_message_bytes <= 0:
            raise ValueError("max_message_bytes must be positive.")
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError("timeout must be positive, or None for no deadline.")
        if self.embedded_options and self.target != EMBEDDED:
            names = ", ".join(sorted(self.embedded_options))
            raise TypeError(f"Only Client({EMBEDDED!r}) takes {names}.")

    def options(self) -> list[tuple[str, Any]]:
        """The channel arguments of gRPC."""
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.primary_user_agent", f"fewseg-python/{importlib.metadata.version('fewseg')}"),
            ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
            # See fewseg._retries.
            ("grpc.enable_retries", 0),
        ]

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The channel credentials, or None for a plain-text channel."""
        if not self.tls:
            return None
        files = self.tls if isinstance(self.tls, TlsFiles) else TlsFiles()
        return grpc.ssl_channel_credentials(
            root_certificates=_read(files.roots),
            private_key=_read(files.key),
            certificate_chain=_read(files.certificate),
        )


class Stubs:
    """The API on one channel, of either the blocking or the asyncio kind."""

    def __init__(self, channel: Any) -> None:
        tasks: Any = task_grpc.TaskServiceStub
        segmentation: Any = segmentation_grpc.SegmentationServiceStub
        models: Any = model_grpc.ModelServiceStub
        self.tasks = tasks(channel)
        self.segmentation = segmentation(channel)
        self.models = models(channel)


class EmbeddedService(Protocol):
    """A service that runs inside this process."""

    @property
    def target(self) -> str:
        """Where it listens."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def start_embedded(options: dict[str, Any]) -> EmbeddedService:
    """Starts the service inside this process, with settings of its own.

    Raises:
        FailedPrecondition: It is not installed, or does not start.
    """
    entry_points = importlib.metadata.entry_points(group="fewseg.embedded", name="start")
    try:
        start = next(iter(entry_points)).load()
    except (StopIteration, ImportError) as error:
        raise FailedPrecondition(
            f"The service that Client({EMBEDDED!r}) runs is not installed: "
            "pip install 'fewseg[serve]'.",
            code="FAILED_PRECONDITION",
            reason="EMBEDDED_SERVICE_MISSING",
        ) from error
    try:
        service: EmbeddedService = start(**options)
    except TypeError:  # an option that the service does not have
        raise
    except Exception as error:
        raise FailedPrecondition(
            f"The embedded service does not start: {error}",
            code="FAILED_PRECONDITION",
            reason=getattr(error, "reason", "EMBEDDED_SERVICE_FAILED"),
        ) from error
    return service


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
