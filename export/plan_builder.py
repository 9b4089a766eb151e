# SPDX-License-Identifier: Apache-2.0
"""TensorRT's builder, behind a port: from an ONNX graph to a plan.

The module `tensorrt` is large, runs with an NVIDIA GPU only and is no dependency of the exporter:
it is looked for when a plan is to be built. Written for its releases 10.x.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import onnx
from onnx import TensorProto, helper

from export.errors import ExportError, GraphError
from export.half_graph import is_half
from export.profiles import Profile

_MIB: Final = 1 << 20
_GPU_QUERY: Final = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
_GPU_SECONDS: Final = 30

UNAVAILABLE: Final = (
    "Building TensorRT plans needs an NVIDIA GPU and the tensorrt package: {reason}. On the "
    "machine that serves, or one with the same GPU: pip install tensorrt==10.5.0 (the release in "
    "Triton 24.10). Or use Triton's ONNX Runtime TensorRT accelerator: fewseg-export accelerate."
)
"""Why no plan can be built here."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How a plan is built.

    Attributes:
        half: Whether layers may compute in float16; float32 at the edges all the same.
        workspace_mib: The most memory that building and running one layer may take.
        timing_cache: File that keeps how fast each kernel was; None for none. It makes building
            again quick, and plans of the same graph alike.
    """

    half: bool
    workspace_mib: int
    timing_cache: Path | None


class PlanBuilder(Protocol):
    """Builds plans on this machine."""

    @property
    def version(self) -> str:
        """TensorRT's release; a plan runs with no other."""

    @property
    def gpu(self) -> str:
        """Name and compute capability of the GPU; a plan runs on no other kind."""

    def build(
        self, graph: bytes, profiles: Mapping[str, Profile], settings: BuildSettings
    ) -> bytes:
        """Builds a plan.

        Raises:
            GraphError: TensorRT does not take the graph.
        """


def find_builder(
    load: Callable[[str], Any] = importlib.import_module,
    run: Callable[..., Any] = subprocess.run,
) -> PlanBuilder:
    """Finds TensorRT and a GPU on this machine.

    Args:
        load: Imports a module by name.
        run: Runs a program, as `subprocess.run` does.

    Raises:
        ExportError: One of them is missing; the message says what to do.
    """
    gpu = _first_gpu(run)
    try:
        module = load("tensorrt")
    # Its shared libraries fail to load in more ways than an ImportError.
    except (ImportError, OSError) as error:
        raise ExportError(UNAVAILABLE.format(reason=f"tensorrt is not there ({error})")) from error
    return TensorRtBuilder(module, gpu)


def _first_gpu(run: Callable[..., Any]) -> str:
    try:
        asked = run(_GPU_QUERY, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ExportError(UNAVAILABLE.format(reason="there is no GPU")) from error
    lines = asked.stdout.strip().splitlines()
    if not lines:
        raise ExportError(UNAVAILABLE.format(reason="there is no GPU"))
    return " ".join(lines[0].replace(",", " ").split())


class TensorRtBuilder:
    """TensorRT as a `PlanBuilder`.

    Args:
        module: The package `tensorrt`.
        gpu: Name and compute capability of the GPU.
    """

    def __init__(self, module: Any, gpu: str) -> None:
        self._trt = module
        self._gpu = gpu

    @property
    def version(self) -> str:
        """TensorRT's release."""
        return str(self._trt.__version__)

    @property
    def gpu(self) -> str:
        """Name and compute capability of the GPU."""
        return self._gpu

    def build(
        self, graph: bytes, profiles: Mapping[str, Profile], settings: BuildSettings
    ) -> bytes:
        """Builds a plan; see `PlanBuilder.build`."""
        trt = self._trt
        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        # A graph that names its precisions itself is taken by its word.
        typed = is_half(graph)
        network = builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
        )
        self._parse(network, logger, with_cast_inputs(graph))
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
        if not typed:
            self._choose_precision(config, half=settings.half)
        shapes = builder.create_optimization_profile()
        for name, profile in profiles.items():
            shapes.set_shape(name, profile.least, profile.usual, profile.most)
        config.add_optimization_profile(shapes)
        self._use_timing_cache(config, settings.timing_cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise GraphError("TensorRT built no plan; its log above says why.")
        if settings.timing_cache is not None:
            _keep(settings.timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _parse(self, network: Any, logger: Any, graph: bytes) -> None:
        parser = self._trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise GraphError(f"TensorRT {self.version} does not take the graph: {errors}")

    def _choose_precision(self, config: Any, *, half: bool) -> None:
        flags = self._trt.BuilderFlag
        if not half:
            # On by default; its ten bits of mantissa are no more than those of half precision.
            config.clear_flag(flags.TF32)
        elif hasattr(flags, "FP16"):
            config.set_flag(flags.FP16)
        else:
            raise ExportError(
                f"TensorRT {self.version} chooses no precision by itself: make the family with "
                "fewseg-export half, and build its plans with --precision fp32."
            )

    def _use_timing_cache(self, config: Any, path: Path | None) -> None:
        if path is None:
            return
        kept = path.read_bytes() if path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(kept), False)


def with_cast_inputs(graph: bytes) -> bytes:
    """Turns integer images to float32 before anything else is done with them.

    TensorRT takes bytes at a network's edge only, for a cast; our graphs transpose them first,
    which moves a quarter of the memory elsewhere.

    Raises:
        GraphError: An image has 16 bits, which TensorRT has no type for.
    """
    model = onnx.load_model_from_string(graph)
    casts = []
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if kind == TensorProto.UINT16:
            raise GraphError(f"{value.name} has 16 bits a value, which TensorRT does not take.")
        if kind != TensorProto.UINT8:
            continue
        name = f"{value.name}.float"
        for node in model.graph.node:
            node.input[:] = [name if taken == value.name else taken for taken in node.input]
        casts.append(
            helper.make_node("Cast", [value.name], [name], name=name, to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def _keep(path: Path, content: bytes) -> None:
    """Writes a timing cache whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise ExportError(
            f"The timing cache {path} cannot be written: {error.strerror}."
        ) from error
