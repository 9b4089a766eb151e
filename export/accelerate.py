# SPDX-License-Identifier: Apache-2.0
"""Execution accelerators of Triton's ONNX Runtime backend, written into a repository's configs.

They belong to the machine that serves and not to the checkpoint: graphs and family names stay as
they are, and another machine's repository is another copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from export.check.parameters import parameters_of
from export.configs import MODEL_FILE, PLAN_BACKEND, from_text, to_text
from export.errors import RepositoryWriteError
from export.profiles import Shape, profiles, within
from export.repository import CONFIG_FILE

#: Roles that hold a graph, and the precision that each may have: `guide` adds up whole planes,
#: whose sums half precision cannot hold, and `decode` compares what differs little.
_HALF_ROLES: Final = frozenset({"features", "query_features"})
_GRAPH_ROLES: Final = frozenset({"features", "query_features", "guide", "merge", "decode"})
_ROLE: Final = "fewseg.role"
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class TensorRt:
    """TensorRT inside ONNX Runtime: engines are built when a model is first loaded.

    Attributes:
        half: Whether `features` and `query_features` compute in half precision.
        engine_cache: Folder of the serving machine where built engines are kept; a volume.
        workspace_gib: Memory that building may take.
        ways, shots: The most that an engine is built for, padded as the gateway pads them.
    """

    half: bool
    engine_cache: str
    workspace_gib: int = 2
    ways: int = 8
    shots: int = 5


@dataclass(frozen=True, slots=True)
class OpenVino:
    """OpenVINO inside ONNX Runtime, on processors.

    Graphs that hold a loop (``Scan``) stay plain: OpenVINO's reader fails at tensors that a loop
    takes from the graph around it (onnxruntime-openvino 1.24.1; 1.19.0 at some of them).
    """


@dataclass(frozen=True, slots=True)
class Plain:
    """No accelerator."""


Plan: TypeAlias = TensorRt | OpenVino | Plain


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a repository, by names of models.

    Attributes:
        changed: Those whose configs changed.
        plain: Those that the plan cannot run, and that have no accelerator now, changed or not.
    """

    changed: tuple[str, ...]
    plain: tuple[str, ...]


def accelerate(repository: Path, plan: Plan) -> Outcome:
    """Writes a plan into the configs of all graphs of a repository; TensorRT plans take none.

    Args:
        repository: The model repository.
        plan: What they are to run with; it replaces what they ran with before.

    Returns:
        What changed, and what stayed plain.

    Raises:
        ExportError: A graph takes images of any size, which TensorRT cannot be prepared for, or
            a family takes fewer ways.
        RepositoryWriteError: The repository is no folder, or cannot be written.
    """
    if not repository.is_dir():
        raise RepositoryWriteError(f"{repository} is not a folder; name a model repository.")
    configs = dict(_graph_configs(repository))
    plain = {path for path, config in configs.items() if not _possible(plan, path.parent, config)}
    planned = {
        path: _planned(config, Plain() if path in plain else plan)
        for path, config in configs.items()
    }
    changed = []
    for path, text in planned.items():
        if text != path.read_text(encoding="utf-8"):
            _replace(path, text)
            changed.append(path.parent.name)
    return Outcome(tuple(changed), tuple(sorted(path.parent.name for path in plain)))


def _graph_configs(repository: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(repository.glob(f"[!.]*/{CONFIG_FILE}")):
        try:
            config = from_text(path.read_text(encoding="utf-8"))
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise RepositoryWriteError(
                f"{path.parent.name}/{CONFIG_FILE} cannot be read: {error}; see fewseg-export check"
            ) from error
        is_graph = config.parameters[_ROLE].string_value in _GRAPH_ROLES
        if is_graph and config.backend != PLAN_BACKEND:
            yield path, config


def _possible(plan: Plan, model: Path, config: Any) -> bool:
    """Whether a plan can run the graph in a model's folder."""
    if not isinstance(plan, OpenVino):
        return True
    for path in model.glob(f"*/{config.default_model_filename or MODEL_FILE}"):
        try:
            graph = onnx.load(path, load_external_data=False).graph
        except (OSError, DecodeError) as error:
            raise RepositoryWriteError(
                f"{path} cannot be read as a graph: {error}; see fewseg-export check"
            ) from error
        if _loops(graph):
            return False
    return True


def _loops(graph: onnx.GraphProto) -> bool:
    """Whether a graph, or one inside it, holds a loop."""
    inner = (
        part
        for node in graph.node
        for attribute in node.attribute
        for part in (attribute.g, *attribute.graphs)
    )
    return any(node.op_type == "Scan" for node in graph.node) or any(map(_loops, inner))


def _planned(config: Any, plan: Plan) -> str:
    """The text of a config with a plan."""
    accelerators = config.optimization.execution_accelerators
    accelerators.Clear()
    if isinstance(plan, TensorRt):
        half = plan.half and config.parameters[_ROLE].string_value in _HALF_ROLES
        accelerator = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters.update(_tensorrt_parameters(config, plan, half=half))
    elif isinstance(plan, OpenVino):
        accelerators.cpu_execution_accelerator.add(name="openvino")
    else:
        config.ClearField("optimization")
    return to_text(config)


def _tensorrt_parameters(config: Any, plan: TensorRt, *, half: bool) -> Mapping[str, str]:
    values = parameters_of(config)
    ways = within(plan.ways, _numbers(values["way_buckets"]), "ways")
    # Where shots are merged before `decode`, no axis counts them.
    buckets = _numbers(values["shot_buckets"])
    shots = within(min(plan.shots, buckets[-1]), buckets, "shots")
    shapes = profiles(config, values["guidance"], ways, shots)
    return {
        "precision_mode": "FP16" if half else "FP32",
        "max_workspace_size_bytes": str(plan.workspace_gib * _GIB),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{plan.engine_cache.rstrip('/')}/{config.name}",
        "trt_timing_cache_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_profile_min_shapes": _told({name: one.least for name, one in shapes.items()}),
        "trt_profile_opt_shapes": _told({name: one.usual for name, one in shapes.items()}),
        "trt_profile_max_shapes": _told({name: one.most for name, one in shapes.items()}),
    }


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _told(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _replace(path: Path, text: str) -> None:
    """Writes a config whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise RepositoryWriteError(f"{path} cannot be written: {error.strerror}.") from error
