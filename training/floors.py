# SPDX-License-Identifier: Apache-2.0
"""What stands below the numbers of a model: answers that need no few-shot network.

The queries and supports are those of `fewseg evaluate`, and so is what is counted: pixels at stored
resolution, summed per class, the mean over classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fewseg.evaluation import Episode, Scores, Source, Tally, every_query_once
from training.teacher import MARGIN, Teacher

SIDE = 320
"""Height and width of pictures for the teacher, without its margin."""

MASK_SIDE = 128
"""Height and width at which masks are averaged."""

Answer = Callable[[Episode], Tensor]
"""Margins [1, 1, h, w] of a query, of any size: the class where they are not below zero."""


def mean_mask(source: Source) -> Answer:
    """Answers with the mean of the supports' masks, whatever the query shows."""

    def answer(episode: Episode) -> Tensor:
        masks = [_mask(source, episode.class_name, name, MASK_SIDE) for name in episode.supports]
        return torch.stack(masks).mean(0) - 0.5

    return answer


def everything(_: Episode) -> Tensor:
    """Answers that every pixel is of the class."""
    return torch.ones(1, 1, 1, 1)


def teacher_prototypes(source: Source, teacher: Teacher) -> Answer:
    """Answers by cosines of the teacher's coarse map with its means under the supports' masks."""

    @cache
    def maps(name: str) -> Tensor:
        coarse: Tensor = teacher(_picture(source.image(name)))["coarse"]
        return coarse

    @cache
    def prototypes(class_name: str, name: str) -> Tensor:
        found = maps(name)
        mask = _mask(source, class_name, name, found.shape[-1])
        planes = torch.cat([mask, 1 - mask])
        sums = (planes * found).sum((2, 3))
        return sums / planes.sum((2, 3)).clamp(min=1e-6)

    def answer(episode: Episode) -> Tensor:
        each = [prototypes(episode.class_name, name) for name in episode.supports]
        foreground, background = functional.normalize(torch.stack(each).mean(0))
        directions = functional.normalize(maps(episode.query))
        return torch.einsum("c,bchw->bhw", foreground - background, directions)[:, None]

    return answer


def read_floor(source: Source, shots: int, answer: Answer) -> Scores:
    """Returns what the answers score.

    Args:
        source: Images and masks.
        shots: Support images per query.
        answer: What is said of a query.

    Raises:
        ValueError: A class has a single image.
    """
    tally = Tally()
    for episode in every_query_once(source, shots):
        truth = source.labels(episode.class_name, episode.query)
        margins = functional.interpolate(answer(episode), size=truth.shape, mode="bilinear")
        found = (margins[0, 0] >= 0).numpy().astype(np.uint8)
        tally.add(found, truth, [episode.class_name])
    return Tally.scores([tally])


def read_floors(
    source: Source, shots: Iterable[int], teacher: Path | None = None
) -> dict[str, dict[str, list[float]]]:
    """Reads every floor.

    Args:
        source: Images and masks.
        shots: Numbers of support images.
        teacher: Archive of its weights; None leaves it out.

    Returns:
        By name of the floor and number of shots: mean-IoU and FB-IoU, in per cent.
    """
    answers: dict[str, Answer] = {"mean mask": mean_mask(source), "everything": everything}
    if teacher is not None:
        answers["teacher"] = teacher_prototypes(source, Teacher(teacher, torch.float32))
    return {
        name: {f"{count}-shot": _percent(read_floor(source, count, answer)) for count in shots}
        for name, answer in answers.items()
    }


def _percent(scores: Scores) -> list[float]:
    return [round(scores.mean_iou, 1), round(scores.fb_iou, 1)]


def _mask(source: Source, class_name: str, name: str, side: int) -> Tensor:
    """The share of each of side x side cells that is of the class, [1, 1, side, side]."""
    held: NDArray[np.uint8] = source.labels(class_name, name) == 1
    shares = torch.from_numpy(held.astype(np.float32))[None, None]
    return functional.interpolate(shares, size=(side, side), mode="area")


def _picture(path: Path) -> Tensor:
    """RGB in [0, 1], [1, 3, SIDE + MARGIN, SIDE + MARGIN], its edge repeated in the margin."""
    with Image.open(path) as opened:
        small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    return functional.pad(values, [MARGIN // 2] * 4, mode="replicate")
