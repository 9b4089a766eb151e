"""One annotated image of a support set: what it depends on, its planes and its guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from service.core.types import BackgroundEvidence, SourceImage, Support


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

    def without(self, left_out: int) -> ShotSet:
        """All shots but one; what is missing and the background stay those of the whole set."""
        kept = [index for index in range(len(self.shots)) if index != left_out]
        return replace(
            self,
            supports=tuple(self.supports[index] for index in kept),
            shots=tuple(self.shots[index] for index in kept),
        )
