# SPDX-License-Identifier: Apache-2.0
"""Made-up pictures of many alike objects: copies of a cut-out figure, or blobs of one look.

Photographs of everyday things teach little about a slide full of nuclei or a tray of coins. These
scenes do: several objects of one kind among objects of another, in which a few are annotated and
the rest are to be found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.views import warp


def _number(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=rng))


def _whole(rng: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def _placing(rng: torch.Generator, low: float, high: float) -> Tensor:
    """Returns a window [1, 2, 3] that shows a picture shrunk, turned and moved."""
    scale, turn = _number(rng, low, high), _number(rng, -0.6, 0.6)
    side = -1.0 if _number(rng, 0, 1) < 0.5 else 1.0
    room = max(0.0, 1 - 0.7 * scale)
    x, y = _number(rng, -room, room), _number(rng, -room, room)
    linear = (
        torch.tensor(
            [[side * math.cos(turn), -math.sin(turn)], [side * math.sin(turn), math.cos(turn)]]
        )
        / scale
    )
    return torch.cat([linear, linear @ torch.tensor([[-x], [-y]])], 1).unsqueeze(0)


def _paste(
    scene: Tensor,
    planes: Tensor,
    way: int,
    figure: Tensor,
    rng: torch.Generator,
    scale: tuple[float, float],
) -> None:
    """Pastes one copy of a figure [1, 4, h, w] (colour and mask); way -1 leaves it unlabelled."""
    grid = functional.affine_grid(
        _placing(rng, *scale), [1, 4, *scene.shape[-2:]], align_corners=False
    )
    copy = functional.grid_sample(figure, grid, padding_mode="zeros", align_corners=False)[0]
    alpha = copy[3:]
    light = _number(rng, 0.85, 1.15)
    scene.mul_(1 - alpha).add_((copy[:3] * light).clamp(0, 1) * alpha)
    planes[:, alpha[0] > 0.5] = 0
    if way >= 0:
        planes[way, alpha[0] > 0.5] = 1


def collages(
    grounds: Tensor, figures: list[Tensor], ways: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pastes copies of figures onto photographs.

    Args:
        grounds: Photographs in [0, 1], [count, 3, h, w].
        figures: Cut-outs [1, 4, h, w], colour and mask; those after the first `ways` distract.
        ways: Number of classes.
        rng: Source of chance.

    Returns:
        Scenes [count, 3, h, w] and class planes [count, ways, h, w] of zeros and ones.
    """
    scenes, planes = grounds.clone(), torch.zeros(len(grounds), ways, *grounds.shape[-2:])
    middle = [_number(rng, 0.2, 0.5) for _ in figures]
    for scene, plane in zip(scenes, planes, strict=True):
        copies = [
            number
            for number in range(len(figures))
            for _ in range(_whole(rng, 1, 5 if middle[number] < 0.35 else 2))
        ]
        for place in torch.randperm(len(copies), generator=rng).tolist():
            number = copies[place]
            scale = (0.75 * middle[number], 1.3 * middle[number])
            _paste(scene, plane, number if number < ways else -1, figures[number], rng, scale)
    return scenes, planes


@dataclass(frozen=True)
class _Look:
    """How the blobs of one kind look."""

    colour: Tensor
    texture: Tensor
    grain: float
    radius: float
    spread: float
    power: float
    stretch: float
    rim: float
    softness: float


def _random_look(colour: Tensor, textures: Tensor, rng: torch.Generator) -> _Look:
    texture = textures[_whole(rng, 0, len(textures) - 1)].mean(0, keepdim=True)
    texture = warp(
        (texture - texture.mean()).unsqueeze(0), _placing(rng, 0.5, 3.0), texture.shape[-1]
    )[0]
    return _Look(
        colour=colour.view(3, 1, 1),
        texture=texture,
        grain=_number(rng, 0, 0.8) ** 2 * 2,
        radius=math.exp(_number(rng, math.log(4), math.log(36))),
        spread=_number(rng, 0.05, 0.4),
        power=_number(rng, 1.6, 4.0),
        stretch=_number(rng, 1.0, 2.0),
        rim=_number(rng, -0.4, 0.4) if _number(rng, 0, 1) < 0.5 else 0.0,
        softness=_number(rng, 0.5, 3.0),
    )


def _blob(look: _Look, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor, slice, slice]:
    """Returns opacity and relative depth of one blob, and the rows and columns they cover."""
    radius = max(2.5, look.radius * math.exp(look.spread * float(torch.randn(1, generator=rng))))
    stretch, turn = math.sqrt(_number(rng, 1.0, look.stretch)), _number(rng, 0, math.pi)
    x, y = _number(rng, 0, side), _number(rng, 0, side)
    reach = radius * 1.6 + 4
    rows = slice(max(0, int(y - reach)), min(side, int(y + reach) + 1))
    columns = slice(max(0, int(x - reach)), min(side, int(x + reach) + 1))
    down = torch.arange(rows.start, rows.stop).view(-1, 1) - y
    across = torch.arange(columns.start, columns.stop).view(1, -1) - x
    along = (math.cos(turn) * across + math.sin(turn) * down).abs() / (radius * stretch)
    beside = (math.cos(turn) * down - math.sin(turn) * across).abs() * stretch / radius
    depth = 1 - (along**look.power + beside**look.power) ** (1 / look.power)
    return (depth * radius / look.softness + 0.5).clamp(0, 1), depth, rows, columns


def _palette(rng: torch.Generator) -> Tensor:
    """Returns colours [3, 3] of ground, class and distractor; the class stands out from both."""
    while True:
        colours = torch.rand(3, 3, generator=rng)
        if _number(rng, 0, 1) < 0.4:
            colours = colours.mean(1, keepdim=True).expand(3, 3) + 0.1 * (colours - 0.5)
        gaps = (colours[1] - colours[[0, 2]]).abs().amax(1)
        if float(gaps[0]) > 0.12 and float(gaps[1]) > 0.2:
            return colours


def blob_scenes(count: int, textures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws scenes of many blobs of one look on one ground, with or without blobs of another look.

    Args:
        count: Number of scenes that share their looks.
        textures: Photographs in [0, 1] whose brightness gives textures, [some, 3, side, side].
        rng: Source of chance.

    Returns:
        Scenes [count, 3, side, side] and the blobs of the class [count, 1, side, side].
    """
    side, palette = textures.shape[-1], _palette(rng)
    ground = _random_look(palette[0], textures, rng)
    looks = [_random_look(colour, textures, rng) for colour in palette[1:]]
    crowd = [_whole(rng, 3, max(4, int(26 - look.radius * 0.55))) for look in looks]
    if _number(rng, 0, 1) < 0.4:
        crowd[1] = 0
    slope = torch.linspace(-0.5, 0.5, side).view(1, 1, -1) * _number(rng, -0.3, 0.3)
    scenes = (
        (ground.colour + ground.grain * ground.texture + slope).expand(count, 3, side, side).clone()
    )
    planes = torch.zeros(count, 1, side, side)
    for scene, plane in zip(scenes, planes, strict=True):
        kinds = torch.tensor([0] * crowd[0] + [1] * crowd[1])
        for kind in kinds[torch.randperm(len(kinds), generator=rng)].tolist():
            look = looks[kind]
            alpha, depth, rows, columns = _blob(look, side, rng)
            paint = (
                look.colour
                + look.grain * look.texture[:, rows, columns]
                + look.rim * (0.3 - depth).clamp(0, 0.3) * 3
            )
            scene[:, rows, columns] = scene[:, rows, columns] * (1 - alpha) + paint * alpha
            plane[:, rows, columns] = torch.where(alpha > 0.5, 1.0 - kind, plane[:, rows, columns])
    return scenes.clamp(0, 1), planes
