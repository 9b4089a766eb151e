"""Graphs that compute nothing, in the form that a family promises: for counting which ones run."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.family import Free, Graph, TensorSpec
from export.graphs import IR_VERSION, OPSET

ELEMENT_TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
}

#: Of a length that no input has, such as that of the grid of an image of any size.
UNKNOWN_LENGTH: Final = 2


def hollow_graph(graph: Graph) -> bytes:
    """Writes a graph whose outputs have the promised shapes and types, and hold ones."""
    axes = {
        Free(dim): (spec.name, axis)
        for spec in reversed(graph.inputs)
        for axis, dim in enumerate(spec.dims, start=1)
        if dim < 0
    }
    nodes, constants = [], []
    for spec in graph.outputs:
        lengths = [_length(nodes, constants, f"{spec.name}_0", (graph.inputs[0].name, 0), 0)]
        for axis, dim in enumerate(spec.dims, start=1):
            label = f"{spec.name}_{axis}"
            if dim > 0:
                lengths.append(_constant(constants, label, dim))
            elif Free(dim) in axes:
                lengths.append(_length(nodes, constants, label, axes[Free(dim)], 0))
            elif dim == Free.WAYS and Free.PLANES in axes:
                lengths.append(_length(nodes, constants, label, axes[Free.PLANES], 1))
            else:
                lengths.append(_constant(constants, label, UNKNOWN_LENGTH))
        shape = f"{spec.name}_shape"
        nodes.append(helper.make_node("Concat", lengths, [shape], axis=0))
        one = numpy_helper.from_array(np.ones(1, spec.dtype))
        nodes.append(helper.make_node("ConstantOfShape", [shape], [spec.name], value=one))
    body = helper.make_graph(
        nodes, "hollow", _values(graph.inputs), _values(graph.outputs), constants
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _constant(constants: list[TensorProto], label: str, value: int) -> str:
    constants.append(numpy_helper.from_array(np.array([value], np.int64), label))
    return label


def _length(
    nodes: list[onnx.NodeProto],
    constants: list[TensorProto],
    label: str,
    source: tuple[str, int],
    less: int,
) -> str:
    """The length of an axis of an input, less a number."""
    name, axis = source
    whole = f"{label}_whole"
    nodes.append(helper.make_node("Shape", [name], [whole], start=axis, end=axis + 1))
    subtracted = _constant(constants, f"{label}_less", less)
    nodes.append(helper.make_node("Sub", [whole, subtracted], [label]))
    return label


def _values(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            spec.name,
            ELEMENT_TYPES[spec.dtype],
            ["batch", *(Free(dim).name.lower() if dim < 0 else dim for dim in spec.dims)],
        )
        for spec in specs
    ]
