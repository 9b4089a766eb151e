# SPDX-License-Identifier: Apache-2.0
"""Execution accelerators of a config, as Triton's ONNX Runtime backend takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from export.check.models import Tensor, declared

_PROFILES = ("min", "opt", "max")


def check_accelerators(config: Any) -> Iterator[str]:
    """Yields what is wrong with the accelerators of a graph's config."""
    accelerators = config.optimization.execution_accelerators
    for accelerator in accelerators.cpu_execution_accelerator:
        if accelerator.name != "openvino":
            yield f"config.pbtxt: there is no accelerator {accelerator.name!r} for processors"
    for accelerator in accelerators.gpu_execution_accelerator:
        if accelerator.name == "tensorrt":
            yield from _check_tensorrt(config, accelerator.parameters)
        elif accelerator.name != "cuda":
            yield f"config.pbtxt: there is no accelerator {accelerator.name!r} for GPUs"


def _check_tensorrt(config: Any, parameters: Mapping[str, str]) -> Iterator[str]:
    if parameters.get("precision_mode", "FP32") not in ("FP32", "FP16"):
        yield "config.pbtxt: tensorrt's precision_mode must be FP32 or FP16"
    if parameters.get("trt_engine_cache_enable") == "1" and not parameters.get(
        "trt_engine_cache_path"
    ):
        yield "config.pbtxt: tensorrt's engine cache needs a trt_engine_cache_path"
    profiles = {
        name: parameters.get(f"trt_profile_{name}_shapes", "")
        for name in _PROFILES
        if f"trt_profile_{name}_shapes" in parameters
    }
    if not profiles:
        return
    if len(profiles) < len(_PROFILES):
        yield "config.pbtxt: tensorrt needs all of trt_profile_min, _opt and _max_shapes"
        return
    shapes = {name: _read_shapes(text) for name, text in profiles.items()}
    inputs = declared(config.input)
    for name, given in shapes.items():
        for tensor in sorted(inputs.keys() ^ given.keys()):
            yield f"config.pbtxt: trt_profile_{name}_shapes and the inputs differ in {tensor!r}"
        for tensor in sorted(inputs.keys() & given.keys()):
            spec = Tensor(inputs[tensor].dtype, (config.max_batch_size, *inputs[tensor].dims))
            yield from _check_shape(name, tensor, given[tensor], spec)
    for tensor in sorted(inputs):
        ordered = [shapes[name].get(tensor, ()) for name in _PROFILES]
        if any(a > b for low, high in pairwise(ordered) for a, b in zip(low, high, strict=False)):
            yield f"config.pbtxt: the profiles of {tensor!r} do not grow from min to max"


def _read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """``image:1x320x320x3,planes:1x2x320x320`` by name; a part that is none has no extents."""
    shapes = {}
    for part in text.split(","):
        name, _, extents = part.rpartition(":")
        numbers = extents.split("x")
        sound = all(number.isdecimal() for number in numbers)
        shapes[name] = tuple(map(int, numbers)) if sound else ()
    return shapes


def _check_shape(profile: str, tensor: str, shape: tuple[int, ...], spec: Tensor) -> Iterator[str]:
    where = f"config.pbtxt: trt_profile_{profile}_shapes: {tensor!r}"
    if len(shape) != len(spec.dims):
        yield f"{where} must have {len(spec.dims)} extents, the batch first"
        return
    if not 1 <= shape[0] <= spec.dims[0]:
        yield f"{where} has batch {shape[0]}; it must be 1 to {spec.dims[0]}"
    if not Tensor(spec.dtype, shape[1:]).fits(Tensor(spec.dtype, spec.dims[1:])):
        yield f"{where} is {list(shape[1:])}, and {list(spec.dims[1:])} in the config"
