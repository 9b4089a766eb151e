"""Which family an alias stands for, and how that changes while serving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

from service.core.errors import (
    FailedPreconditionError,
    FewSegError,
    NotFoundError,
    RepositoryError,
)
from service.core.family import GraphRole, InputDtype, ModelFamily
from service.core.merge_tensors import joint, merge_feeds, pair_of, paired
from service.core.merging import cut_shot, merge_shots, pad_guidance, pad_ways
from service.core.ports import Discovery, Engine
from service.core.resize import extent_input
from service.core.types import Size, TaskHeader

_log = logging.getLogger(__name__)

#: Side of the picture that probes a family without an input size of its own.
_PROBE_SIDE = 128


@dataclass(slots=True, eq=False)
class _Served:
    """A loaded family and the number of requests that use it."""

    family: ModelFamily
    users: int = 0


class Catalog:
    """The models that tasks can name.

    Args:
        engine: Where families are discovered and loaded.
        default_model: Alias for tasks that name none; empty for the first by name.
        pins: Family by alias, where the newest is not wanted.
        on_retired: Called with the name of a family that nobody uses any more.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        default_model: str,
        pins: Mapping[str, str],
        on_retired: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._default_model = default_model
        self._pins = pins
        self._on_retired = on_retired
        self._served: dict[str, _Served] = {}
        self._retired: list[_Served] = []
        self._refreshing = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()

    @property
    def default_alias(self) -> str:
        """The alias for tasks that name no model."""
        return self._default_model or min(self._served, default="")

    def families(self) -> Mapping[str, ModelFamily]:
        """The families served now, by alias."""
        return {alias: served.family for alias, served in sorted(self._served.items())}

    async def start(self) -> None:
        """Loads and probes everything that the repository holds.

        Raises:
            RepositoryError: Something in it cannot be served, or there is nothing.
        """
        problems = await self.refresh()
        if problems:
            raise RepositoryError("MODEL_REPOSITORY_BROKEN", "; ".join(problems))
        if not self._served:
            raise RepositoryError(
                "MODEL_REPOSITORY_EMPTY",
                "The model repository holds no family; fewseg-export writes one.",
            )
        if self.default_alias not in self._served:
            raise RepositoryError(
                "UNKNOWN_MODEL",
                f"The default model '{self.default_alias}' is not in the model repository; "
                f"it holds: {', '.join(sorted(self._served))}.",
            )

    async def refresh(self) -> tuple[str, ...]:
        """Switches every alias to the family it should stand for by now.

        A family is loaded whole and probed before its alias is switched; the
        one before it is unloaded when the last request that uses it has ended.

        Returns:
            A line for each thing that cannot be served; it changed nothing.
        """
        async with self._refreshing:
            discovery = await self._engine.discover()
            problems = list(discovery.problems)
            for family in self._chosen(discovery, problems):
                served = self._served.get(family.alias)
                if served is not None and served.family.name == family.name:
                    continue
                try:
                    await self._admit(family)
                except FewSegError as error:
                    problems.append(f"{family.name}: {error.message}")
            return tuple(problems)

    def _chosen(self, discovery: Discovery, problems: list[str]) -> list[ModelFamily]:
        newest: dict[str, ModelFamily] = {}
        for family in discovery.families.values():
            best = newest.get(family.alias)
            if best is None or (best.created, best.name) < (family.created, family.name):
                newest[family.alias] = family
        for alias, name in self._pins.items():
            if name in discovery.families and discovery.families[name].alias == alias:
                newest[alias] = discovery.families[name]
            else:
                newest.pop(alias, None)
                problems.append(f"{name}: pinned for '{alias}', but not in the repository")
        return [newest[alias] for alias in sorted(newest)]

    async def _admit(self, family: ModelFamily) -> None:
        await self._engine.load(family.name)
        try:
            await probe(self._engine, family)
        except BaseException:
            if not self._in_use(family.name):
                await self._engine.unload(family.name)
            raise
        before = self._served.get(family.alias)
        self._served[family.alias] = _Served(family)
        if before is not None:
            self._retired.append(before)
            self._retire_if_unused(before)

    @contextmanager
    def lease(self, alias: str) -> Iterator[ModelFamily]:
        """The family of an alias, kept loaded for the with-block.

        Raises:
            NotFoundError: No such model (UNKNOWN_MODEL).
        """
        served = self._served.get(alias or self.default_alias)
        if served is None:
            raise NotFoundError(
                "UNKNOWN_MODEL",
                f"There is no model '{alias}'; this server has: {', '.join(sorted(self._served))}.",
                metadata={"model": alias},
            )
        served.users += 1
        try:
            yield served.family
        finally:
            served.users -= 1
            self._retire_if_unused(served)

    def lease_of(self, header: TaskHeader) -> AbstractContextManager[ModelFamily]:
        """The family of a registered task, kept loaded for the with-block.

        Raises:
            FailedPreconditionError: The server no longer has the task's model (MODEL_GONE).
        """
        if header.model not in self._served:
            raise FailedPreconditionError(
                "MODEL_GONE",
                f"The task's model '{header.model}' is not in the model repository any more.",
                metadata={"model": header.model},
            )
        return self.lease(header.model)

    def _retire_if_unused(self, served: _Served) -> None:
        if served not in self._retired or served.users:
            return
        self._retired.remove(served)
        task = asyncio.ensure_future(self._unload(served.family.name))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, family: str) -> None:
        # Under the lock of refreshes: an alias may be on its way back to it.
        async with self._refreshing:
            if self._in_use(family):
                return
            self._on_retired(family)
            try:
                await self._engine.unload(family)
            except FewSegError as error:
                _log.warning("%s could not be unloaded: %s", family, error.message)

    def _in_use(self, family: str) -> bool:
        return any(
            served.family.name == family for served in (*self._served.values(), *self._retired)
        )

    async def ready(self) -> bool:
        """Whether every model answers a real inference: an engine's word is not enough."""
        try:
            for alias in list(self._served):
                with self.lease(alias) as family:
                    await probe(self._engine, family)
        except FewSegError:
            return False
        return bool(self._served)

    async def close(self) -> None:
        """Waits for families that are being unloaded."""
        await asyncio.gather(*self._unloading, return_exceptions=True)


async def probe(engine: Engine, family: ModelFamily) -> None:
    """Runs a family end to end on a made-up task.

    Raises:
        RepositoryError: The logits are not what the family's parameters promise.
        UnavailableError: The engine cannot run it.
    """
    size = family.input_size or Size(_PROBE_SIDE, _PROBE_SIDE)
    dtype = np.uint8 if family.input_dtype is InputDtype.UINT8 else np.uint16
    image = np.zeros((1, size.height, size.width, 3), dtype)
    image[:, : size.height // 2] = 200
    planes = np.zeros((1, 2, size.height, size.width), np.float32)
    planes[:, 1, : size.height // 2] = 1.0
    planes[:, 0, size.height // 2 :] = 1.0
    planes = pad_ways(planes, 1, family)
    name = family.name
    features = await engine.run(name, GraphRole.FEATURES, {"image": image})
    shot = await engine.run(
        name,
        GraphRole.GUIDE,
        {**features, "planes": planes, **extent_input(family, GraphRole.GUIDE, size)},
    )
    merged = merge_shots(family, [cut_shot(family, shot, ways=1)])
    if GraphRole.MERGE in family.graphs:
        shown = {**features, **shot, "planes": planes}
        alone = {key: values[0] for key, values in shown.items()}
        made = await engine.run(name, GraphRole.MERGE, merge_feeds(family, [alone], alone))
        if family.merge_judged:
            merged |= paired(family, [[pair_of(family, made, 0)]])
        else:
            merged |= joint(family, made, 1)
    query = features
    if GraphRole.QUERY_FEATURES in family.graphs:
        role = GraphRole.QUERY_FEATURES
        query = await engine.run(name, role, {**features, **extent_input(family, role, size)})
    guidance = pad_guidance(family, merged, ways=1)
    inputs = {**query, **guidance, **extent_input(family, GraphRole.DECODE, size)}
    answer = await engine.run(name, GraphRole.DECODE, inputs)
    logits = answer.get("logits")
    planes_promised = family.background_planes + 1
    if logits is None or logits.ndim != 5 or logits.shape[1] < planes_promised:
        shape = None if logits is None else logits.shape
        raise RepositoryError(
            "BROKEN_FAMILY",
            f"{name}_decode answers logits of shape {shape}, not [1, {planes_promised}, S, h, w].",
        )
    if not np.isfinite(logits).all():
        raise RepositoryError("BROKEN_FAMILY", f"{name}_decode answers logits that are not finite.")
