# SPDX-License-Identifier: Apache-2.0
"""Triton's ModelConfig messages for the models of a family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.family import Ensemble, Family, Free, Graph, TensorSpec

MODEL_FILE = "model.onnx"
"""The file in a version's folder."""

PLAN_FILE = "model.plan"
"""The same where TensorRT has built it."""

PLAN_BACKEND = "tensorrt"
"""Triton's backend that runs such files."""

VERSION = "1"
"""The only version of a model: a family never changes."""

MAX_QUEUE_SIZE = 64
"""Requests that may wait at one graph before Triton turns further ones away."""

WARM_UP = {
    Free.PLANES: 2,
    Free.WAYS: 1,
    Free.SHOTS: 1,
    Free.HEIGHT: 128,
    Free.WIDTH: 128,
    Free.ROWS: 4,
    Free.COLUMNS: 4,
    Free.SMALLER_ROWS: 3,
    Free.SMALLER_COLUMNS: 3,
    Free.LARGER_ROWS: 5,
    Free.LARGER_COLUMNS: 5,
    Free.POSITIONS: 64,
    Free.MIDDLE_POSITIONS: 64,
    Free.COARSE_POSITIONS: 64,
}
"""Lengths of the warm-up: one query and one way. Sizes that are free have no typical value."""

_DTYPES = {
    "float32": triton.DataType.TYPE_FP32,
    "float16": triton.DataType.TYPE_FP16,
    "uint8": triton.DataType.TYPE_UINT8,
    "uint16": triton.DataType.TYPE_UINT16,
}


def model_configs(family: Family) -> dict[str, Any]:
    """Builds the configs of all models.

    Args:
        family: The family.

    Returns:
        `ModelConfig` messages by role.
    """
    configs = {graph.role: _graph_config(family, graph) for graph in family.graphs}
    return configs | {part.role: _ensemble_config(family, part) for part in family.ensembles}


def to_text(config: Any) -> str:
    """Writes a config as the text of a `config.pbtxt`."""
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def from_text(text: str) -> Any:
    """Reads the text of a `config.pbtxt`.

    Raises:
        google.protobuf.text_format.ParseError: It is not one.
    """
    return text_format.Parse(text, triton.ModelConfig())


def _graph_config(family: Family, graph: Graph) -> Any:
    config = _common_config(family, graph)
    config.backend = "onnxruntime"
    config.default_model_filename = MODEL_FILE
    # AUTO: on graphics processors where the server has them, else on processors.
    config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_AUTO)
    queue = config.dynamic_batching.default_queue_policy
    queue.timeout_action = triton.ModelQueuePolicy.REJECT
    # The gateway's deadline comes with each request and reaches the queue.
    queue.allow_timeout_override = True
    queue.max_queue_size = MAX_QUEUE_SIZE
    # READY only once the shapes that requests bring have been run.
    warmup = config.model_warmup.add(name="one_query_one_way", batch_size=1)
    for spec in graph.inputs:
        sample = warmup.inputs[spec.name]
        sample.data_type = _DTYPES[spec.dtype]
        sample.dims.extend(spec.example_dims(WARM_UP))
        sample.zero_data = True
    return config


def _ensemble_config(family: Family, ensemble: Ensemble) -> Any:
    config = _common_config(family, ensemble)
    config.platform = "ensemble"
    for graph in ensemble.steps:
        step = config.ensemble_scheduling.step.add()
        step.model_name = family.model_name(graph.role)
        step.model_version = -1
        step.input_map.update({spec.name: spec.name for spec in graph.inputs})
        step.output_map.update({spec.name: spec.name for spec in _used_outputs(graph, ensemble)})
    return config


def _used_outputs(graph: Graph, ensemble: Ensemble) -> Iterator[TensorSpec]:
    """Yields what a later step or the caller takes."""
    wanted = {spec.name for step in ensemble.steps for spec in step.inputs}
    wanted |= {spec.name for spec in ensemble.outputs}
    return (spec for spec in graph.outputs if spec.name in wanted)


def _common_config(family: Family, part: Graph | Ensemble) -> Any:
    config = triton.ModelConfig(name=family.model_name(part.role), max_batch_size=family.max_batch)
    config.version_policy.latest.num_versions = 1
    for spec in part.inputs:
        config.input.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=_dims(spec))
    for spec in part.outputs:
        config.output.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=_dims(spec))
    for key, value in sorted(family.parameters(part.role).items()):
        config.parameters[key].string_value = value
    return config


def _dims(spec: TensorSpec) -> list[int]:
    """Triton's dims: -1 wherever a length is free."""
    return [max(dim, -1) for dim in spec.dims]
