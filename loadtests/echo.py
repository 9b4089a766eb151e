"""An echo server in a process of its own: what the transport of given payloads takes.

The process listens on a free port of this machine, says which, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import psutil

from loadtests.servers import stop
from loadtests.targets import Target

METHOD = "/fewseg.loadtest.Echo/Call"
#: How many bytes the answer shall have.
ANSWER_BYTES = "x-answer-bytes"
#: Milliseconds before it is sent, in which the server sleeps.
ANSWER_AFTER = "x-answer-after-ms"
_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
]


@contextlib.contextmanager
def running_echo(kind: str = "aio") -> Iterator[tuple[Target, psutil.Process]]:
    """Runs an echo server.

    Args:
        kind: ``aio`` or ``threads``: which of gRPC's two servers answers.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.echo", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Target(f"127.0.0.1:{port}"), psutil.Process(process.pid)
    finally:
        stop(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _answer_to(request: bytes, metadata: dict[str, str]) -> bytes:
    return bytes(int(metadata[ANSWER_BYTES])) if ANSWER_BYTES in metadata else request


def _handler(behaviour: Any) -> Any:
    service, _, method = METHOD[1:].partition("/")
    return grpc.method_handlers_generic_handler(
        service, {method: grpc.unary_unary_rpc_method_handler(behaviour)}
    )


async def _serve_aio() -> None:
    async def behaviour(request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        if ANSWER_AFTER in metadata:
            await asyncio.sleep(float(metadata[ANSWER_AFTER]) / 1e3)
        return _answer_to(request, metadata)

    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(behaviour),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _say(port)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


def _serve_threads() -> None:
    def behaviour(request: bytes, context: Any) -> bytes:
        metadata = dict(context.invocation_metadata())
        if ANSWER_AFTER in metadata:
            time.sleep(float(metadata[ANSWER_AFTER]) / 1e3)
        return _answer_to(request, metadata)

    server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS)
    server.add_generic_rpc_handlers((_handler(behaviour),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _say(port)
    sys.stdin.read()
    server.stop(None).wait()


def _say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:] == ["threads"]:
        _serve_threads()
    else:
        asyncio.run(_serve_aio())
