# SPDX-License-Identifier: Apache-2.0
"""Made-up pictures of many alike objects: copies of a cut-out figure, or blobs of one look.

Photographs of everyday things teach little about a slide full of nuclei or a tray of coins. These
scenes do: several objects of one kind among objects of another, in which a few are annotated and
the rest are to be found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.views import chance, uniform, warp

COPIES = 6
"""Most figures pasted onto one photograph."""

BLOBS = 16
"""Most blobs of one scene."""


def _placings(count: int, scale: Tensor, rng: torch.Generator) -> Tensor:
    """Returns windows [count, 2, 3] that show pictures shrunk by `scale`, turned and moved."""
    turn = uniform(count, -0.6, 0.6, rng)
    side = torch.where(chance(count, rng) < 0.5, -1.0, 1.0)
    room = (1 - 0.7 * scale).clamp(min=0)
    x, y = uniform(count, -1, 1, rng) * room, uniform(count, -1, 1, rng) * room
    cos, sin = turn.cos() / scale, turn.sin() / scale
    top = torch.stack([side * cos, -sin, -(side * cos * x - sin * y)], 1)
    bottom = torch.stack([side * sin, cos, -(side * sin * x + cos * y)], 1)
    return torch.stack([top, bottom], 1)


def collages(
    grounds: Tensor, figures: Tensor, ways: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pastes copies of figures onto photographs.

    Args:
        grounds: Photographs in [0, 1], [tasks, pictures, 3, side, side].
        figures: Cut-outs, colour and mask, [tasks, ways + 1, 4, h, w]; the last distracts.
        ways: Number of classes.
        rng: Source of chance.

    Returns:
        Scenes [tasks * pictures, 3, side, side], and numbers of the pasted copies, int64
        [tasks * pictures, ways, side, side].
    """
    tasks, pictures, _, side, _ = grounds.shape
    count = tasks * pictures
    scenes = grounds.flatten(0, 1).clone()
    parts = torch.zeros(count, ways, side, side, dtype=torch.long, device=scenes.device)
    task = torch.arange(tasks, device=scenes.device).repeat_interleave(pictures)
    middle = 0.2 + 0.35 * chance(tasks, rng, ways + 1)
    crowd = 1 + (chance(count, rng) * COPIES).long()
    distracted = (chance(tasks, rng) < 0.7)[task]
    for copy in range(COPIES):
        kind = (chance(count, rng) * (ways + 1)).long()
        kind = torch.where((kind == ways) & ~distracted, 0, kind)
        kind = torch.full_like(kind, copy % ways) if copy < ways else kind
        scale = middle[task, kind] * uniform(count, 0.75, 1.3, rng)
        pasted = warp(figures[task, kind], _placings(count, scale, rng), side, padding_mode="zeros")
        alpha = pasted[:, 3:] * (copy < crowd).view(-1, 1, 1, 1)
        light = uniform(count, 0.85, 1.15, rng).view(-1, 1, 1, 1)
        scenes = scenes * (1 - alpha) + (pasted[:, :3] * light).clamp(0, 1) * alpha
        number = (kind.unsqueeze(1) == torch.arange(ways, device=kind.device)) * (copy + 1)
        parts = torch.where(alpha > 0.5, number[:, :, None, None], parts)
    return scenes, parts


def _palette(tasks: int, rng: torch.Generator) -> Tensor:
    """Returns colours [tasks, 3, 3] of ground, class and distractor; the class stands out."""
    colours = chance(tasks, rng, 12, 3, 3)
    dull = (chance(tasks, rng) < 0.4).view(-1, 1, 1, 1)
    colours = torch.where(dull, colours.mean(3, keepdim=True) + 0.1 * (colours - 0.5), colours)
    gaps = (colours[:, :, 1:2] - colours[:, :, [0, 2]]).abs().amax(3).amin(2)
    # The best of a few random tries stands out clearly, of two only somewhat.
    gaps[:, 2:] -= 2.0 * (chance(tasks, rng) < 0.6).unsqueeze(1)
    best = gaps.argmax(1)
    return colours[torch.arange(tasks, device=best.device), best]


def blob_scenes(textures: Tensor, pictures: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws scenes of many blobs of one look on one ground, with or without blobs of another look.

    Args:
        textures: Brightness of photographs in [0, 1] for ground, class and distractor,
            [tasks, 3, side, side].
        pictures: Scenes that share their looks.
        rng: Source of chance.

    Returns:
        Scenes [tasks * pictures, 3, side, side], and numbers of the blobs of the class, int64
        [tasks * pictures, 1, side, side].
    """
    tasks, _, side, _ = textures.shape
    count = tasks * pictures
    task = torch.arange(tasks, device=textures.device).repeat_interleave(pictures)
    grain = 2 * (0.8 * chance(tasks, rng, 3)) ** 2
    textures = (textures - textures.mean((2, 3), keepdim=True)) * grain[:, :, None, None]
    paint = (_palette(tasks, rng)[..., None, None] + textures.unsqueeze(2))[task]
    radius = torch.exp(math.log(5) + chance(tasks, rng, 2) * math.log(8))
    spread, power = 0.05 + 0.35 * chance(tasks, rng, 2), 1.6 + 2.4 * chance(tasks, rng, 2)
    soft, rim = 0.5 + 2.5 * chance(tasks, rng, 2), 0.8 * chance(tasks, rng, 2) - 0.4
    alone = (chance(tasks, rng) < 0.4)[task]
    crowd = 3 + (chance(count, rng) * (BLOBS - 3)).long()
    scenes, places = paint[:, 0], torch.arange(side, device=textures.device)
    parts = torch.zeros(count, 1, side, side, dtype=torch.long, device=textures.device)
    rows = torch.arange(count, device=textures.device)
    for blob in range(BLOBS):
        kind = torch.where(alone, 0, (chance(count, rng) < 0.4).long())
        kind = torch.zeros_like(kind) if blob == 0 else kind
        size = radius[task, kind] * torch.exp(
            spread[task, kind] * (chance(count, rng) + chance(count, rng) - 1) * 2
        )
        stretch, turn = uniform(count, 1.0, 1.35, rng), uniform(count, 0, math.pi, rng)
        y, x = uniform(count, 0, side, rng), uniform(count, 0, side, rng)
        down = (places.view(1, -1, 1) - y.view(-1, 1, 1)).float()
        across = (places.view(1, 1, -1) - x.view(-1, 1, 1)).float()
        cos, sin = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
        along = (cos * across + sin * down).abs() / (size * stretch).view(-1, 1, 1)
        beside = (cos * down - sin * across).abs() * (stretch / size).view(-1, 1, 1)
        exponent = power[task, kind].view(-1, 1, 1)
        bulk = (along + 1e-4) ** exponent + (beside + 1e-4) ** exponent
        depth = (1 - bulk ** (1 / exponent)).unsqueeze(1)
        edge = (size / soft[task, kind]).view(-1, 1, 1, 1)
        alpha = (depth * edge + 0.5).clamp(0, 1) * (blob < crowd).view(-1, 1, 1, 1)
        shade = 3 * rim[task, kind].view(-1, 1, 1, 1) * (0.3 - depth).clamp(0, 0.3)
        scenes = scenes * (1 - alpha) + (paint[rows, 1 + kind] + shade) * alpha
        number = torch.where(kind == 0, blob + 1, 0).view(-1, 1, 1, 1)
        parts = torch.where(alpha > 0.5, number, parts)
    return scenes.clamp(0, 1), parts
