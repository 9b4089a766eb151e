"""The families of a model repository, run graph by graph, without any part of the service.

What a gateway does around the graphs (docs/repository.md) is done here in its plainest form, for
benchmarks that compare with it or weigh what it exchanges.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from loadtests.floor import opened

Tensors = Mapping[str, NDArray[Any]]

ENSEMBLES: Final = ("support_encoder", "query_decoder")


@dataclass(frozen=True, slots=True)
class Episode:
    """Tensors of one query, as the graphs take and make them.

    Attributes:
        image: Of the query.
        maps: What `features`, and `query_features` after it, make of it.
        query: Those of them that `decode` takes.
        guidance: Of the task, padded as the gateway pads it.
        extra: What else of the query the graphs are told.
        logits: The answer.
    """

    image: NDArray[Any]
    maps: Tensors
    query: Tensors
    guidance: Tensors
    extra: Tensors
    logits: NDArray[Any]

    @property
    def asked(self) -> dict[str, NDArray[Any]]:
        """What `query_decoder` takes."""
        return {"image": self.image, **self.guidance, **self.extra}


class Served:
    """A family of ONNX graphs in a repository.

    Args:
        repository: The folder.
        name: Of the family.
        configs: `ModelConfig` messages by role.
        threads: Of ONNX Runtime; 0 for its own choice.

    Attributes:
        seconds: What the last run of each graph took.
    """

    def __init__(
        self, repository: Path, name: str, configs: Mapping[str, Any], threads: int = 0
    ) -> None:
        self.name = name
        self.seconds: dict[str, float] = {}
        self._repository = repository
        self._configs = configs
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def parameter(self, key: str, default: str = "") -> str:
        """A ``fewseg.*`` parameter, named without the prefix."""
        parameters = self._configs["features"].parameters
        name = f"fewseg.{key}"
        return str(parameters[name].string_value) if name in parameters else default

    def has(self, role: str) -> bool:
        """Whether there is a graph of that role."""
        return role in self._configs

    def episode(self, size: tuple[int, int], ways: int, shots: int) -> Episode:
        """Runs the graphs on support images and one query.

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
        extent = {"extent": np.array([[height, width]], np.float32)}
        maps = self.run("features", {"image": image})
        guided = self.run("guide", {**maps, **extent, "planes": planes})
        guidance = self._task({**maps, **guided, "planes": planes}, shots, extent)
        query = maps
        if self.has("query_features"):
            query = self.run("query_features", {**maps, **extent})
        known = {**maps, **query}
        logits = self.run("decode", {**known, **guidance, **extent})["logits"]
        taken = {tensor.name for tensor in self._configs["decode"].input}
        used = {name: values for name, values in known.items() if name in taken}
        told = {tensor.name for tensor in self._configs["query_decoder"].input} & extent.keys()
        return Episode(image, known, used, guidance, extent if told else {}, logits)

    def _task(self, shot: Tensors, shots: int, extent: Tensors) -> dict[str, NDArray[Any]]:
        """Guidance of a task whose shots are all alike."""
        shots = self._padded(shots, "shot_buckets")
        validity = np.ones((1, shots), np.float32)
        merged: dict[str, NDArray[Any]] = {}
        if self.has("merge"):
            inputs = json.loads(self.parameter("merge_inputs"))
            judged = json.loads(self.parameter("merge_judged", "[]"))
            feeds = {name: _stacked(shot[name], shots) for name in inputs}
            feeds |= {name: shot[name] for name in judged}
            merged = self.run("merge", {**feeds, **extent, "validity": validity})
            if judged:
                merged = {name: _stacked(values, shots) for name, values in merged.items()}
        tensors: dict[str, NDArray[Any]] = {}
        for entry in json.loads(self.parameter("guidance")):
            made = merged if entry["merge"] == "graph" else shot
            values = made[entry["name"]]
            if entry.get("positions"):
                values = self._with_positions(values)
            tensors[entry["name"]] = (
                _stacked(values, shots) if entry["merge"] == "stack" else values
            )
            if "validity" in entry:
                tensors[entry["validity"]] = validity
        return tensors

    def _with_positions(self, values: NDArray[Any]) -> NDArray[Any]:
        missing = self._padded(values.shape[2], "position_buckets") - values.shape[2]
        return np.pad(values, [(0, 0), (0, 0), (0, missing), (0, 0)])

    def _padded(self, length: int, key: str) -> int:
        buckets = [int(part) for part in self.parameter(key).split(",")]
        return next((one for one in buckets if one >= length), buckets[-1])

    def run(self, role: str, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Runs one graph on those of the tensors that it takes."""
        config = self._configs[role]
        session = self._session(role, config)
        feeds = {tensor.name: tensors[tensor.name] for tensor in config.input}
        names = [tensor.name for tensor in config.output]
        begun = time.perf_counter()
        made = session.run(names, feeds)
        self.seconds[role] = time.perf_counter() - begun
        return dict(zip(names, made, strict=True))

    def _session(self, role: str, config: Any) -> Any:
        if role not in self._sessions:
            file = config.default_model_filename or "model.onnx"
            graph = self._repository / config.name / "1" / file
            self._sessions[role] = opened(graph, self._threads)
        return self._sessions[role]


def _stacked(values: NDArray[Any], shots: int) -> NDArray[Any]:
    """So many shots that are alike, along a new first inner axis."""
    return np.repeat(values[:, None], shots, axis=1)


def families_of(repository: Path, threads: int = 0) -> Iterator[Served]:
    """Yields the families of a repository that ONNX Runtime runs, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(repository.glob("[!.]*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        family = config.parameters["fewseg.family"].string_value
        if family:
            found.setdefault(family, {})[config.parameters["fewseg.role"].string_value] = config
    for name, configs in found.items():
        graphs = [config for role, config in configs.items() if role not in ENSEMBLES]
        if all(config.backend == "onnxruntime" for config in graphs):
            yield Served(repository, name, configs, threads)
