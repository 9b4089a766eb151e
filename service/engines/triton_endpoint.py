# SPDX-License-Identifier: Apache-2.0
"""One Triton server at one address."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from service.core.errors import UnavailableError
from service.engines.config_files import ModelConfig
from service.engines.triton_errors import TritonError, Trouble, read_error
from service.engines.triton_options import TritonOptions

_ResultT = TypeVar("_ResultT")

#: What Triton calls a model that answers.
READY: Final = "READY"

_UNBOUNDED: Final = 2**31 - 1
_MICROSECONDS: Final = 1_000_000
_FIRST_RECONNECT_MS: Final = 200
_LAST_RECONNECT_MS: Final = 2_000


class Endpoint:
    """Calls one Triton; every failure is a ``TritonError``.

    Args:
        address: ``host:port`` or ``unix:path``.
        options: How to talk to it.

    Attributes:
        address: As given.
        in_flight: Inferences that run now.
        regions: Names of the shared memory regions that were registered there.
        shares: Whether it is thought to see this machine's shared memory.
    """

    def __init__(self, address: str, options: TritonOptions) -> None:
        self.address = address
        self.in_flight = 0
        self.regions: set[str] = set()
        self.shares = _shares(address, options)
        self._options = options
        self._failures = 0
        self._left_out_until = 0.0
        self._closed = False
        # Servers take pings during a call that is long and silent by nature, such as loading a
        # model, for abuse. So they are sent on a connection for inference alone.
        self._inference = _client(address, options, keepalive=True)
        self._control = _client(address, options, keepalive=False)

    def left_out(self) -> float:
        """Seconds for which nothing is to be sent there; 0 when it can be used."""
        return max(0.0, self._left_out_until - time.monotonic())

    def failed(self) -> None:
        """It does not answer: leaves it out for a while, longer each time."""
        if self.left_out():
            return  # calls that failed together count as one failure
        options = self._options
        seconds = options.backoff_seconds * 2 ** min(self._failures, 16)
        self._failures += 1
        self._left_out_until = time.monotonic() + min(seconds, options.max_backoff_seconds)

    def answered(self) -> None:
        """It answers."""
        self._failures = 0
        self._left_out_until = 0.0

    async def infer(
        self, model: str, inputs: Sequence[Any], outputs: Sequence[str], seconds: float
    ) -> dict[str, NDArray[Any]]:
        """Runs a model; a task that is cancelled cancels the call.

        Args:
            model: Its name.
            inputs: tritonclient's ``InferInput`` objects.
            outputs: Names of the outputs to return.
            seconds: For the whole call, and for its time in Triton's queue.

        Returns:
            Outputs by name; read-only arrays.
        """
        self.in_flight += 1
        try:
            result = await self._ask(
                self._inference.infer(
                    model,
                    inputs,
                    outputs=[InferRequestedOutput(name) for name in outputs],
                    timeout=max(1, int(seconds * _MICROSECONDS)),
                    client_timeout=seconds,
                )
            )
        finally:
            self.in_flight -= 1
        return {name: result.as_numpy(name) for name in outputs}

    async def index(self) -> dict[str, str]:
        """State by name of every model in its repository; empty for one that was never loaded."""
        index = await self._question(
            lambda client, seconds: client.get_model_repository_index(client_timeout=seconds)
        )
        states: dict[str, str] = {}
        for model in index.models:
            # One line for each version: a model answers when one of them does.
            if states.get(model.name) != READY:
                states[model.name] = model.state
        return states

    async def config(self, model: str) -> ModelConfig:
        """The config of a model that is loaded."""
        answer = await self._question(
            lambda client, seconds: client.get_model_config(model, client_timeout=seconds)
        )
        return answer.config

    async def load(self, model: str) -> None:
        """Loads a model, and returns when it is ready; one that is loaded stays as it is.

        That may take minutes of silence, in which the server is asked whether it is still there.
        """
        loading = asyncio.ensure_future(
            self._ask(self._control.load_model(model, client_timeout=self._options.load_seconds))
        )
        try:
            while not (await asyncio.wait({loading}, timeout=self._options.control_seconds))[0]:
                await self._question(
                    lambda client, seconds: client.is_server_live(client_timeout=seconds)
                )
            await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def unload(self, model: str) -> None:
        """Begins to unload a model; what runs in it ends first."""
        await self._question(
            lambda client, seconds: client.unload_model(model, client_timeout=seconds)
        )

    async def register(self, region: str, size: int) -> None:
        """Lets it map the shared memory of a name, which is the region's name as well."""
        try:
            await self._question(
                lambda client, seconds: client.register_system_shared_memory(
                    region, f"/{region}", size, client_timeout=seconds
                )
            )
        except TritonError as error:
            if error.trouble is not Trouble.REGION_KNOWN:
                raise
        self.regions.add(region)

    async def unregister(self, region: str) -> None:
        """Lets it unmap a region."""
        self.regions.discard(region)
        await self._question(
            lambda client, seconds: client.unregister_system_shared_memory(
                region, client_timeout=seconds
            )
        )

    async def registered(self) -> list[str]:
        """Names of all regions that it maps, whoever registered them."""
        answer = await self._question(
            lambda client, seconds: client.get_system_shared_memory_status(client_timeout=seconds)
        )
        return list(answer.regions)

    async def close(self) -> None:
        """Ends both connections, and the calls on them."""
        self._closed = True
        await asyncio.gather(self._inference.close(), self._control.close())

    async def _question(self, ask: Callable[[Any, float], Awaitable[_ResultT]]) -> _ResultT:
        """Asks something that takes no time; one that is not answered costs the connection.

        It may be half open, and here no ping tells. Other calls on it end as they would have, and
        the connection with the last of them.
        """
        client = self._control
        try:
            return await self._ask(ask(client, self._options.control_seconds))
        except TritonError as error:
            if error.trouble is Trouble.TIMED_OUT and client is self._control:
                self._control = _client(self.address, self._options, keepalive=False)
            raise

    async def _ask(self, call: Awaitable[_ResultT]) -> _ResultT:
        try:
            return await call
        except InferenceServerException as error:
            raise read_error(error) from error
        except grpc.aio.UsageError as error:
            raise _closed() from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and (task is None or not task.cancelling()):
                # Closing a channel looks like a cancellation to the calls on it.
                raise _closed() from None
            raise


def _closed() -> UnavailableError:
    return UnavailableError("ENGINE_CLOSED", "The engine is shutting down.", retry_after=1.0)


def _shares(address: str, options: TritonOptions) -> bool:
    if options.shared_memory != "auto":
        return options.shared_memory == "on"
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _client(address: str, options: TritonOptions, *, keepalive: bool) -> Any:
    settings: dict[str, int] = {
        "grpc.max_send_message_length": _UNBOUNDED,
        "grpc.max_receive_message_length": _UNBOUNDED,
        "grpc.initial_reconnect_backoff_ms": _FIRST_RECONNECT_MS,
        "grpc.max_reconnect_backoff_ms": _LAST_RECONNECT_MS,
        # This one bounds an attempt.
        "grpc.min_reconnect_backoff_ms": _LAST_RECONNECT_MS,
        # A Pod that comes back has another address; by default its name is not asked for again
        # within half a minute.
        "grpc.dns_min_time_between_resolutions_ms": _LAST_RECONNECT_MS,
        # Else channels of equal arguments share a connection, and one engine's end is another's.
        "grpc.use_local_subchannel_pool": 1,
    }
    if keepalive:
        settings |= {
            "grpc.keepalive_time_ms": int(options.keepalive_seconds * 1_000),
            "grpc.keepalive_timeout_ms": int(options.keepalive_timeout_seconds * 1_000),
            # Later versions of gRPC wait a minute for the answer to any ping, unless told.
            "grpc.http2.ping_timeout_ms": int(options.keepalive_timeout_seconds * 1_000),
        }
    return InferenceServerClient(
        address, creds=_credentials(options), channel_args=list(settings.items())
    )


def _credentials(options: TritonOptions) -> grpc.ChannelCredentials | None:
    if not options.tls:
        return None
    files: Mapping[str, Any] = {
        "root_certificates": options.tls_ca,
        "private_key": options.tls_key,
        "certificate_chain": options.tls_certificate,
    }
    return grpc.ssl_channel_credentials(
        **{name: path.read_bytes() for name, path in files.items() if path is not None}
    )
