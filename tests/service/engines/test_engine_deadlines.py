# SPDX-License-Identifier: Apache-2.0
"""Runs that nobody waits for any more free their worker."""

import asyncio
import threading
import time

import numpy as np
import pytest

from service.core.errors import DeadlineExceededError, UnavailableError
from service.core.family import GraphRole
from service.core.ports import SilentTelemetry
from service.engines.embedded import EmbeddedEngine
from tests.helpers.tiny_repository import write_tiny_repository

IMAGE = {"image": np.full((1, 32, 32, 3), 90, np.uint8)}
GUIDANCE = {"prototypes": np.ones((1, 2, 8), np.float32)}


class RunCounter(SilentTelemetry):
    def __init__(self):
        self.runs = []

    def graph_run(self, role):
        self.runs.append(role)


class SlowEngine:
    """An engine with one worker and a family whose decode takes ``seconds`` of it."""

    def __init__(self, engine, family, telemetry, seconds):
        self.engine, self.family, self.telemetry = engine, family, telemetry
        self.seconds = seconds

    def segment(self, **options):
        return self.engine.run(
            self.family, GraphRole.QUERY_DECODER, {**IMAGE, **GUIDANCE}, **options
        )

    def features(self, **options):
        return self.engine.run(self.family, GraphRole.FEATURES, IMAGE, **options)


@pytest.fixture
async def slow(tmp_path):
    family = write_tiny_repository(tmp_path, slow_decode=150_000)
    telemetry = RunCounter()
    engine = EmbeddedEngine(tmp_path, telemetry=telemetry, threads=1, workers=1)
    await engine.load(family)
    slow = SlowEngine(engine, family, telemetry, 0.0)
    started = time.perf_counter()
    await slow.segment()
    slow.seconds = time.perf_counter() - started
    telemetry.runs.clear()
    yield slow
    await engine.close()


async def test_a_deadline_that_passes_during_the_run_frees_the_worker(slow):
    started = time.perf_counter()
    with pytest.raises(DeadlineExceededError):
        await slow.segment(deadline=time.monotonic() + slow.seconds / 10)
    await slow.features()
    assert time.perf_counter() - started < slow.seconds * 0.6
    # The ensemble's first graph did run; its second was stopped.
    assert slow.telemetry.runs == [GraphRole.FEATURES, GraphRole.FEATURES]


async def test_a_cancelled_task_frees_the_worker(slow):
    started = time.perf_counter()
    task = asyncio.create_task(slow.segment())
    await asyncio.sleep(slow.seconds / 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await slow.features()
    assert time.perf_counter() - started < slow.seconds * 0.6


async def test_a_run_that_still_waits_never_starts(slow):
    busy = asyncio.create_task(slow.segment())
    await asyncio.sleep(slow.seconds / 10)
    cancelled = asyncio.create_task(slow.features())
    late = asyncio.create_task(slow.features(deadline=time.monotonic() + slow.seconds / 10))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(DeadlineExceededError):
        await late
    assert not busy.done()
    await busy
    await slow.features()
    assert cancelled.cancelled()
    assert slow.telemetry.runs == [GraphRole.FEATURES, GraphRole.DECODE, GraphRole.FEATURES]


async def test_unload_lets_a_run_in_flight_end(slow):
    handle = await slow.engine.put_guidance(slow.family, GUIDANCE)
    running = asyncio.create_task(
        slow.engine.run(slow.family, GraphRole.QUERY_DECODER, IMAGE, guidance=handle)
    )
    await asyncio.sleep(slow.seconds / 10)
    await slow.engine.unload(slow.family)
    assert slow.engine.loaded == frozenset()
    assert not running.done()
    assert (await running)["logits"].shape == (1, 2, 1, 4, 4)


async def test_close_waits_for_runs_and_leaves_no_thread(slow):
    running = [asyncio.create_task(slow.segment()), asyncio.create_task(slow.features())]
    await asyncio.sleep(slow.seconds / 10)
    await asyncio.gather(slow.engine.close(), slow.engine.close())
    outputs = await asyncio.gather(*running)
    assert outputs[0].keys() == {"logits"}
    assert outputs[1].keys() == {"features"}
    assert not [t for t in threading.enumerate() if t.name.startswith("fewseg-graph")]
    for attempt in (slow.features(), slow.engine.load(slow.family)):
        with pytest.raises(UnavailableError) as caught:
            await attempt
        assert caught.value.reason == "ENGINE_CLOSED"
    await slow.engine.close()


async def test_the_event_loop_stays_free_while_a_graph_runs(slow):
    running = asyncio.create_task(slow.segment())
    turns = 0
    while not running.done():
        await asyncio.sleep(0.001)
        turns += 1
    await running
    assert turns > 10


def test_settings_that_cannot_work_are_refused(tmp_path):
    for settings, hint in (
        ({"workers": -1}, "at least 0"),
        ({"threads": -1}, "at least 0"),
        ({"providers": ["AbacusExecutionProvider"]}, "AbacusExecutionProvider is not installed"),
        ({"providers": []}, "at least one execution provider"),
    ):
        with pytest.raises(ValueError, match=hint):
            EmbeddedEngine(tmp_path, telemetry=SilentTelemetry(), **settings)
