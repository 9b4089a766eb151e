# SPDX-License-Identifier: Apache-2.0
"""Random views and colours, computed on whole batches of tensors on any device."""

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
        strange: Probability of turned or inverted hues.
        colour: Strength of brightness, contrast and saturation changes.
    """

    least_side: float = 0.35
    most_side: float = 1.0
    stretch: float = 1.3
    turn: float = 0.15
    grey: float = 0.12
    strange: float = 0.06
    colour: float = 0.4


def chance(count: int, rng: torch.Generator, *shape: int) -> Tensor:
    """Even chances in [0, 1), [count, ...], on the generator's device."""
    return torch.rand(count, *shape, generator=rng, device=rng.device)


def uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Numbers drawn evenly, [count]."""
    return chance(count, rng) * (high - low) + low


def random_windows(count: int, rule: ViewRule, rng: torch.Generator) -> Tensor:
    """Returns `count` affine maps [count, 2, 3] from view to picture coordinates in [-1, 1]."""
    side = uniform(count, rule.least_side, rule.most_side, rng)
    stretch = torch.exp(uniform(count, -1, 1, rng) * math.log(rule.stretch) / 2)
    turn = uniform(count, -rule.turn, rule.turn, rng)
    mirror = torch.where(chance(count, rng) < 0.5, -1.0, 1.0)
    width, height = side * stretch, side / stretch
    room_x, room_y = (1 - width).clamp(min=0), (1 - height).clamp(min=0)
    shift_x, shift_y = uniform(count, -1, 1, rng) * room_x, uniform(count, -1, 1, rng) * room_y
    cos, sin = turn.cos(), turn.sin()
    top = torch.stack([mirror * cos * width, -sin * height, shift_x], 1)
    bottom = torch.stack([mirror * sin * width, cos * height, shift_y], 1)
    return torch.stack([top, bottom], 1)


def warp(
    maps: Tensor,
    windows: Tensor,
    size: int,
    mode: str = "bilinear",
    padding_mode: str = "reflection",
) -> Tensor:
    """Samples float [count, channels, h, w] through affine `windows` onto a square of `size`."""
    grid = functional.affine_grid(
        windows, [len(maps), maps.shape[1], size, size], align_corners=False
    )
    return functional.grid_sample(
        maps, grid, mode=mode, padding_mode=padding_mode, align_corners=False
    )


def random_colours(count: int, rule: ViewRule, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws affine changes of colour: matrices [count, 3, 3] and offsets [count, 3]."""
    device = rng.device
    strange = chance(count, rng) < rule.strange
    angle = torch.where(strange, math.pi, 0.35 * rule.colour) * uniform(count, -1, 1, rng)
    saturation = 1 + 1.25 * rule.colour * uniform(count, -1, 1, rng)
    saturation = saturation * (chance(count, rng) >= rule.grey)
    identity = torch.eye(3, device=device)
    grey = torch.full((3, 3), 1 / 3, device=device)
    rows = [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]
    across = torch.tensor(rows, device=device) / math.sqrt(3)
    cos, sin = (saturation * angle.cos()).view(-1, 1, 1), (saturation * angle.sin()).view(-1, 1, 1)
    matrix = grey + cos * (identity - grey) + sin * across
    gains = (1 + 0.25 * rule.colour * (2 * chance(count, rng, 3) - 1)).unsqueeze(1)
    contrast = (1 + rule.colour * uniform(count, -1, 1, rng)).view(-1, 1, 1)
    inverted = strange & (chance(count, rng) < 0.4)
    contrast = torch.where(inverted.view(-1, 1, 1), -contrast, contrast)
    matrix = contrast * matrix * gains
    middle = torch.full((3,), 0.45, device=device)
    light = 0.5 * rule.colour * uniform(count, -1, 1, rng)
    return matrix, middle + light.unsqueeze(1) - matrix @ middle


def recolour(images: Tensor, colours: tuple[Tensor, Tensor]) -> Tensor:
    """Applies affine changes of colour to images [count, 3, h, w] in [0, 1]."""
    matrix, offset = colours
    count, _, height, width = images.shape
    flat = torch.baddbmm(offset.unsqueeze(2), matrix, images.reshape(count, 3, -1))
    return flat.clamp(0, 1).view(count, 3, height, width)


def soften(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Blurs some images of a batch a little and adds grain to some others."""
    draw = chance(len(images), rng).view(-1, 1, 1, 1)
    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    noise = torch.randn(images.shape, generator=rng, device=rng.device)
    images = torch.where(draw < probability, blurred, images)
    return torch.where(draw > 1 - probability, images + 0.04 * noise, images).clamp(0, 1)


def random_views(images: Tensor, size: int, rule: ViewRule, rng: torch.Generator) -> Tensor:
    """Takes one random view of each picture.

    Args:
        images: uint8 [count, 3, h, w].
        size: Side of the views.
        rule: How far views may stray.
        rng: Source of chance, on the images' device.

    Returns:
        Views, float [count, 3, size, size] in [0, 1].
    """
    views = warp(images.float() / 255.0, random_windows(len(images), rule, rng), size)
    return soften(recolour(views, random_colours(len(images), rule, rng)), 0.1, rng)
