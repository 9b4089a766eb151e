"""Judging supports by each other, so that a bad annotation shows at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from service.core.calls import Call
from service.core.deciding import MaskDecider
from service.core.family import ModelFamily
from service.core.features import ImageFeatures
from service.core.guidance import GuidanceBuilder
from service.core.merging import pad_guidance
from service.core.planes import agreement, label_plane, ways_of
from service.core.ports import Store
from service.core.shots import ShotSet
from service.core.timing import Stage
from service.core.types import (
    BackgroundEvidence,
    ClassAgreement,
    SourceImage,
    Support,
    TaskHeader,
)
from service.core.workers import CodecWorkers


class LeaveOneOut:
    """Segments each support under the others and compares with its annotation.

    Args:
        builder: Guidance of shots.
        features: Of support images.
        decider: From feature maps to labels.
        store: Support images whose features are gone.
        workers: Rasterise.
    """

    def __init__(
        self,
        *,
        builder: GuidanceBuilder,
        features: ImageFeatures,
        decider: MaskDecider,
        store: Store,
        workers: CodecWorkers,
    ) -> None:
        self._builder = builder
        self._features = features
        self._decider = decider
        self._store = store
        self._workers = workers

    async def judge(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        judged: Collection[str],
        call: Call,
    ) -> dict[str, tuple[ClassAgreement, ...]]:
        """Agreement by support id.

        Args:
            family: By which networks.
            header: Of the task.
            shot_set: The whole set.
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
                others = await self._others(family, header, shot_set, index, inner)
                found = await self._judge_one(family, header, support, others, inner)
                if found:
                    judgements[support.support_id] = found
        return judgements

    async def _others(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        left_out: int,
        call: Call,
    ) -> ShotSet:
        others = shot_set.without(left_out)
        if (
            not family.needs_background
            or shot_set.background is BackgroundEvidence.INFERRED
            or any(shot.has_background for shot in others.shots)
        ):
            return others
        # Only the one left out labels background: the others must infer theirs.
        shots = [
            await self._builder.shot(
                family,
                header,
                support,
                call,
                inferred=True,
                image=others.images.get(support.image_digest),
            )
            for support in others.supports
        ]
        return replace(others, shots=tuple(shots))

    async def _judge_one(
        self,
        family: ModelFamily,
        header: TaskHeader,
        support: Support,
        others: ShotSet,
        call: Call,
    ) -> tuple[ClassAgreement, ...]:
        shown = frozenset[int]().union(*(shot.ways for shot in others.shots))
        ways = sorted(ways_of(support.annotation.shot_classes, header.classes) & shown)
        if not ways:
            return ()

        async def load() -> SourceImage:
            at_hand = others.images.get(support.image_digest)
            return at_hand or await self._store.get_image(header.name.tenant, support.image_digest)

        query, _ = await self._features.of_query(
            family, support.image_digest, support.image_size, load, call
        )
        guidance = pad_guidance(
            family,
            await self._builder.merge(family, header, others, call),
            len(header.classes),
        )
        plane = family.extent(support.image_size)
        mask = await self._decider.decided(
            family,
            {**query, **guidance},
            len(header.classes),
            call,
            original=support.image_size,
            output=plane,
        )
        labels = await self._workers.run(
            label_plane, support.annotation, support.image_size, plane, header.classes, family
        )
        found = ((way, agreement(mask.labels, labels, way)) for way in ways)
        return tuple(
            ClassAgreement(header.classes[way - 1], float(iou))
            for way, iou in found
            if iou is not None
        )
