"""How well each shot of a set, alone, finds every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.caches import ByteBudgetCache
from service.core.calls import Call
from service.core.family import ModelFamily
from service.core.graph_merging import PairKey
from service.core.judging import SupportJudge
from service.core.merging import Guidance
from service.core.shots import ShotGuidance, ShotSet
from service.core.types import TaskHeader


@dataclass(frozen=True, slots=True)
class AgreementKey(PairKey):
    """As what it extends, and yet unequal: a family's own graph may judge the same pair."""


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """How well one shot alone finds another, or itself.

    Attributes:
        ious: float64 [ways]; NaN where the judged shot shows nothing of the way.
    """

    ious: NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Of the numbers."""
        return self.ious.nbytes


class CrossGuide:
    """Judges all pairs of shots, and each pair once.

    Args:
        judge: Segments supports and compares.
        cache: Keeps pairs, so that one more shot of K costs 2K + 1 of them.
    """

    def __init__(self, judge: SupportJudge, cache: ByteBudgetCache[Any, Any]) -> None:
        self._judge = judge
        self._cache = cache

    async def agreements(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        alone: Sequence[ShotGuidance],
        guidance: Sequence[Guidance],
        call: Call,
    ) -> NDArray[np.float64]:
        """Agreement [judged shots, guiding shots, ways]; see ``fusing.shot_weights``.

        Args:
            family: By which networks.
            header: Of the task.
            shot_set: Those that are judged.
            alone: The same, each as it is without the others.
            guidance: Of each of these, merged alone.
            call: Gets the stages.
        """
        rows = []
        for support, shot in zip(shot_set.supports, shot_set.shots, strict=True):
            keys = [AgreementKey(shot.key, guiding.key) for guiding in alone]
            known = {key: pair for key in keys if (pair := self._pair(key)) is not None}
            unknown = [index for index, key in enumerate(keys) if key not in known]
            if unknown:
                found = await self._judge.judge(
                    family,
                    header,
                    support,
                    [guidance[index] for index in unknown],
                    [alone[index].ways for index in unknown],
                    shot.ways,
                    call,
                    image=shot_set.images.get(support.image_digest),
                )
                for index, of_ways in zip(unknown, found, strict=True):
                    pair = PairAgreement(_in_order(of_ways, len(header.classes)))
                    known[keys[index]] = pair
                    self._cache.put(keys[index], pair)
            rows.append([known[key].ious for key in keys])
        return np.array(rows)

    def _pair(self, key: AgreementKey) -> PairAgreement | None:
        pair = self._cache.peek(key)
        return pair if isinstance(pair, PairAgreement) else None


def _in_order(of_ways: dict[int, float | None], ways: int) -> NDArray[np.float64]:
    ious = [of_ways.get(way) for way in range(1, ways + 1)]
    return np.array([np.nan if iou is None else iou for iou in ious], np.float64)
