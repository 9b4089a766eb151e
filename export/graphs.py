# SPDX-License-Identifier: Apache-2.0
"""From a torch module to an ONNX graph that Triton takes as its config declares it."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.errors import GraphError
from export.family import MIN_NATIVE_SIDE, Free, Graph, LengthOf, TensorSpec

OPSET = 18
"""Operator set of the graphs."""

IR_VERSION = 10
"""The highest that ONNX Runtime 1.19, as Triton 24.10 carries it, reads."""

TRACED = {
    Free.PLANES: 3,
    Free.WAYS: 2,
    Free.SHOTS: 3,
    Free.HEIGHT: 97,
    Free.WIDTH: 129,
    Free.ROWS: 5,
    Free.COLUMNS: 6,
    Free.SMALLER_ROWS: 3,
    Free.SMALLER_COLUMNS: 4,
    Free.LARGER_ROWS: 7,
    Free.LARGER_COLUMNS: 8,
    Free.POSITIONS: 7,
    Free.MIDDLE_POSITIONS: 8,
    Free.COARSE_POSITIONS: 9,
}
"""Lengths that a graph is exported with."""

CHECKED = {
    Free.PLANES: 2,
    Free.WAYS: 1,
    Free.SHOTS: 2,
    Free.HEIGHT: 130,
    Free.WIDTH: 100,
    Free.ROWS: 4,
    Free.COLUMNS: 7,
    Free.SMALLER_ROWS: 2,
    Free.SMALLER_COLUMNS: 5,
    Free.LARGER_ROWS: 6,
    Free.LARGER_COLUMNS: 9,
    Free.POSITIONS: 5,
    Free.MIDDLE_POSITIONS: 4,
    Free.COARSE_POSITIONS: 6,
}
"""Other lengths, which the exported graph must take as well."""

_LEAST = {Free.PLANES: 2, Free.HEIGHT: MIN_NATIVE_SIDE, Free.WIDTH: MIN_NATIVE_SIDE}

HALF_STEP = 2.0**-10
"""Distance of neighbouring float16 numbers, relative to them: what a rounding may turn into."""


def export_graph(graph: Graph) -> bytes:
    """Writes a graph as ONNX, with every dimension declared, and compares it with its module.

    Args:
        graph: What to export.

    Returns:
        The serialised model: the same bytes for the same graph.

    Raises:
        GraphError: The ONNX graph is not what the specs say, or computes something else.
    """
    with _quiet(), torch.no_grad():
        model = _traced(graph) if graph.traced else _exported(graph)
    _strip(model)
    model.ir_version = IR_VERSION
    _declare(model.graph.input, graph.inputs, graph.role)
    _declare(model.graph.output, graph.outputs, graph.role)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    _compare_with_torch(graph, content)
    return content


def example_tensors(specs: Sequence[TensorSpec], *, batch: int, lengths: LengthOf) -> list[Tensor]:
    """Makes inputs that are the same every time.

    Args:
        specs: What they are.
        batch: Length of dimension 0.
        lengths: What stands for free lengths.

    Returns:
        Bytes over their whole range, floats in [0, 1).
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for spec in specs:
        shape = (batch, *spec.example_dims(lengths))
        values = torch.rand(shape, generator=generator)
        if spec.dtype.startswith("uint"):
            values = values * (256 if spec.dtype == "uint8" else 65536)
        tensors.append(values.to(getattr(torch, spec.dtype)))
    return tensors


class OnnxGraph:
    """A serialised graph, run by ONNX Runtime on the processor."""

    def __init__(self, content: bytes, *, exact: bool = False) -> None:
        """Loads a graph.

        Args:
            content: The serialised model.
            exact: Whether to run every node as it stands, rather than what it amounts to.

        Raises:
            GraphError: ONNX Runtime refuses it.
        """
        # Set before the import: the runtime would write telemetry under the user's cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        try:
            options = onnxruntime.SessionOptions()
            if exact:
                options.graph_optimization_level = (
                    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                )
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise GraphError(f"ONNX Runtime does not load the graph: {error}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Runs the graph on tensors by name; returns all its outputs by name."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's remarks about its own insides, which no user can act upon, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _exported(graph: Graph) -> onnx.ModelProto:
    program = torch.onnx.export(
        graph.module.eval(),
        tuple(example_tensors(graph.inputs, batch=2, lengths=TRACED)),
        dynamo=True,
        opset_version=OPSET,
        input_names=[spec.name for spec in graph.inputs],
        output_names=[spec.name for spec in graph.outputs],
        dynamic_shapes=tuple(_dynamic_axes(graph.inputs)),
        verbose=False,
    )
    if program is None:
        raise GraphError(f"torch exported no {graph.role} graph.")
    return program.model_proto


def _traced(graph: Graph) -> onnx.ModelProto:
    """Exports by torch's older exporter, which records one run."""
    content = io.BytesIO()
    free = {
        spec.name: {
            axis: Free(dim).name.lower() for axis, dim in enumerate(spec.dims, 1) if dim < 0
        }
        for spec in (*graph.inputs, *graph.outputs)
    }
    torch.onnx.export(
        graph.module.eval(),
        tuple(example_tensors(graph.inputs, batch=2, lengths=TRACED)),
        content,  # type: ignore[arg-type]  # The older exporter takes an open file.
        dynamo=False,
        opset_version=OPSET,
        input_names=[spec.name for spec in graph.inputs],
        output_names=[spec.name for spec in graph.outputs],
        dynamic_axes={name: {0: "batch", **axes} for name, axes in free.items()},
    )
    return onnx.load_from_string(content.getvalue())


def _dynamic_axes(specs: Sequence[TensorSpec]) -> Iterator[dict[int, torch.export.Dim]]:
    batch = torch.export.Dim("batch")
    symbols = {
        length: torch.export.Dim(length.name.lower(), min=_LEAST.get(length)) for length in Free
    }
    for spec in specs:
        free = {axis: symbols[Free(dim)] for axis, dim in enumerate(spec.dims, start=1) if dim < 0}
        yield {0: batch, **free}


def _strip(model: onnx.ModelProto) -> None:
    """Removes what tells of the machine that exported: stack traces, file names, node origins."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "fewseg-export", ""
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.name, graph.doc_string = "fewseg", ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    # Shapes of inner tensors say nothing that a runtime does not infer itself.
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_graph(attribute.g)


def _declare(values: Sequence[onnx.ValueInfoProto], specs: Sequence[TensorSpec], role: str) -> None:
    """Writes the dims of the config onto the graph: Triton refuses an output where they differ."""
    if [value.name for value in values] != [spec.name for spec in specs]:
        raise GraphError(
            f"The {role} graph has the tensors {[value.name for value in values]}, "
            f"expected {[spec.name for spec in specs]}."
        )
    for value, spec in zip(values, specs, strict=True):
        shape = value.type.tensor_type.shape
        if len(shape.dim) != len(spec.dims) + 1:
            raise GraphError(f"{spec.name} of the {role} graph has {len(shape.dim)} dimensions.")
        for dim, length in zip(shape.dim[1:], spec.dims, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != length:
                raise GraphError(
                    f"{spec.name} of the {role} graph has the length {dim.dim_value} where "
                    f"{length} was promised."
                )
            if length < 0:
                dim.dim_param = Free(length).name.lower()
            else:
                dim.dim_value = length
        shape.dim[0].dim_param = "batch"


def _compare_with_torch(graph: Graph, content: bytes) -> None:
    """Runs module and graph on another batch and number of ways than the export saw."""
    inputs = example_tensors(graph.inputs, batch=1, lengths=CHECKED)
    with torch.no_grad():
        results = graph.module(*inputs)
    expected = (results,) if isinstance(results, Tensor) else results
    feeds = {spec.name: value.numpy() for spec, value in zip(graph.inputs, inputs, strict=True)}
    answers = OnnxGraph(content)(feeds)
    for spec, wanted in zip(graph.outputs, expected, strict=True):
        if answers[spec.name].shape != tuple(wanted.shape):
            raise GraphError(
                f"{spec.name} of the exported {graph.role} graph has the shape "
                f"{answers[spec.name].shape} where torch makes {tuple(wanted.shape)}."
            )
        scale = max(float(wanted.abs().max()), 1e-12)
        difference = answers[spec.name].astype(np.float32) - wanted.float().numpy()
        error = float(np.abs(difference).max()) / scale
        allowed = HALF_STEP if spec.dtype == "float16" else graph.tolerance
        if not error <= allowed:
            raise GraphError(
                f"{spec.name} of the exported {graph.role} graph differs from torch by {error:.1e} "
                f"of its largest value; at most {allowed:.0e} is allowed."
            )
