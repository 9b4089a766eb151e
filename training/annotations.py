# SPDX-License-Identifier: Apache-2.0
"""Masks reduced to what a person in a hurry would draw: points, strokes, boxes, a few of many."""

from __future__ import annotations

import math

import torch
from skimage.measure import label
from torch import Tensor
from torch.nn import functional

from training.head import inferred_background

KINDS = ("mask", "points", "stroke", "box", "some")
"""Kinds of annotation."""

CHANCES = (0.44, 0.22, 0.15, 0.09, 0.1)
"""How often each kind is drawn."""


def draw_kind(rng: torch.Generator) -> str:
    """Draws a kind of annotation."""
    return KINDS[int(torch.multinomial(torch.tensor(CHANCES), 1, generator=rng))]


def _points(region: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Keeps up to `count` pixels of a plane, sometimes with their neighbours."""
    kept = torch.zeros_like(region)
    if region.any():
        kept.view(-1)[
            torch.multinomial(region.flatten(), min(count, int(region.sum())), generator=rng)
        ] = 1
    if float(torch.rand(1, generator=rng)) < 0.3:
        grown: Tensor = functional.max_pool2d(kept[None], 3, stride=1, padding=1)[0]
        return grown * region
    return kept


def _stroke(region: Tensor, rng: torch.Generator) -> Tensor:
    """Keeps a wavy line of a few pixels' width through a random pixel of a plane."""
    if not region.any():
        return torch.zeros_like(region)
    height, width = region.shape
    start = int(torch.multinomial(region.flatten(), 1, generator=rng))
    turn, phase, reach = torch.rand(3, generator=rng).tolist()
    turn, reach = math.pi * turn, (0.1 + 0.3 * reach) * width
    down = torch.arange(height).view(-1, 1) - start // width
    across = torch.arange(width).view(1, -1) - start % width
    along = math.cos(turn) * across + math.sin(turn) * down
    beside = math.cos(turn) * down - math.sin(turn) * across
    wave = 6 * (torch.sin(along / 12 + 6 * phase) - math.sin(6 * phase))
    return (((beside - wave).abs() < 1.8) & (along.abs() < reach)).float() * region


def _some_objects(region: Tensor, rng: torch.Generator) -> list[Tensor]:
    """Returns the planes of up to three of the connected parts of a plane."""
    numbers = torch.from_numpy(label(region.numpy().astype("uint8"), connectivity=1))
    order = 1 + torch.randperm(int(numbers.max()), generator=rng)
    return [
        (numbers == number).float()
        for number in order[: int(torch.randint(1, 4, (1,), generator=rng))]
    ]


def _filled_box(region: Tensor) -> Tensor:
    filled = torch.zeros_like(region)
    rows, columns = torch.nonzero(region.any(1)).flatten(), torch.nonzero(region.any(0)).flatten()
    filled[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = 1
    return filled


def _drawn(region: Tensor, kind: str, count: int, rng: torch.Generator) -> Tensor:
    """Draws an annotation of one kind on one plane."""
    if kind == "points":
        return _points(region, count, rng)
    if kind == "stroke":
        return _stroke(region, rng)
    objects = _some_objects(region, rng)
    if kind == "box":
        objects = [_filled_box(part) for part in objects]
    return torch.stack(objects).amax(0) if objects else torch.zeros_like(region)


def annotate(masks: Tensor, kind: str, rng: torch.Generator) -> Tensor:
    """Turns the class masks of one support image into annotation planes.

    Args:
        masks: Zeros and ones, [ways, height, width].
        kind: One of `KINDS`.
        rng: Source of chance.

    Returns:
        Planes [1 + ways, height, width], background first.
    """
    rest = (masks.amax(0) < 0.5).float()
    if kind == "mask":
        return torch.cat([rest[None], masks])
    count = int(torch.randint(1, 9, (1,), generator=rng))
    drawn = torch.stack([_drawn(mask, kind, count, rng) for mask in masks])
    inferred = 0.5 if kind == "box" else 0.3
    if float(torch.rand(1, generator=rng)) < inferred:
        background = inferred_background(drawn.amax(0))
    else:
        background = _drawn(rest, "points" if kind == "points" else "stroke", count, rng)
    return torch.cat([background[None], drawn])
