"""Tasks of families with a ``merge`` graph: what it is given, and how often it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from service.core.calls import Call
from service.core.errors import OutOfLimitsError
from service.core.family import GraphRole
from service.core.gateway import Gateway
from service.core.types import SupportInput
from tests.helpers.gateway import (
    QUERY_BOX,
    TASK,
    CountingTelemetry,
    intersection_over_union,
    labels_of,
    negative,
    query,
    red_query,
    red_registration,
    red_support,
    running_gateway,
    stream,
)
from tests.helpers.tiny_repository import write_tiny_repository

MODES = ["joint", "judged"]


@pytest.fixture
def telemetry() -> CountingTelemetry:
    return CountingTelemetry()


def supports(count: int) -> tuple[SupportInput, ...]:
    return tuple(red_support(f"shot-{seed}", seed=seed) for seed in range(count))


class Merges:
    """Counts runs of ``merge``."""

    def __init__(self, telemetry: CountingTelemetry) -> None:
        self._telemetry = telemetry
        self._before = Counter(telemetry.runs)

    def since(self) -> int:
        """Runs since it was last asked."""
        runs = self._telemetry.since(self._before)[GraphRole.MERGE]
        self._before = Counter(self._telemetry.runs)
        return runs


async def probabilities(gateway: Gateway) -> np.ndarray:
    answer = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
    assert answer.probabilities is not None
    return answer.probabilities


async def test_one_run_merges_a_whole_set_at_each_change_and_at_no_query(
    tmp_path: Path, telemetry: CountingTelemetry
) -> None:
    write_tiny_repository(tmp_path, size=64, merge="joint")
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        merges = Merges(telemetry)
        await gateway.tasks.register(red_registration(supports=supports(3)), Call())
        assert merges.since() == 1 + 3, "the set, and what remains when each support is judged"
        for _ in range(3):
            await probabilities(gateway)
        assert merges.since() == 0
        await gateway.tasks.annotate_support(
            TASK, "shot-0", negative(60, 60), extend=True, etag="", request_id="", call=Call()
        )
        assert merges.since() == 1


async def test_pairs_of_shots_are_judged_once(tmp_path: Path, telemetry: CountingTelemetry) -> None:
    write_tiny_repository(tmp_path, size=64, merge="judged")
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        merges = Merges(telemetry)
        await gateway.tasks.register(red_registration(supports=supports(3)), Call())
        assert merges.since() == 3, "one per judged support; leave-one-out asks for no other pair"
        for _ in range(3):
            await probabilities(gateway)
        assert merges.since() == 0
        await gateway.tasks.add_supports(TASK, "", "", stream(red_support("new", 7)), Call())
        assert merges.since() == 4, "the new one judges all, and all judge the new one"
        await gateway.tasks.remove_support(TASK, "shot-1", etag="", request_id="", call=Call())
        assert merges.since() == 0


@pytest.mark.parametrize("mode", MODES)
async def test_a_set_that_grew_merges_as_one_that_was_given_whole(
    tmp_path: Path, mode: str
) -> None:
    write_tiny_repository(tmp_path, size=64, merge=mode)
    async with running_gateway(tmp_path) as gateway:
        await gateway.tasks.register(red_registration(supports=supports(3)), Call())
        whole = await probabilities(gateway)
        await gateway.tasks.delete(TASK, "")
        await gateway.tasks.register(red_registration(supports=supports(1)), Call())
        alone = await probabilities(gateway)
        await gateway.tasks.add_supports(TASK, "", "", stream(*supports(3)[1:]), Call())
        np.testing.assert_array_equal(await probabilities(gateway), whole)
    assert (alone != whole).any()


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_needs_to_be_at_hand(tmp_path: Path, mode: str) -> None:
    write_tiny_repository(tmp_path, size=64, merge=mode)
    answers = []
    for room in (1, 1 << 24):
        async with running_gateway(tmp_path, feature_bytes=room, guidance_bytes=room) as gateway:
            await gateway.tasks.register(red_registration(supports=supports(3)), Call())
            answers.append(await probabilities(gateway))
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("mode", MODES)
async def test_more_shots_than_the_graph_takes_are_refused(
    tmp_path: Path, telemetry: CountingTelemetry, mode: str
) -> None:
    write_tiny_repository(tmp_path, size=64, merge=mode, shot_buckets=(1, 2))
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        before = Counter(telemetry.runs)
        with pytest.raises(OutOfLimitsError) as refusal:
            await gateway.tasks.register(red_registration(supports=supports(3)), Call())
        assert not telemetry.since(before), "it is refused before a graph runs"
        assert refusal.value.reason == "TOO_MANY_SHOTS"
        assert "at most 2 shots" in refusal.value.message
        await gateway.tasks.register(red_registration(supports=supports(2)), Call())
        with pytest.raises(OutOfLimitsError):
            await gateway.tasks.add_supports(TASK, "", "", stream(red_support("new", 7)), Call())
        await probabilities(gateway)
