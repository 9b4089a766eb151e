# SPDX-License-Identifier: Apache-2.0
"""Masks reduced to what a person in a hurry would draw: points, strokes, boxes, a few of many."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.pack import MOST_PARTS
from training.views import chance

KINDS = ("mask", "points", "stroke", "box", "some")
"""Kinds of annotation."""

CHANCES = (0.5, 0.22, 0.11, 0.08, 0.09)
"""How often each kind is drawn."""

MOST_POINTS = 8


def annotate(parts: Tensor, kinds: Tensor, rng: torch.Generator) -> Tensor:
    """Turns the class masks of support images into annotation planes.

    Args:
        parts: Numbers of connected parts, int64 [count, ways, height, width]; 0 outside.
        kinds: Index in `KINDS` of each image, int64 [count].
        rng: Source of chance.

    Returns:
        Planes of zeros and ones, float [count, 1 + ways, height, width], background first.
    """
    count = len(parts)
    masks = (parts > 0).float()
    rest = 1 - masks.amax(1, keepdim=True)
    regions = torch.cat([rest, masks], 1)
    some = _some_parts(parts, rng)
    whole = (chance(count, rng) < 0.5).view(-1, 1, 1, 1)
    order = chance(count, rng, *regions.shape[1:]) * regions
    points, strokes = _points(regions, order, rng), _strokes(regions, order, rng)
    boxes = filled_boxes(torch.where(whole, masks, some))
    chosen = kinds.view(-1, 1, 1, 1)
    drawn = masks
    for number, planes in ((1, points[:, 1:]), (2, strokes[:, 1:]), (3, boxes), (4, some)):
        drawn = torch.where(chosen == number, planes, drawn)
    ground = torch.where(chosen == 1, points[:, :1], strokes[:, :1])
    share = torch.where(kinds == 3, 0.6, 0.35)
    inferred = (chance(count, rng) < share).view(-1, 1, 1, 1)
    ground = torch.where(inferred, inferred_background(drawn.amax(1, keepdim=True)), ground)
    ground = torch.where(chosen == 0, rest, ground)
    return torch.cat([ground * (1 - drawn.amax(1, keepdim=True)), drawn], 1)


def _points(regions: Tensor, order: Tensor, rng: torch.Generator) -> Tensor:
    """Keeps up to `MOST_POINTS` pixels of each plane, in some pictures with their neighbours."""
    best = order.flatten(2).topk(MOST_POINTS, dim=2).values
    wanted = (chance(len(regions), rng) * MOST_POINTS).long().view(-1, 1, 1)
    least = best.gather(2, wanted.expand(-1, regions.shape[1], -1)).unsqueeze(3)
    kept = ((order >= least) & (regions > 0)).float()
    grown = functional.max_pool2d(kept, 3, stride=1, padding=1) * regions
    return torch.where((chance(len(regions), rng) < 0.3).view(-1, 1, 1, 1), grown, kept)


def _strokes(regions: Tensor, order: Tensor, rng: torch.Generator) -> Tensor:
    """Keeps a wavy line of a few pixels' width through a random pixel of each plane."""
    count, planes, height, width = regions.shape
    start = order.flatten(2).argmax(2)
    turn, phase, reach = chance(3 * count * planes, rng).view(3, count, planes, 1, 1)
    turn, reach = math.pi * turn, (0.1 + 0.3 * reach) * width
    rows = torch.arange(height, device=regions.device).view(-1, 1)
    columns = torch.arange(width, device=regions.device).view(1, -1)
    down = rows - (start // width).view(count, planes, 1, 1)
    across = columns - (start % width).view(count, planes, 1, 1)
    along = turn.cos() * across + turn.sin() * down
    beside = turn.cos() * down - turn.sin() * across
    wave = 6 * (torch.sin(along / 12 + 6 * phase) - torch.sin(6 * phase))
    drawn: Tensor = (((beside - wave).abs() < 1.8) & (along.abs() < reach)).float()
    return drawn * regions


def _some_parts(parts: Tensor, rng: torch.Generator) -> Tensor:
    """Keeps up to three of the connected parts of each plane."""
    count, ways = parts.shape[:2]
    flat = parts.clamp(max=MOST_PARTS).flatten(2)
    areas = torch.zeros(count, ways, MOST_PARTS + 1, device=parts.device)
    areas.scatter_add_(2, flat, torch.ones_like(flat, dtype=torch.float))
    present = areas > 15
    present[..., 0] = False
    rank = chance(count, rng, ways, MOST_PARTS + 1)
    rank = torch.where(present, rank, 2.0)
    wanted = (chance(count, rng) * 3).long().view(-1, 1, 1).expand(-1, ways, -1)
    least = rank.sort(2).values.gather(2, wanted).clamp(max=1.0)
    kept = ((rank <= least) & present).float()
    return kept.gather(2, flat).view_as(parts)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First index and end of what is above zero in [..., length]; length and 0 if nothing is."""
    length = occupied.shape[-1]
    places = torch.arange(length, device=occupied.device)
    first = torch.where(occupied > 0, places, length).amin(-1)
    end = torch.where(occupied > 0, places + 1, 0).amax(-1)
    return first, end


def _within(first: Tensor, end: Tensor, length: int) -> Tensor:
    places = torch.arange(length, device=first.device)
    return (places >= first.unsqueeze(-1)) & (places < end.unsqueeze(-1))


def filled_boxes(planes: Tensor) -> Tensor:
    """Fills the rectangle around what each plane [..., height, width] marks."""
    rows = _within(*_extent(planes.amax(-1)), planes.shape[-2])
    columns = _within(*_extent(planes.amax(-2)), planes.shape[-1])
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).float()


def inferred_background(positives: Tensor) -> Tensor:
    """Returns planes of ones outside the box around the positives, grown by a quarter.

    Args:
        positives: Foreground planes, [..., height, width].
    """
    inside = []
    for occupied in (positives.amax(-1), positives.amax(-2)):
        first, end = _extent(occupied)
        extra = ((end - first).clamp(min=0) / 8).round().long()
        inside.append(_within(first - extra, end + extra, occupied.shape[-1]))
    return 1 - (inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)).float()


def draw_kinds(count: int, rng: torch.Generator) -> Tensor:
    """Draws kinds of annotation, int64 [count]."""
    weights = torch.tensor(CHANCES, device=rng.device)
    return torch.multinomial(weights, count, replacement=True, generator=rng)
