"""Photographs to send: real ones, each different, made before the clock runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Rows and columns of a photograph of Pascal VOC.
STANDARD_SIZE = (375, 500)
_NOISE = 2.0
_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Photograph:
    """An encoded photograph.

    Attributes:
        jpeg: The file.
        height, width: Its size.
    """

    jpeg: bytes
    height: int
    width: int


@lru_cache(maxsize=1)
def _originals() -> tuple[Image.Image, ...]:
    # Only photographs that scikit-image brings along: nothing is downloaded.
    from skimage import data

    return tuple(
        Image.fromarray(np.ascontiguousarray(read()[..., :3]))
        for read in (data.astronaut, data.chelsea, data.coffee, data.rocket)
    )


def photographs(
    count: int, sizes: Sequence[tuple[int, int]] = (STANDARD_SIZE,), seed: int = 0
) -> list[Photograph]:
    """Makes distinct photographs: seeded crops of real ones, with faint noise.

    Args:
        count: How many.
        sizes: (height, width), taken in turns.
        seed: Two seeds share no image.

    Returns:
        JPEG files of quality 90 with halved chroma, as cameras write them.
    """
    return list(_made(count, sizes, seed))


def _made(count: int, sizes: Sequence[tuple[int, int]], seed: int) -> Iterator[Photograph]:
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        random = np.random.default_rng((seed, number))
        original = _originals()[int(random.integers(len(_originals())))]
        pixels = _cropped(original, height, width, random)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
        yield Photograph(file.getvalue(), height, width)


def _cropped(
    original: Image.Image, height: int, width: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    share = random.uniform(0.6, 1.0)
    # The largest crop of the wanted shape, and then a share of it.
    scale = share * min(original.width / width, original.height / height)
    crop_width, crop_height = scale * width, scale * height
    left = random.uniform(0, original.width - crop_width)
    top = random.uniform(0, original.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    resized = original.resize((width, height), Image.Resampling.BICUBIC, box=box)
    noise = _noise()
    start = int(random.integers(noise.size))
    noisy = np.asarray(resized, dtype=np.int16) + np.resize(
        np.roll(noise, -start) if height * width * 3 > noise.size - start else noise[start:],
        (height, width, 3),
    )
    return np.clip(noisy, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.int16]:
    # Drawn once, and entered at another place by each image.
    return np.rint(np.random.default_rng(0).normal(0.0, _NOISE, 1 << 22)).astype(np.int16)


def outline(
    photograph: Photograph, number: int = 0, vertices: int = 24
) -> list[tuple[float, float]]:
    """Vertices (x, y) of an ellipse around the middle, a little different for each number."""
    random = np.random.default_rng((7, number))
    radius_x = photograph.width * random.uniform(0.15, 0.3)
    radius_y = photograph.height * random.uniform(0.15, 0.3)
    angles = np.linspace(0.0, 2 * np.pi, vertices, endpoint=False)
    xs = photograph.width * random.uniform(0.4, 0.6) + radius_x * np.cos(angles)
    ys = photograph.height * random.uniform(0.4, 0.6) + radius_y * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
