# SPDX-License-Identifier: Apache-2.0
"""What every stage shares: schedules, checkpoints to resume from, logs, the weights that ship."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

SAVE_SECONDS = 60

_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"

_COUNT = "updates"


class Stateful(Protocol):
    """What a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restores the state."""


class Draws:
    """The state of a generator of numpy, for checkpoints."""

    def __init__(self, generator: np.random.Generator) -> None:
        """Keeps the state of `generator`."""
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""
        return dict(self._generator.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state."""
        self._generator.bit_generator.state = state


@dataclass(frozen=True)
class Budget:
    """When a stage ends: after so many steps, or after so many minutes, whatever comes first.

    Attributes:
        steps: Steps of the whole stage.
        minutes: Minutes of the whole stage, resumed parts added up; None for no limit.
    """

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """How much of the stage is over, in [0, 1]; the learning rate follows it."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_time))


class Run:
    """One stage under way: its clock, its log, its checkpoints."""

    def __init__(self, folder: Path, name: str, budget: Budget) -> None:
        """Writes `<name>.pt` and the learning curve `<name>.json` into `folder`."""
        self.checkpoint, self.log = folder / f"{name}.pt", folder / f"{name}.json"
        self.budget, self.curve = budget, list[dict[str, float]]()
        self.step, self._spent, self._started = 0, 0.0, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        """Time that the stage has taken, resumed parts included."""
        return self._spent + time.monotonic() - self._started

    def resume(self, rng: torch.Generator, **parts: Stateful) -> None:
        """Restores the parts of the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True, map_location=rng.device)
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        rng.set_state(saved["rng"].cpu())
        self.step, self._spent, self.curve = saved["step"], saved["seconds"], saved["curve"]

    def save(self, rng: torch.Generator, **parts: Stateful) -> None:
        """Writes checkpoint and learning curve; a crash never leaves half a file."""
        saved = {
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "rng": rng.get_state(),
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(saved, partial)
        os.replace(partial, self.checkpoint)
        self.log.write_text(json.dumps(self.curve))

    def steps(self) -> Iterator[tuple[float, bool]]:
        """Yields progress, and whether it is time to write a checkpoint, until the stage ends."""
        saved = time.monotonic()
        # In per cent of the budget, which may be one of time.
        began = 100 * self.budget.progress(self.step, self.seconds)
        bar = tqdm(total=100, initial=began, mininterval=10, bar_format=_BAR)
        while (progress := self.budget.progress(self.step, self.seconds)) < 1.0:
            bar.update(100 * progress - bar.n)
            bar.set_postfix_str(f"step {self.step}", refresh=False)
            due = time.monotonic() - saved > SAVE_SECONDS
            saved = time.monotonic() if due else saved
            yield progress, due
            self.step += 1
        bar.update(100 - bar.n)
        bar.close()

    def note(self, progress: float, **numbers: Tensor | float) -> None:
        """Adds a point to the learning curve."""
        point = {
            name: round(float(value.detach() if isinstance(value, Tensor) else value), 5)
            for name, value in numbers.items()
        }
        point |= {"step": self.step, "seconds": round(self.seconds, 1), "progress": progress}
        self.curve.append(point)
        shown = " ".join(f"{name}={value:.4g}" for name, value in point.items())
        tqdm.write(f"{self.checkpoint.stem}: {shown}")


def set_rate(optimizer: Optimizer, progress: float, step: int, peak: float) -> None:
    """Sets the learning rate: a rise of a hundred steps, then half a cosine down to a hundredth."""
    rise = min(1.0, (step + 1) / 100)
    fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall * group.get("lr_scale", 1.0)


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


class Smoothed:
    """Exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Starts at the weights of `module`."""
        self.decay, self.count = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves a little towards the weights of `module`."""
        self.count += 1
        decay = min(self.decay, self.count / (10 + self.count))
        mine, new = [], []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                mine.append(self.values[name])
                new.append(value)
        torch._foreach_lerp_(mine, new, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages."""
        return {**self.values, _COUNT: torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores averages."""
        self.values = {name: value for name, value in state.items() if name != _COUNT}
        self.count = int(state[_COUNT])


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Writes weights, batch-norm statistics included, as safetensors."""
    held = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(held, partial)
    partial.chmod(0o644)
    os.replace(partial, path)


def quick_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 numbers itself; emulation is many times slower."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported()


def precise(device: str) -> torch.autocast:
    """The mixed precision that networks are trained in: bfloat16 products, float32 weights."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=quick_bfloat16(device))


def quickest_layout(module: nn.Module, size: int, batch: int, device: str) -> torch.memory_format:
    """Lays a trained module's kernels and pictures out as the device takes them fastest.

    A processor likes channels last; of an accelerator both layouts are timed.
    """
    layouts = [torch.channels_last]
    if device != "cpu":
        layouts.append(torch.contiguous_format)
    taken = {layout: _seconds(module, layout, size, batch, device) for layout in layouts}
    best = min(layouts, key=lambda layout: taken[layout])
    tqdm.write(f"seconds by memory layout: {taken}")
    _lay_out(module, best)
    return best


def _lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    # torch's own annotations forget this argument.
    module.to(memory_format=layout)  # type: ignore[call-overload]


def _seconds(
    module: nn.Module, layout: torch.memory_format, size: int, batch: int, device: str
) -> float:
    """Time of two training steps after one for warming up; gradients are thrown away."""
    if device == "cpu":
        return 0.0
    _lay_out(module, layout)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    pictures = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    started = 0.0
    for attempt in range(3):
        if attempt == 1:
            torch.cuda.synchronize()
            started = time.monotonic()
        with precise(device):
            total = torch.stack([value.float().mean() for value in _flat(module(pictures))]).sum()
        torch.autograd.backward(total)
        module.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    module.load_state_dict(kept)
    return time.monotonic() - started


def _flat(outputs: Any) -> list[Tensor]:
    """The tensors of nested outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _flat(value)]
