# SPDX-License-Identifier: Apache-2.0
"""When a query goes by its image's feature maps, and when by the image itself."""

import asyncio

import numpy as np
import pytest

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
    assert second in ([GraphRole.QUERY_DECODER], visits)
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
