# SPDX-License-Identifier: Apache-2.0
"""The engine that runs a model repository inside the gateway's own process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from numpy.typing import NDArray

from service.core.errors import RepositoryError, UnavailableError
from service.core.family import GraphRole
from service.core.ports import (
    Discovery,
    GuidanceHandle,
    OnGraph,
    Outputs,
    Telemetry,
    Tensors,
)
from service.core.workers import WorkerThreads, core_count, stand_back
from service.engines.config_files import config_path
from service.engines.feeds import (
    batch_of,
    check_feeds,
    check_guidance,
    check_handle,
    deadline_exceeded,
    guidance_dropped,
    nbytes,
    read_only,
    remaining_seconds,
    repeated,
    taken,
)
from service.engines.loading import LoadedFamily, Runnable, load_family, read_repository
from service.engines.sessions import Run, StoppedError, check_providers

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Guidance:
    """Guidance behind a handle; its arrays are read-only, their batch is 1."""

    family: str
    tensors: Mapping[str, NDArray[Any]]


class EmbeddedEngine:
    """Runs a repository's graphs and ensembles through ONNX Runtime.

    Implements ``service.core.ports.Engine``. Graphs run in threads of the engine's own, so that
    neither the event loop nor the threads that decode images wait for them. The engine belongs to
    the event loop that uses it: its methods are not thread-safe.

    Args:
        repository: Folder of the model repository.
        threads: Threads that work on one graph; 0 for one per core, and for a single one while as
            many visits as there are cores are under way (graphs up to 32 MiB, on processors).
        workers: Visits, of a graph and the work around it, at once; 0 for one per core, but two at
            least, which keep a short decode from waiting behind a long features.
        niceness: How much graphs stand back for other threads; see ``stand_back``.
        providers: ONNX Runtime's execution providers, best first.
        telemetry: Hears of every graph that ran.

    Raises:
        ValueError: A number is out of range, or a provider is not installed.
    """

    def __init__(
        self,
        repository: Path,
        *,
        telemetry: Telemetry,
        threads: int = 0,
        workers: int = 0,
        niceness: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if threads < 0 or workers < 0:
            raise ValueError("threads and workers must be at least 0")
        check_providers(providers)
        self._repository = repository
        self._threads = threads
        self._providers = tuple(providers)
        self._telemetry = telemetry
        self._families: dict[str, LoadedFamily] = {}
        self._guidance: dict[str, _Guidance] = {}
        self._handle_numbers = itertools.count(1)
        self._loading = asyncio.Lock()
        self._closed = False
        self._cores = core_count()
        self._threads_of_graphs = WorkerThreads(
            workers or max(2, self._cores), "fewseg-graph", niceness=niceness
        )
        # The threads of a session are as nice as the one that opens it. A pool's thread is joined
        # when the program ends: the runtime does not bear being left in the middle of a load.
        self._reader = ThreadPoolExecutor(
            1, "fewseg-reader", initializer=stand_back, initargs=(niceness,)
        )

    @property
    def name(self) -> str:
        """The engine's kind, for people."""
        return "embedded"

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the families that ``run`` accepts."""
        return frozenset(self._families)

    @property
    def guidance_bytes(self) -> int:
        """Bytes behind all handles."""
        return sum(nbytes(kept.tensors) for kept in self._guidance.values())

    async def discover(self) -> Discovery:
        """Reads the repository afresh; loads nothing.

        Raises:
            UnavailableError: The repository cannot be read (REPOSITORY_UNREACHABLE).
        """
        catalog = await self._off_loop(read_repository)
        families = {name: models.family for name, models in catalog.families.items()}
        return Discovery(families, tuple(catalog.problems))

    async def load(self, family: str) -> None:
        """Loads all graphs of a family and runs each once; a loaded family stays as it is.

        Raises:
            RepositoryError: The repository holds no such family (FAMILY_UNKNOWN), or a
                graph does not load; none of the family stays loaded.
            UnavailableError: The repository cannot be read, or the engine is closed.
        """
        # One at a time: loading fills the disk and the cores as it is.
        async with self._loading:
            self._check_open()
            if family in self._families:
                return
            models = (await self._off_loop(read_repository)).families.get(family)
            if models is None:
                where = config_path(f"{family}_{GraphRole.FEATURES.value}")
                raise RepositoryError(
                    "FAMILY_UNKNOWN",
                    f"{where}: the repository holds no complete family of this name.",
                )
            loaded = await self._off_loop(load_family, models, self._threads, self._providers)
            self._check_open()
            self._families[family] = loaded

    async def unload(self, family: str) -> None:
        """Lets a family and its guidance go; runs in flight end as if nothing had happened."""
        async with self._loading:
            self._forget(family)

    async def run(
        self,
        family: str,
        role: GraphRole,
        inputs: Tensors,
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
    ) -> Outputs:
        """Runs one graph or ensemble; see ``service.core.ports.Engine.run``.

        A run whose deadline passes, or whose task is cancelled, frees its worker before the next
        node of its graph; one that still waits for a worker never starts.

        Raises:
            UnavailableError: The family is not loaded (FAMILY_NOT_LOADED), the handle's
                guidance is gone (GUIDANCE_DROPPED: put it again), the graph failed
                (ENGINE_FAILED), or the engine is closed (ENGINE_CLOSED).
            DeadlineExceededError: The deadline passed (DEADLINE_EXCEEDED).
            ValueError: The inputs are not those of the graph.
        """
        return await self.run_hosting(
            family,
            role,
            lambda: inputs,
            lambda outputs: outputs,
            guidance=guidance,
            deadline=deadline,
        )

    async def run_hosting(
        self,
        family: str,
        role: GraphRole,
        prepare: Callable[[], Tensors],
        finish: Callable[[Outputs], _T],
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
        on_graph: OnGraph | None = None,
    ) -> _T:
        """As ``run``; see ``service.core.ports.HostingEngine``. Raises as ``run`` does."""
        model = self._model(family, role)
        kept = None if guidance is None else self._guidance_of(family, guidance)
        remaining = remaining_seconds(deadline)
        run = Run(self._crowded, on_graph)
        features = self._model(family, GraphRole.FEATURES).outputs
        visit = _Visit(model, features, prepare, finish, kept, run, deadline)
        try:
            async with asyncio.timeout(remaining):
                return await self._threads_of_graphs.run(visit)
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            run.stop()
            for ran in run.ran:
                self._telemetry.graph_run(ran)

    def _crowded(self) -> bool:
        return self._threads_of_graphs.under_way >= self._cores

    async def put_guidance(self, family: str, tensors: Tensors) -> GuidanceHandle:
        """Keeps the guidance of one task in memory; read-only arrays are kept without a copy.

        Raises:
            UnavailableError: The family is not loaded, or the engine is closed.
            ValueError: A tensor is no input of ``decode``, or its batch is not 1.
        """
        check_guidance(self._model(family, GraphRole.DECODE), tensors)
        kept = {name: read_only(values) for name, values in tensors.items()}
        key = f"{family}/{next(self._handle_numbers)}"
        self._guidance[key] = _Guidance(family, kept)
        return GuidanceHandle(family, key, nbytes(kept))

    async def drop(self, handle: GuidanceHandle) -> None:
        """Lets guidance go; see ``service.core.ports.Engine.drop``."""
        self._guidance.pop(handle.key, None)

    async def close(self) -> None:
        """Lets everything go once the runs in flight have ended. Closing twice is harmless."""
        self._closed = True
        await asyncio.to_thread(self._end_threads)
        for family in tuple(self._families):
            self._forget(family)

    def _end_threads(self) -> None:
        self._threads_of_graphs.close()
        self._reader.shutdown()

    async def _off_loop(
        self, read: Callable[Concatenate[Path, _P], _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Reads the repository in a thread."""
        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._reader, partial(read, self._repository, *args, **kwargs)
            )
        except OSError as error:
            raise UnavailableError(
                "REPOSITORY_UNREACHABLE",
                "The model repository cannot be read; check that its folder exists.",
                retry_after=_RETRY_SECONDS,
            ) from error

    def _forget(self, family: str) -> None:
        self._families.pop(family, None)
        for key in [key for key, kept in self._guidance.items() if kept.family == family]:
            del self._guidance[key]

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(
                "ENGINE_CLOSED", "The engine is shutting down.", retry_after=_RETRY_SECONDS
            )

    def _model(self, family: str, role: GraphRole) -> Runnable:
        self._check_open()
        loaded = self._families.get(family)
        if loaded is None:
            raise UnavailableError(
                "FAMILY_NOT_LOADED", f"Family {family} is not loaded.", retry_after=_RETRY_SECONDS
            )
        if role not in loaded.models:
            raise ValueError(f"family {family} has no {role.value}")
        return loaded.models[role]

    def _guidance_of(self, family: str, handle: GuidanceHandle) -> Tensors:
        """The tensors behind a handle, of batch 1."""
        check_handle(handle, family)
        kept = self._guidance.get(handle.key)
        if kept is None:
            raise guidance_dropped()
        return kept.tensors


@dataclass(frozen=True, slots=True)
class _Visit(Generic[_T]):
    """What one visit to a worker thread does."""

    model: Runnable
    features: Collection[str]
    prepare: Callable[[], Tensors]
    finish: Callable[[Outputs], _T]
    guidance: Tensors | None
    run: Run
    deadline: float | None

    def __call__(self) -> _T:
        remaining_seconds(self.deadline)
        feeds = taken(self.model, self.prepare(), self.features)
        if self.guidance is not None:
            feeds.update(repeated(self.guidance, batch_of(feeds)))
        check_feeds(self.model, feeds)
        return self.finish(self._outputs(feeds))

    def _outputs(self, feeds: Tensors) -> Outputs:
        try:
            return self.model.run(feeds, self.run)
        except StoppedError:
            raise deadline_exceeded() from None
        # Each failure of the runtime has a class of its own, with no base but this.
        except Exception as error:
            raise UnavailableError(
                "ENGINE_FAILED",
                f"The engine failed to run {self.model.model}.",
                retry_after=_RETRY_SECONDS,
            ) from error
