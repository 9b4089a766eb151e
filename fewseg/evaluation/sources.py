"""Annotated data in the layouts that it comes in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

VOC_CLASSES: Final = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The classes of PASCAL VOC; mask value i is the i-th of them, counted from one."""


class Source(Protocol):
    """Images of classes with their masks."""

    @property
    def index(self) -> Mapping[str, Sequence[str]]:
        """Names of the images that show a class, in order, by class."""
        ...

    def image(self, name: str) -> Path:
        """The file of an image."""
        ...

    def labels(self, class_name: str, name: str) -> NDArray[np.uint8]:
        """True labels [H, W] at stored resolution: 1 = the class, 0 = not, 255 = void."""
        ...


class AnnotatedFolder:
    """``index.json`` = {class: [ids]}, ``images/<id>.jpg``, ``masks/<class>/<id>.png``.

    docs/cli.md says what a mask must look like.
    """

    def __init__(self, folder: Path, fold: int | None = None) -> None:
        """Reads the index; with ``fold``, only classes that ``folds.json`` puts there.

        Raises:
            FileNotFoundError: There is no index, or no ``folds.json`` for a fold.
        """
        self.folder = folder
        index: dict[str, list[str]] = json.loads((folder / "index.json").read_text())
        if fold is not None:
            folds: dict[str, int] = json.loads((folder / "folds.json").read_text())
            index = {name: listed for name, listed in index.items() if folds.get(name) == fold}
        self.index: Mapping[str, Sequence[str]] = index

    def image(self, name: str) -> Path:
        """See ``Source``."""
        return self.folder / "images" / f"{name}.jpg"

    def labels(self, class_name: str, name: str) -> NDArray[np.uint8]:
        """See ``Source``; a mask is white where the class is, or holds only 0 and 1."""
        with Image.open(self.folder / "masks" / class_name / f"{name}.png") as mask:
            return class_pixels(mask).astype(np.uint8)


def class_pixels(mask: Image.Image) -> NDArray[np.bool_]:
    """Where a mask is white; where it is 1 if nothing is white and it holds only 0 and 1 [H, W]."""
    grey = mask.convert("L")
    white: NDArray[np.bool_] = np.asarray(grey) > 127
    # A palette's stored numbers count, as 1 may have any colour, dark ones included.
    numbers = np.asarray(mask if len(mask.getbands()) == 1 else grey)
    if white.any() or not np.isin(numbers, (0, 1)).all():
        return white
    ones: NDArray[np.bool_] = numbers == 1
    return ones


class VocFolder:
    """PASCAL VOC's own layout; PASCAL-5i holds out classes 5 fold + 1 to 5 fold + 5.

    ``JPEGImages``, ``SegmentationClassAug`` or ``SegmentationClass``, and
    ``ImageSets/Segmentation/<split>.txt``.
    """

    def __init__(self, folder: Path, fold: int, split: str = "val") -> None:
        """Reads the list of ``split`` and which classes its masks show.

        Raises:
            FileNotFoundError: A file is missing.
        """
        augmented = folder / "SegmentationClassAug"
        self._masks = augmented if augmented.is_dir() else folder / "SegmentationClass"
        self._images = folder / "JPEGImages"
        names = (folder / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        shown = {name: set(np.unique(self._values(name)).tolist()) for name in names}
        self.index: Mapping[str, Sequence[str]] = {
            VOC_CLASSES[value - 1]: [name for name in names if value in shown[name]]
            for value in range(5 * fold + 1, 5 * fold + 6)
        }

    def image(self, name: str) -> Path:
        """See ``Source``."""
        return self._images / f"{name}.jpg"

    def labels(self, class_name: str, name: str) -> NDArray[np.uint8]:
        """See ``Source``; outlines are void."""
        values = self._values(name)
        labels = np.zeros(values.shape, np.uint8)
        labels[values == 1 + VOC_CLASSES.index(class_name)] = 1
        labels[values == 255] = 255
        return labels

    def _values(self, name: str) -> NDArray[np.uint8]:
        # A palette's stored numbers are the classes; converting to grey would give colours.
        with Image.open(self._masks / f"{name}.png") as mask:
            values: NDArray[np.uint8] = np.asarray(mask, np.uint8)
        return values


class CocoFolder:
    """COCO's own layout; COCO-20i's fold holds out every fourth class.

    ``annotations/instances_<split>.json`` and ``<split>/<file name>``. Classes are numbered by
    their ids; class i is of fold i mod 4.
    """

    def __init__(self, folder: Path, fold: int, split: str = "val2014") -> None:
        """Reads the annotations.

        Raises:
            FileNotFoundError: There are none.
        """
        self._images = folder / split
        path = folder / "annotations" / f"instances_{split}.json"
        document: dict[str, Any] = json.loads(path.read_text())
        kinds = sorted(document["categories"], key=lambda kind: int(kind["id"]))
        self._held_out = {kind["id"]: str(kind["name"]) for kind in kinds[fold::4]}
        self._sizes = {str(image["id"]): image for image in document["images"]}
        self._annotations = document["annotations"]

    @cached_property
    def _shapes(self) -> Mapping[str, Mapping[str, Sequence[Any]]]:
        """Outlines and run lengths by class and image."""
        shapes: dict[str, dict[str, list[Any]]] = {name: {} for name in self._held_out.values()}
        for annotation in self._annotations:
            name = self._held_out.get(annotation["category_id"])
            if name is not None:
                listed = shapes[name].setdefault(str(annotation["image_id"]), [])
                listed.append(annotation["segmentation"])
        return shapes

    @property
    def index(self) -> Mapping[str, Sequence[str]]:
        """See ``Source``; images in the order of their ids."""
        return {name: sorted(found, key=int) for name, found in self._shapes.items()}

    def image(self, name: str) -> Path:
        """See ``Source``."""
        return self._images / str(self._sizes[name]["file_name"])

    def labels(self, class_name: str, name: str) -> NDArray[np.uint8]:
        """See ``Source``; crowds are the class as well."""
        height, width = self._sizes[name]["height"], self._sizes[name]["width"]
        labels = np.zeros((height, width), np.uint8)
        for shape in self._shapes[class_name][name]:
            runs = shape
            if isinstance(shape, list):
                runs = coco.merge(coco.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                runs = coco.frPyObjects(shape, height, width)
            labels |= coco.decode(runs).astype(np.uint8)
        return labels
