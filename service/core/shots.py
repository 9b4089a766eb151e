"""Annotated images of a support set, what their guidance depends on, and what comes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.family import ModelFamily
from service.core.types import (
    BACKGROUND,
    Annotation,
    BackgroundEvidence,
    SourceImage,
    Support,
)


@dataclass(frozen=True, slots=True)
class ShotKey:
    """What the guidance of one shot depends on: nothing of the task but its classes."""

    family: str
    image_digest: str
    annotation_digest: str
    classes: tuple[str, ...]
    inferred: bool


@dataclass(frozen=True, slots=True)
class ShotGuidance:
    """What ``guide`` says of one shot.

    Attributes:
        key: What it depends on.
        tensors: Without batch dimension and padded ways.
        ways: Ways (from 1) with a positive pixel.
        has_background: Whether its annotation labels background.
        nbytes: Of the tensors.
    """

    key: ShotKey
    tensors: dict[str, NDArray[Any]]
    ways: frozenset[int]
    has_background: bool
    nbytes: int


@dataclass(frozen=True, slots=True)
class ShotSet:
    """The shots of a whole support set.

    Attributes:
        supports: In their order.
        shots: Their guidance, in the same order.
        background: Where the background evidence comes from.
        missing: Classes without a positive pixel in the whole set.
        images: By digest, those that may not be in the store yet.
    """

    supports: tuple[Support, ...]
    shots: tuple[ShotGuidance, ...]
    background: BackgroundEvidence
    missing: tuple[str, ...]
    images: Mapping[str, SourceImage] = field(default_factory=dict)

    @property
    def without_pixels(self) -> list[tuple[str, ...]]:
        """Of each shot, the classes that it is annotated for and shows no pixel of."""
        missing = []
        for support, shot in zip(self.supports, self.shots, strict=True):
            shown = {shot.key.classes[way - 1] for way in shot.ways}
            named = support.annotation.shot_classes
            missing.append(tuple(name for name in named if name not in shown))
        return missing

    def only(self, kept: Collection[int]) -> ShotSet:
        """Some shots; what is missing and the background stay those of the whole set."""
        return replace(
            self,
            supports=tuple(self.supports[index] for index in kept),
            shots=tuple(self.shots[index] for index in kept),
        )


@dataclass(frozen=True, slots=True)
class DistilledSet:
    """What a support set was distilled into, before the engine holds it.

    Attributes:
        guidance: Without batch dimension: one of all shots merged, or one of each shot of a
            cross-guided task.
        background: Where the background evidence comes from.
        agreements: Of a cross-guided task, see ``fusing.shot_weights``; else None.
        weights: Likewise.
    """

    guidance: tuple[Mapping[str, NDArray[Any]], ...]
    background: BackgroundEvidence
    agreements: NDArray[np.float64] | None = None
    weights: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Of the guidance."""
        return sum(tensor.nbytes for part in self.guidance for tensor in part.values())


def infers_background(family: ModelFamily, supports: Sequence[Support]) -> bool:
    """Whether no annotation of a set can label background that the method needs."""
    return family.needs_background and not any(
        _may_label_background(support.annotation) for support in supports
    )


def _may_label_background(annotation: Annotation) -> bool:
    return annotation.exhaustive or any(mark.class_name == BACKGROUND for mark in annotation.marks)


def any_background(shots: Sequence[ShotGuidance]) -> bool:
    """Whether an annotation of any shot labels background."""
    return any(shot.has_background for shot in shots)
