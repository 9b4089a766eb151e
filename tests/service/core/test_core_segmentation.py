from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.core.calls import Call
from service.core.errors import (
    AbortedError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    OutOfLimitsError,
    ResourceExhaustedError,
)
from service.core.family import FeatureReuse, GraphRole
from service.core.gateway import Gateway
from service.core.limits import Limits
from service.core.timing import Stage
from service.core.types import MaskFormat, OutputOptions, Size, SupportInput, TaskName
from service.stores.sqlite import SqliteStore
from tests.helpers.gateway import (
    BLUE,
    QUERY_BOX,
    TASK,
    CountingTelemetry,
    intersection_over_union,
    labels_of,
    query,
    red_query,
    red_registration,
    red_support,
    running_gateway,
    scene,
    source,
    stream,
)
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_tiny_repository(root, size=64)
    return root


@pytest.fixture
async def gateway(repository: Path) -> AsyncIterator[Gateway]:
    async with running_gateway(repository) as running:
        await running.tasks.register(red_registration(), Call())
        yield running


async def test_an_answer_says_where_its_time_went(gateway: Gateway) -> None:
    call = Call()
    await gateway.segmenter.segment(query(red_query()), call)
    ran = {Stage.QUEUE, Stage.IMAGE_DECODE, Stage.RESIZE, Stage.FEATURES, Stage.DECODE}
    assert set(call.clock.seconds) == ran | {Stage.UPSAMPLE, Stage.ENCODE}
    assert sum(call.clock.seconds.values()) <= call.clock.total()


async def test_sizes_of_the_answer(gateway: Gateway) -> None:
    image = source(scene(((220, 30, 30), (40, 16, 64, 48)), side=80))
    for asked, size in (
        ("original", Size(80, 80)),
        ("network", Size(64, 64)),
        (Size(33, 47), Size(33, 47)),
    ):
        answer = await gateway.segmenter.segment(query(image, size=asked), Call())
        assert answer.mask.size == size
        assert labels_of(answer).shape == (size.height, size.width)
        assert 0 < answer.classes[0].area < size.pixels


async def test_a_size_of_ones_own_has_its_limit(repository: Path) -> None:
    async with running_gateway(repository, limits=Limits(output_pixels=1000)) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        with pytest.raises(OutOfLimitsError) as refusal:
            await gateway.segmenter.segment(query(red_query(), size=Size(100, 11)), Call())
        assert refusal.value.field == "options.given_size"


async def test_statistics_are_those_of_the_mask(gateway: Gateway) -> None:
    answer = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
    labels, found = labels_of(answer), answer.classes[0]
    rows, columns = np.nonzero(labels == 1)
    assert found.area == len(rows)
    assert found.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert answer.probabilities is not None
    assert answer.probabilities.shape == (2, 64, 64)
    np.testing.assert_allclose(
        found.mean_score, answer.probabilities[1][labels == 1].mean(dtype=float), atol=2e-3
    )
    np.testing.assert_allclose(answer.probabilities.sum(axis=0, dtype=float), 1.0, atol=2e-3)


async def test_an_image_whose_pixels_are_broken_is_the_callers_fault(gateway: Gateway) -> None:
    image = red_query()
    broken = replace(image, data=image.data[: len(image.data) // 2], digest="f" * 64)
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.segmenter.segment(query(broken), Call())
    assert (refusal.value.reason, refusal.value.field) == ("TRUNCATED_IMAGE", "image")
    await gateway.segmenter.segment(query(image), Call())


async def test_guidance_is_rebuilt_after_eviction(repository: Path) -> None:
    telemetry = CountingTelemetry()
    async with running_gateway(
        repository, telemetry=telemetry, guidance_bytes=0, feature_bytes=0
    ) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        masks = []
        for _ in range(2):
            before = Counter(telemetry.runs)
            answer = await gateway.segmenter.segment(query(red_query()), Call())
            assert not answer.guidance_reused
            assert not answer.features_reused
            assert telemetry.since(before) == {
                GraphRole.FEATURES: 2,
                GraphRole.GUIDE: 1,
                GraphRole.DECODE: 1,
            }
            masks.append(labels_of(answer))
        np.testing.assert_array_equal(*masks)


async def test_tasks_outlive_the_server(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with running_gateway(repository, store=SqliteStore(path)) as gateway:
        report = await gateway.tasks.register(red_registration(), Call())
        before = await gateway.segmenter.segment(query(red_query()), Call())
    async with running_gateway(repository, store=SqliteStore(path)) as gateway:
        after = await gateway.segmenter.segment(query(red_query()), Call())
        assert not after.guidance_reused
        assert after.etag == before.etag == report.header.etag
        np.testing.assert_array_equal(labels_of(before), labels_of(after))
        again = await gateway.segmenter.segment(query(red_query()), Call())
        assert again.guidance_reused


async def test_many_queries_of_a_forgotten_task_rebuild_it_once(
    repository: Path, tmp_path: Path
) -> None:
    path, telemetry = tmp_path / "tasks.db", CountingTelemetry()
    async with running_gateway(repository, store=SqliteStore(path)) as gateway:
        await gateway.tasks.register(red_registration(), Call())
    async with running_gateway(repository, store=SqliteStore(path), telemetry=telemetry) as gateway:
        before = Counter(telemetry.runs)
        await asyncio.gather(
            *(gateway.segmenter.segment(query(red_query(seed)), Call()) for seed in range(8))
        )
        assert telemetry.since(before)[GraphRole.GUIDE] == 1


async def test_an_expired_deadline_frees_its_slot(tmp_path: Path) -> None:
    root = tmp_path / "slow"
    write_tiny_repository(root, size=64, slow_decode=200_000)
    async with running_gateway(root, slots=1) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await gateway.segmenter.segment(query(red_query()), Call(deadline=started + 0.15))
        assert time.monotonic() - started < 1.0
        with pytest.raises((DeadlineExceededError, ResourceExhaustedError)):
            await gateway.segmenter.segment(
                query(red_query()), Call(deadline=time.monotonic() + 0.001)
            )
        cancelled = asyncio.create_task(gateway.segmenter.segment(query(red_query()), Call()))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert (await gateway.tasks.get(TASK, Call())).header.revision == 1
        assert await gateway._admission.drain(0.5)


async def test_a_pinned_stream_keeps_its_revision_and_a_latest_one_follows(
    gateway: Gateway,
) -> None:
    pinned = await gateway.segmenter.open_stream(TASK, "", pinned=True, call=Call())
    latest = await gateway.segmenter.open_stream(TASK, "", pinned=False, call=Call())
    options = OutputOptions(MaskFormat.RAW)
    first = await pinned.segment(red_query(), options, Call())
    blue = SupportInput("bad", source(scene((BLUE, (8, 8, 32, 32)))), red_support().annotation)
    report = await gateway.tasks.add_supports(TASK, "", "", stream(blue), Call())
    kept = await pinned.segment(red_query(), options, Call())
    followed = await latest.segment(red_query(), options, Call())
    assert first.etag == kept.etag != followed.etag == report.header.etag
    np.testing.assert_array_equal(labels_of(first), labels_of(kept))
    assert intersection_over_union(labels_of(kept), QUERY_BOX) > 0.8
    pinned.close()
    latest.close()
    await gateway.tasks.delete(TASK, "")
    with pytest.raises(NotFoundError):
        await latest.segment(red_query(), options, Call())


async def test_a_stream_opens_only_on_the_revision_it_names(gateway: Gateway) -> None:
    etag = (await gateway.tasks.get(TASK, Call())).header.etag
    await gateway.segmenter.open_stream(TASK, etag, pinned=True, call=Call())
    await gateway.tasks.add_supports(TASK, "", "", stream(red_support(seed=2)), Call())
    for pinned in (True, False):
        with pytest.raises(AbortedError):
            await gateway.segmenter.open_stream(TASK, etag, pinned=pinned, call=Call())
    with pytest.raises(NotFoundError):
        await gateway.segmenter.open_stream(
            TaskName("default", "nothing"), "", pinned=True, call=Call()
        )


async def test_queries_while_the_task_changes_answer_one_revision_each(gateway: Gateway) -> None:
    answers = []

    async def ask() -> None:
        for seed in range(15):
            answers.append(await gateway.segmenter.segment(query(red_query(seed)), Call()))

    async def change() -> list[str]:
        etags = [(await gateway.tasks.get(TASK, Call())).header.etag]
        for seed in range(6):
            report = await gateway.tasks.add_supports(
                TASK, "", "", stream(red_support(seed=20 + seed)), Call()
            )
            etags.append(report.header.etag)
        return etags

    _, _, etags = await asyncio.gather(ask(), ask(), change())
    assert len(answers) == 30
    assert {answer.etag for answer in answers} <= set(etags)


async def test_a_family_that_keeps_no_features_runs_the_ensemble(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = CountingTelemetry()
    async with running_gateway(repository, telemetry=telemetry) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        reused = await gateway.segmenter.segment(query(red_query()), Call())
        served = gateway.catalog._served["tiny"]
        served.family = replace(served.family, feature_reuse=FeatureReuse.NEVER)
        for _ in range(2):
            before = Counter(telemetry.runs)
            answer = await gateway.segmenter.segment(query(red_query()), Call())
            assert telemetry.since(before) == {GraphRole.FEATURES: 1, GraphRole.DECODE: 1}
            np.testing.assert_array_equal(labels_of(reused), labels_of(answer))
