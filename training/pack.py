# SPDX-License-Identifier: Apache-2.0
"""Photographs and masks in one file that is small enough to send, decoded once into tensors."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fewseg.evaluation import class_pixels

SIDE = 256
"""Height and width that every picture and mask is decoded to."""

LONGEST = {"coco-mini": 256, "ccp-fashion": 240, "saliency": 208}
"""Longest side at which the pictures of a set are stored; others: `USUAL_LONGEST`."""

USUAL_LONGEST = 192

QUALITY = 66
"""Of the stored pictures (WebP)."""

REGION_STEP = 3
"""Every which photograph without a mask is divided into regions of even appearance."""

MOST_PARTS = 31
"""Numbers that connected parts of a mask, or regions of a picture, can have."""

MIXED_FIGURES = {"ecssd", "sod"}
"""Sets of figures that are of no common category."""


@dataclass(frozen=True)
class Entry:
    """One packed picture: where it came from and, if annotated, which class and mask.

    Attributes:
        origin: Name of the set.
        image: Index of the picture.
        category: Class name, empty for a photograph without a mask.
        mask: Index of the mask, -1 without a mask.
    """

    origin: str
    image: int
    category: str = ""
    mask: int = -1


@dataclass(frozen=True)
class Pack:
    """Decoded pictures.

    Attributes:
        images: uint8 [pictures, 3, SIDE, SIDE].
        masks: uint8 [masks, SIDE, SIDE]: 0 outside, numbers of connected parts from 1 on inside;
            after the masks of `entries` come the divided photographs, regions numbered from 1 on.
        region_images: Index in `images` of each divided photograph.
        entries: What the arrays hold; a picture with several classes has several entries.
    """

    images: Tensor
    masks: Tensor
    region_images: tuple[int, ...]
    entries: tuple[Entry, ...]

    @property
    def first_region(self) -> int:
        """Index in `masks` of the first divided photograph."""
        return len(self.masks) - len(self.region_images)


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


def _stored_picture(path: Path, longest: int) -> bytes:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        picture.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def _png(numbers: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbers).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _stored_mask(path: Path) -> bytes:
    from skimage.measure import label

    with Image.open(path) as picture:
        shown = Image.fromarray(255 * class_pixels(picture).astype(np.uint8))
    mask = shown.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    parts = label(np.asarray(mask) > 127, connectivity=1)
    return _png(np.where(parts > MOST_PARTS, 1 + parts % MOST_PARTS, parts).astype(np.uint8))


def _stored_regions(path: Path) -> bytes:
    """Numbers the regions of even appearance that cover from 1/60 to 1/3 of a picture."""
    from skimage.segmentation import felzenszwalb

    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)
    found = felzenszwalb(np.asarray(small), scale=150, sigma=0.6, min_size=40)
    areas = np.bincount(found.ravel()) / found.size
    kept = np.flatnonzero((areas > 1 / 60) & (areas < 1 / 3))[:MOST_PARTS]
    numbers = np.zeros(len(areas), np.uint8)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return _png(numbers[found])


def _joined(files: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    ends = np.cumsum([len(stored) for stored in files], dtype=np.int64)
    return np.frombuffer(b"".join(files), np.uint8), ends


def build_pack(annotated: Path, pool: Path, target: Path) -> None:
    """Writes both roots into one file.

    Args:
        annotated: Folder of sets with `index.json`, `images` and `masks`.
        pool: Folder with `photos` and `saliency`.
        target: File to write, .npz.
    """
    sources = [*_annotated_sources(annotated), *_pool_sources(pool)]
    pictures: dict[Path, str] = {}
    for source in sources:
        pictures.setdefault(source.picture, source.origin)
    numbers = {path: number for number, path in enumerate(pictures)}
    images = [
        _stored_picture(path, LONGEST.get(origin, USUAL_LONGEST))
        for path, origin in tqdm(pictures.items(), desc="pictures")
    ]
    masks: list[bytes] = []
    entries: list[Entry] = []
    for source in tqdm(sources, desc="masks"):
        number = -1
        if source.mask:
            number = len(masks)
            masks.append(_stored_mask(source.mask))
        entries.append(Entry(source.origin, numbers[source.picture], source.category, number))
    plain = [source.picture for source in sources if not source.mask][::REGION_STEP]
    regions = [_stored_regions(path) for path in tqdm(plain, desc="regions")]
    image_bytes, image_ends = _joined(images)
    mask_bytes, mask_ends = _joined([*masks, *regions])
    document = {
        "entries": [asdict(entry) for entry in entries],
        "region_images": [numbers[path] for path in plain],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        target,
        image_bytes=image_bytes,
        image_ends=image_ends,
        mask_bytes=mask_bytes,
        mask_ends=mask_ends,
        document=np.frombuffer(json.dumps(document).encode(), np.uint8),
    )


def _decode_image(stored: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(stored)) as picture:
        resized = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def _decode_mask(stored: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(stored)) as picture:
        return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def _decoded(
    cache: Path,
    stored: NDArray[np.uint8],
    ends: NDArray[np.int64],
    decode: Callable[[bytes], NDArray[np.uint8]],
    shape: tuple[int, ...],
) -> Tensor:
    """Decodes once, and keeps the result beside the packed file."""
    if not cache.exists():
        arrays = np.zeros((len(ends), *shape), np.uint8)
        starts = np.concatenate([[0], ends[:-1]])

        def fill(number: int) -> None:
            arrays[number] = decode(stored[starts[number] : ends[number]].tobytes())

        with ThreadPoolExecutor() as threads:
            list(threads.map(fill, range(len(ends))))
        partial = cache.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, arrays)
        os.replace(partial, cache)
    return torch.from_numpy(np.load(cache))


def load_pack(file: Path, device: str = "cpu") -> Pack:
    """Decodes a packed file into tensors on a device.

    Args:
        file: What `build_pack` wrote; the decoded arrays are kept beside it.
        device: Where the tensors go.
    """
    arrays = np.load(file)
    document = json.loads(arrays["document"].tobytes())
    tensors = [
        _decoded(
            file.with_suffix(f".{name}.npy"),
            arrays[f"{name}_bytes"],
            arrays[f"{name}_ends"],
            decode,
            shape,
        ).to(device)
        for name, decode, shape in (
            ("image", _decode_image, (3, SIDE, SIDE)),
            ("mask", _decode_mask, (SIDE, SIDE)),
        )
    ]
    return Pack(
        images=tensors[0],
        masks=tensors[1],
        region_images=tuple(document["region_images"]),
        entries=tuple(Entry(**fields) for fields in document["entries"]),
    )
