# SPDX-License-Identifier: Apache-2.0
"""The engine that runs a model repository in Triton Inference Servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from service.core.errors import FewSegError, RepositoryError, UnavailableError
from service.core.family import GraphRole, ModelFamily
from service.core.ports import Discovery, GuidanceHandle, Telemetry, Tensors
from service.engines.config_files import config_path
from service.engines.feeds import (
    batch_of,
    check_feeds,
    check_guidance,
    check_handle,
    remaining_seconds,
    taken,
)
from service.engines.manifest import read_catalog
from service.engines.shared_regions import Guidance, GuidanceShelf, as_input
from service.engines.triton_discovery import (
    FamilyReader,
    Holdings,
    holdings,
    load_family,
    model_name,
    unload_family,
)
from service.engines.triton_endpoint import Endpoint
from service.engines.triton_errors import TritonError, Trouble, as_domain_error, unreachable
from service.engines.triton_models import Model, served_models
from service.engines.triton_options import TritonOptions
from service.engines.triton_pool import Pool
from service.engines.triton_waiting import FirstAnswer

#: Calls that one run makes at most: the first, one for what was lost, one elsewhere.
_ATTEMPTS: Final = 3
_RETRY_SECONDS: Final = 1.0

#: Troubles of a server that another one may not have.
_ELSEWHERE: Final = frozenset({Trouble.UNREACHABLE, Trouble.QUEUE_FULL, Trouble.FAILED})


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A family that ``run`` accepts."""

    family: ModelFamily
    models: Mapping[GraphRole, Model]


@dataclass(frozen=True, slots=True)
class _Order:
    """One call of ``run``, checked."""

    family: ModelFamily
    model: Model
    inputs: Tensors
    guidance: Guidance | None
    deadline: float
    timed: bool

    def seconds(self) -> float:
        """Time left; raises ``DeadlineExceededError`` when there is none."""
        return remaining_seconds(self.deadline) or 0.0

    def refusal(self, error: TritonError) -> Exception:
        """What the caller is told."""
        if error.trouble is Trouble.INVALID:
            return ValueError(f"{self.model.model}: {error.message}")
        return as_domain_error(error, self.model.model, timed=self.timed)


class TritonEngine:
    """Runs a repository's models in one or several Triton servers.

    Implements ``service.core.ports.Engine``. Every server holds the same repository. A run goes to
    the server with the fewest runs in flight; one that does not answer is left out for a while, and
    the run is tried once elsewhere. Models that a server has lost, because it was started anew or
    somebody unloaded them, are loaded again. The engine belongs to the event loop that uses it: its
    methods are not thread-safe.

    Args:
        addresses: gRPC addresses, ``host:port`` or ``unix:path``; at least one.
        telemetry: Hears of every graph that ran.
        options: Connections, bounds and shared memory.

    Raises:
        ValueError: There is no address, or one is given twice.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        telemetry: Telemetry,
        options: TritonOptions | None = None,
    ) -> None:
        if not addresses or len(set(addresses)) != len(addresses):
            raise ValueError("give one or several different addresses of Triton")
        self._options = options or TritonOptions()
        self._telemetry = telemetry
        self._pool = Pool([Endpoint(one, self._options) for one in addresses], self._options)
        shares = any(endpoint.shares for endpoint in self._pool.endpoints)
        self._shelf = GuidanceShelf(
            self._pool.endpoints, self._options.shared_bytes if shares else None
        )
        self._reader = FamilyReader(model_control=self._options.model_control)
        self._first_answer = FirstAnswer(self._options.wait_seconds)
        self._loading = asyncio.Lock()
        self._families: dict[str, _Loaded] = {}
        self._closed = False

    @property
    def name(self) -> str:
        """The engine's kind, for people."""
        return "triton"

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the families that ``run`` accepts."""
        return frozenset(self._families)

    @property
    def guidance_bytes(self) -> int:
        """Bytes behind all handles."""
        return self._shelf.nbytes

    async def discover(self) -> Discovery:
        """Asks every server what its repository holds; waits for the first one to be there.

        Triton tells the parameters of loaded models only. Of a family that is not loaded, ``guide``
        is loaded for a moment, once in the engine's life.

        Raises:
            UnavailableError: No server answers (ENGINE_UNREACHABLE).
        """
        async with self._loading:
            self._check_open()
            discovery = await self._first_answer.wait_for(self._discover)
            await self._shelf.sweep()
            return discovery

    async def load(self, family: str) -> None:
        """Loads all models of a family in every server that answers; a loaded one stays as it is.

        A server that does not answer now loads it before its first run.

        Raises:
            RepositoryError: No server holds such a family (FAMILY_UNKNOWN), or a model
                does not load; none of the family stays loaded.
            UnavailableError: No server answers, or the engine is closed.
        """
        async with self._loading:
            self._check_open()
            if family in self._families:
                return
            described = (await self._discover(family)).families.get(family)
            if described is None:
                where = config_path(model_name(family, GraphRole.FEATURES))
                raise RepositoryError(
                    "FAMILY_UNKNOWN", f"{where}: Triton holds no complete family of this name."
                )
            try:
                await self._load_everywhere(described)
                self._families[family] = await self._read_models(described)
            except FewSegError:
                await self._unload_everywhere(described)
                raise

    async def unload(self, family: str) -> None:
        """Lets a family and its guidance go; runs in flight end as if nothing had happened."""
        async with self._loading:
            loaded = self._families.pop(family, None)
            await self._pool.forget(family)
            await self._shelf.drop_family(family)
            if loaded is not None:
                await self._unload_everywhere(loaded.family)

    async def run(
        self,
        family: str,
        role: GraphRole,
        inputs: Tensors,
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Runs one graph or ensemble; see ``service.core.ports.Engine.run``.

        The deadline goes along to Triton's queue, where a request that is late is rejected. A task
        that is cancelled cancels its request. Without a deadline a run takes at most
        ``TritonOptions.run_seconds``. The answer's arrays are read-only.

        Raises:
            UnavailableError: No server answers (ENGINE_UNREACHABLE), none has the models
                (MODEL_NOT_LOADED), the model failed (ENGINE_FAILED), there is no answer in time
                (ENGINE_SLOW), the guidance is gone (GUIDANCE_DROPPED: put it again), the family is
                not loaded (FAMILY_NOT_LOADED), or the engine is closed (ENGINE_CLOSED).
            ResourceExhaustedError: Triton's queue is full (ENGINE_QUEUE_FULL).
            DeadlineExceededError: The deadline passed (DEADLINE_EXCEEDED).
            ValueError: The inputs are not those of the model.
        """
        loaded = self._loaded(family)
        model = self._model(loaded, role)
        inputs = taken(model, inputs, self._model(loaded, GraphRole.FEATURES).outputs)
        async with AsyncExitStack() as stack:
            kept: Guidance | None = None
            feeds = dict(inputs)
            if guidance is not None:
                check_handle(guidance, family)
                kept = await stack.enter_async_context(self._shelf.using(guidance))
                feeds.update(kept.shapes(batch_of(inputs)))
            check_feeds(model, feeds)
            remaining_seconds(deadline)
            until = deadline or time.monotonic() + self._options.run_seconds
            outputs = await self._carry_out(
                _Order(loaded.family, model, inputs, kept, until, deadline is not None)
            )
        for graph in model.graphs:
            self._telemetry.graph_run(graph)
        return outputs

    async def put_guidance(self, family: str, tensors: Tensors) -> GuidanceHandle:
        """Keeps the guidance of one task: in shared memory where it is large and Triton is near.

        Raises:
            UnavailableError: The family is not loaded, or the engine is closed.
            ValueError: A tensor is no input of ``decode``, or its batch is not 1.
        """
        check_guidance(self._model(self._loaded(family), GraphRole.DECODE), tensors)
        return await self._shelf.put(family, tensors)

    async def drop(self, handle: GuidanceHandle) -> None:
        """Lets guidance go; see ``service.core.ports.Engine.drop``."""
        await self._shelf.drop(handle)

    async def close(self) -> None:
        """Lets guidance and connections go; models stay loaded. Closing twice is harmless."""
        self._closed = True
        await self._shelf.close()
        await self._pool.close()
        self._families.clear()

    async def _carry_out(self, order: _Order) -> dict[str, NDArray[Any]]:
        """Runs a model, elsewhere or again where that can help, until it is answered."""
        tried: set[Endpoint] = set()
        endpoint = self._pool.choose(order.model.model, order.family.name)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._ask(endpoint, order)
            except TritonError as error:
                again = await self._after(endpoint, order, error, tried)
                if again is None or attempt == _ATTEMPTS:
                    raise order.refusal(error) from error
                endpoint = again
        raise AssertionError  # the last attempt has returned or raised

    async def _ask(self, endpoint: Endpoint, order: _Order) -> dict[str, NDArray[Any]]:
        inputs = [as_input(name, values) for name, values in order.inputs.items()]
        if order.guidance is not None:
            inputs += await order.guidance.inputs(endpoint, batch_of(order.inputs))
        model = order.model
        outputs = await endpoint.infer(model.model, inputs, list(model.outputs), order.seconds())
        self._pool.answered(endpoint, model.model)
        return outputs

    async def _after(
        self, endpoint: Endpoint, order: _Order, error: TritonError, tried: set[Endpoint]
    ) -> Endpoint | None:
        """Sees to what went wrong.

        Args:
            endpoint: Where.
            order: What was to run.
            error: What Triton said.
            tried: Addresses not to try again; may gain this one.

        Returns:
            Where to try again, or None.
        """
        trouble, family = error.trouble, order.family
        if trouble is Trouble.REGION_MISSING:
            # It was started anew, and has forgotten them all.
            endpoint.regions.clear()
            return endpoint
        if trouble is Trouble.UNREACHABLE:
            endpoint.failed()
        elif trouble is Trouble.FAILED:
            self._pool.failed(endpoint, family, order.model.model)
        if trouble not in _ELSEWHERE and trouble is not Trouble.MODEL_MISSING:
            return None
        tried.add(endpoint)
        if self._pool.has_other(family.name, tried):
            if trouble is Trouble.MODEL_MISSING:
                self._pool.repair(endpoint, family)
            return self._pool.choose(order.model.model, family.name, tried)
        if trouble is Trouble.MODEL_MISSING:
            patience = min(self._options.repair_seconds, order.seconds())
            if await self._pool.repaired(endpoint, family, patience):
                return endpoint
        return None

    async def _discover(self, wanted: str = "") -> Discovery:
        answering = await self._indexes()
        try:
            return await self._reader.read(answering, wanted)
        except TritonError as error:
            raise unreachable(_RETRY_SECONDS) from error

    async def _indexes(self) -> dict[Endpoint, Holdings]:
        """What each server holds that answers."""
        endpoints = self._pool.endpoints
        indexes = await asyncio.gather(
            *(endpoint.index() for endpoint in endpoints), return_exceptions=True
        )
        answering: dict[Endpoint, Holdings] = {}
        for endpoint, index in zip(endpoints, indexes, strict=True):
            if isinstance(index, TritonError):
                endpoint.failed()
            elif isinstance(index, BaseException):
                raise index
            else:
                endpoint.answered()
                answering[endpoint] = holdings(index)
        if not answering:
            raise unreachable(_RETRY_SECONDS)
        return answering

    async def _load_everywhere(self, family: ModelFamily) -> None:
        endpoints = [endpoint for endpoint in self._pool.endpoints if not endpoint.left_out()]
        control = self._options.model_control
        results = await asyncio.gather(
            *(load_family(endpoint, family, model_control=control) for endpoint in endpoints),
            return_exceptions=True,
        )
        for endpoint, result in zip(endpoints, results, strict=True):
            if isinstance(result, TritonError):
                endpoint.failed()
            elif isinstance(result, BaseException):
                raise result
        if not [result for result in results if result is None]:
            raise unreachable(_RETRY_SECONDS)

    async def _read_models(self, family: ModelFamily) -> _Loaded:
        """Reads the configs of all models of a family that is loaded, and checks them together."""
        endpoint = self._pool.choose(model_name(family.name, GraphRole.GUIDE), family.name)
        names = [model_name(family.name, role) for role in sorted(family.graphs)]
        try:
            configs = await asyncio.gather(*(endpoint.config(name) for name in names))
        except TritonError as error:
            raise unreachable(_RETRY_SECONDS) from error
        catalog = read_catalog(dict(zip(names, configs, strict=True)))
        models = catalog.families.get(family.name)
        if models is None:
            raise RepositoryError("FAMILY_INCONSISTENT", " ".join(catalog.problems))
        return _Loaded(family, served_models(models))

    async def _unload_everywhere(self, family: ModelFamily) -> None:
        if self._options.model_control:
            await asyncio.gather(
                *(unload_family(endpoint, family) for endpoint in self._pool.endpoints)
            )

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(
                "ENGINE_CLOSED", "The engine is shutting down.", retry_after=_RETRY_SECONDS
            )

    def _loaded(self, family: str) -> _Loaded:
        self._check_open()
        if family not in self._families:
            raise UnavailableError(
                "FAMILY_NOT_LOADED", f"Family {family} is not loaded.", retry_after=_RETRY_SECONDS
            )
        return self._families[family]

    def _model(self, loaded: _Loaded, role: GraphRole) -> Model:
        if role not in loaded.models:
            raise ValueError(f"family {loaded.family.name} has no {role.value}")
        return loaded.models[role]
