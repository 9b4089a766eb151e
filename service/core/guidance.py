"""From support sets to guidance. The support set is the truth; guidance is derived."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from service.core.caches import ByteBudgetCache
from service.core.calls import Call
from service.core.cross_guiding import CrossGuide, PairAgreement
from service.core.errors import FewSegError
from service.core.family import GraphRole, ModelFamily
from service.core.features import ImageFeatures
from service.core.fusing import shot_weights
from service.core.graph_merging import GraphMerger, PairGuidance, PairKey
from service.core.merging import (
    bucket,
    cut_shot,
    merge_shots,
    pad_guidance,
    pad_ways,
)
from service.core.planes import shot_planes
from service.core.ports import Engine, GuidanceHandle, Store, Tensors
from service.core.resize import extent_input
from service.core.shots import (
    DistilledSet,
    ShotGuidance,
    ShotKey,
    ShotSet,
    any_background,
    infers_background,
)
from service.core.task_guidance import TaskGuidance, TaskKey
from service.core.timing import Stage, StageClock
from service.core.types import (
    BackgroundEvidence,
    ShotFusion,
    SourceImage,
    Support,
    TaskHeader,
    TaskRecord,
)
from service.core.visits import GraphVisits
from service.core.workers import CodecWorkers

#: Guidance that merges in less time than a visit to a worker thread takes.
_MERGED_AT_ONCE = 64 * 1024

GuidanceCache = ByteBudgetCache[
    ShotKey | PairKey | TaskKey, ShotGuidance | PairGuidance | PairAgreement | TaskGuidance
]


class GuidanceBuilder:
    """Computes guidance from support sets, and only what is not at hand.

    Args:
        engine: Keeps merged guidance.
        visits: Run ``guide`` and ``merge``, and what comes before them.
        features: Of support images.
        store: Where support images are read when features are gone.
        workers: Merge.
        cross_guide: Judges the pairs of shots of cross-guided tasks.
        cache: Of shots, of pairs of them, and of tasks.
        rebuilds: Rebuilds of whole tasks that run at once.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        visits: GraphVisits,
        features: ImageFeatures,
        store: Store,
        workers: CodecWorkers,
        cross_guide: CrossGuide,
        cache: GuidanceCache,
        rebuilds: int,
    ) -> None:
        self._engine = engine
        self._visits = visits
        self._features = features
        self._store = store
        self._workers = workers
        self._cross_guide = cross_guide
        self._cache = cache
        self._graph_merger = GraphMerger(
            visits=visits, features=features, store=store, workers=workers, cache=cache
        )
        self._rebuilds = asyncio.Semaphore(rebuilds)
        self._dropping: set[asyncio.Task[None]] = set()

    async def shot(
        self,
        family: ModelFamily,
        header: TaskHeader,
        support: Support,
        call: Call,
        *,
        inferred: bool,
        image: SourceImage | None = None,
    ) -> ShotGuidance:
        """The guidance of one support.

        Args:
            family: By which networks.
            header: Of the task: its tenant and classes.
            support: Image digest and annotation.
            call: Gets the stages.
            inferred: Whether background is to be inferred from the positives.
            image: The image, if it is at hand; else the store's.

        Raises:
            InvalidArgumentError: The image cannot be decoded.
            UnavailableError: Engine or store do not answer.
        """
        key = ShotKey(
            family.name,
            support.image_digest,
            support.annotation_digest,
            header.classes,
            inferred,
        )

        async def load() -> SourceImage:
            if image is not None:
                return image
            with call.clock.measure(Stage.STORE):
                return await self._store.get_image(header.name.tenant, support.image_digest)

        async def build() -> ShotGuidance:
            features, _ = await self._features.of_support(family, support.image_digest, load, call)
            marking = _Marking(support, header.classes, family, inferred, features)
            outputs = await self._visits.outputs(
                family, GraphRole.GUIDE, Stage.GUIDE, call, marking
            )
            tensors = cut_shot(family, outputs, len(header.classes))
            nbytes = sum(tensor.nbytes for tensor in tensors.values())
            return ShotGuidance(key, tensors, marking.ways, marking.has_background, nbytes)

        shot, _ = await self._cache.get(key, build)
        if not isinstance(shot, ShotGuidance):
            raise TypeError("a shot's key led to something else")
        return shot

    async def shots(
        self,
        family: ModelFamily,
        header: TaskHeader,
        supports: Sequence[Support],
        call: Call,
        *,
        images: Mapping[str, SourceImage] | None = None,
        field_of: Callable[[int], str] | None = None,
    ) -> ShotSet:
        """The guidance of every support of a set.

        Args:
            family: By which networks.
            header: Of the task.
            supports: In the order of the set.
            call: Gets the stages.
            images: By digest, those at hand.
            field_of: Names the request field of the i-th support, for errors.

        Raises:
            OutOfLimitsError: The model takes fewer shots (TOO_MANY_SHOTS).
        """
        if family.most_shots is not None and header.fusion is ShotFusion.MERGED:
            bucket(len(supports), family.shot_buckets, "shots")
        at_hand = images or {}

        async def build(inferred: bool) -> list[ShotGuidance]:
            shots = []
            for index, support in enumerate(supports):
                try:
                    shot = await self.shot(
                        family,
                        header,
                        support,
                        call,
                        inferred=inferred,
                        image=at_hand.get(support.image_digest),
                    )
                except FewSegError as error:
                    raise (error.within(field_of(index)) if field_of else error) from None
                shots.append(shot)
            return shots

        inferred = infers_background(family, supports)
        shots = await build(inferred)
        if family.needs_background and not inferred and not any_background(shots):
            # Annotations that could have labelled background left no pixel of it.
            inferred = True
            shots = await build(inferred)
        present = frozenset().union(*(shot.ways for shot in shots))
        missing = [name for way, name in enumerate(header.classes, 1) if way not in present]
        evidence = BackgroundEvidence.INFERRED if inferred else BackgroundEvidence.GIVEN
        return ShotSet(tuple(supports), tuple(shots), evidence, tuple(missing), at_hand)

    async def merge(
        self, family: ModelFamily, header: TaskHeader, shot_set: ShotSet, call: Call
    ) -> dict[str, NDArray[Any]]:
        """The task's guidance, without batch dimension; only what ``merge`` makes is padded."""
        tensors = [shot.tensors for shot in shot_set.shots]
        with call.clock.measure(Stage.MERGE):
            if sum(shot.nbytes for shot in shot_set.shots) <= _MERGED_AT_ONCE:
                merged = merge_shots(family, tensors)
            else:
                merged = await self._workers.run(merge_shots, family, tensors)
        if GraphRole.MERGE in family.graphs:
            merged |= await self._graph_merger.merge(family, header, shot_set, call)
        return merged

    async def subset(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        kept: Collection[int],
        call: Call,
    ) -> ShotSet:
        """Some shots of a set; they infer background if only others label what they need."""
        some = shot_set.only(kept)
        if (
            not family.needs_background
            or shot_set.background is BackgroundEvidence.INFERRED
            or any_background(some.shots)
        ):
            return some
        shots = [
            await self.shot(
                family,
                header,
                support,
                call,
                inferred=True,
                image=some.images.get(support.image_digest),
            )
            for support in some.supports
        ]
        return replace(some, shots=tuple(shots))

    async def distil(
        self, family: ModelFamily, header: TaskHeader, shot_set: ShotSet, call: Call
    ) -> DistilledSet:
        """All that queries need to know of a support set.

        Args:
            family: By which networks.
            header: Of the task.
            shot_set: Its shots.
            call: Gets the stages; the judging of a cross-guided task's pairs is MERGE.

        Raises:
            UnavailableError: Engine or store do not answer.
        """
        if header.fusion is ShotFusion.MERGED:
            merged = await self.merge(family, header, shot_set, call)
            return DistilledSet((merged,), shot_set.background)
        inner = Call(deadline=call.deadline)
        with call.clock.measure(Stage.MERGE):
            alone = [
                await self.subset(family, header, shot_set, (index,), inner)
                for index in range(len(shot_set.shots))
            ]
            guidance = [await self.merge(family, header, shot, inner) for shot in alone]
            agreements = await self._cross_guide.agreements(
                family, header, shot_set, [shot.shots[0] for shot in alone], guidance, inner
            )
        weights = shot_weights(agreements, [shot.ways for shot in shot_set.shots])
        return DistilledSet(tuple(guidance), shot_set.background, agreements, weights)

    async def keep(
        self, family: ModelFamily, header: TaskHeader, distilled: DistilledSet
    ) -> TaskGuidance:
        """Hands guidance to the engine, and keeps it as that of this revision."""
        guidance = await self._put(family, header, distilled)
        self._cache.put(TaskKey(family.name, header.uid, header.revision), guidance)
        return guidance

    async def _put(
        self, family: ModelFamily, header: TaskHeader, distilled: DistilledSet
    ) -> TaskGuidance:
        handles: list[GuidanceHandle] = []
        try:
            for part in distilled.guidance:
                padded = pad_guidance(family, part, len(header.classes))
                handles.append(await self._engine.put_guidance(family.name, padded))
        except BaseException:
            for handle in handles:
                self._drop_soon(handle)
            raise
        release = partial(self._drop, asyncio.get_running_loop())
        return TaskGuidance(handles, distilled.weights, distilled.background, release)

    async def task(
        self,
        family: ModelFamily,
        header: TaskHeader,
        load: Callable[[], Awaitable[TaskRecord]],
        call: Call,
    ) -> tuple[TaskGuidance, bool]:
        """The guidance of a task's revision, and whether it was at hand.

        A rebuild goes on when its first caller gives up, since others will ask.

        Args:
            family: By which networks.
            header: Which revision.
            load: Reads that revision with its supports.
            call: Gets the stages.
        """
        key = TaskKey(family.name, header.uid, header.revision)

        async def build() -> TaskGuidance:
            async with self._rebuilds:
                record = await load()
                detached = call.detached()
                shot_set = await self.shots(family, record.header, record.supports, detached)
                distilled = await self.distil(family, record.header, shot_set, detached)
                return await self._put(family, record.header, distilled)

        guidance, reused = await self._cache.get(key, build, detached=True)
        if not isinstance(guidance, TaskGuidance):
            raise TypeError("a task's key led to something else")
        return guidance, reused

    def peek(self, family: ModelFamily, header: TaskHeader) -> TaskGuidance | None:
        """The guidance of a task's revision if it is at hand."""
        guidance = self._cache.peek(TaskKey(family.name, header.uid, header.revision))
        return guidance if isinstance(guidance, TaskGuidance) else None

    def forget(self, family: ModelFamily, header: TaskHeader) -> None:
        """Lets the merged guidance of a revision go that nobody will ask for again."""
        self._cache.discard(TaskKey(family.name, header.uid, header.revision))

    def forget_task(self, header: TaskHeader) -> None:
        """Lets the merged guidance of all revisions of a task go."""
        self._cache.discard_where(lambda key: isinstance(key, TaskKey) and key.uid == header.uid)

    def _drop(self, loop: asyncio.AbstractEventLoop, handle: GuidanceHandle) -> None:
        """Called when guidance is collected, in whatever thread that happens."""
        with suppress(RuntimeError):  # the loop has ended, and the engine with it
            loop.call_soon_threadsafe(self._drop_soon, handle)

    def _drop_soon(self, handle: GuidanceHandle) -> None:
        task = asyncio.ensure_future(self._engine.drop(handle))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def close(self) -> None:
        """Waits for handles that are being dropped."""
        await asyncio.gather(*self._dropping, return_exceptions=True)


@dataclass(slots=True)
class _Marking:
    """Makes the inputs of ``guide``, and tells what is marked once it has.

    Attributes:
        ways: Ways (from 1) with a positive pixel.
        has_background: Whether the annotation labels background.
    """

    support: Support
    classes: Sequence[str]
    family: ModelFamily
    inferred: bool
    features: Tensors
    ways: frozenset[int] = frozenset()
    has_background: bool = False

    def __call__(self, clock: StageClock) -> Tensors:
        """Feature maps and planes [1, ways, H, W]."""
        with clock.measure(Stage.RASTERISE):
            marked = shot_planes(self.support, self.classes, self.family, self.inferred)
            padded = pad_ways(marked.planes[None], len(self.classes), self.family)
        self.ways, self.has_background = marked.ways, marked.has_background
        extent = extent_input(self.family, GraphRole.GUIDE, self.support.image_size)
        return {**self.features, "planes": padded, **extent}
