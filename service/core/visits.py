"""Graph runs together with what comes right before and right after them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from service.core.calls import Call
from service.core.family import GraphRole, ModelFamily
from service.core.ports import Engine, GuidanceHandle, HostingEngine, Outputs, Tensors
from service.core.timing import Stage, StageClock
from service.core.workers import CodecWorkers

Result = TypeVar("Result")

#: Makes a graph's inputs in a worker thread; its stages go to the clock.
Prepare = Callable[[StageClock], Tensors]
#: Hears the feature maps of an image.
OnMaps = Callable[[Outputs], None]
#: Makes something of a graph's outputs, likewise.
Finish = Callable[[Outputs, StageClock], Result]


class GraphVisits:
    """Runs graphs between two pieces of work that would block the event loop.

    An engine of this process does both in its own thread: one visit instead of three.

    Args:
        engine: Runs graphs.
        workers: Do the work around them for an engine elsewhere.
    """

    def __init__(self, engine: Engine, workers: CodecWorkers) -> None:
        self._engine = engine
        self._host = engine if isinstance(engine, HostingEngine) else None
        self._workers = workers

    def makes_maps(self, family: ModelFamily) -> bool:
        """Whether a run of ``query_decoder`` can hand out the feature maps that it made."""
        return self._host is not None and GraphRole.QUERY_FEATURES not in family.graphs

    async def run(
        self,
        family: ModelFamily,
        role: GraphRole,
        stage: Stage,
        call: Call,
        inputs: Tensors | Prepare,
        finish: Finish[Result],
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
        on_maps: OnMaps | None = None,
    ) -> Result:
        """Prepares, runs, finishes.

        Args:
            family: By which networks.
            role: Which graph.
            stage: Gets the time of the run, the way to its thread and back included.
            call: Its clock gets that and the stages of the work around.
            inputs: Those of the graph, or what makes them.
            finish: Uses the outputs.
            guidance: See ``Engine.run``.
            deadline: Likewise.
            on_maps: Of a ``query_decoder`` (``makes_maps``): hears what its ``features`` gives, in
                the thread of the run and before it goes on.
        """
        if self._host is None:
            outputs = await self.outputs(
                family, role, stage, call, inputs, guidance=guidance, deadline=deadline
            )
            return await self.finish(outputs, finish, call)
        # The thread's own: clocks are not shared between threads.
        inner = StageClock()
        started = time.perf_counter()

        def on_graph(role: GraphRole, outputs: Outputs) -> None:
            if on_maps is not None and role is GraphRole.FEATURES:
                around = sum(inner.seconds.values())
                inner.add(Stage.FEATURES, time.perf_counter() - started - around)
                on_maps(outputs)

        result = await self._host.run_hosting(
            family.name,
            role,
            partial(_made, inputs, inner),
            lambda outputs: finish(outputs, inner),
            guidance=guidance,
            deadline=deadline,
            on_graph=on_graph,
        )
        around = sum(inner.seconds.values())
        call.clock.add(stage, time.perf_counter() - started - around)
        call.clock.merge(inner)
        return result

    async def finish(self, outputs: Outputs, finish: Finish[Result], call: Call) -> Result:
        """What comes after a run, by itself: for outputs that several runs made."""
        inner = StageClock()
        result = await self._workers.run(finish, outputs, inner)
        call.clock.merge(inner)
        return result

    async def outputs(
        self,
        family: ModelFamily,
        role: GraphRole,
        stage: Stage,
        call: Call,
        inputs: Tensors | Prepare,
        *,
        guidance: GuidanceHandle | None = None,
        deadline: float | None = None,
    ) -> Outputs:
        """Prepares and runs; as ``run`` without anything to finish."""
        if self._host is not None:
            return await self.run(
                family,
                role,
                stage,
                call,
                inputs,
                _as_they_are,
                guidance=guidance,
                deadline=deadline,
            )
        inner = StageClock()
        if callable(inputs):
            inputs = await self._workers.run(inputs, inner)
        call.clock.merge(inner)
        with call.clock.measure(stage):
            return await self._engine.run(
                family.name, role, inputs, guidance=guidance, deadline=deadline
            )


def _made(inputs: Tensors | Prepare, clock: StageClock) -> Tensors:
    return inputs(clock) if callable(inputs) else inputs


def _as_they_are(outputs: Outputs, clock: StageClock) -> Outputs:
    return outputs
