"""Which graphs run again when, for every method, whose graphs are hollow here."""

from __future__ import annotations

import pytest

from export.repository import write_family
from service.core.calls import Call
from service.core.types import ShotFusion, TaskName
from tests.congruence.exported_methods import EXPORTED, OTHERWISE_EXPORTED, exported
from tests.helpers.gateway import (
    TASK,
    CountingTelemetry,
    negative,
    query,
    red_query,
    red_registration,
    red_support,
    running_gateway,
    stream,
)
from tests.helpers.hollow_graphs import hollow_graph

OTHERS = TaskName("default", "others")


@pytest.mark.parametrize("method", [*EXPORTED, *OTHERWISE_EXPORTED])
async def test_only_what_changed_is_computed_again(method, tmp_path):
    family = exported(method)
    write_family(family, tmp_path, export=hollow_graph)
    roles = {graph.role for graph in family.graphs}
    merge = {"merge": 1} if "merge" in roles else {}
    costly = {"query_features": 1} if "query_features" in roles else {}
    telemetry = CountingTelemetry()
    runs = telemetry.newly_run

    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        runs()
        await gateway.tasks.register(red_registration(supports=(red_support("s1"),)), Call())
        assert runs() == {"features": 1, "guide": 1, **merge}
        await gateway.segmenter.segment(query(red_query()), Call())
        assert runs() == {"features": 1, **costly, "decode": 1}
        await gateway.segmenter.segment(query(red_query()), Call())
        assert runs() == {"decode": 1}, "the same image again"

        change = {"etag": "", "request_id": "", "call": Call()}
        await gateway.tasks.annotate_support(TASK, "s1", negative(60, 60), extend=True, **change)
        assert runs() == {"guide": 1, **merge}, "a new annotation"

        for number in (2, 3):
            support = red_support(f"s{number}", seed=number)
            await gateway.tasks.add_supports(TASK, "", "", stream(support), Call())
            # The new shot is judged by the others. Where `merge` judges shots, each is judged under
            # the new one, and the new one under all; else it merges all, and the others by
            # themselves.
            merges = number if family.serving.merge_judged else 2
            again = {"merge": merges} if merge else {}
            assert runs() == {"features": 1, "guide": 1, **again, **costly, "decode": 1}

        other = red_registration(task_id="others", supports=(red_support("s4", seed=4),))
        await gateway.tasks.register(other, Call())
        assert runs() == {"features": 1, "guide": 1, **merge}
        await gateway.segmenter.segment(query(red_query(), task=OTHERS), Call())
        assert runs() == {"decode": 1}, "a second task on the same image"
        await gateway.segmenter.segment(query("s2"), Call())
        assert runs() == {"decode": 1}, "a support as the query, which was judged before"


@pytest.mark.parametrize("method", [*EXPORTED, *OTHERWISE_EXPORTED])
async def test_every_method_can_be_cross_guided(method, tmp_path):
    family = exported(method)
    write_family(family, tmp_path, export=hollow_graph)
    costly = {"query_features": 2} if "query_features" in {g.role for g in family.graphs} else {}
    telemetry = CountingTelemetry()
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        given = tuple(red_support(f"s{number}", seed=number) for number in (1, 2))
        telemetry.newly_run()
        crossed = red_registration(supports=given, fusion=ShotFusion.CROSS_GUIDED)
        await gateway.tasks.register(crossed, Call())
        runs = telemetry.newly_run()
        runs.pop("merge", None)
        assert runs == {"features": 2, "guide": 2, **costly, "decode": 4}
        await gateway.segmenter.segment(query(red_query()), Call())
        assert telemetry.newly_run().pop("decode") == 2
