# SPDX-License-Identifier: Apache-2.0
"""When a query goes by its image's feature maps, and when by the image itself."""

import numpy as np
import pytest

from service.core.calls import Call
from service.core.family import FeatureReuse, GraphRole
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
    assert second[0] is GraphRole.FEATURES
    assert second[-1] is GraphRole.DECODE
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
