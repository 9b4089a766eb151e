# SPDX-License-Identifier: Apache-2.0
"""Photographs and masks, decoded once into flat files that training reads as arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import felzenszwalb
from tqdm import tqdm

SIDE = 256
"""Height and width that every packed image and mask is resized to."""

REGION_STEP = 2
"""Every which photograph without a mask is divided into regions of even appearance."""

MIXED_FIGURES = {"ecssd", "sod"}
"""Sets of figures that are of no common category."""


@dataclass(frozen=True)
class Entry:
    """One packed picture: where it came from and, if annotated, which class and mask.

    Attributes:
        origin: Name of the set.
        image: Index of the picture in the image array.
        category: Class name, empty for a photograph without a mask.
        mask: Index in the mask array, -1 without a mask.
    """

    origin: str
    image: int
    category: str = ""
    mask: int = -1


@dataclass(frozen=True)
class Pack:
    """Decoded pictures.

    Attributes:
        images: uint8 [pictures, SIDE, SIDE, 3].
        masks: uint8 [masks, SIDE, SIDE], 0 or 255.
        regions: uint8 [photographs, SIDE, SIDE], regions of even appearance from 1 on, else 0.
        region_images: Index in `images` of each photograph of `regions`.
        entries: What the arrays hold; a picture with several classes has several entries.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    regions: NDArray[np.uint8]
    region_images: NDArray[np.int64]
    entries: list[Entry]


@dataclass(frozen=True)
class _Source:
    origin: str
    picture: Path
    category: str = ""
    mask: Path | None = None


def _annotated_sources(root: Path) -> Iterator[_Source]:
    for index in sorted(root.glob("*/index.json")):
        folder = index.parent
        for category, names in json.loads(index.read_text()).items():
            for name in names:
                mask = folder / "masks" / category / f"{name}.png"
                yield _Source(folder.name, folder / "images" / f"{name}.jpg", category, mask)


def _pool_sources(root: Path) -> Iterator[_Source]:
    for picture in sorted((root / "photos").glob("*.jpg")):
        yield _Source("photos", picture)
    for picture in sorted((root / "saliency" / "images").glob("*.jpg")):
        mask = root / "saliency" / "masks" / f"{picture.stem}.png"
        kind = picture.stem.split("_")[0]
        yield _Source("saliency", picture, "figure" if kind in MIXED_FIGURES else kind, mask)


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _regions(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers the regions of even appearance that cover from 1/60 to 1/3 of a picture."""
    half = SIDE // 2
    small = np.asarray(Image.fromarray(image).resize((half, half), Image.Resampling.BOX))
    found = felzenszwalb(small, scale=150, sigma=0.6, min_size=40)
    areas = np.bincount(found.ravel()) / found.size
    kept = np.flatnonzero((areas > 1 / 60) & (areas < 1 / 3))[:255]
    numbers = np.zeros(len(areas), np.uint8)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return np.asarray(numbers[found].repeat(2, 0).repeat(2, 1))


def build_pack(annotated: Path, pool: Path, target: Path) -> None:
    """Decodes both roots into `target`.

    Args:
        annotated: Folder of sets with `index.json`, `images` and `masks`.
        pool: Folder with `photos` and `saliency`.
        target: Folder that receives the arrays and `entries.json`.
    """
    sources = [*_annotated_sources(annotated), *_pool_sources(pool)]
    pictures = {
        path: number
        for number, path in enumerate(dict.fromkeys(source.picture for source in sources))
    }
    masked = [source.mask for source in sources if source.mask]
    target.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        target / "images.npy", "w+", np.uint8, (len(pictures), SIDE, SIDE, 3)
    )
    masks = np.lib.format.open_memmap(
        target / "masks.npy", "w+", np.uint8, (len(masked), SIDE, SIDE)
    )
    for path, number in tqdm(pictures.items(), desc="pictures"):
        images[number] = _read(path, "RGB")
    entries: list[Entry] = []
    filled = 0
    for source in tqdm(sources, desc="masks"):
        number = -1
        if source.mask:
            number, filled = filled, filled + 1
            masks[number] = np.where(_read(source.mask, "L") > 127, 255, 0)
        entries.append(Entry(source.origin, pictures[source.picture], source.category, number))
    images.flush()
    masks.flush()
    plain = np.array([entry.image for entry in entries if entry.mask < 0])[::REGION_STEP]
    np.save(
        target / "regions.npy",
        np.stack([_regions(images[number]) for number in tqdm(plain, desc="regions")]),
    )
    np.save(target / "region_images.npy", plain)
    (target / "entries.json").write_text(json.dumps([asdict(entry) for entry in entries]))


def load_pack(folder: Path) -> Pack:
    """Opens a packed folder; pages are read when touched."""
    entries = [Entry(**fields) for fields in json.loads((folder / "entries.json").read_text())]
    names = ("images", "masks", "regions", "region_images")
    images, masks, regions, region_images = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in names
    )
    return Pack(images, masks, regions, region_images, entries)
