# SPDX-License-Identifier: Apache-2.0
"""A deterministic reading of a trunk: every annotated image is the query once.

The support of a query is the next `shots` images of its class in index order, cyclic. Intersections
and unions are summed per class at the stored resolution; the result of a set is the mean over its
classes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from export.methods.compact import normalise
from training.head import inferred_background, masked_average, score

Features = Callable[[Tensor], Tensor]
"""uint8 pixels [count, 3, height, width] to features."""


@dataclass(frozen=True)
class Reading:
    """How a trunk is read.

    Attributes:
        size: Side that images are resized to.
        shots: Support images per query.
        points: Points per class and shot instead of the whole mask; 0 for the mask.
        background_points: Whether background is pointed at too; otherwise it is inferred.
    """

    size: int = 320
    shots: int = 1
    points: int = 0
    background_points: bool = True

    def __str__(self) -> str:
        """Names the reading in one word."""
        if not self.points:
            return f"{self.shots}-shot mask"
        background = "and background " if self.background_points else ""
        return f"{self.shots}-shot, {self.points} foreground {background}point(s)"


def trunk_features(trunk: torch.nn.Module) -> Features:
    """Returns the features function of a trunk, without gradients."""

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        trunk.eval()
        with torch.autocast("cpu", torch.bfloat16):
            maps: Tensor = trunk(normalise(pixels).contiguous(memory_format=torch.channels_last))
        return maps.float()

    return features


class AnnotatedSet:
    """A set on disk with the features of its images."""

    def __init__(
        self, folder: Path, features: Features, size: int, categories: Iterable[str] | None = None
    ) -> None:
        """Reads the set in `folder`, or some `categories` of it; computes features once."""
        self.folder, self.size = folder, size
        index: dict[str, list[str]] = json.loads((folder / "index.json").read_text())
        wanted = set(index) if categories is None else set(categories)
        self.index = {category: names for category, names in index.items() if category in wanted}
        names = sorted({name for listed in self.index.values() for name in listed})
        self.maps = {
            name: self._features(name, features)
            for name in tqdm(names, desc=folder.name, leave=False)
        }

    def _features(self, name: str, features: Features) -> Tensor:
        with Image.open(self.folder / "images" / f"{name}.jpg") as picture:
            resized = picture.convert("RGB").resize(
                (self.size, self.size), Image.Resampling.BILINEAR
            )
        return features(torch.from_numpy(np.array(resized)).permute(2, 0, 1).unsqueeze(0)).half()

    def mask(self, category: str, name: str, *, resized: bool) -> NDArray[np.bool_]:
        """Returns a mask, at the network's size where `resized`."""
        with Image.open(self.folder / "masks" / category / f"{name}.png") as picture:
            plane = picture.convert("L")
        if resized:
            plane = plane.resize((self.size, self.size), Image.Resampling.NEAREST)
        return np.asarray(plane) > 127


def _planes(mask: NDArray[np.bool_], reading: Reading, key: str) -> Tensor:
    """Returns background and foreground planes [1, 2, size, size] of one shot."""
    if not reading.points:
        return torch.from_numpy(np.stack([~mask, mask])).float().unsqueeze(0)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    planes = torch.zeros(1, 2, *mask.shape)
    for plane, region in ((0, ~mask), (1, mask)):
        rows, columns = np.nonzero(region)
        chosen = rng.permutation(len(rows))[: reading.points]
        planes[0, plane, rows[chosen], columns[chosen]] = 1
    if not reading.background_points:
        planes[:, 0] = inferred_background(planes[:, 1])
    return planes


@torch.no_grad()
def read_category(images: AnnotatedSet, category: str, reading: Reading) -> float:
    """Returns the intersection over union of one class."""
    names = images.index[category]
    prototypes = []
    for name in names:
        planes = _planes(images.mask(category, name, resized=True), reading, f"{category}/{name}")
        prototypes.append(masked_average(images.maps[name].float(), planes))
    intersection = union = 0
    for number, name in enumerate(names):
        support = [prototypes[(number + step) % len(names)] for step in range(1, reading.shots + 1)]
        scores = score(images.maps[name].float(), torch.stack(support).mean(0))
        truth = images.mask(category, name, resized=False)
        scores = functional.interpolate(
            scores, size=truth.shape, mode="bilinear", align_corners=False
        )
        found = (scores[0, 1] > scores[0, 0]).numpy()
        intersection += int((found & truth).sum())
        union += int((found | truth).sum())
    return intersection / max(union, 1)


def read_set(images: AnnotatedSet, reading: Reading) -> dict[str, float]:
    """Returns the intersection over union of every class."""
    return {category: read_category(images, category, reading) for category in images.index}


def report(
    features: Features,
    data: Path,
    sets: Iterable[str],
    readings: Iterable[Reading],
    fold: int | None = None,
) -> dict[str, dict[str, float]]:
    """Reads sets and returns {set: {reading: mean in per cent}}; all readings share one image size.

    Args:
        features: The trunk's features.
        data: Folder of annotated sets.
        sets: Names of sets.
        readings: How to read them.
        fold: Keep only the classes of this fold, in sets that have folds.
    """
    readings, results = list(readings), {}
    for name in sets:
        folds = data / name / "folds.json"
        kept = None
        if fold is not None and folds.exists():
            kept = [
                category
                for category, number in json.loads(folds.read_text()).items()
                if number == fold
            ]
        images = AnnotatedSet(data / name, features, readings[0].size, kept)
        results[name] = {
            str(reading): round(100 * float(np.mean(list(read_set(images, reading).values()))), 1)
            for reading in readings
        }
    return results
