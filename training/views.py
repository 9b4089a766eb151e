# SPDX-License-Identifier: Apache-2.0
"""Random views of pictures, computed on whole batches of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ViewRule:
    """How far a random view may stray from its picture.

    Attributes:
        least_side: Shortest side of the window seen, as a part of the picture's side.
        most_side: Longest side of the window; above one, the border is mirrored.
        stretch: Largest factor between the two sides' scales.
        turn: Largest rotation, in radians.
        grey: Probability of a grey view.
        strange: Probability of permuted or inverted colours.
        colour: Strength of brightness, contrast and saturation changes.
    """

    least_side: float = 0.4
    most_side: float = 1.0
    stretch: float = 1.25
    turn: float = 0.15
    grey: float = 0.15
    strange: float = 0.05
    colour: float = 0.4


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def random_windows(count: int, rule: ViewRule, rng: torch.Generator) -> Tensor:
    """Returns `count` affine maps [count, 2, 3] from view to picture coordinates in [-1, 1]."""
    side = _uniform(count, rule.least_side, rule.most_side, rng)
    stretch = torch.exp(_uniform(count, -1, 1, rng) * math.log(rule.stretch) / 2)
    turn = _uniform(count, -rule.turn, rule.turn, rng)
    mirror = torch.where(torch.rand(count, generator=rng) < 0.5, -1.0, 1.0)
    width, height = side * stretch, side / stretch
    room_x, room_y = (1 - width).clamp(min=0), (1 - height).clamp(min=0)
    shift_x, shift_y = _uniform(count, -1, 1, rng) * room_x, _uniform(count, -1, 1, rng) * room_y
    cos, sin = turn.cos(), turn.sin()
    top = torch.stack([mirror * cos * width, -sin * height, shift_x], 1)
    bottom = torch.stack([mirror * sin * width, cos * height, shift_y], 1)
    return torch.stack([top, bottom], 1)


def warp(maps: Tensor, windows: Tensor, size: int) -> Tensor:
    """Samples float [count, channels, h, w] through affine `windows` onto a square of `size`."""
    grid = functional.affine_grid(
        windows, [len(maps), maps.shape[1], size, size], align_corners=False
    )
    return functional.grid_sample(maps, grid, padding_mode="reflection", align_corners=False)


def recolour(images: Tensor, rule: ViewRule, rng: torch.Generator) -> Tensor:
    """Changes the colours of images [count, 3, h, w] in [0, 1], each picture in its own way."""
    count = len(images)

    def factor() -> Tensor:
        return (1 + rule.colour * _uniform(count, -1, 1, rng)).view(-1, 1, 1, 1)

    light = images.mean((1, 2, 3), keepdim=True)
    images = (images - light) * factor() + light * factor()
    grey = images.mean(1, keepdim=True)
    saturation = factor() + 0.25 * rule.colour * _uniform(3 * count, -1, 1, rng).view(-1, 3, 1, 1)
    plain = (torch.rand(count, generator=rng) < rule.grey).view(-1, 1, 1, 1)
    images = grey + (images - grey) * torch.where(plain, torch.zeros_like(saturation), saturation)
    for number in torch.nonzero(torch.rand(count, generator=rng) < rule.strange).flatten().tolist():
        order = torch.randperm(3, generator=rng)
        images[number] = images[number, order] if number % 2 else 1 - images[number, order]
    return images.clamp(0, 1)


def soften(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Blurs some images of a batch a little and adds grain to some others."""
    chance = torch.rand(len(images), generator=rng).view(-1, 1, 1, 1)
    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    grain = images + 0.04 * torch.randn(images.shape, generator=rng)
    images = torch.where(chance < probability, blurred, images)
    return torch.where(chance > 1 - probability, grain, images).clamp(0, 1)


def random_views(
    images: Tensor, size: int, rule: ViewRule, rng: torch.Generator, masks: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Takes one random view of each picture.

    Args:
        images: uint8 [count, h, w, 3].
        size: Side of the views.
        rule: How far views may stray.
        rng: Source of chance.
        masks: uint8 [count, planes, h, w], 0 or 255, seen through the same windows, or None.

    Returns:
        Views, float [count, 3, size, size] in [0, 1], and masks of zeros and ones,
        float [count, planes, size, size].
    """
    windows = random_windows(len(images), rule, rng)
    views = warp(images.permute(0, 3, 1, 2).float() / 255.0, windows, size)
    views = soften(recolour(views, rule, rng), 0.1, rng)
    if masks is None:
        return views, None
    return views, (warp(masks.float() / 255.0, windows, size) > 0.5).float()
