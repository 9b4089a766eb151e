"""The core as its edges see it: tasks, queries, models, and a life."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from service.core.admission import Admission
from service.core.caches import ByteBudgetCache
from service.core.catalog import Catalog
from service.core.committing import TaskCommitter
from service.core.cross_guiding import CrossGuide
from service.core.deciding import MaskDecider
from service.core.directory import TaskDirectory
from service.core.features import FeatureKey, FeatureMaps, ImageFeatures
from service.core.guidance import GuidanceBuilder, GuidanceCache
from service.core.intake import SupportIntake
from service.core.judging import SupportJudge
from service.core.leave_one_out import LeaveOneOut
from service.core.limits import Limits
from service.core.ports import Engine, Store, Telemetry
from service.core.requests import RequestMemory
from service.core.segmentation import Segmenter
from service.core.settings import CoreSettings
from service.core.tasks import Tasks
from service.core.visits import GraphVisits
from service.core.workers import CodecWorkers

_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The present moment, UTC."""
    return datetime.now(UTC)


class Gateway:
    """Builds the core over an engine and a store, starts it and stops it.

    Args:
        engine: Runs graphs.
        store: Keeps support sets.
        limits: What a request may hold.
        telemetry: Hears what happens.
        settings: How the core is tuned.
        now: The clock, UTC.

    Attributes:
        tasks, segmenter, catalog: The operations.
        limits: As given.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        limits: Limits,
        telemetry: Telemetry,
        settings: CoreSettings,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.limits = limits
        self._engine = engine
        self._store = store
        self._telemetry = telemetry
        self._settings = settings
        self._now = now
        self._workers = CodecWorkers(settings.codec_threads, settings.niceness)
        self._feature_cache: ByteBudgetCache[FeatureKey, FeatureMaps] = ByteBudgetCache(
            "features", settings.feature_bytes, telemetry
        )
        self._guidance_cache: GuidanceCache = ByteBudgetCache(
            "guidance", settings.guidance_bytes, telemetry
        )
        self._admission = Admission(
            slots=settings.slots,
            in_flight=limits.in_flight,
            queue_seconds=settings.queue_seconds,
            telemetry=telemetry,
        )
        self._visits = GraphVisits(engine, self._workers)
        self._decider = MaskDecider(self._visits)
        self.catalog = Catalog(
            engine,
            default_model=settings.default_model,
            pins=settings.pins,
            on_retired=self._forget_family,
        )
        self._sweeper: asyncio.Task[None] | None = None
        self._assemble()

    def _assemble(self) -> None:
        directory = TaskDirectory(self._store, self._settings.tenants, self._now)
        requests = RequestMemory(self._store, self._settings.request_memory, self._now)
        features = ImageFeatures(self._visits, self._feature_cache, self._settings.feature_reuse)
        judge = SupportJudge(
            features=features, decider=self._decider, store=self._store, workers=self._workers
        )
        self._builder = GuidanceBuilder(
            engine=self._engine,
            visits=self._visits,
            features=features,
            store=self._store,
            workers=self._workers,
            cross_guide=CrossGuide(judge, self._guidance_cache),
            cache=self._guidance_cache,
            rebuilds=self._settings.rebuilds,
        )
        self.tasks = Tasks(
            admission=self._admission,
            directory=directory,
            catalog=self.catalog,
            builder=self._builder,
            committer=TaskCommitter(
                directory=directory,
                builder=self._builder,
                judge=LeaveOneOut(builder=self._builder, judge=judge),
                requests=requests,
                leave_one_out_limit=self._settings.leave_one_out_limit,
            ),
            store=self._store,
            requests=requests,
            intake=SupportIntake(self._workers, self.limits),
            telemetry=self._telemetry,
            now=self._now,
        )
        self.segmenter = Segmenter(
            admission=self._admission,
            directory=directory,
            catalog=self.catalog,
            builder=self._builder,
            features=features,
            decider=self._decider,
            store=self._store,
            limits=self.limits,
            telemetry=self._telemetry,
        )
        self._directory = directory

    async def start(self) -> None:
        """Opens the store, loads and probes the models, and begins to sweep.

        Raises:
            RepositoryError: The model repository cannot be served.
            UnavailableError: Store or engine do not answer.
        """
        await self._store.open()
        await self.catalog.start()
        self._telemetry.tasks(await self._store.count())
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def stop(self) -> None:
        """Admits nobody any more, waits for requests in flight, lets everything go.

        Stopping twice, or before a start that failed half-way, is harmless.
        """
        if not await self._admission.drain(self._settings.drain_seconds):
            _log.warning("stopping with %d requests in flight", self._admission.in_flight)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        await self._guidance_cache.close()
        await self._feature_cache.close()
        await self._builder.close()
        await self.catalog.close()
        self._workers.close()
        await self._engine.close()
        await self._store.close()

    def _forget_family(self, family: str) -> None:
        self._guidance_cache.discard_where(lambda key: key.family == family)
        self._feature_cache.discard_where(lambda key: key.family == family)
        self._decider.forget(family)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            try:
                await self.sweep()
            except Exception:
                # Whatever it was, the next sweep may succeed.
                _log.warning("sweep failed", exc_info=True)

    async def sweep(self) -> None:
        """Removes what has expired: tasks, remembered requests, images without a task."""
        swept = await self._store.sweep(self._now())
        for name in swept.expired:
            self._directory.forget(name)
        self._telemetry.tasks(await self._store.count())
