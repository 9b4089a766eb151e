# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as a Python-based Triton backend, in place of the C++ one.

Triton executes this file for every model whose config says ``backend: "onnxruntime"``. It holds
models to what the C++ backend holds them to when it loads them, so that nothing is served here
that NVIDIA's image would refuse.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict

# The runtime reads this when it is imported: its telemetry writes under the user's cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

_DEFAULT_FILE = "model.onnx"
_FATAL = 4

#: ONNX Runtime's types by Triton's.
_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        """Opens the graph and compares it with the config.

        Raises:
            pb_utils.TritonModelException: The C++ backend would refuse the model.
        """
        if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            # This stub would answer tensors without content, and no error.
            raise pb_utils.TritonModelException(f"NumPy {np.__version__} is too new; use 1.26")
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or _DEFAULT_FILE
        # "model_repository" is the model's own folder.
        path = os.path.join(args["model_repository"], args["model_version"], name)
        try:
            self._session = onnxruntime.InferenceSession(
                path, _session_options(config), providers=["CPUExecutionProvider"]
            )
        # Each failure of the runtime has a class of its own, with no base but this.
        except Exception as error:
            raise pb_utils.TritonModelException(f"onnx runtime error: {error}") from error
        _check_graph(config, self._session)
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests):
        """Runs the requests, those of equal shapes as one batch.

        Returns:
            A response or an error for each request, in order.
        """
        responses = [None] * len(requests)
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            if request.is_cancelled():
                responses[index] = _failure("the request was cancelled", cancelled=True)
                continue
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            shapes = tuple(sorted((name, array.shape[1:]) for name, array in tensors.items()))
            groups[shapes].append((index, request, tensors))
        for group in groups.values():
            try:
                self._run(group, responses)
            except Exception as error:  # as above
                for index, _, _ in group:
                    responses[index] = _failure(f"onnx runtime execute failure: {error}")
        return responses

    def _run(self, group, responses):
        """Runs requests of equal shapes and fills in their responses."""
        names = group[0][2]
        feeds = {
            name: np.concatenate([tensors[name] for _, _, tensors in group])
            if len(group) > 1
            else group[0][2][name]
            for name in names
        }
        asked = {name for _, request, _ in group for name in request.requested_output_names()}
        wanted = [name for name in self._outputs if name in asked]
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        values = dict(zip(wanted, self._session.run(wanted, feeds, options), strict=True))
        start = 0
        for index, request, tensors in group:
            stop = start + len(next(iter(tensors.values())))
            responses[index] = pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(values[name][start:stop]))
                    for name in request.requested_output_names()
                ]
            )
            start = stop


def _failure(message, cancelled=False):
    code = pb_utils.TritonError.CANCELLED if cancelled else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _session_options(config):
    """Reads the parameters that the C++ backend reads; the rest is its default."""
    parameters = config.get("parameters", {})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    for key, field in (
        ("intra_op_thread_count", "intra_op_num_threads"),
        ("inter_op_thread_count", "inter_op_num_threads"),
    ):
        if key in parameters:
            setattr(options, field, int(parameters[key]["string_value"]))
    # A development machine shares its few cores with the gateway and the other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _check_graph(config, session):
    """Compares a graph with a config by the C++ backend's rules.

    Raises:
        pb_utils.TritonModelException: They differ.
    """
    model, batches = config["name"], config.get("max_batch_size", 0) > 0
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    declared = {tensor["name"] for tensor in config["input"]}
    if declared != set(inputs):
        _refuse(f"model '{model}', the graph's inputs are {sorted(inputs)}, not {sorted(declared)}")
    for tensor in config["input"]:
        _check_tensor(model, tensor, inputs[tensor["name"]], batches, exact=False)
    for tensor in config["output"]:
        if tensor["name"] not in outputs:
            _refuse(f"model '{model}', the graph has no output '{tensor['name']}'")
        _check_tensor(model, tensor, outputs[tensor["name"]], batches, exact=True)


def _check_tensor(model, tensor, node, batches, *, exact):
    """Inputs may narrow an extent that the graph leaves open; outputs must be as the graph's."""
    where = f"model '{model}', tensor '{tensor['name']}'"
    if _TYPES.get(tensor["data_type"]) != node.type:
        _refuse(f"{where}: is {node.type} in the graph, {tensor['data_type']} in the config")
    graph = [extent if isinstance(extent, int) else -1 for extent in node.shape]
    dims = [int(extent) for extent in tensor.get("reshape", {}).get("shape", tensor["dims"])]
    if batches:
        if not graph or graph[0] != -1:
            _refuse(f"{where}: the graph's first axis is not a symbolic batch: {graph}")
        dims = [-1, *dims]
    agrees = len(graph) == len(dims) and all(
        ours == theirs or (ours == -1 and not exact)
        for ours, theirs in zip(graph, dims, strict=True)
    )
    if not agrees:
        _refuse(f"{where}: the graph has shape {graph}, the config {dims}")


def _refuse(problem):
    raise pb_utils.TritonModelException(problem)
