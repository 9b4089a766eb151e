# SPDX-License-Identifier: Apache-2.0
"""Few-shot tasks drawn from a pack: which pictures, which masks, which kind of scene."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pack import Entry, Pack

CHANCES = {"category": 0.5, "instance": 0.16, "region": 0.08, "collage": 0.14, "blobs": 0.12}
"""How often each kind of task is drawn."""

SET_CHANCES = {
    "coco-mini": 0.62,
    "ccp-fashion": 0.14,
    "davis16-20x10": 0.08,
    "magnetic-tile": 0.06,
    "saliency": 0.1,
}
"""How often a task of a category comes from each set; another set counts as `OTHER_SET`."""

OTHER_SET = 0.2

ANY_PART = 0
"""In place of the number of a part: all of a mask."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Tasks of equal numbers of pictures and ways, as indices into a pack.

    Attributes:
        kinds: Kind of each task; collages and blobs take their pictures as grounds and textures.
        images: [tasks, pictures].
        masks: [tasks, pictures, ways]; -1 where there is none.
        parts: Number of the part of the mask that counts, [tasks, pictures, ways], or `ANY_PART`.
        figures: Image and mask of the cut-outs of a collage, [tasks, ways + 1, 2].
    """

    kinds: tuple[str, ...]
    images: Numbers
    masks: Numbers
    parts: Numbers
    figures: Numbers


class TaskSource:
    """Draws tasks."""

    def __init__(
        self, pack: Pack, rng: np.random.Generator, left_out: frozenset[str] = frozenset()
    ) -> None:
        """Draws from `pack`; no picture of a class in `left_out` is ever drawn with a mask."""
        self.pack, self.rng = pack, rng
        hidden = {entry.image for entry in pack.entries if entry.category in left_out}
        masked = [entry for entry in pack.entries if entry.mask >= 0 and entry.image not in hidden]
        self.figures = [entry for entry in masked if entry.origin == "saliency"]
        self.single = [
            entry for entry in masked if entry.origin in ("saliency", "davis16-20x10", "coco-mini")
        ]
        classes: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in masked:
            if entry.category != "figure":
                classes[entry.origin][entry.category].append(entry)
        self.classes: Mapping[str, Sequence[Sequence[Entry]]] = {
            origin: [found for found in sets.values() if len(found) > 1]
            for origin, sets in classes.items()
        }
        self.by_image = {(entry.image, entry.category): entry.mask for entry in masked}
        self.photographs = [entry.image for entry in pack.entries if entry.mask < 0]

    def draw(self, tasks: int, pictures: int, ways: int) -> Drawn:
        """Draws tasks; those that know one class only leave the masks of other ways empty."""
        kinds = tuple(sorted(self._name(CHANCES) for _ in range(tasks)))
        images = np.zeros((tasks, pictures), np.int64)
        masks = np.full((tasks, pictures, ways), -1, np.int64)
        parts = np.zeros((tasks, pictures, ways), np.int64)
        figures = np.zeros((tasks, ways + 1, 2), np.int64)
        for task, kind in enumerate(kinds):
            getattr(self, f"_{kind}")(images[task], masks[task], parts[task])
            for place in range(ways + 1):
                figure = self._one(self.figures)
                figures[task, place] = figure.image, figure.mask
        return Drawn(kinds, images, masks, parts, figures)

    def _one(self, among: Sequence[Entry]) -> Entry:
        return among[int(self.rng.integers(len(among)))]

    def _name(self, chances: Mapping[str, float]) -> str:
        weights = np.array(list(chances.values()))
        return list(chances)[int(self.rng.choice(len(weights), p=weights / weights.sum()))]

    def _category(self, images: Numbers, masks: Numbers, parts: Numbers) -> None:
        """Pictures of one class of a set, or of several."""
        present = {
            name: SET_CHANCES.get(name, OTHER_SET) for name in self.classes if self.classes[name]
        }
        groups = self.classes[self._name(present)]
        ways = min(masks.shape[1], len(groups))
        chosen = [groups[place] for place in self.rng.permutation(len(groups))[:ways]]
        taken: set[int] = set()
        for number in range(len(images)):
            group = chosen[number % ways]
            fresh = [entry for entry in group if entry.image not in taken] or group
            images[number] = self._one(fresh).image
            taken.add(int(images[number]))
            for way, listed in enumerate(chosen):
                masks[number, way] = self.by_image.get((images[number], listed[0].category), -1)

    def _instance(self, images: Numbers, masks: Numbers, parts: Numbers) -> None:
        """One picture again and again, with its figure."""
        entry = self._one(self.single)
        images[:], masks[:, 0] = entry.image, entry.mask

    def _region(self, images: Numbers, masks: Numbers, parts: Numbers) -> None:
        """One photograph again and again, with regions of even appearance."""
        place = int(self.rng.integers(len(self.pack.region_images)))
        images[:] = self.pack.region_images[place]
        masks[:] = self.pack.first_region + place
        parts[:] = 1 + self.rng.permutation(8)[: parts.shape[1]]

    def _collage(self, images: Numbers, masks: Numbers, parts: Numbers) -> None:
        """Grounds to paste figures on, mostly one and the same."""
        self._blobs(images, masks, parts)
        if self.rng.random() < 0.6:
            images[:] = images[0]

    def _blobs(self, images: Numbers, masks: Numbers, parts: Numbers) -> None:
        """Any photographs."""
        images[:] = self.rng.choice(self.photographs, len(images))
