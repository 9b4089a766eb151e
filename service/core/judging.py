"""How well guidance finds what a support's annotation shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

from service.core.calls import Call
from service.core.deciding import MaskDecider
from service.core.family import ModelFamily
from service.core.features import ImageFeatures
from service.core.gathering import gathered
from service.core.merging import Guidance, pad_guidance
from service.core.planes import agreement, label_plane
from service.core.ports import Store
from service.core.types import DecidedMask, SourceImage, Support, TaskHeader
from service.core.workers import CodecWorkers

#: Guidance under which a support is segmented at a time; an engine may batch them.
_AT_ONCE: Final = 4


class SupportJudge:
    """Segments supports and compares with their annotations, at the network's size.

    Args:
        features: Of support images.
        decider: From feature maps to labels.
        store: Support images whose features are gone.
        workers: Rasterise.
    """

    def __init__(
        self,
        *,
        features: ImageFeatures,
        decider: MaskDecider,
        store: Store,
        workers: CodecWorkers,
    ) -> None:
        self._features = features
        self._decider = decider
        self._store = store
        self._workers = workers

    async def judge(
        self,
        family: ModelFamily,
        header: TaskHeader,
        support: Support,
        guidance: Sequence[Guidance],
        shown: Sequence[Collection[int]],
        ways: Collection[int],
        call: Call,
        *,
        image: SourceImage | None = None,
    ) -> list[dict[int, float | None]]:
        """Agreement by way, under each guidance.

        Args:
            family: By which networks.
            header: Of the task.
            support: Whom to judge.
            guidance: Of ``GuidanceBuilder.merge``; each is tried by itself.
            shown: Ways, from 1, that the shots behind each guidance show; the others find nothing.
            ways: From 1; those to look at.
            call: Gets the stages.
            image: The support's, if it is at hand; else the store's.

        Returns:
            Intersection over union on the labelled pixels, in [0, 1]; None where neither
            mask nor annotation shows the way.
        """

        async def load() -> SourceImage:
            return image or await self._store.get_image(header.name.tenant, support.image_digest)

        query, _ = await self._features.of_query(
            family, support.image_digest, support.image_size, load, call
        )
        plane = family.extent(support.image_size)
        labels = await self._workers.run(
            label_plane, support.annotation, support.image_size, plane, header.classes, family
        )

        async def decided(tried: Guidance, shown: Collection[int]) -> DecidedMask:
            inputs = {**query, **pad_guidance(family, tried, len(header.classes))}
            return await self._decider.decided(
                family,
                inputs,
                len(header.classes),
                call,
                original=support.image_size,
                output=plane,
                shown=shown,
            )

        async def found(tried: Guidance, shown: Collection[int]) -> dict[int, float | None]:
            mask = await decided(tried, shown)
            return {way: agreement(mask.labels, labels, way) for way in ways}

        trials = zip(guidance, shown, strict=True)
        return await gathered([partial(found, *trial) for trial in trials], _AT_ONCE)
