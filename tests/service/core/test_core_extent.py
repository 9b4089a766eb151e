# SPDX-License-Identifier: Apache-2.0
"""Graphs that are told which part of their input an image covers."""

from pathlib import Path

import pytest

from service.core.calls import Call
from service.core.family import GraphRole
from service.engines.embedded import EmbeddedEngine
from tests.helpers.gateway import (
    QUERY_BOX,
    CountingTelemetry,
    intersection_over_union,
    labels_of,
    query,
    red_query,
    red_registration,
    red_support,
    running_gateway,
)
from tests.helpers.tiny_repository import write_tiny_repository


class NotedEngine(EmbeddedEngine):
    """Notes the extents that graphs are told."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository, telemetry=CountingTelemetry(), threads=1)
        self.told: list[tuple[GraphRole, list[list[float]] | None]] = []

    async def run_hosting(self, family, role, prepare, finish, **more):
        def noting():
            inputs = prepare()
            extent = inputs.get("extent")
            self.told.append((role, None if extent is None else extent.tolist()))
            return inputs

        return await super().run_hosting(family, role, noting, finish, **more)

    def since(self):
        told, self.told = self.told, []
        return told


WHOLE = [[32.0, 32.0]]


@pytest.mark.parametrize("query_features", [False, True], ids=["plain", "query-features"])
@pytest.mark.parametrize("reuse", ["always", "never"])
async def test_graphs_are_told_what_the_image_covers(tmp_path, query_features, reuse):
    write_tiny_repository(tmp_path, extent=True, query_features=query_features)
    engine = NotedEngine(tmp_path)
    async with running_gateway(tmp_path, engine=engine, feature_reuse=reuse) as gateway:
        engine.since()
        supports = (red_support("one"), red_support("two", seed=1))
        await gateway.tasks.register(red_registration(supports=supports), Call())
        told = engine.since()
        await gateway.segmenter.segment(query(red_query()), Call())
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        asked = engine.since()
    assert all(
        extent == (None if role is GraphRole.FEATURES else WHOLE) for role, extent in told + asked
    )
    roles = {role for role, _ in told}
    assert {GraphRole.GUIDE, GraphRole.DECODE} <= roles  # leave-one-out decodes
    assert (GraphRole.QUERY_FEATURES in roles) == query_features
    assert asked[-1][0] is (GraphRole.DECODE if reuse == "always" else GraphRole.QUERY_DECODER)
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.6


async def test_graphs_that_do_not_ask_are_told_nothing(tmp_path):
    write_tiny_repository(tmp_path)
    engine = NotedEngine(tmp_path)
    async with running_gateway(tmp_path, engine=engine) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        await gateway.segmenter.segment(query(red_query()), Call())
    assert {extent for _, extent in engine.since()} == {None}
