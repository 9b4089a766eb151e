# SPDX-License-Identifier: Apache-2.0
"""Few-shot tasks drawn from a pack: pictures of one task with the masks of its classes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.pack import Entry, Pack
from training.scenes import blob_scenes, collages

CHANCES = {
    "category": 0.36,
    "instance": 0.17,
    "region": 0.13,
    "collage": 0.17,
    "blobs": 0.17,
}
"""How often each kind of task is drawn."""

SET_CHANCES = {
    "coco-mini": 0.6,
    "ccp-fashion": 0.16,
    "davis16-20x10": 0.08,
    "magnetic-tile": 0.06,
    "saliency": 0.1,
}
"""How often a task of a category comes from each set."""


@dataclass(frozen=True)
class Task:
    """Pictures of one task, before views are taken of them.

    Attributes:
        kind: Kind of the task.
        images: uint8 [count, side, side, 3].
        masks: uint8 [count, ways, side, side], 0 or 255.
    """

    kind: str
    images: Tensor
    masks: Tensor


class TaskSource:
    """Draws tasks."""

    def __init__(
        self, pack: Pack, rng: torch.Generator, left_out: frozenset[str] = frozenset()
    ) -> None:
        """Draws from `pack`; no picture of a class in `left_out` is ever drawn with a mask."""
        self.pack, self.rng = pack, rng
        hidden = {entry.image for entry in pack.entries if entry.category in left_out}
        self.masked = [
            entry for entry in pack.entries if entry.mask >= 0 and entry.image not in hidden
        ]
        self.figures = [entry for entry in self.masked if entry.origin == "saliency"]
        self.single = [
            entry
            for entry in self.masked
            if entry.origin in ("saliency", "davis16-20x10", "coco-mini")
        ]
        classes: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in self.masked:
            if entry.category != "figure":
                classes[entry.origin][entry.category].append(entry)
        self.classes = {
            origin: [found for found in sets.values() if len(found) > 1]
            for origin, sets in classes.items()
        }
        self.by_image = {(entry.image, entry.category): entry.mask for entry in self.masked}

    def draw(self, count: int) -> Task:
        """Draws a task of `count` pictures."""
        kind = self._name(CHANCES)
        images, masks = getattr(self, f"_{kind}")(count)
        return Task(kind, images, masks)

    def _whole(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.rng))

    def _chance(self) -> float:
        return float(torch.rand(1, generator=self.rng))

    def _name(self, chances: dict[str, float]) -> str:
        weights = torch.tensor(list(chances.values()))
        return list(chances)[int(torch.multinomial(weights, 1, generator=self.rng))]

    def _images(self, numbers: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([self.pack.images[number] for number in numbers]))

    def _category(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures of one class of a set, or of two."""
        groups = self.classes[self._name(SET_CHANCES)]
        ways = 2 if self._chance() < 0.3 else 1
        chosen = [
            groups[place]
            for place in torch.randperm(len(groups), generator=self.rng)[:ways].tolist()
        ]
        entries: list[Entry] = []
        for number in range(count):
            group = chosen[number % ways]
            taken = {entry.image for entry in entries}
            fresh = [entry for entry in group if entry.image not in taken] or group
            entries.append(fresh[self._whole(len(fresh))])
        masks = np.zeros((count, ways, *self.pack.masks.shape[1:]), np.uint8)
        for number, entry in enumerate(entries):
            for way, group in enumerate(chosen):
                mask = self.by_image.get((entry.image, group[0].category))
                if mask is not None:
                    masks[number, way] = self.pack.masks[mask]
        return self._images([entry.image for entry in entries]), torch.from_numpy(masks)

    def _instance(self, count: int) -> tuple[Tensor, Tensor]:
        """One picture again and again, with its figure."""
        entry = self.single[self._whole(len(self.single))]
        mask = torch.from_numpy(self.pack.masks[entry.mask].copy())
        return self._images([entry.image] * count), mask.expand(count, 1, -1, -1)

    def _region(self, count: int) -> tuple[Tensor, Tensor]:
        """One photograph again and again, with one of its regions of even appearance."""
        place = self._whole(len(self.pack.regions))
        regions = self.pack.regions[place]
        if not regions.max():
            return self._instance(count)
        mask = torch.from_numpy(
            (regions == 1 + self._whole(int(regions.max()))).astype(np.uint8) * 255
        )
        return self._images([int(self.pack.region_images[place])] * count), mask.expand(
            count, 1, -1, -1
        )

    def _photographs(self, count: int) -> Tensor:
        places = [
            int(self.pack.region_images[self._whole(len(self.pack.regions))]) for _ in range(count)
        ]
        return self._images(places).permute(0, 3, 1, 2).float() / 255.0

    def _cut_out(self) -> Tensor:
        """Returns a figure filling its frame, colour and mask, [1, 4, side, side]."""
        entry = self.figures[self._whole(len(self.figures))]
        mask = torch.from_numpy(self.pack.masks[entry.mask].copy())
        colour = torch.from_numpy(self.pack.images[entry.image].copy()).permute(2, 0, 1)
        return torch.cat([colour, mask[None]]).float().unsqueeze(0) / 255.0

    def _collage(self, count: int) -> tuple[Tensor, Tensor]:
        """Copies of cut-out figures on photographs, mostly on one and the same."""
        ways = 2 if self._chance() < 0.3 else 1
        figures = [self._cut_out() for _ in range(ways + int(self._chance() < 0.7))]
        grounds = self._photographs(count)
        if self._chance() < 0.6:
            grounds = grounds[:1].repeat(count, 1, 1, 1)
        return _to_bytes(*collages(grounds, figures, ways, self.rng))

    def _blobs(self, count: int) -> tuple[Tensor, Tensor]:
        """Blobs of one look."""
        return _to_bytes(*blob_scenes(count, self._photographs(3), self.rng))


def _to_bytes(scenes: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
    images = (scenes * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images, (planes * 255).to(torch.uint8)
