# SPDX-License-Identifier: Apache-2.0
"""One model: its config against its graph, by the rules of Triton's C++ ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2 as triton

from export.check.plans import check_plan
from export.configs import MODEL_FILE, PLAN_BACKEND, PLAN_FILE

#: What ONNX Runtime 1.19.2 loads, which Triton 24.10's container carries.
MAX_IR_VERSION: Final = 10
MAX_OPSET: Final = 21
#: Domains of operators that it has; the empty one is ONNX's own.
DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})

_TYPES: Final[Mapping[int, int]] = {
    onnx.TensorProto.BOOL: triton.TYPE_BOOL,
    onnx.TensorProto.UINT8: triton.TYPE_UINT8,
    onnx.TensorProto.UINT16: triton.TYPE_UINT16,
    onnx.TensorProto.UINT32: triton.TYPE_UINT32,
    onnx.TensorProto.UINT64: triton.TYPE_UINT64,
    onnx.TensorProto.INT8: triton.TYPE_INT8,
    onnx.TensorProto.INT16: triton.TYPE_INT16,
    onnx.TensorProto.INT32: triton.TYPE_INT32,
    onnx.TensorProto.INT64: triton.TYPE_INT64,
    onnx.TensorProto.FLOAT16: triton.TYPE_FP16,
    onnx.TensorProto.FLOAT: triton.TYPE_FP32,
    onnx.TensorProto.DOUBLE: triton.TYPE_FP64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a config or a graph declares it.

    Attributes:
        dtype: Triton's number of its type; 0 for one that Triton does not have.
        dims: -1 is any extent.
    """

    dtype: int
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{triton.DataType.Name(self.dtype)} {list(self.dims)}"

    def fits(self, other: Tensor) -> bool:
        """Whether both can be the same tensor."""
        return (
            self.dtype == other.dtype
            and len(self.dims) == len(other.dims)
            and all(a == b or -1 in (a, b) for a, b in zip(self.dims, other.dims, strict=True))
        )


def declared(tensors: Any) -> dict[str, Tensor]:
    """The ``input`` or ``output`` field of a config, by name."""
    return {tensor.name: Tensor(tensor.data_type, tuple(tensor.dims)) for tensor in tensors}


def version_folder(folder: Path, config: Any) -> Path | None:
    """The version that Triton would serve, or None if there is none."""
    versions = [
        int(entry.name)
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name.isdecimal() and not entry.name.startswith("0")
    ]
    if config.version_policy.HasField("specific"):
        allowed = set(config.version_policy.specific.versions)
        versions = [version for version in versions if version in allowed]
    return folder / str(max(versions)) if versions else None


def check_model(folder: Path, config: Any) -> Iterator[str]:
    """Yields what is wrong with a model, apart from its parameters.

    Args:
        folder: Of the model.
        config: Its config.
    """
    if config.max_batch_size < 1:
        yield "config.pbtxt: max_batch_size must be at least 1"
    version = version_folder(folder, config)
    if version is None:
        yield "there is no version folder, such as 1/, that version_policy allows"
    yield from _check_tensors(config)
    yield from _check_queue(config)
    yield from _check_warmup(config)
    if config.HasField("ensemble_scheduling") or version is None:
        return
    if config.backend == PLAN_BACKEND:
        yield from check_plan(version / (config.default_model_filename or PLAN_FILE), config)
        return
    if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
        yield f"config.pbtxt: backend must be onnxruntime or tensorrt, not {config.backend!r}"
        return
    yield from _check_graph(version / (config.default_model_filename or MODEL_FILE), config)


def _check_tensors(config: Any) -> Iterator[str]:
    for field, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"config.pbtxt: there is no {field}; nothing is completed when it is loaded"
        for tensor in tensors:
            if not tensor.dims or any(extent == 0 or extent < -1 for extent in tensor.dims):
                yield f"config.pbtxt: {field} {tensor.name!r} needs dims above 0, or -1"
            if tensor.data_type not in _TYPES.values():
                yield f"config.pbtxt: {field} {tensor.name!r} has no numeric data_type"
            if tensor.HasField("reshape"):
                yield f"config.pbtxt: {field} {tensor.name!r} has a reshape; write plain dims"


def _check_queue(config: Any) -> Iterator[str]:
    if config.HasField("ensemble_scheduling"):
        return
    if not config.HasField("dynamic_batching"):
        yield "config.pbtxt: there is no dynamic_batching; queries would run one by one"
        return
    policy = config.dynamic_batching.default_queue_policy
    rejects = policy.timeout_action == triton.ModelQueuePolicy.REJECT
    if not (rejects and policy.allow_timeout_override):
        yield (
            "config.pbtxt: default_queue_policy must REJECT and allow_timeout_override, or a "
            "caller's deadline does not reach the queue"
        )
    if not policy.max_queue_size:
        yield "config.pbtxt: default_queue_policy needs a max_queue_size, or the queue has no bound"


def _check_warmup(config: Any) -> Iterator[str]:
    inputs = declared(config.input)
    for sample in config.model_warmup:
        where = f"config.pbtxt: model_warmup {sample.name!r}"
        if not 1 <= sample.batch_size <= max(1, config.max_batch_size):
            yield f"{where}: batch_size must be 1 to max_batch_size"
        for name in sorted(inputs.keys() ^ sample.inputs.keys()):
            yield f"{where}: {'has no' if name in inputs else 'names an unknown'} input {name!r}"
        for name in sorted(inputs.keys() & sample.inputs.keys()):
            given = Tensor(sample.inputs[name].data_type, tuple(sample.inputs[name].dims))
            if -1 in given.dims or not given.fits(inputs[name]):
                yield f"{where}: {name!r} is {given} and must be of {inputs[name]}"


def _check_graph(path: Path, config: Any) -> Iterator[str]:
    where = f"{path.parent.name}/{path.name}"
    try:
        # Weights outside of the file say nothing about tensors, and may be large.
        model = onnx.load_model(path, load_external_data=False)
    except FileNotFoundError:
        yield f"{where}: is missing"
        return
    except (OSError, DecodeError) as error:
        yield f"{where}: is no ONNX graph: {error}"
        return
    yield from _check_versions(where, model)
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    outputs = {value.name: value for value in model.graph.output}
    wanted_inputs, wanted_outputs = declared(config.input), declared(config.output)
    for name in sorted(wanted_inputs.keys() ^ inputs.keys()):
        lacking = "graph" if name in wanted_inputs else "config"
        yield f"{where}: input {name!r} is missing in the {lacking}"
    for name in sorted(wanted_outputs.keys() - outputs.keys()):
        yield f"{where}: output {name!r} is missing in the graph"
    for name in sorted(wanted_inputs.keys() & inputs.keys()):
        yield from _check_tensor(where, wanted_inputs[name], inputs[name], exact=False)
    for name in sorted(wanted_outputs.keys() & outputs.keys()):
        yield from _check_tensor(where, wanted_outputs[name], outputs[name], exact=True)


def _check_versions(where: str, model: onnx.ModelProto) -> Iterator[str]:
    if model.ir_version > MAX_IR_VERSION:
        yield (
            f"{where}: has IR version {model.ir_version}; Triton 24.10 loads up to {MAX_IR_VERSION}"
        )
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            yield f"{where}: uses operators of {opset.domain!r}, which Triton does not have"
        elif opset.domain in ("", "ai.onnx") and opset.version > MAX_OPSET:
            yield f"{where}: has opset {opset.version}; Triton 24.10 loads up to {MAX_OPSET}"


def _check_tensor(where: str, wanted: Tensor, value: Any, *, exact: bool) -> Iterator[str]:
    """Outputs must be declared as the graph has them; inputs may narrow an open extent."""
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if not tensor.HasField("shape") or not shape or shape[0] != -1:
        yield f"{where}: {value.name!r} is {shape}; its first axis, the batch, must be symbolic"
        return
    graph = Tensor(_TYPES.get(tensor.elem_type, 0), tuple(shape[1:]))
    agrees = graph.dtype == wanted.dtype and len(graph.dims) == len(wanted.dims)
    if not agrees or not all(
        ours == theirs or (ours == -1 and not exact)
        for ours, theirs in zip(graph.dims, wanted.dims, strict=True)
    ):
        yield f"{where}: {value.name!r} is {graph} in the graph, {wanted} in the config"
