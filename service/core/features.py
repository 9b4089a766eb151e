"""Feature maps of images: what every graph but ``guide`` starts from."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from service.core.caches import ByteBudgetCache
from service.core.calls import Call
from service.core.family import FeatureReuse, GraphRole, ModelFamily
from service.core.images import upright
from service.core.ports import Tensors
from service.core.resize import check_size, extent_input, picture_to_network
from service.core.timing import Stage, StageClock
from service.core.types import Size, SourceImage
from service.core.visits import GraphVisits, OnMaps

#: Fetches an image when its feature maps are not at hand.
ImageLoader = Callable[[], Awaitable[SourceImage]]

Result = TypeVar("Result")

#: Answers a query by ``query_decoder``, and tells the maps that it makes on the way.
Answer = Callable[[OnMaps], Awaitable[Result]]

#: Graphs whose outputs are kept.
_MAPS = (GraphRole.FEATURES, GraphRole.QUERY_FEATURES)
#: Images that are remembered to have been seen once.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """One graph's view of one image.

    Attributes:
        family: Family name.
        digest: Of the image.
        role: FEATURES or QUERY_FEATURES.
    """

    family: str
    digest: str
    role: GraphRole


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """The outputs of ``features`` or ``query_features`` for one image, batch dimension 1."""

    tensors: dict[str, NDArray[Any]]
    nbytes: int


class ImageFeatures:
    """Computes feature maps once per image, and keeps them as long as there is room.

    Args:
        visits: Run the graphs, and decode and resize before them.
        cache: Keeps the maps.
        reuse: When the maps of a query are worth having; a family may forbid it altogether.
    """

    def __init__(
        self,
        visits: GraphVisits,
        cache: ByteBudgetCache[FeatureKey, FeatureMaps],
        reuse: FeatureReuse = FeatureReuse.ALWAYS,
    ) -> None:
        self._visits = visits
        self._cache = cache
        self._reuse = reuse
        self._seen: OrderedDict[FeatureKey, None] = OrderedDict()

    def worth_keeping(self, family: ModelFamily, digest: str) -> bool:
        """Whether a query is to go by its image's maps, rather than by ``query_decoder``.

        Maps are many times larger than the image: where they cross a wire, they are fetched for
        images that come again, such as those under several tasks.
        """
        policies = (family.feature_reuse, self._reuse)
        if FeatureReuse.NEVER in policies:
            return False
        if FeatureReuse.SECOND_USE not in policies:
            return True
        keys = [FeatureKey(family.name, digest, role) for role in _MAPS]
        if any(self._cache.peek(key) is not None for key in keys):
            return True
        key = keys[0]
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    async def of_support(
        self, family: ModelFamily, digest: str, load: ImageLoader, call: Call
    ) -> tuple[dict[str, NDArray[Any]], bool]:
        """Feature maps for ``guide``, and whether they were at hand."""
        key = FeatureKey(family.name, digest, GraphRole.FEATURES)

        async def build() -> FeatureMaps:
            return await self._made(family, await load(), call)

        maps, reused = await self._cache.get(key, build)
        return maps.tensors, reused

    async def of_query(
        self, family: ModelFamily, digest: str, size: Size, load: ImageLoader, call: Call
    ) -> tuple[dict[str, NDArray[Any]], bool]:
        """Inputs of ``decode`` that follow from the image, and whether they were at hand.

        Args:
            family: By which networks.
            digest: Of the image.
            size: Of the image.
            load: Fetches it.
            call: Gets the stages.
        """
        maps, reused = await self._query_maps(family, digest, size, load, call)
        return {**maps, **extent_input(family, GraphRole.DECODE, size)}, reused

    def made_by_answering(self, family: ModelFamily, digest: str) -> bool:
        """Whether a query is to make its image's maps on the way to its answer.

        One visit to the engine instead of two; ``while_answering`` is to be called then.
        """
        key = FeatureKey(family.name, digest, GraphRole.FEATURES)
        return self._visits.makes_maps(family) and not self._cache.expects(key)

    async def while_answering(
        self, family: ModelFamily, image: SourceImage, call: Call, answer: Answer[Result]
    ) -> Result:
        """Answers a query of an image without maps, and keeps the maps that this makes.

        Whoever needs the maps meanwhile gets them as soon as they are there, and has them made
        anew if this query ends before: its answer, its errors and its deadline are its own.

        Args:
            family: By which networks.
            image: The image.
            call: Of the query.
            answer: Runs ``query_decoder``, and tells the maps.
        """
        loop = asyncio.get_running_loop()
        made: asyncio.Future[FeatureMaps | None] = loop.create_future()

        # Waking the event loop while ``decode`` fills the cores costs milliseconds, so it is
        # woken only for somebody who waits. Each side writes its own mark before it reads the
        # other's, so that one of them sees both.
        told: list[FeatureMaps] = []
        waited_for = False

        def tell(maps: dict[str, NDArray[Any]]) -> None:
            told.append(_weighed(maps))
            if waited_for:
                loop.call_soon_threadsafe(_settle, made, told[0])

        async def wait() -> FeatureMaps:
            nonlocal waited_for
            waited_for = True
            if told:
                _settle(made, told[0])
            return await made or await self._made(family, image, call.detached())

        key = FeatureKey(family.name, image.digest, GraphRole.FEATURES)
        leave = self._cache.promise(key, wait)
        try:
            return await answer(tell)
        finally:
            if told:
                self._cache.put(key, told[0])
            _settle(made, told[0] if told else None)
            leave()

    async def _made(self, family: ModelFamily, image: SourceImage, call: Call) -> FeatureMaps:
        prepare = NetworkImage(image, family, GraphRole.FEATURES)
        return _weighed(
            await self._visits.outputs(family, GraphRole.FEATURES, Stage.FEATURES, call, prepare)
        )

    async def _query_maps(
        self, family: ModelFamily, digest: str, size: Size, load: ImageLoader, call: Call
    ) -> tuple[dict[str, NDArray[Any]], bool]:
        if GraphRole.QUERY_FEATURES not in family.graphs:
            return await self.of_support(family, digest, load, call)
        key = FeatureKey(family.name, digest, GraphRole.QUERY_FEATURES)

        async def build() -> FeatureMaps:
            features, _ = await self.of_support(family, digest, load, call)
            inputs = {**features, **extent_input(family, GraphRole.QUERY_FEATURES, size)}
            return _weighed(
                await self._visits.outputs(
                    family, GraphRole.QUERY_FEATURES, Stage.FEATURES, call, inputs
                )
            )

        maps, reused = await self._cache.get(key, build)
        return maps.tensors, reused


class NetworkImage:
    """Makes the tensors of an image, by the family's own resize rule.

    Args:
        image: The photograph.
        family: Whose network it is for.
        role: ``features``, or an ensemble that begins with it.

    Raises:
        InvalidArgumentError: The network cannot work at the image's size. When called, also:
            the pixels cannot be decoded.
        OutOfLimitsError: The image is too large for a network that takes images as they are.
    """

    def __init__(self, image: SourceImage, family: ModelFamily, role: GraphRole) -> None:
        check_size(image.size, family)
        self._role = role
        self._image = image
        self._family = family

    def __call__(self, clock: StageClock) -> Tensors:
        """The image [1, H, W, 3], and the extent where the graph takes it."""
        with clock.measure(Stage.IMAGE_DECODE):
            picture = upright(self._image)
        with clock.measure(Stage.RESIZE):
            pixels = picture_to_network(picture, self._family)[None]
        return {"image": pixels, **extent_input(self._family, self._role, self._image.size)}


def _settle(made: asyncio.Future[FeatureMaps | None], maps: FeatureMaps | None) -> None:
    if not made.done():
        made.set_result(maps)


def _weighed(tensors: dict[str, NDArray[Any]]) -> FeatureMaps:
    return FeatureMaps(tensors, sum(tensor.nbytes for tensor in tensors.values()))
