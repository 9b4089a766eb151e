# SPDX-License-Identifier: Apache-2.0
"""Graphs in ONNX Runtime, held to what their configs declare."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.core.errors import RepositoryError
from service.core.family import GraphRole
from service.core.ports import OnGraph
from service.core.workers import core_count
from service.engines.config_files import ModelConfig, TensorSpec, config_path, tensor_specs

# The runtime reads this when it is first imported: its telemetry writes under the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

_DTYPES: Final = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
}
_FATAL: Final = 4
#: Of a graph with its weights.
_LEAN_BYTES: Final = 32 * 1024 * 1024


class StoppedError(Exception):
    """A run was stopped on request."""


class Run:
    """One run of a graph or of an ensemble's graphs, which any thread may stop.

    Args:
        crowded: Tells whether as many runs as there are cores are under way.
        on_graph: Hears what each graph gave.

    Attributes:
        crowded: As given.
        ran: Roles of the graphs that ran to their end, in order.
    """

    def __init__(
        self, crowded: Callable[[], bool] = lambda: False, on_graph: OnGraph | None = None
    ) -> None:
        self.crowded = crowded
        self._on_graph = on_graph
        self.ran: list[GraphRole] = []
        self._stopped = False
        self._options: Any = None

    def stop(self) -> None:
        """Makes the run raise ``StoppedError`` between two nodes of its graph, or before it."""
        self._stopped = True
        if self._options is not None:
            self._options.terminate = True

    def execute(
        self, role: GraphRole, session: Any, outputs: Sequence[str], feeds: Arrays
    ) -> dict[str, NDArray[Any]]:
        """Runs one graph.

        Raises:
            StoppedError: ``stop`` was called.
        """
        options = onnxruntime.RunOptions()
        # What goes wrong is raised; the runtime would write it to stderr as well.
        options.log_severity_level = _FATAL
        # In this order, so that a stop meanwhile is seen by one of the two.
        self._options = options
        if self._stopped:
            raise StoppedError
        try:
            values = session.run(outputs, feeds, options)
        except Exception:
            if self._stopped:
                raise StoppedError from None
            raise
        self.ran.append(role)
        given = dict(zip(outputs, values, strict=True))
        if self._on_graph is not None:
            self._on_graph(role, given)
        return given


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that is ready to run.

    Attributes:
        role: Which one of its family.
        model: Name of its model.
        inputs, outputs: As its config declares them.
        max_batch: Largest batch.
        session: ONNX Runtime's session.
        lean: Another one with a single thread, for runs beside as many others as there are cores:
            handing parts of each node to threads that are busy costs more than it gains.
    """

    role: GraphRole
    model: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch: int
    session: Any = field(repr=False)
    lean: Any = field(default=None, repr=False)

    def run(self, feeds: Arrays, run: Run) -> dict[str, NDArray[Any]]:
        """Runs the graph on checked inputs and returns its declared outputs."""
        session = self.lean if self.lean is not None and run.crowded() else self.session
        return run.execute(self.role, session, list(self.outputs), feeds)


def session_options(threads: int) -> Any:
    """Options of every session.

    Args:
        threads: Threads of one run.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between nodes take the cores from those that decode and encode images:
    # measured on two cores with a thread compressing meanwhile, one run of the default model's
    # features took 25 ms without spinning and 87 ms with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_graph(
    role: GraphRole, config: ModelConfig, path: Path, threads: int, providers: Sequence[str]
) -> Graph:
    """Opens a graph and compares it with its config by the rules of Triton's C++ backend.

    Args:
        role: Which one of its family.
        config: What it is declared to be.
        path: Its file.
        threads: Threads of one run; 0 for one per core, and one where runs fill the cores.
        providers: Execution providers, best first.

    Raises:
        RepositoryError: The file is no graph that runs here (GRAPH_INVALID), or
            differs from its config (GRAPH_MISMATCH).
    """
    where = path.relative_to(path.parents[2]).as_posix()

    def opened(threads: int) -> Any:
        session = onnxruntime.InferenceSession(
            str(path), session_options(threads), providers=list(providers)
        )
        session.disable_fallback()
        return session

    try:
        # A number of its own choice would come with threads that are tied to cores.
        session = opened(threads or core_count())
        lean = opened(1) if threads == 0 and _deserves_lean(path, providers) else None
    # Each failure has a class of its own, with no base but this.
    except Exception as error:
        cause = " ".join(str(error).replace(str(path), where).split()).rstrip(".")
        raise RepositoryError(
            "GRAPH_INVALID", f"{where}: ONNX Runtime cannot load it: {cause}."
        ) from error
    inputs = tensor_specs(config, config.input)
    outputs = tensor_specs(config, config.output)
    graph_inputs = {node.name: node for node in session.get_inputs()}
    graph_outputs = {node.name: node for node in session.get_outputs()}
    for name in sorted(inputs.keys() ^ graph_inputs.keys()):
        lacking = "the graph" if name in inputs else config_path(config.name)
        _mismatch(where, f"input {name!r} is missing in {lacking}")
    for name in sorted(outputs.keys() - graph_outputs.keys()):
        _mismatch(where, f"output {name!r} of {config_path(config.name)} is missing in the graph")
    for name, spec in inputs.items():
        _check_tensor(where, spec, graph_inputs[name], exact=False)
    for name, spec in outputs.items():
        _check_tensor(where, spec, graph_outputs[name], exact=True)
    return Graph(role, config.name, inputs, outputs, config.max_batch_size, session, lean)


def _deserves_lean(path: Path, providers: Sequence[str]) -> bool:
    """Whether a graph runs on several cores, and is small enough to be in memory twice."""
    return (
        core_count() > 1
        and list(providers) == ["CPUExecutionProvider"]
        and sum(part.stat().st_size for part in path.parent.iterdir()) <= _LEAN_BYTES
    )


def _check_tensor(where: str, spec: TensorSpec, node: Any, *, exact: bool) -> None:
    """Compares a tensor of a graph with its spec.

    Outputs must be declared as the graph has them; an input may narrow an extent that the graph
    leaves open. The batch must be open, because every model says that it batches.
    """
    if _DTYPES.get(node.type) != spec.dtype:
        _mismatch(where, f"{spec.name!r} is {node.type} in the graph, {spec.dtype} in the config")
    shape = [extent if isinstance(extent, int) else -1 for extent in node.shape]
    if not shape or shape[0] != -1:
        _mismatch(where, f"{spec.name!r} is {shape}; its first axis, the batch, must be symbolic")
    inner = shape[1:]
    agrees = len(inner) == len(spec.dims) and all(
        graph == declared or (graph == -1 and not exact)
        for graph, declared in zip(inner, spec.dims, strict=True)
    )
    if not agrees:
        _mismatch(
            where, f"{spec.name!r} has dims {inner} in the graph, {list(spec.dims)} in the config"
        )


def _mismatch(where: str, problem: str) -> NoReturn:
    raise RepositoryError("GRAPH_MISMATCH", f"{where}: {problem}.")


def check_providers(providers: Sequence[str]) -> None:
    """Raises ``ValueError`` unless ONNX Runtime has each of these execution providers."""
    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise ValueError(f"{provider} is not installed; there is {', '.join(available)}")
    if not providers:
        raise ValueError("at least one execution provider is needed")
