"""What a Segment exchanges with Triton, by method: ``python -m loadtests.wire REPOSITORY``.

The graphs of every family of a repository are run once on an image of the size that the network
takes, and the tensors at their edges are weighed. With ``--triton`` a real Triton serves the
repository, and the messages of one real call of each ``query_decoder`` are weighed beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc

from loadtests.families import ENSEMBLES, Episode, Served, Tensors, families_of
from triton_local import LocalTriton

_LONGEST_MESSAGE: Final = 1 << 30
_SECONDS: Final = 120.0
_DATATYPES: Final = {
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint16): "UINT16",
    np.dtype(np.float16): "FP16",
    np.dtype(np.float32): "FP32",
}


@dataclass(frozen=True, slots=True)
class Messages:
    """Bytes of the messages of one real call."""

    request: int
    response: int


def weight(tensors: Tensors) -> int:
    """Bytes of tensors."""
    return sum(values.nbytes for values in tensors.values())


def call(address: str, family: str, tensors: Tensors) -> tuple[Messages, NDArray[np.float32]]:
    """Calls a family's `query_decoder`.

    Args:
        address: Triton's gRPC address.
        family: Its name; it is loaded for the call.
        tensors: What the ensemble takes.

    Returns:
        The bytes of both messages, and the logits.
    """
    with InferenceServerClient(address) as client:
        roles = [model.name for model in client.get_model_repository_index().models]
        models = [name for name in roles if name.startswith(f"{family}_")]
        for model in sorted(models, key=lambda name: name.endswith(ENSEMBLES)):
            client.load_model(model)
        request = _request(f"{family}_query_decoder", tensors)
        options = [("grpc.max_receive_message_length", _LONGEST_MESSAGE)]
        with grpc.insecure_channel(address, options=options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            response = stub.ModelInfer(request, timeout=_SECONDS)
        for model in models:
            client.unload_model(model)
    shape = tuple(response.outputs[0].shape)
    logits = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
    return Messages(request.ByteSize(), response.ByteSize()), logits


def _request(model: str, tensors: Tensors) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        request.inputs.add(name=name, datatype=_DATATYPES[values.dtype], shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
    request.outputs.add(name="logits")
    return request


def table_of(rows: Sequence[tuple[Served, Episode, Messages | None]]) -> Table:
    """One row per family."""
    called = any(messages for _, _, messages in rows)
    headings = ["family", "image in", "guidance in", "logits out", "feature maps", "kept maps in"]
    table = Table(*headings, *(("messages of a call",) if called else ()))
    for column in table.columns[1:]:
        column.justify = "right"
    for family, episode, messages in rows:
        sizes = [episode.image.nbytes, weight(episode.guidance), episode.logits.nbytes]
        sizes += [weight(episode.maps), weight(episode.query)]
        cells = [f"{family.parameter('method')} {'x'.join(map(str, episode.image.shape[1:3]))}"]
        cells += [f"{size:,}" for size in sizes]
        if messages:
            cells.append(f"{messages.request:,} / {messages.response:,}")
        table.add_row(*cells)
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser("loadtests.wire", description=__doc__)
    parser.add_argument("repository", type=Path, nargs="?", default=Path("model_repository"))
    parser.add_argument("--rows", type=int, default=480, help="of images of any size")
    parser.add_argument("--columns", type=int, default=640, help="of images of any size")
    parser.add_argument("--ways", type=int, default=1)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--triton", action="store_true", help="make one real call of each as well")
    options = parser.parse_args()
    with ExitStack() as stack:
        address = ""
        if options.triton:
            address = stack.enter_context(LocalTriton(options.repository)).grpc_address
        rows = []
        for family in families_of(options.repository):
            size = (options.rows, options.columns)
            episode = family.episode(size, options.ways, options.shots)
            messages = call(address, family.name, episode.asked)[0] if address else None
            rows.append((family, episode, messages))
    Console(width=None).print(table_of(rows))


if __name__ == "__main__":
    main()
