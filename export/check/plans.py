# SPDX-License-Identifier: Apache-2.0
"""A model that is a TensorRT plan: what its config says of it.

A plan cannot be read without TensorRT and a GPU like the one that built it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton


def check_plan(path: Path, config: Any) -> Iterator[str]:
    """Yields what is wrong with a plan's model.

    Args:
        path: Of the plan.
        config: Of the model.
    """
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        yield f"{where}: is missing"
    elif not path.stat().st_size:
        yield f"{where}: is empty"
    if any(group.kind != triton.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
        yield "config.pbtxt: a TensorRT plan needs instances of KIND_GPU"
    accelerators = config.optimization.execution_accelerators
    if accelerators.gpu_execution_accelerator or accelerators.cpu_execution_accelerator:
        yield "config.pbtxt: accelerators are ONNX Runtime's; a TensorRT plan takes none"
    for tensor in (*config.input, *config.output):
        if tensor.data_type == triton.TYPE_UINT16:
            yield f"config.pbtxt: {tensor.name!r} has 16 bits a value, which TensorRT does not have"
    yield from _check_provenance(config)


def _check_provenance(config: Any) -> Iterator[str]:
    """Whoever serves a plan must be able to tell where it runs."""
    try:
        provenance = json.loads(config.parameters["fewseg.provenance"].string_value)
        missing = [key for key in ("tensorrt", "gpu") if not provenance.get(key)]
    except (ValueError, AttributeError):
        return  # said of the parameter itself
    for key in missing:
        yield f"config.pbtxt: fewseg.provenance does not say {key!r}, which the plan is bound to"
