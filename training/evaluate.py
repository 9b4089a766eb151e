# SPDX-License-Identifier: Apache-2.0
"""A quick deterministic reading of a model, for learning curves and choices.

What `fewseg evaluate` does through the service, in torch and on any device: every annotated image
is the query once, under the next `shots` images of its class, cyclic, or all its others if they are
fewer; intersections and unions are summed per class; the result of a set is the mean over its
classes. Pictures and masks come from a pack, so the numbers differ a little from those at stored
resolution.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.methods.compact import CompactGuide, CompactModel, normalise_views
from training.annotations import inferred_background
from training.folds import same_things
from training.pack import Entry, Pack


@dataclass(frozen=True)
class Reading:
    """How a model is read.

    Attributes:
        shots: Support images per query.
        points: Points per class and shot instead of the whole mask; 0 for the mask.
        background_points: Whether background is pointed at too; otherwise it is inferred.
    """

    shots: int = 1
    points: int = 0
    background_points: bool = True

    def __str__(self) -> str:
        """Names the reading in one word."""
        if not self.points:
            return f"{self.shots}-shot mask"
        background = "and background " if self.background_points else ""
        return f"{self.shots}-shot, {self.points} foreground {background}point(s)"


READINGS = (
    Reading(1),
    Reading(5),
    Reading(1, 1),
    Reading(5, 1),
    Reading(1, 5),
    Reading(5, 5),
    Reading(5, 5, background_points=False),
)


MUCH = 0.05
"""Share of a picture's cells; more than that is a find."""

MOST_ABSENT = 16


class PackedSet:
    """Some classes of a set with the features of their images."""

    def __init__(
        self,
        model: CompactModel,
        pack: Pack,
        entries: Iterable[Entry],
        size: int,
        *,
        once: bool = False,
    ) -> None:
        """Computes features of the images of `entries` at `size`; with `once`, reads them once."""
        self.model, self.pack, self.size, self.once = model.eval(), pack, size, once
        self.device = str(pack.images.device)
        self.guide = CompactGuide((size, size)).to(self.device)
        self.index: dict[str, list[Entry]] = {}
        for entry in entries:
            self.index.setdefault(entry.category, []).append(entry)
        numbers = sorted({entry.image for listed in self.index.values() for entry in listed})
        self.maps = dict(zip(numbers, self._features(numbers), strict=True))

    @torch.no_grad()
    def _features(self, numbers: list[int]) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(numbers), 16):
            views = self.pack.images[numbers[start : start + 16]].float() / 255
            views = functional.interpolate(
                views, size=(self.size, self.size), mode="bilinear", align_corners=False
            )
            semantic, fine = self.model.trunk(normalise_views(views))
            found += list(zip(semantic, fine, strict=True))
        return found

    def planes(self, entry: Entry, reading: Reading) -> Tensor:
        """Returns background and foreground planes [2, size, size] of one shot."""
        mask = (self.pack.masks[entry.mask] > 0).float()[None, None]
        mask = functional.interpolate(mask, size=(self.size, self.size), mode="nearest")[0, 0]
        if not reading.points:
            return torch.stack([1 - mask, mask])
        held = mask.cpu().numpy() > 0.5
        rng = np.random.default_rng(zlib.crc32(f"{entry.category}/{entry.image}".encode()))
        planes = np.zeros((2, self.size, self.size), np.float32)
        for plane, region in ((1, held), (0, ~held)):
            rows, columns = np.nonzero(region)
            chosen = rng.permutation(len(rows))[: reading.points]
            planes[plane, rows[chosen], columns[chosen]] = 1
        drawn = torch.from_numpy(planes).to(self.device)
        if not reading.background_points:
            drawn[0] = inferred_background(drawn[1])
        return drawn

    @torch.no_grad()
    def read_class(self, category: str, reading: Reading) -> float:
        """Returns the intersection over union of one class, in per cent."""
        entries = self.index[category]
        semantic, fine = self._stacked(entry.image for entry in entries)
        planes = torch.stack([self.planes(entry, reading) for entry in entries])
        prototypes, weights = self.guide(semantic, fine, planes)
        # A query is never among its own supports.
        steps = range(1, min(reading.shots, len(entries) - 1) + 1)
        turned, shares = (
            torch.stack([kind.roll(-step, 0) for step in steps]) for kind in (prototypes, weights)
        )
        merged = _merged(turned, shares)
        margins = self._margins(semantic, fine, merged)
        truth = self.pack.masks[[entry.mask for entry in entries]] > 0
        found = (
            functional.interpolate(
                margins, size=truth.shape[1:], mode="bilinear", align_corners=False
            )[:, 0]
            > 0
        )
        shared, covered = int((found & truth).sum()), int((found | truth).sum())
        return 100 * shared / max(covered, 1)

    @torch.no_grad()
    def false_finds(self, category: str, reading: Reading) -> float:
        """Returns the share of pictures without a class in which much is taken for it, in per cent.

        The supports are the first `shots` of the class; of the other pictures of the set at most
        `MOST_ABSENT` are read, evenly spread. The result is nan if all pictures show the class, or
        the same things under another name.
        """
        entries = self.index[category][: reading.shots]
        alike = same_things({category}) & set(self.index)
        showing = {entry.image for kind in alike for entry in self.index[kind]}
        others = [number for number in self.maps if number not in showing]
        others = others[:: -(-len(others) // MOST_ABSENT)] if others else []
        if not others:
            return math.nan
        semantic, fine = self._stacked(entry.image for entry in entries)
        planes = torch.stack([self.planes(entry, reading) for entry in entries])
        prototypes, weights = self.guide(semantic, fine, planes)
        merged = _merged(prototypes, weights).expand(len(others), -1, -1)
        margins = self._margins(*self._stacked(others), merged)
        labelled = (margins > 0).float().flatten(1).mean(1)
        return 100 * float((labelled > MUCH).float().mean())

    def _stacked(self, numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
        maps = [self.maps[number] for number in numbers]
        semantic, fine = zip(*maps, strict=True)
        return torch.stack(semantic), torch.stack(fine)

    def _margins(self, semantic: Tensor, fine: Tensor, merged: Tensor) -> Tensor:
        decode = self.model.decode
        if self.once:
            return decode.margins(semantic, fine, merged)[1]
        return decode.answer(semantic, fine, merged)


def _merged(prototypes: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over shots, the first dimension: [shots, ..., 192] and [shots, ...]."""
    shares = weights.unsqueeze(-1)
    return (prototypes * shares).sum(0) / shares.sum(0).clamp(min=1e-6)


def annotated_sets(entries: Iterable[Entry]) -> list[str]:
    """Returns the names of the sets with classes; figures of the pool are no set to be read."""
    return list(
        dict.fromkeys(
            entry.origin for entry in entries if entry.mask >= 0 and entry.origin != "saliency"
        )
    )


def read_pack(
    model: CompactModel,
    pack: Pack,
    classes: Mapping[str, frozenset[str] | None],
    size: int = 320,
    *,
    once: bool = False,
    absent: bool = False,
) -> dict[str, dict[str, float | None]]:
    """Reads sets of a pack and returns {set: {reading: mean over classes in per cent}}.

    Args:
        model: The model, on the pack's device.
        pack: The pictures.
        classes: Sets, and which of their classes; None for all.
        size: Side of the network's input.
        once: Whether queries are read once, as training reads them.
        absent: Whether to read the pictures that do not show the class instead: the share that gets
            more than `MUCH` of its pixels labelled; None where all pictures show it.
    """
    results: dict[str, dict[str, float | None]] = {}
    for origin, wanted in classes.items():
        entries = [
            entry
            for entry in pack.entries
            if entry.origin == origin and (wanted is None or entry.category in wanted)
        ]
        if not entries:
            continue
        held = PackedSet(model, pack, entries, size, once=once)
        read = held.false_finds if absent else held.read_class
        results[origin] = {
            str(reading): _mean([read(name, reading) for name in held.index])
            for reading in (READINGS[:2] if absent else READINGS)
        }
    return results


def _mean(values: list[float]) -> float | None:
    """The mean of those that are numbers; None if none is."""
    numbers = [value for value in values if not math.isnan(value)]
    return round(float(np.mean(numbers)), 2) if numbers else None
