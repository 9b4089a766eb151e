"""A plain gRPC endpoint of asyncio in front of Triton: the least that a gateway in Python is.

Around one call of the ensemble it runs the straight line in threads. It checks nothing, keeps
nothing and bounds nothing. Run with a port and Triton's address as its arguments.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from loadtests.floor import finding, network_image
from loadtests.peers.endpoint import FAMILY, GUIDANCE
from loadtests.photographs import STANDARD_SIZE

SERVICE, SEGMENT = "fewseg.loadtest.PlainTriton", "Segment"


class _Endpoint:
    def __init__(self, address: str) -> None:
        self._client = InferenceServerClient(address)
        self._model = f"{os.environ[FAMILY]}_query_decoder"
        self._prototypes: Any = np.load(os.environ[GUIDANCE])
        self._threads = ThreadPoolExecutor(os.cpu_count())

    async def segment(self, jpeg: bytes, context: Any) -> bytes:
        image = await self._in_thread(network_image, jpeg)
        inputs = [_tensor("image", image, "UINT8"), _tensor("prototypes", self._prototypes, "FP32")]
        outputs = [InferRequestedOutput("logits")]
        answer = await self._client.infer(self._model, inputs, outputs=outputs)
        logits = answer.as_numpy("logits")[0, :, 0]
        found = await self._in_thread(finding, logits, *STANDARD_SIZE)
        return bytes(found.png)

    async def _in_thread(self, step: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step, *args)


def _tensor(name: str, values: Any, kind: str) -> InferInput:
    tensor = InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


async def serve(port: int, address: str) -> None:
    """Answers until the process ends: a JPEG with its mask."""
    endpoint = _Endpoint(address)
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(endpoint.segment)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {SEGMENT: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
