"""Merging by a graph of the family's own: what neither a mean nor a stack can say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from service.core.caches import ByteBudgetCache
from service.core.calls import Call
from service.core.family import GraphRole, ModelFamily
from service.core.features import ImageFeatures
from service.core.merge_tensors import joint, merge_feeds, pad_shot, pair_of, paired
from service.core.merging import pad_ways
from service.core.planes import shot_planes
from service.core.ports import Outputs, Store, Tensors
from service.core.shots import ShotKey, ShotSet
from service.core.timing import Stage, StageClock
from service.core.types import SourceImage, TaskHeader
from service.core.visits import GraphVisits
from service.core.workers import CodecWorkers


@dataclass(frozen=True, slots=True)
class PairKey:
    """What judging one shot under the guidance of another depends on."""

    judged: ShotKey
    guiding: ShotKey

    @property
    def family(self) -> str:
        """Whose networks judge."""
        return self.judged.family


@dataclass(frozen=True, slots=True)
class PairGuidance:
    """What ``merge`` says of one shot under the guidance of another.

    Attributes:
        tensors: Without batch and shots.
        nbytes: Of the tensors.
    """

    tensors: dict[str, NDArray[Any]]
    nbytes: int


class GraphMerger:
    """Runs ``merge``: once for a whole set, or once for each shot with unknown pairs.

    Args:
        visits: Run the graph.
        features: Of support images.
        store: Where support images are read when features are gone.
        workers: Rasterise.
        cache: Keeps pairs, so that only those of a new shot are computed.
    """

    def __init__(
        self,
        *,
        visits: GraphVisits,
        features: ImageFeatures,
        store: Store,
        workers: CodecWorkers,
        cache: ByteBudgetCache[Any, Any],
    ) -> None:
        self._visits = visits
        self._features = features
        self._store = store
        self._workers = workers
        self._cache = cache

    async def merge(
        self, family: ModelFamily, header: TaskHeader, shot_set: ShotSet, call: Call
    ) -> dict[str, NDArray[Any]]:
        """What ``decode`` takes of ``merge``, padded, without batch dimension.

        Args:
            family: Which has such a graph.
            header: Of the task: its tenant and classes.
            shot_set: The task's shots.
            call: Gets the stages.

        Raises:
            OutOfLimitsError: There are too many shots (TOO_MANY_SHOTS).
            UnavailableError: Engine or store do not answer.
        """
        if not family.merge_judged:
            shots = [
                await self._tensors(family, header, shot_set, index, family.merge_inputs, call)
                for index in range(len(shot_set.shots))
            ]
            return joint(family, await self._run(family, shots, None, call), len(shots))
        rows = [
            await self._judge(family, header, shot_set, index, call)
            for index in range(len(shot_set.shots))
        ]
        return paired(family, rows)

    async def _judge(
        self, family: ModelFamily, header: TaskHeader, shot_set: ShotSet, judged: int, call: Call
    ) -> list[dict[str, NDArray[Any]]]:
        """Judges one shot under each, in their order; what is at hand is not computed again."""
        keys = [PairKey(shot_set.shots[judged].key, shot.key) for shot in shot_set.shots]
        known = {key: pair.tensors for key in keys if (pair := self._pair(key)) is not None}
        unknown = [index for index, key in enumerate(keys) if key not in known]
        if unknown:
            judged_tensors = await self._tensors(
                family, header, shot_set, judged, family.merge_judged, call
            )
            guiding = [
                await self._tensors(family, header, shot_set, index, family.merge_inputs, call)
                for index in unknown
            ]
            made = await self._run(family, guiding, judged_tensors, call)
            for position, index in enumerate(unknown):
                known[keys[index]] = self._keep(keys[index], pair_of(family, made, position))
        return [known[key] for key in keys]

    def _pair(self, key: PairKey) -> PairGuidance | None:
        pair = self._cache.peek(key)
        return pair if isinstance(pair, PairGuidance) else None

    def _keep(self, key: PairKey, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        nbytes = sum(values.nbytes for values in tensors.values())
        self._cache.put(key, PairGuidance(tensors, nbytes))
        return tensors

    async def _run(
        self,
        family: ModelFamily,
        shots: Sequence[dict[str, NDArray[Any]]],
        judged: dict[str, NDArray[Any]] | None,
        call: Call,
    ) -> Outputs:
        def stacked(clock: StageClock) -> Tensors:
            with clock.measure(Stage.MERGE):
                return merge_feeds(family, shots, judged)

        return await self._visits.outputs(
            family, GraphRole.MERGE, Stage.MERGE, call, stacked, deadline=call.deadline
        )

    async def _tensors(
        self,
        family: ModelFamily,
        header: TaskHeader,
        shot_set: ShotSet,
        index: int,
        names: Collection[str],
        call: Call,
    ) -> dict[str, NDArray[Any]]:
        """Those tensors of a shot, without batch dimension, ways padded."""
        support, shot = shot_set.supports[index], shot_set.shots[index]
        ways = len(header.classes)
        found = {
            name: values
            for name, values in pad_shot(family, shot.tensors, ways).items()
            if name in names
        }
        if "planes" in names:
            with call.clock.measure(Stage.RASTERISE):
                marked = await self._workers.run(
                    shot_planes, support, header.classes, family, shot.key.inferred
                )
            found["planes"] = pad_ways(marked.planes[None], ways, family)[0]
        if not found.keys() >= set(names):

            async def load() -> SourceImage:
                at_hand = shot_set.images.get(support.image_digest)
                return at_hand or await self._store.get_image(
                    header.name.tenant, support.image_digest
                )

            features, _ = await self._features.of_support(family, support.image_digest, load, call)
            found |= {name: values[0] for name, values in features.items() if name in names}
        return found
