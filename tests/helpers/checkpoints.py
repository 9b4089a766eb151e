"""Files of the official layouts, whose tensors are one number each and take no room."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from export.methods.revolver import annotation_kernel

GOLDENS: Final = Path(__file__).parents[1] / "parity" / "goldens"

_PARALLEL = "module."


@dataclass(frozen=True, slots=True)
class Layout:
    """How the official training of a method writes a file.

    Attributes:
        wrapper: Key of the state dict beside others; empty where the file is the state dict.
        parallel: Whether keys start with `module.`.
        models: Names in `keys.json`, of those that can be exported; none where it holds one.
    """

    wrapper: str = ""
    parallel: bool = False
    models: tuple[str, ...] = ()


LAYOUTS: Final[Mapping[str, Layout]] = {
    "panet": Layout(parallel=True),
    "revolver": Layout(
        models=(
            "cofeat-late",
            "cofeat-late-lite",
            "cofeat-late-lite-unshared",
            "interactive-late-glob",
            "interactive-late-glob-lite",
            "cofeat-early",
        )
    ),
    "sgone": Layout(wrapper="state_dict"),
    "canet": Layout(parallel=True),
    "mmformer": Layout(wrapper="model", models=("v1", "v2_and_v2svf")),
    "hsnet": Layout(parallel=True, models=("resnet50", "resnet101", "vgg16")),
    "repri": Layout(
        wrapper="state_dict", parallel=True, models=("resnet50", "resnet101", "vgg16_bn")
    ),
    "pmms": Layout(wrapper="state_dict", models=("PMMs_resnet50", "RPMMs_resnet50")),
    "asgnet": Layout(wrapper="state_dict", parallel=True, models=("resnet50_pyramid",)),
    "pfenet": Layout(
        wrapper="state_dict", parallel=True, models=("resnet50", "resnet101", "vgg16_bn")
    ),
    "scl-canet": Layout(parallel=True, models=("sclca_resnet50",)),
    "scl-pfenet": Layout(wrapper="state_dict", parallel=True, models=("sclpfe_resnet50",)),
    "cyctr": Layout(wrapper="state_dict", parallel=True),
}
"""By method, as the command names it."""


def official_state(method: str, model: str = "") -> dict[str, torch.Tensor]:
    """The state dict, under the keys of the official file.

    Args:
        method: Of `LAYOUTS`.
        model: Of `keys.json`; empty for the first, or only, one.
    """
    layout = LAYOUTS[method]
    keys = json.loads((GOLDENS / method / "keys.json").read_text())
    chosen = model or (layout.models[0] if layout.models else "")
    state = {}
    for key, entry in (keys[chosen] if chosen else keys).items():
        shape, dtype = entry if isinstance(entry, list) else (entry["shape"], entry["dtype"])
        value = torch.full((), 0.01, dtype=getattr(torch, dtype.removeprefix("torch.")))
        name = key.removeprefix(_PARALLEL)
        state[f"{_PARALLEL}{name}" if layout.parallel else name] = value.expand(shape)
    if "anno_enc.weight" in state:
        state["anno_enc.weight"] = annotation_kernel()
    return state


def official_content(method: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What the official training hands to `torch.save`."""
    wrapper = LAYOUTS[method].wrapper
    if not wrapper:
        return dict(state)
    return {wrapper: dict(state), "epoch": 7, "optimizer": {"state": {}, "param_groups": []}}
