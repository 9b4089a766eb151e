"""Pictures whose right answer is known, for the other examples; one's own photographs instead.

All are made from scikit-image's sample pictures, which ship inside the package.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import data, filters

TEXTURES = {"brick": data.brick, "gravel": data.gravel}


@dataclass(frozen=True)
class Labelled:
    """A picture and what is where in it.

    Attributes:
        pixels: uint8 [H, W] or [H, W, 3].
        labels: uint8 [H, W]: 0 nothing, i the i-th class.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def coins() -> Labelled:
    """Twenty-four coins; class 1."""
    photograph = data.coins()[:288]
    threshold = filters.threshold_local(photograph, 201, offset=-15)
    whole = ndimage.binary_fill_holes(ndimage.binary_opening(photograph > threshold, iterations=2))
    return Labelled(photograph, whole.astype(np.uint8))


def patchwork(classes: tuple[str, ...], seed: int, side: int = 256) -> Labelled:
    """Grass with a patch of each of the classes ("brick", "gravel") in it."""
    random = np.random.default_rng(seed)
    pixels = _cut(data.grass(), random, side)
    labels = np.zeros((side, side), np.uint8)
    rows, columns = np.indices((side, side))
    for value, name in enumerate(classes, 1):
        # Patches of several classes stay apart: each has a strip of its own.
        left, right = side * (value - 1) / len(classes), side * value / len(classes)
        radius = random.uniform(0.3, 0.45) * (right - left)
        x, y = (left + right) / 2, random.uniform(radius, side - radius)
        inside = np.hypot(columns - x, (rows - y) * random.uniform(0.4, 1.0)) < radius
        pixels = np.where(inside, _cut(TEXTURES[name](), random, side), pixels)
        labels[inside] = value
    return Labelled(pixels, labels)


def film(frames: int, side: int = 256) -> Iterator[Labelled]:
    """A horse of brick that crosses a field of grass; class 1."""
    field, wall = data.grass()[:side, :side], data.brick()[:side, :side]
    horse = ~data.horse()[::2, ::2]
    height, width = horse.shape
    for number in range(frames):
        left = (side - width) * number // max(1, frames - 1)
        top = (side - height) // 2 + round(12 * np.sin(number / 3))
        labels = np.zeros((side, side), np.uint8)
        labels[top : top + height, left : left + width] = horse
        # The bricks move with the horse.
        moved = np.roll(wall, (top, left), (0, 1))
        yield Labelled(np.where(labels == 1, moved, field), labels)


def film_of_folder(folder: Path) -> Iterator[Labelled]:
    """The frames of ``folder/frames`` with the masks of ``folder/masks``, in the order of names."""
    for path in sorted((folder / "frames").iterdir()):
        mask = np.asarray(Image.open(folder / "masks" / f"{path.stem}.png").convert("L"))
        yield Labelled(np.asarray(Image.open(path).convert("RGB")), (mask > 127).astype(np.uint8))


def photographs(folder: Path, classes: Sequence[str], name: str) -> Iterator[Labelled]:
    """The photographs of ``folder`` that show the class ``name``, with the masks of all classes."""
    for path in sorted((folder / "masks" / name).iterdir()):
        pixels = np.asarray(Image.open(folder / "images" / f"{path.stem}.jpg").convert("RGB"))
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for value, other in enumerate(classes, 1):
            mask = folder / "masks" / other / path.name
            if mask.exists():
                labels[np.asarray(Image.open(mask).convert("L")) > 127] = value
        yield Labelled(pixels, labels)


def shown(frames: Iterable[Labelled], waiting: deque[Labelled]) -> Iterator[NDArray[np.uint8]]:
    """Hands out the pixels of frames, and keeps each frame for whoever gets its answer."""
    for frame in frames:
        waiting.append(frame)
        yield frame.pixels


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def deepest(region: NDArray[np.bool_]) -> tuple[tuple[float, float], float]:
    """The point of a region that is farthest from its border, (x, y), and how far."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(depth), depth.shape)
    return (float(column) + 0.5, float(row) + 0.5), float(depth[row, column])


def _cut(texture: NDArray[np.uint8], random: np.random.Generator, side: int) -> NDArray[np.uint8]:
    top, left = random.integers(0, np.array(texture.shape) - side + 1)
    return texture[top : top + side, left : left + side]
