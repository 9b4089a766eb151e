"""Segmenting images under registered tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from service.core.admission import Admission
from service.core.calls import Call, running
from service.core.catalog import Catalog
from service.core.deciding import MaskDecider
from service.core.directory import TaskDirectory
from service.core.errors import (
    AbortedError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from service.core.family import GraphRole, ModelFamily
from service.core.features import ImageFeatures, ImageLoader, NetworkImage
from service.core.guidance import GuidanceBuilder
from service.core.limits import Limits
from service.core.output_limits import check_given_size, check_output
from service.core.ports import Store, Telemetry, Tensors
from service.core.refusals import support_not_found
from service.core.task_guidance import TaskGuidance
from service.core.timing import Stage
from service.core.types import (
    ClassResult,
    DecidedMask,
    EncodedMask,
    OutputOptions,
    Query,
    Segmentation,
    ShotFusion,
    Size,
    SourceImage,
    TaskHeader,
    TaskName,
    TaskRecord,
)
from service.core.visits import Prepare

_RecordLoader = Callable[[], Awaitable[TaskRecord]]

#: Fetches guidance; True says that what it gave before was lost.
_Guide = Callable[[bool], Awaitable[tuple[TaskGuidance, bool]]]

#: How often a query follows a task that changes under it before it gives up.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class _QueryImage:
    """An image that may still have to be fetched."""

    digest: str
    size: Size
    load: ImageLoader


@dataclass(frozen=True, slots=True)
class _Route:
    """How a query is answered.

    Attributes:
        role: DECODE, or QUERY_DECODER.
        inputs: Of that.
        reused: Whether feature maps were at hand.
        new: The image, if its maps are to be kept and nobody had begun to make them.
    """

    role: GraphRole
    inputs: Tensors | Prepare
    reused: bool
    new: SourceImage | None = None


class Segmenter:
    """Answers queries.

    Args:
        admission: Who may run.
        directory: Finds tasks.
        catalog: Finds families.
        builder: Guidance.
        features: Feature maps.
        decider: From feature maps and guidance to masks.
        store: Images of supports.
        limits: What may be asked for.
        telemetry: Hears stages.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        directory: TaskDirectory,
        catalog: Catalog,
        builder: GuidanceBuilder,
        features: ImageFeatures,
        decider: MaskDecider,
        store: Store,
        limits: Limits,
        telemetry: Telemetry,
    ) -> None:
        self._admission = admission
        self._directory = directory
        self._catalog = catalog
        self._builder = builder
        self._features = features
        self._decider = decider
        self._store = store
        self._limits = limits
        self._telemetry = telemetry

    def check_room(self, call: Call) -> None:
        """Refuses a call that ``segment`` would refuse for want of room.

        A caller who asks first spares a full server the conversion of what it refuses anyway.

        Raises:
            ResourceExhaustedError: The server is full.
            UnavailableError: The server is stopping.
        """
        self._admission.check(call)

    async def segment(self, query: Query, call: Call) -> Segmentation:
        """Segments one image under the newest revision of a task.

        Raises:
            NotFoundError: No such task or support.
            InvalidArgumentError: The image cannot be decoded.
            AbortedError: The task has another revision than the etag says.
            ResourceExhaustedError: The server is full.
            UnavailableError: Engine or store do not answer.
            DeadlineExceededError: The deadline passed.
        """
        async with running(call, self._telemetry), self._admission.slot(call):
            return await self._under_latest(query, call)

    async def open_stream(
        self, task: TaskName, etag: str, *, pinned: bool, call: Call
    ) -> StreamSession:
        """Prepares for many images under one task; raises as ``segment`` does.

        Args:
            task: Under which task.
            etag: If not empty, the revision that the task must have now.
            pinned: Whether that revision answers all images, or the newest one each.
            call: Of the opening alone.
        """
        async with running(call, self._telemetry), self._admission.slot(call):
            if not pinned:
                await self._directory.header(task, call, etag=etag)
                return StreamSession(self, task, None)
            record = await self._directory.record(task, call, etag=etag)
            with self._catalog.lease_of(record.header) as family:
                guidance, _ = await self._builder.task(
                    family, record.header, _already(record), call
                )
                return StreamSession(self, task, _Pin(record, guidance))

    async def stream_image(
        self,
        task: TaskName,
        pin: _Pin | None,
        image: SourceImage,
        options: OutputOptions,
        call: Call,
    ) -> Segmentation:
        """Segments one image of a stream; see ``StreamSession``."""
        async with running(call, self._telemetry), self._admission.slot(call, patient=True):
            if pin is None:
                return await self._under_latest(Query(task, image, options), call)
            header = pin.record.header
            with self._catalog.lease_of(header) as family:
                guide = partial(self._pinned, family, pin, call)
                return await self._answer(family, header, guide, _given(image), options, call)

    async def _pinned(
        self, family: ModelFamily, pin: _Pin, call: Call, again: bool
    ) -> tuple[TaskGuidance, bool]:
        if not again and pin.guidance.family == family.name:
            return pin.guidance, True
        try:
            pin.guidance, reused = await self._task_guidance(
                family, pin.record.header, _already(pin.record), call, again
            )
        except NotFoundError:
            raise AbortedError(
                "REVISION_GONE",
                "The model changed, and the pinned revision's images are gone; open a new stream.",
            ) from None
        return pin.guidance, reused

    async def _under_latest(self, query: Query, call: Call) -> Segmentation:
        for _ in range(_ATTEMPTS):
            header = await self._directory.header(query.task, call, etag=query.etag)
            image = await self._image(query, call)
            with self._catalog.lease_of(header) as family:
                loader = self._loader(header, call)
                guide = partial(self._task_guidance, family, header, loader, call)
                try:
                    return await self._answer(family, header, guide, image, query.options, call)
                except _RevisionMovedError:
                    self._directory.forget(query.task)
        raise AbortedError("TASK_CHANGING", "The task keeps changing; try again.")

    async def _task_guidance(
        self,
        family: ModelFamily,
        header: TaskHeader,
        load: _RecordLoader,
        call: Call,
        again: bool,
    ) -> tuple[TaskGuidance, bool]:
        if again:
            self._builder.forget(family, header)
        return await self._builder.task(family, header, load, call)

    def _loader(self, header: TaskHeader, call: Call) -> _RecordLoader:
        async def load() -> TaskRecord:
            with call.clock.measure(Stage.STORE):
                record = await self._store.get(header.name)
            if record is None or record.header.etag != header.etag:
                raise _RevisionMovedError("TASK_CHANGING", "The task has changed meanwhile.")
            return record

        return load

    async def _image(self, query: Query, call: Call) -> _QueryImage:
        if isinstance(query.image, SourceImage):
            return _given(query.image)
        with call.clock.measure(Stage.STORE):
            support = await self._store.get_support(query.task, query.image)
        if support is None:
            raise support_not_found(query.image)
        digest = support.image_digest

        async def load() -> SourceImage:
            with call.clock.measure(Stage.STORE):
                return await self._store.get_image(query.task.tenant, digest)

        return _QueryImage(digest, support.image_size, load)

    async def _answer(
        self,
        family: ModelFamily,
        header: TaskHeader,
        guide: _Guide,
        image: _QueryImage,
        options: OutputOptions,
        call: Call,
    ) -> Segmentation:
        output = self._output_size(family, image.size, options)
        check_output(output, len(header.classes), options.probabilities, family, self._limits)
        with _in_image():
            route = await self._route(family, header, image, call)
        decided = partial(self._decided, family, header, image, route, output, options, call)
        guidance, guidance_reused = await guide(False)
        try:
            mask, content = await decided(guidance)
        except UnavailableError as error:
            if error.reason != "GUIDANCE_DROPPED":
                raise
            # The engine lost it, by a family that left and came back: once more.
            guidance, guidance_reused = await guide(True)
            mask, content = await decided(guidance)
        return Segmentation(
            mask=content,
            classes=_class_results(header, mask),
            probabilities=mask.probabilities,
            family=family.name,
            etag=header.etag,
            background=guidance.background,
            features_reused=route.reused,
            guidance_reused=guidance_reused,
        )

    async def _route(
        self, family: ModelFamily, header: TaskHeader, image: _QueryImage, call: Call
    ) -> _Route:
        # The shots of a cross-guided task share the maps: they are made once, whatever the policy.
        if header.fusion is not ShotFusion.CROSS_GUIDED:
            kept = self._features.worth_keeping(family, image.digest)
            if not kept or self._features.made_by_answering(family, image.digest):
                source = await image.load()
                whole = NetworkImage(source, family, GraphRole.QUERY_DECODER)
                return _Route(GraphRole.QUERY_DECODER, whole, False, source if kept else None)
        inputs, reused = await self._features.of_query(
            family, image.digest, image.size, image.load, call
        )
        return _Route(GraphRole.DECODE, inputs, reused)

    async def _decided(
        self,
        family: ModelFamily,
        header: TaskHeader,
        image: _QueryImage,
        route: _Route,
        output: Size,
        options: OutputOptions,
        call: Call,
        guidance: TaskGuidance,
    ) -> tuple[DecidedMask, EncodedMask]:
        encoded = partial(
            self._decider.encoded,
            family,
            ways=len(header.classes),
            call=call,
            guidance=guidance,
            original=image.size,
            output=output,
            options=options,
        )
        with _in_image():
            if route.new is None:
                return await encoded(route.role, route.inputs)
            if self._features.made_by_answering(family, image.digest):
                return await self._features.while_answering(
                    family,
                    route.new,
                    call,
                    lambda tell: encoded(route.role, route.inputs, on_maps=tell),
                )
            # Somebody else has begun to make the maps since.
            inputs, _ = await self._features.of_query(
                family, image.digest, image.size, image.load, call
            )
            return await encoded(GraphRole.DECODE, inputs)

    def _output_size(self, family: ModelFamily, image: Size, options: OutputOptions) -> Size:
        if isinstance(options.size, Size):
            check_given_size(options.size, self._limits)
            return options.size
        return family.extent(image) if options.size == "network" else image


class StreamSession:
    """Many images under one task. Images may be segmented concurrently.

    Args:
        segmenter: Does the work.
        task: Under which task.
        pin: The revision that answers, or None for the newest one each time.
    """

    def __init__(self, segmenter: Segmenter, task: TaskName, pin: _Pin | None) -> None:
        self._segmenter = segmenter
        self._task = task
        self._pin = pin

    async def segment(self, image: SourceImage, options: OutputOptions, call: Call) -> Segmentation:
        """Segments one image; raises as ``Segmenter.segment`` does, but never for a full queue."""
        return await self._segmenter.stream_image(self._task, self._pin, image, options, call)

    def close(self) -> None:
        """Lets the pinned guidance go. Closing twice is harmless."""
        self._pin = None


@dataclass(slots=True)
class _Pin:
    """A revision, and its guidance under the family of the moment."""

    record: TaskRecord
    guidance: TaskGuidance


class _RevisionMovedError(AbortedError):
    """The task changed between reading its header and its supports."""


@contextmanager
def _in_image() -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        raise error.within("image") from None


def _given(image: SourceImage) -> _QueryImage:
    async def load() -> SourceImage:
        return image

    return _QueryImage(image.digest, image.size, load)


def _already(record: TaskRecord) -> _RecordLoader:
    async def load() -> TaskRecord:
        return record

    return load


def _class_results(header: TaskHeader, mask: DecidedMask) -> tuple[ClassResult, ...]:
    return tuple(
        ClassResult(
            class_name=name,
            value=way,
            area=int(mask.areas[way - 1]),
            box=mask.boxes[way - 1],
            mean_score=float(mask.mean_scores[way - 1]),
        )
        for way, name in enumerate(header.classes, 1)
    )
