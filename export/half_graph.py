# SPDX-License-Identifier: Apache-2.0
"""Graphs in half precision, float32 at their edges.

What stands before the first weights, which is the normalisation of the image, stays in float32: it
costs nothing, and 16 bits of a pixel do not fit into half a float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from export.errors import GraphError

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Inputs that ONNX wants in float32 whatever the rest is: regions and scales of a resize.
_FULL_INPUTS: Final[Mapping[str, frozenset[int]]] = {"Resize": frozenset({1, 2})}
_LARGEST: Final = float(np.finfo(np.float16).max)


def to_half(content: bytes) -> bytes:
    """Converts weights and arithmetic of a graph to float16.

    Args:
        content: A serialised graph in float32.

    Returns:
        A graph with the same inputs and outputs, whose float tensors in between are float16.

    Raises:
        GraphError: A weight is too large for float16, there is nothing to convert, or an operator
            does not exist in half precision.
    """
    model = onnx.load_model_from_string(content)
    _Conversion(model).run()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise GraphError(f"The graph has no form in half precision: {error}") from error
    converted: bytes = model.SerializeToString(deterministic=True)
    return converted


def emulated(content: bytes) -> bytes:
    """Writes a half-precision graph in float32, each of its values rounded to float16.

    ONNX Runtime has few kernels for float16 on processors. It computes in float32 and keeps what a
    GPU would round, so that its results flatter the graph; those of this one do not.

    Args:
        content: What ``to_half`` returned.

    Returns:
        A graph for measuring. Sums inside an operator stay in float32, as in tensor cores.
    """
    model = onnx.load_model_from_string(content)
    halves = {name for name, kind in _types(model).items() if kind == TensorProto.FLOAT16}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for initializer in model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    for node in nodes:
        _retype(node, TensorProto.FLOAT16, TensorProto.FLOAT)
        rounded = [name for name in node.output if name in halves]
        node.output[:] = [f"{name}.exact" if name in halves else name for name in node.output]
        model.graph.node.append(node)
        for name in rounded:
            model.graph.node.append(_cast(f"{name}.exact", f"{name}.rounded", TensorProto.FLOAT16))
            model.graph.node.append(_cast(f"{name}.rounded", name, TensorProto.FLOAT))
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def is_weighted(content: bytes) -> bool:
    """Whether a serialised graph holds an operator whose weights could be halved."""
    model = onnx.load_model_from_string(content)
    return any(node.op_type in _WEIGHTED for node in model.graph.node)


def is_half(content: bytes) -> bool:
    """Whether a serialised graph holds weights in float16."""
    model = onnx.load_model_from_string(content)
    return any(weights.data_type == TensorProto.FLOAT16 for weights in model.graph.initializer)


class _Conversion:
    """One walk over the nodes of a model, which is changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        types = _types(model)
        self._floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self._weights = {weights.name: weights for weights in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._full = {value.name for value in model.graph.input}
        self._before = _before_weights(self._graph)
        self._twins: dict[str, str] = {}
        self._added: list[onnx.TensorProto] = []

    def run(self) -> None:
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for index, node in enumerate(nodes):
            if index in self._before:
                self._full.update(node.output)
                self._graph.node.append(node)
            else:
                self._graph.node.extend(self._converted(node))
        used = {name for node in self._graph.node for name in node.input}
        kept = [weights for weights in self._weights.values() if weights.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._added])
        if not self._added:
            raise GraphError("The graph has no weights that half precision could halve.")

    def _converted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        full_inputs = _FULL_INPUTS.get(node.op_type, frozenset())
        for position, name in enumerate(node.input):
            if name in self._floats and position not in full_inputs:
                yield from self._halve_input(node, position, name)
        _retype(node, TensorProto.FLOAT, TensorProto.FLOAT16)
        ends = []
        for position, name in enumerate(node.output):
            if name in self._floats and name in self._outputs:
                # Later steps of this graph may read it as well.
                node.output[position] = self._twins[name] = f"{name}.half"
                ends.append(_cast(f"{name}.half", name, TensorProto.FLOAT))
        yield node
        yield from ends

    def _halve_input(
        self, node: onnx.NodeProto, position: int, name: str
    ) -> Iterator[onnx.NodeProto]:
        if name not in self._twins and (name in self._weights or name in self._full):
            self._twins[name] = f"{name}.half"
            if name in self._weights:
                self._added.append(_halved(self._weights[name], f"{name}.half"))
            else:
                yield _cast(name, f"{name}.half", TensorProto.FLOAT16)
        node.input[position] = self._twins.get(name, name)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor by name."""
    try:
        graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except shape_inference.InferenceError as error:
        raise GraphError(f"The graph's types do not fit together: {error}") from error
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weights.name: weights.data_type for weights in graph.initializer}


def _before_weights(graph: Any) -> set[int]:
    """Positions of the nodes that make what the first weighted operators take."""
    after: set[str] = set()
    before = set()
    for index, node in enumerate(graph.node):
        if node.op_type in _WEIGHTED or after & set(node.input):
            after.update(node.output)
        else:
            before.add(index)
    return before


def _halved(weights: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(weights)
    if np.abs(values[np.isfinite(values)]).max(initial=0.0) > _LARGEST:
        raise GraphError(
            f"{weights.name} holds numbers beyond {_LARGEST:.0f}, the most of float16."
        )
    return numpy_helper.from_array(values.astype(np.float16), name)


def _retype(node: onnx.NodeProto, old: int, new: int) -> None:
    """Changes the type that a node's attributes name: of casts and constants."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
            attribute.i = new
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == old:
            values = numpy_helper.to_array(attribute.t)
            dtype = helper.tensor_dtype_to_np_dtype(new)
            attribute.t.CopyFrom(numpy_helper.from_array(values.astype(dtype), attribute.t.name))


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{source}->{target}", to=to)
