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

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from loadtests.floor import finding, network_image
from loadtests.peers.endpoint import FAMILY, GUIDANCE
from loadtests.peers.plain_grpc import serve
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
        inputs = ensemble_inputs(image, self._prototypes)
        outputs = [InferRequestedOutput("logits")]
        answer = await self._client.infer(self._model, inputs, outputs=outputs)
        logits = answer.as_numpy("logits")[0, :, 0]
        found = await self._in_thread(finding, logits, *STANDARD_SIZE)
        return bytes(found.png)

    async def _in_thread(self, step: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step, *args)


def ensemble_inputs(image: Any, prototypes: Any) -> list[InferInput]:
    """What ``query_decoder`` takes: uint8 [1, 320, 320, 3] and float32 [1, 2, channels]."""
    inputs = []
    for name, values, kind in (("image", image, "UINT8"), ("prototypes", prototypes, "FP32")):
        tensor = InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


async def _main(port: int, address: str) -> None:
    await serve(port, SERVICE, {SEGMENT: _Endpoint(address).segment})


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
