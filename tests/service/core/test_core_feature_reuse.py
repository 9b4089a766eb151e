# SPDX-License-Identifier: Apache-2.0
"""When a query goes by its image's feature maps, and when by the image itself."""

import asyncio
import threading

import numpy as np
import pytest

from service.core import deciding
from service.core.calls import Call
from service.core.family import FeatureReuse, GraphRole
from service.core.timing import Stage
from service.core.types import TaskName
from service.engines.embedded import EmbeddedEngine
from tests.helpers.gateway import (
    CountingTelemetry,
    labels_of,
    query,
    red_query,
    red_registration,
    running_gateway,
)
from tests.helpers.tiny_repository import write_tiny_repository


class NotedEngine(EmbeddedEngine):
    """Notes what it is asked to run."""

    def __init__(self, repository):
        super().__init__(repository, telemetry=CountingTelemetry(), threads=1)
        self.roles = []

    async def run_hosting(self, family, role, prepare, finish, **more):
        self.roles.append(role)
        return await super().run_hosting(family, role, prepare, finish, **more)

    def since(self):
        roles, self.roles = self.roles, []
        return roles


async def segmented(repository, reuse, questions):
    """Asks questions of two tasks.

    Returns:
        What the engine ran, the mask, and whether maps were at hand, for each question.
    """
    engine = NotedEngine(repository)
    said = []
    async with running_gateway(repository, engine=engine, feature_reuse=reuse) as gateway:
        for task_id in ("reds", "others"):
            await gateway.tasks.register(red_registration(task_id=task_id), Call())
        engine.since()
        for task_id, image in questions:
            task = TaskName("default", task_id)
            answer = await gateway.segmenter.segment(query(image, task), Call())
            said.append((engine.since(), labels_of(answer), answer.features_reused))
    return said


@pytest.fixture(params=[False, True], ids=["plain", "query-features"])
def repository(tmp_path, request):
    write_tiny_repository(tmp_path, query_features=request.param)
    return tmp_path


async def test_from_second_use_on_an_image_is_looked_at_once(repository):
    image = red_query()
    questions = [("reds", image), ("others", image), ("reds", image), ("others", image)]
    said = await segmented(repository, FeatureReuse.SECOND_USE, questions)
    (first, second, *later), masks, reused = zip(*said, strict=True)
    assert first == [GraphRole.QUERY_DECODER]
    # The engine hands out what it makes on the way, but for the maps of a second graph.
    visits = [GraphRole.FEATURES, GraphRole.QUERY_FEATURES, GraphRole.DECODE]
    two_graphs = any(repository.glob("*_query_features"))
    assert second == (visits if two_graphs else [GraphRole.QUERY_DECODER])
    assert later == [[GraphRole.DECODE]] * 2
    assert reused == (False, False, True, True)
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


async def test_images_that_do_not_come_again_are_never_fetched(repository):
    questions = [("reds", red_query(seed)) for seed in range(3)]
    said = await segmented(repository, FeatureReuse.SECOND_USE, questions)
    assert [roles for roles, _, _ in said] == [[GraphRole.QUERY_DECODER]] * 3


async def test_a_support_image_is_known_from_its_registration(repository):
    said = await segmented(repository, FeatureReuse.SECOND_USE, [("reds", red_support_image())])
    assert GraphRole.QUERY_DECODER not in said[0][0]
    assert GraphRole.FEATURES not in said[0][0]


def red_support_image():
    return red_registration().supports[0].image


async def test_never_means_never(repository):
    image = red_query()
    said = await segmented(repository, FeatureReuse.NEVER, [("reds", image)] * 3)
    assert [roles for roles, _, _ in said] == [[GraphRole.QUERY_DECODER]] * 3


@pytest.fixture
def plain(tmp_path):
    write_tiny_repository(tmp_path)
    return tmp_path


async def test_a_new_image_takes_one_visit_and_leaves_its_maps(plain):
    image = red_query()
    questions = [("reds", image), ("others", image)]
    said = await segmented(plain, FeatureReuse.ALWAYS, questions)
    (first, second), masks, reused = zip(*said, strict=True)
    assert (first, second) == ([GraphRole.QUERY_DECODER], [GraphRole.DECODE])
    assert reused == (False, True)
    np.testing.assert_array_equal(*masks)


async def test_queries_of_one_new_image_at_once_share_its_maps(plain):
    telemetry = CountingTelemetry()
    engine = EmbeddedEngine(plain, telemetry=telemetry, threads=1)
    async with running_gateway(plain, engine=engine) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        before = telemetry.runs[GraphRole.FEATURES]
        answers = await asyncio.gather(
            *(gateway.segmenter.segment(query(red_query()), Call()) for _ in range(4))
        )
        assert telemetry.runs[GraphRole.FEATURES] == before + 1
    masks = [labels_of(answer) for answer in answers]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


async def test_maps_outlive_the_query_that_made_them_and_failed(plain, monkeypatch):
    telemetry = CountingTelemetry()
    engine = EmbeddedEngine(plain, telemetry=telemetry, threads=1)
    async with running_gateway(plain, engine=engine) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        before = telemetry.runs[GraphRole.FEATURES]
        with monkeypatch.context() as broken:
            broken.setattr("service.core.deciding.encode", _failing)
            with pytest.raises(RuntimeError, match="no encoder"):
                await gateway.segmenter.segment(query(red_query()), Call())
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        assert answer.features_reused
        assert telemetry.runs[GraphRole.FEATURES] == before + 1


async def test_lost_guidance_of_one_task_is_no_matter_of_others(plain):
    telemetry = CountingTelemetry()
    engine = EmbeddedEngine(plain, telemetry=telemetry, threads=1)
    async with running_gateway(plain, engine=engine) as gateway:
        for task_id in ("reds", "others"):
            await gateway.tasks.register(red_registration(task_id=task_id), Call())
        lost, *_ = list(engine._guidance)
        del engine._guidance[lost]
        first, second = await asyncio.gather(
            *(
                gateway.segmenter.segment(query(red_query(), TaskName("default", task_id)), Call())
                for task_id in ("reds", "others")
            )
        )
    assert (first.guidance_reused, second.guidance_reused) == (False, True)
    assert not first.features_reused
    np.testing.assert_array_equal(labels_of(first), labels_of(second))


async def test_maps_do_not_wait_for_the_answer_of_the_query_that_makes_them(plain, monkeypatch):
    held = threading.Event()
    encode = deciding.encode

    def slow_at_first(*given):
        monkeypatch.setattr(deciding, "encode", encode)
        assert held.wait(30)
        return encode(*given)

    async with running_gateway(plain) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        monkeypatch.setattr(deciding, "encode", slow_at_first)
        first = asyncio.create_task(gateway.segmenter.segment(query(red_query()), Call()))
        while deciding.encode is slow_at_first:
            await asyncio.sleep(0.01)
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        assert not first.done()
        held.set()
        np.testing.assert_array_equal(labels_of(answer), labels_of(await first))


async def test_who_waits_for_maps_has_them_made_anew_when_their_maker_gives_up(plain):
    telemetry = CountingTelemetry()
    engine = HeldEngine(plain, telemetry=telemetry, threads=1)
    async with running_gateway(plain, engine=engine) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        engine.hold()
        first = asyncio.create_task(gateway.segmenter.segment(query(red_query()), Call()))
        await engine.held.wait()
        second = asyncio.create_task(gateway.segmenter.segment(query(red_query()), Call()))
        await asyncio.sleep(0.05)
        first.cancel()
        engine.release()
        with pytest.raises(asyncio.CancelledError):
            await first
        answer = await second
        alone = await gateway.segmenter.segment(query(red_query()), Call())
    np.testing.assert_array_equal(labels_of(answer), labels_of(alone))
    assert alone.features_reused


async def test_stages_are_reported_when_a_call_has_ended(plain):
    heard = []

    class Hearing(CountingTelemetry):
        def stage(self, stage, seconds):
            heard.append(stage)

    async with running_gateway(plain, telemetry=Hearing()) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        heard.clear()
        await gateway.segmenter.segment(query(red_query()), Call())
        await asyncio.sleep(0)
        assert {Stage.FEATURES, Stage.DECODE, Stage.ENCODE} <= set(heard)


class HeldEngine(EmbeddedEngine):
    """Holds runs back for as long as it is told to."""

    def hold(self):
        self.held, self._gate = asyncio.Event(), asyncio.Event()

    def release(self):
        self._gate.set()

    async def run_hosting(self, family, role, prepare, finish, **more):
        if hasattr(self, "held"):
            self.held.set()
            await self._gate.wait()
        return await super().run_hosting(family, role, prepare, finish, **more)


async def test_the_time_of_a_shared_visit_is_told_by_stage(plain):
    async with running_gateway(plain) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        call = Call()
        await gateway.segmenter.segment(query(red_query()), call)
    told = call.clock.seconds
    assert {Stage.IMAGE_DECODE, Stage.RESIZE, Stage.FEATURES, Stage.DECODE} <= set(told)
    assert {Stage.UPSAMPLE, Stage.ENCODE} <= set(told)
    assert all(seconds > 0 for seconds in told.values())
    assert sum(told.values()) <= call.clock.total()


def _failing(*anything):
    raise RuntimeError("no encoder")
