"""Judging supports by each other, so that a bad annotation shows at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from service.core.calls import Call
from service.core.family import ModelFamily
from service.core.fusing import by_the_others
from service.core.guidance import GuidanceBuilder
from service.core.judging import SupportJudge
from service.core.shots import DistilledSet, ShotSet
from service.core.timing import Stage
from service.core.types import ClassAgreement, TaskHeader


class LeaveOneOut:
    """Compares each support's annotation with what the others find in its image.

    Args:
        builder: Guidance of shots.
        judge: Segments supports and compares.
    """

    def __init__(self, *, builder: GuidanceBuilder, judge: SupportJudge) -> None:
        self._builder = builder
        self._judge = judge

    async def judge(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        distilled: DistilledSet,
        judged: Collection[str],
        call: Call,
    ) -> dict[str, tuple[ClassAgreement, ...]]:
        """Agreement by support id.

        Args:
            family: By which networks.
            header: Of the task.
            shot_set: The whole set.
            distilled: What it was distilled into; the pairs of a cross-guided task are judged
                already, and nothing is decoded.
            judged: Ids of the supports to judge.
            call: Gets the LEAVE_ONE_OUT stage and nothing else.

        Returns:
            For each judged support the classes that another support shows too;
            supports without any are left out.
        """
        inner = Call(deadline=call.deadline)
        judgements: dict[str, tuple[ClassAgreement, ...]] = {}
        with call.clock.measure(Stage.LEAVE_ONE_OUT):
            for index, support in enumerate(shot_set.supports):
                if support.support_id not in judged or len(shot_set.supports) < 2:
                    continue
                if distilled.agreements is None or distilled.weights is None:
                    found = await self._by_merged(family, header, shot_set, index, inner)
                else:
                    found = _by_pairs(header, distilled.agreements, distilled.weights, index)
                if found:
                    judgements[support.support_id] = found
        return judgements

    async def _by_merged(
        self, family: ModelFamily, header: TaskHeader, shot_set: ShotSet, index: int, call: Call
    ) -> tuple[ClassAgreement, ...]:
        support = shot_set.supports[index]
        rest = [other for other in range(len(shot_set.shots)) if other != index]
        others = await self._builder.subset(family, header, shot_set, rest, call)
        shown = frozenset[int]().union(*(shot.ways for shot in others.shots))
        ways = sorted(shot_set.shots[index].ways & shown)
        if not ways:
            return ()
        guidance = await self._builder.merge(family, header, others, call)
        (found,) = await self._judge.judge(
            family,
            header,
            support,
            [guidance],
            [shown],
            ways,
            call,
            image=others.images.get(support.image_digest),
        )
        return _told(header, found)


def _by_pairs(
    header: TaskHeader,
    agreements: NDArray[np.float64],
    weights: NDArray[np.float32],
    judged: int,
) -> tuple[ClassAgreement, ...]:
    ways = range(1, len(header.classes) + 1)
    return _told(header, {way: by_the_others(agreements, weights, judged, way) for way in ways})


def _told(header: TaskHeader, found: dict[int, float | None]) -> tuple[ClassAgreement, ...]:
    return tuple(
        ClassAgreement(header.classes[way - 1], float(iou))
        for way, iou in found.items()
        if iou is not None
    )
