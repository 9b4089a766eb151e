"""A plain gRPC endpoint of asyncio: the least that a service in Python is.

It checks nothing, keeps nothing and bounds nothing. Run with a port as its argument.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from fewseg.v1 import task_service_pb2 as task_pb2
from loadtests.floor import Annotator
from loadtests.peers.endpoint import Segmenter

SERVICE = "fewseg.loadtest.Plain"
#: A JPEG to its mask; a JPEG to be annotated from now on; a request like the service's own.
SEGMENT, KNOW, ANNOTATE = "Segment", "Know", "Annotate"
#: In front of the mask: the seconds that the graphs took.
SECONDS = struct.Struct("<d")
_THREADS = 2

#: Of a request's bytes and its context.
Behaviour = Callable[[bytes, Any], Awaitable[bytes]]


class _Endpoint:
    """Hands each step to a thread, as a server has to that answers others meanwhile."""

    def __init__(self) -> None:
        self._segmenter = Segmenter()
        self._annotator = Annotator(self._segmenter.line, Path.cwd())
        self._threads = ThreadPoolExecutor(_THREADS)
        self._store = ThreadPoolExecutor(1)

    async def _in(self, threads: ThreadPoolExecutor, step: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, step, *args)

    async def segment(self, jpeg: bytes, context: Any) -> bytes:
        png, seconds = await self._in(self._threads, self._segmenter.segment, jpeg)
        return bytes(SECONDS.pack(seconds) + png)

    async def know(self, jpeg: bytes, context: Any) -> bytes:
        await self._in(self._threads, self._annotator.know, jpeg)
        return b""

    async def annotate(self, content: bytes, context: Any) -> bytes:
        request = task_pb2.AnnotateSupportRequest.FromString(content)
        (ring,) = request.annotation.marks[0].polygon.rings
        outline = [(vertex.x, vertex.y) for vertex in ring.vertices]
        await self._in(self._threads, self._annotator.guide, outline)
        await self._in(self._store, self._annotator.commit, content)
        return content[:200]


async def serve(port: int, service: str, methods: Mapping[str, Behaviour]) -> None:
    """Answers calls of some methods, bytes to bytes, until the process ends."""
    server = grpc.aio.server()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(behaviour) for name, behaviour in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def _main(port: int) -> None:
    endpoint = _Endpoint()
    methods = {SEGMENT: endpoint.segment, KNOW: endpoint.know, ANNOTATE: endpoint.annotate}
    await serve(port, SERVICE, methods)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
