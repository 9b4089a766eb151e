# SPDX-License-Identifier: Apache-2.0
"""The teacher: MobileNetV1 trained on ImageNet, read from an archive of the original checkpoint.

The teacher is only imitated. Its weights never enter the student or anything that is shipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.runs import quick_bfloat16

MARGIN = 16
"""Pixels by which the teacher's picture is wider and higher than the student's."""

LEVELS = {"fine": (3, 4), "middle": (5, 8), "inner": (8, 16), "coarse": (11, 16)}
"""Name of a level -> (pointwise layer of the teacher, stride)."""

_STRIDED = (2, 4, 6)
_DEPTH = 11


def _folded(
    archive: dict[str, np.ndarray], kernel: str, norm: str, *, depthwise: bool
) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a convolution with its batch norm folded in."""
    scale = archive[f"{norm}__gamma"] / np.sqrt(archive[f"{norm}__moving_variance"] + 1e-3)
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    weight = archive[kernel].astype(np.float32).transpose(order) * scale[:, None, None, None]
    bias = archive[f"{norm}__beta"] - archive[f"{norm}__moving_mean"] * scale
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))


class Teacher(nn.Module):
    """MobileNetV1 up to its eleventh pair of layers, frozen, with batch norms folded."""

    def __init__(self, archive: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Reads the weights of `archive`, to compute in `dtype`."""
        super().__init__()
        self.dtype = dtype
        arrays = dict(np.load(archive))
        self._store("stem", *_folded(arrays, "conv1__kernel", "conv1_bn", depthwise=False))
        for layer in range(1, _DEPTH + 1):
            for part, kernel in (("dw", "depthwise_kernel"), ("pw", "kernel")):
                name = f"conv_{part}_{layer}"
                self._store(
                    f"{part}{layer}",
                    *_folded(arrays, f"{name}__{kernel}", f"{name}_bn", depthwise=part == "dw"),
                )

    @classmethod
    def on(cls, device: str, archive: Path) -> Teacher:
        """Reads a teacher onto a device, in the numbers that it computes with quickly."""
        return cls(archive, torch.bfloat16 if quick_bfloat16(device) else torch.float32).to(device)

    def _store(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.register_buffer(
            f"{name}_weight",
            weight.to(self.dtype).contiguous(memory_format=torch.channels_last),
        )
        self.register_buffer(f"{name}_bias", bias.to(self.dtype))

    def _convolve(self, maps: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        if stride == 2:
            maps = functional.pad(maps, (0, 1, 0, 1))
        padding = weight.shape[-1] // 2 if stride == 1 else 0
        return functional.conv2d(maps, weight, bias, stride, padding, groups=groups).clamp_(0, 6)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Returns maps that lie on the student's grids.

        A map of the teacher, whose padding is one-sided, is centred on the last pixel of each cell.
        The picture it sees therefore begins half a margin above and left of the student's; maps of
        fine strides are then off by half a cell and are averaged over two neighbours.

        Args:
            pictures: RGB in [0, 1], [count, 3, side + MARGIN, side + MARGIN].
        """
        maps = (pictures * 2 - 1).to(self.dtype).contiguous(memory_format=torch.channels_last)
        side = pictures.shape[-1] - MARGIN
        wanted = {layer: (name, stride) for name, (layer, stride) in LEVELS.items()}
        maps, found = self._convolve(maps, "stem", 2), {}
        for layer in range(1, _DEPTH + 1):
            maps = self._convolve(
                maps, f"dw{layer}", 2 if layer in _STRIDED else 1, groups=maps.shape[1]
            )
            maps = self._convolve(maps, f"pw{layer}", 1)
            if layer in wanted:
                name, stride = wanted[layer]
                found[name] = _aligned(maps, stride, side // stride)
        return found


def _aligned(maps: Tensor, stride: int, cells: int) -> Tensor:
    """Returns the `cells` x `cells` part of a map that covers the student's picture."""
    maps = maps.float()
    first = {4: 1, 8: 0, 16: 0}[stride]
    if stride < 16:
        maps = functional.avg_pool2d(maps, 2, stride=1)
    return maps[:, :, first : first + cells, first : first + cells]
