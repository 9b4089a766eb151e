"""Annotations to annotation planes at the network's input size (docs/annotations.md)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core.errors import RepositoryError
from service.core.family import MaskResize, ModelFamily, VoidRule
from service.core.index_masks import LARGEST_NUMBER, read_numbers
from service.core.letterbox import cv2_nearest_indices
from service.core.rasterise import paint
from service.core.run_lengths import decode_run_lengths
from service.core.stopping import checkpoint
from service.core.types import BACKGROUND, Annotation, IndexMask, RunLengthMask, Size, Support

_T = TypeVar("_T", bound=np.generic)

#: Nothing is known of the pixel.
UNLABELLED: Final = -1
#: The pixel belongs to no class and is no background evidence either.
VOID: Final = -2
#: A number of an index mask that says nothing.
_UNNAMED: Final = -3

#: The box around the positives grows by this share of its height and width on each side.
_GROWTH: Final = 4


def label_plane(
    annotation: Annotation,
    image: Size,
    plane: Size,
    classes: Sequence[str],
    family: ModelFamily,
) -> NDArray[np.int16]:
    """Paints an annotation, as ``check`` returned it, on a plane.

    Args:
        annotation: Its marks are painted in order; later ones cover earlier ones.
        image: Size of the image.
        plane: Size to paint at: the part of the network's input that the image covers.
        classes: The task's classes; way i is ``classes[i - 1]``.
        family: Says how dense masks are resized.

    Returns:
        int16 [h, w]: i = way i, 0 = background, ``VOID``, ``UNLABELLED``.

    Raises:
        InvalidArgumentError: A dense mask cannot be read.
        RepositoryError: The family cannot resize dense masks and would have to.
        StoppedError: Nobody waits for the plane any more.
    """
    labels = np.full((plane.height, plane.width), UNLABELLED, dtype=np.int16)
    way_of_class = {name: way for way, name in enumerate(classes, start=1)}
    for mark in annotation.marks:
        checkpoint()
        geometry = mark.geometry
        if isinstance(geometry, IndexMask):
            _paint_index_mask(labels, geometry, image, way_of_class, family)
            continue
        way = 0 if mark.class_name in (None, BACKGROUND) else way_of_class[str(mark.class_name)]
        if isinstance(geometry, RunLengthMask):
            pixels = decode_run_lengths(geometry)
            labels[_nearest(pixels, plane, family) != 0] = way
        else:
            paint(labels, geometry, way, image)
    if annotation.exhaustive:
        labels[labels == UNLABELLED] = 0
    return labels


def planes(
    labels: NDArray[np.int16], ways: int, shot_ways: Collection[int], family: ModelFamily
) -> NDArray[np.bool_]:
    """One plane of evidence for the background and for each way.

    Args:
        labels: See ``label_plane``.
        ways: Number of ways, padded ones included.
        shot_ways: Ways, from 1, that the image is a shot of; the others' planes
            stay empty, and their pixels are no background either.
        family: Says what void pixels are.

    Returns:
        bool [1 + ways, h, w], background first.
    """
    evidence = np.zeros((1 + ways, *labels.shape), dtype=np.bool_)
    np.equal(labels, 0, out=evidence[0])
    if family.void is VoidRule.BACKGROUND:
        evidence[0] |= labels == VOID
    for way in shot_ways:
        np.equal(labels, way, out=evidence[way])
    return evidence


def on_input(planes: NDArray[np.bool_], family: ModelFamily) -> NDArray[np.float32]:
    """Puts planes of the part of the network's input that an image covers on the whole input.

    Args:
        planes: bool [1 + ways, h, w].
        family: Whose input it is.

    Returns:
        float32 [1 + ways, H, W] of 0 and 1: zero beside the image.
    """
    count, height, width = planes.shape
    size = family.network_size(Size(height, width))
    if size == Size(height, width):
        return planes.astype(np.float32)
    whole = np.zeros((count, size.height, size.width), dtype=np.float32)
    whole[:, :height, :width] = planes
    return whole


def inferred_background(planes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Background evidence for a shot of a task that has none.

    Everything outside one box around all positives of the shot, grown on each
    side by a quarter of its height or width (rounded up). If that leaves nothing,
    everything outside the box itself; if that is nothing either, every pixel
    that is not positive.

    Args:
        planes: bool [1 + ways, h, w]; see ``planes``.

    Returns:
        bool [h, w]; nothing if nothing is positive.
    """
    positive = np.logical_or.reduce(planes[1:], axis=0)
    rows = np.flatnonzero(positive.any(axis=1))
    columns = np.flatnonzero(positive.any(axis=0))
    if not len(rows):
        return np.zeros(positive.shape, dtype=np.bool_)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    rise, reach = -(-(bottom - top) // _GROWTH), -(-(right - left) // _GROWTH)
    background = np.ones(positive.shape, dtype=np.bool_)
    background[max(0, top - rise) : bottom + rise, max(0, left - reach) : right + reach] = False
    if not background.any():
        background[:] = True
        background[top:bottom, left:right] = False
    if not background.any():
        background = ~positive
    return background


@dataclass(frozen=True, slots=True)
class ShotPlanes:
    """The planes of one shot, and what they hold.

    Attributes:
        planes: float32 [1 + ways, H, W] on the network's input.
        ways: Ways (from 1) with a positive pixel.
        has_background: Whether the annotation labels background.
    """

    planes: NDArray[np.float32]
    ways: frozenset[int]
    has_background: bool


def shot_planes(
    support: Support, classes: Sequence[str], family: ModelFamily, inferred: bool
) -> ShotPlanes:
    """Turns a support's annotation into what ``guide`` takes.

    Args:
        support: Its annotation and the size of its image.
        classes: The task's classes.
        family: Whose network it is for.
        inferred: Whether background is to be inferred from the positives.

    Raises:
        InvalidArgumentError, RepositoryError, StoppedError: See ``label_plane``.
    """
    extent = family.extent(support.image_size)
    labels = label_plane(support.annotation, support.image_size, extent, classes, family)
    shot_ways = _ways_of(support.annotation.shot_classes, classes)
    marked = planes(labels, len(classes), shot_ways, family)
    has_background = bool(marked[0].any())
    if inferred:
        marked[0] = inferred_background(marked)
    ways = frozenset(way for way in shot_ways if marked[way].any())
    return ShotPlanes(on_input(marked, family), ways, has_background)


def _ways_of(names: Collection[str], classes: Sequence[str]) -> frozenset[int]:
    """Way numbers (from 1) of class names."""
    return frozenset(way for way, name in enumerate(classes, 1) if name in names)


def agreement(prediction: NDArray[np.uint8], labels: NDArray[np.int16], way: int) -> float | None:
    """Intersection over union of a prediction with an annotation.

    Args:
        prediction: uint8 [h, w] of ways, 0 background.
        labels: int16 [h, w]; unlabelled and void pixels do not count.
        way: From 1.

    Returns:
        In [0, 1]; None where neither shows the way.
    """
    predicted = (prediction == way) & (labels >= 0)
    annotated = labels == way
    union = np.count_nonzero(predicted | annotated)
    if union == 0:
        return None
    return np.count_nonzero(predicted & annotated) / union


def _paint_index_mask(
    labels: NDArray[np.int16],
    mask: IndexMask,
    image: Size,
    way_of_class: dict[str, int],
    family: ModelFamily,
) -> None:
    numbers = _nearest(read_numbers(mask.png, image), Size(*labels.shape), family)
    meaning = np.full(LARGEST_NUMBER + 1, _UNNAMED, dtype=np.int16)
    void = dict.fromkeys(mask.void_values, VOID)
    ways = {value: way_of_class[name] for value, name in mask.class_of_value.items()}
    for value, way in (void | ways).items():
        # Tasks that were stored before such values were refused may hold larger ones.
        if value <= LARGEST_NUMBER:
            meaning[value] = way
    said = meaning[numbers]
    np.copyto(labels, said, where=said != _UNNAMED)


def _nearest(pixels: NDArray[_T], plane: Size, family: ModelFamily) -> NDArray[_T]:
    """Resizes a dense mask by the family's rule."""
    height, width = pixels.shape
    if (height, width) == (plane.height, plane.width):
        return pixels
    indices = _INDICES.get(family.mask_resize)
    if indices is None:
        raise RepositoryError(
            "MASK_RESIZE_MISSING",
            f"Family {family.name} has an input size but no rule to resize masks to it.",
        )
    rows, columns = indices(height, plane.height), indices(width, plane.width)
    resized: NDArray[_T] = pixels[rows[:, None], columns]
    return resized


@lru_cache(maxsize=256)
def nearest_indices(length: int, target: int) -> NDArray[np.int32]:
    """Indices that Pillow's nearest resize of an axis picks.

    That is floor((i + 0.5) * length / target); Pillow itself is asked because it
    adds up steps, and its rounding decides where the product is a whole number.
    """
    axis = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    picked: NDArray[np.int32] = np.array(axis.resize((target, 1), Image.Resampling.NEAREST))[0]
    picked.flags.writeable = False
    return picked


@lru_cache(maxsize=256)
def torch_nearest_indices(length: int, target: int) -> NDArray[np.int32]:
    """Indices that ``torch.nn.functional.interpolate(mode="nearest")`` picks along an axis.

    That is floor(i * length / target). Torch multiplies by a step of 32 bits, whose rounding
    decides where the product is a whole number; a target of twice the length is exact there.
    """
    places = np.arange(target)
    if target == 2 * length:
        picked = (places // 2).astype(np.int32)
    else:
        step = np.float32(length) / np.float32(target)
        products = np.floor(places.astype(np.float32) * step)
        picked = np.minimum(products, length - 1).astype(np.int32)
    picked.flags.writeable = False
    return picked


#: What each rule picks on an axis, by its length and the target's.
_INDICES: Final[Mapping[MaskResize, Callable[[int, int], NDArray[Any]]]] = {
    MaskResize.PIL_NEAREST: nearest_indices,
    MaskResize.TORCH_NEAREST: torch_nearest_indices,
    MaskResize.CV2_LETTERBOX_NEAREST: cv2_nearest_indices,
}
