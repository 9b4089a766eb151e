# SPDX-License-Identifier: Apache-2.0
"""A real Triton for tests, and ways to hurt it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from tests.helpers.tiny_repository import read_config
from triton_local import LocalTriton

_REST_SECONDS = 0.2


def batch_dynamically(
    root: Path, model: str, *, delay_microseconds: int = 0, max_queue_size: int = 64
) -> None:
    """Gives a model the queue that the exporter gives its models."""
    config = read_config(root / model)
    config.dynamic_batching.max_queue_delay_microseconds = delay_microseconds
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = model_config_pb2.ModelQueuePolicy.REJECT
    policy.allow_timeout_override = True
    policy.max_queue_size = max_queue_size
    (root / model / "config.pbtxt").write_text(text_format.MessageToString(config))


def statistics(triton: LocalTriton, model: str) -> tuple[int, int]:
    """How many queries a model answered, and in how many executions.

    Triton counts a query after its answer has left: the numbers must have come to rest.
    """
    last, now = None, _counted(triton, model)
    while now != last:
        time.sleep(_REST_SECONDS)
        last, now = now, _counted(triton, model)
    return now


def _counted(triton: LocalTriton, model: str) -> tuple[int, int]:
    with InferenceServerClient(triton.grpc_address) as client:
        (numbers,) = client.get_inference_statistics(model).model_stats
    return numbers.inference_count, numbers.execution_count


def states(triton: LocalTriton) -> dict[str, str]:
    """The repository index: state by model."""
    with InferenceServerClient(triton.grpc_address) as client:
        return {model.name: model.state for model in client.get_model_repository_index().models}


def unload_all(triton: LocalTriton) -> None:
    """Unloads every model."""
    with InferenceServerClient(triton.grpc_address) as client:
        for model, state in states(triton).items():
            if state == "READY":
                client.unload_model(model, unload_dependents=True)


def kill_stub(triton: LocalTriton, model: str) -> None:
    """Kills the process that runs a model's graph, and one that is ending."""
    stubs = [
        pid
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc")))
        if _parent(pid) == triton.pid and f"/{model}/" in _command(pid)
    ]
    assert stubs
    for stub in stubs:
        os.kill(stub, signal.SIGKILL)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _parent(pid: int) -> int:
    with suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def shared_memory_files() -> set[str]:
    """What the gateway keeps in shared memory."""
    return {entry for entry in os.listdir("/dev/shm") if entry.startswith(f"fewseg-{os.getpid()}-")}


class Proxy:
    """Forwards TCP to an address.

    Attributes:
        address: Where it listens.
        silent: While set, bytes are swallowed and connections stay open, as when a machine goes
            away without a word.
        sent: Bytes that went to the target.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._frozen: set[asyncio.Task[None]] = set()
        self.address = ""
        self.silent = False
        self.sent = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def freeze(self) -> None:
        """Swallows all further bytes of the connections that are open now; new ones work."""
        self._frozen |= self._connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        host, port = self._target.rsplit(":", 1)
        with suppress(OSError, asyncio.CancelledError):
            back_reader, back_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(
                self._forward(task, reader, back_writer, outwards=True),
                self._forward(task, back_reader, writer, outwards=False),
            )
        writer.close()

    async def _forward(
        self,
        connection: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        outwards: bool,
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self.silent or connection in self._frozen:
                    continue
                self.sent += len(data) if outwards else 0
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
