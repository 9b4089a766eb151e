"""What a Segment exchanges with Triton, by method: ``python -m loadtests.wire REPOSITORY``.

The graphs of every family of a repository are run once on an image of the size that the network
takes, and the tensors at their edges are weighed. With ``--triton`` a real Triton serves the
repository, and the messages of one real call of each ``query_decoder`` are weighed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import (
    InferenceServerClient,
    model_config_pb2,
    service_pb2,
    service_pb2_grpc,
)

from triton_local import LocalTriton

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Tensors = Mapping[str, NDArray[Any]]

_ENSEMBLES: Final = ("support_encoder", "query_decoder")
_LONGEST_MESSAGE: Final = 1 << 30
_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Episode:
    """Tensors of one query, as the graphs take and make them.

    Attributes:
        image: Of the query.
        maps: What `features`, and `query_features` after it, make of it.
        query: Those of them that `decode` takes.
        guidance: Of the task, padded as the gateway pads it.
        logits: The answer.
    """

    image: NDArray[Any]
    maps: Tensors
    query: Tensors
    guidance: Tensors
    logits: NDArray[Any]

    @property
    def asked(self) -> dict[str, NDArray[Any]]:
        """What `query_decoder` takes."""
        return {"image": self.image, **self.guidance}


@dataclass(frozen=True, slots=True)
class Messages:
    """Bytes of the messages of one real call."""

    request: int
    response: int


class Served:
    """A family of ONNX graphs in a repository.

    Args:
        repository: The folder.
        name: Of the family.
        configs: `ModelConfig` messages by role.
    """

    def __init__(self, repository: Path, name: str, configs: Mapping[str, Any]) -> None:
        self.name = name
        self._repository = repository
        self._configs = configs

    def parameter(self, key: str) -> str:
        """A ``fewseg.*`` parameter, named without the prefix."""
        return str(self._configs["features"].parameters[f"fewseg.{key}"].string_value)

    def episode(self, size: tuple[int, int], ways: int, shots: int) -> Episode:
        """Runs the graphs on one support image and one query.

        Args:
            size: Rows and columns of images where the network takes any.
            ways: Of the task.
            shots: Of the task.
        """
        ways = self._padded(ways, "way_buckets")
        fixed = self._configs["features"].input[0].dims[:2]
        height, width = size if -1 in fixed else fixed
        dtype = np.uint8 if self.parameter("input_dtype") == "uint8" else np.uint16
        image = np.full((1, height, width, 3), 100, dtype)
        planes = np.zeros((1, 1 + ways, height, width), np.float32)
        planes[:, :2, : height // 2] = [[[[0.0]], [[1.0]]]]
        planes[:, 0, height // 2 :] = 1.0
        maps = self._run("features", {"image": image})
        guidance = self._task(self._run("guide", {**maps, "planes": planes}), shots)
        query = self._run("query_features", maps) if "query_features" in self._configs else maps
        logits = self._run("decode", {**query, **guidance})["logits"]
        taken = {tensor.name for tensor in self._configs["decode"].input}
        used = {name: values for name, values in query.items() if name in taken}
        return Episode(image, {**maps, **query}, used, guidance, logits)

    def _task(self, shot: Tensors, shots: int) -> dict[str, NDArray[Any]]:
        """Guidance of a task whose shots are all alike."""
        shots = self._padded(shots, "shot_buckets")
        tensors: dict[str, NDArray[Any]] = {}
        for entry in json.loads(self.parameter("guidance")):
            values = shot[entry["name"]]
            if entry["merge"] == "stack":
                values = np.repeat(values[:, None], shots, axis=1)
            tensors[entry["name"]] = values
            if "validity" in entry:
                tensors[entry["validity"]] = np.ones((1, shots), np.float32)
        return tensors

    def _padded(self, length: int, key: str) -> int:
        buckets = [int(part) for part in self.parameter(key).split(",")]
        return next((one for one in buckets if one >= length), buckets[-1])

    def _run(self, role: str, tensors: Tensors) -> dict[str, NDArray[Any]]:
        config = self._configs[role]
        path = (
            self._repository / config.name / "1" / (config.default_model_filename or "model.onnx")
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {tensor.name: tensors[tensor.name] for tensor in config.input}
        names = [tensor.name for tensor in config.output]
        return dict(zip(names, session.run(names, feeds), strict=True))


def families_of(repository: Path) -> Iterator[Served]:
    """Yields the families of a repository that ONNX Runtime runs, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(repository.glob("[!.]*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        family = config.parameters["fewseg.family"].string_value
        if family:
            found.setdefault(family, {})[config.parameters["fewseg.role"].string_value] = config
    for name, configs in found.items():
        graphs = [config for role, config in configs.items() if role not in _ENSEMBLES]
        if all(config.backend == "onnxruntime" for config in graphs):
            yield Served(repository, name, configs)


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
        for model in sorted(models, key=lambda name: name.endswith(_ENSEMBLES)):
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
    kinds = {np.dtype(np.uint8): "UINT8", np.dtype(np.uint16): "UINT16"}
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        kind = kinds.get(values.dtype, "FP32")
        request.inputs.add(name=name, datatype=kind, shape=values.shape)
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
