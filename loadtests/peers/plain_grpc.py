"""A plain gRPC endpoint of asyncio: the least that a service in Python is.

It checks nothing, keeps nothing and bounds nothing. Run with a port as its argument.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

from loadtests.peers.endpoint import Segmenter

SERVICE, METHOD = "fewseg.loadtest.Plain", "Segment"
#: In front of the mask: the seconds that the graphs took.
SECONDS = struct.Struct("<d")
_THREADS = 2


async def serve(port: int) -> None:
    """Answers until the process ends: a JPEG with its mask, made in a thread."""
    segmenter = Segmenter()
    threads = ThreadPoolExecutor(_THREADS)

    def segment(jpeg: bytes) -> bytes:
        png, seconds = segmenter.segment(jpeg)
        return SECONDS.pack(seconds) + png

    async def behaviour(request: bytes, context: Any) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(threads, segment, request)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
