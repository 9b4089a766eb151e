# SPDX-License-Identifier: Apache-2.0
"""What every stage shares: schedules, checkpoints to resume from, the weights that ship."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def set_rate(
    optimizer: Optimizer, step: int, steps: int, peak: float, warm_steps: int = 100
) -> float:
    """Sets and returns the learning rate: a linear rise, then half a cosine down to a hundredth."""
    rise = min(1.0, (step + 1) / warm_steps)
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    rate = peak * rise * fall
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    return rate


def parameter_groups(
    module: nn.Module, decay: float, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Splits parameters so that norms and biases are not decayed."""
    kernels = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": kernels, "weight_decay": decay, "lr_scale": lr_scale},
        {"params": others, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]


def channels_last(module: nn.Module) -> None:
    """Lays kernels out as the processor likes them."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def save_run(path: Path, step: int, rng: torch.Generator, **parts: _Stateful) -> None:
    """Writes a checkpoint that `resume_run` continues from; a crash never leaves half a file."""
    state = {name: part.state_dict() for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "rng": rng.get_state(), "parts": state}, partial)
    os.replace(partial, path)


def resume_run(path: Path, rng: torch.Generator, **parts: _Stateful) -> int:
    """Restores the parts of a checkpoint, if there is one, and returns the step to continue at."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved["parts"][name])
    rng.set_state(saved["rng"])
    return int(saved["step"])


def save_weights(trunk: nn.Module, path: Path) -> None:
    """Writes the trunk's weights, batch-norm statistics included, as safetensors."""
    weights = {name: value.detach().contiguous() for name, value in trunk.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(weights, partial)
    partial.chmod(0o644)
    os.replace(partial, path)
