from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from service.core.calls import Call
from service.core.errors import FailedPreconditionError, NotFoundError, RepositoryError
from service.core.types import MaskFormat, OutputOptions
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore
from tests.helpers.gateway import (
    QUERY_BOX,
    TASK,
    intersection_over_union,
    labels_of,
    query,
    red_query,
    red_registration,
    running_gateway,
)
from tests.helpers.tiny_repository import CREATED, write_tiny_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_tiny_repository(root, size=64)
    return root


def write_newer(root: Path, **changes: object) -> str:
    return write_tiny_repository(
        root, **({"size": 64, "seed": 1, "created": CREATED + timedelta(days=1)} | changes)
    )


async def test_a_new_family_takes_over_while_queries_go_on(repository: Path) -> None:
    async with running_gateway(repository) as gateway:
        old = (await gateway.tasks.register(red_registration(), Call())).family
        answers = []

        async def ask() -> None:
            for seed in range(40):
                answers.append(await gateway.segmenter.segment(query(red_query(seed)), Call()))
                await asyncio.sleep(0)

        async def switch() -> str:
            await asyncio.sleep(0.01)
            name = write_newer(repository)
            assert await gateway.catalog.refresh() == ()
            return name

        _, _, new = await asyncio.gather(ask(), ask(), switch())
        families = [answer.family for answer in answers]
        assert set(families) == {old, new}
        assert families[0] == old
        assert families[-1] == new
        for answer in answers:
            assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
        await gateway.catalog.close()
        assert gateway._engine.loaded == {new}
        assert (await gateway.tasks.get(TASK, Call())).family == new


async def test_a_stream_that_is_pinned_survives_a_switch(repository: Path) -> None:
    async with running_gateway(repository) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        session = await gateway.segmenter.open_stream(TASK, "", pinned=True, call=Call())
        options = OutputOptions(MaskFormat.RAW)
        first = await session.segment(red_query(), options, Call())
        new = write_newer(repository)
        await gateway.catalog.refresh()
        second = await session.segment(red_query(), options, Call())
        assert (second.etag, second.family) == (first.etag, new)


async def test_a_half_written_or_broken_family_changes_nothing(repository: Path) -> None:
    async with running_gateway(repository) as gateway:
        report = await gateway.tasks.register(red_registration(), Call())
        new = write_newer(repository)
        graph = repository / f"{new}_decode" / "1" / "model.onnx"
        whole = graph.read_bytes()
        graph.write_bytes(whole[: len(whole) // 2])
        problems = await gateway.catalog.refresh()
        assert len(problems) == 1
        assert f"{new}_decode" in problems[0]
        graph.unlink()
        assert f"{new}_decode" in (await gateway.catalog.refresh())[0]
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        assert answer.family == report.family
        graph.write_bytes(whole)
        assert await gateway.catalog.refresh() == ()
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        assert answer.family == new


async def test_a_broken_repository_refuses_to_start_and_names_the_file(repository: Path) -> None:
    name = next(repository.glob("*_guide")).name
    (repository / name / "1" / "model.onnx").unlink()
    with pytest.raises(RepositoryError) as refusal:
        async with running_gateway(repository):
            pytest.fail("started")
    assert name in refusal.value.message
    assert "model.onnx" in refusal.value.message


async def test_an_empty_repository_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError) as refusal:
        async with running_gateway(tmp_path / "empty"):
            pytest.fail("started")
    assert refusal.value.reason == "MODEL_REPOSITORY_EMPTY"


async def test_pins_choose_an_older_family(repository: Path) -> None:
    old = next(repository.glob("*_guide")).name.removesuffix("_guide")
    write_newer(repository)
    async with running_gateway(repository, pins={"tiny": old}) as gateway:
        assert gateway.catalog.families()["tiny"].name == old
    with pytest.raises(RepositoryError):
        async with running_gateway(repository, pins={"tiny": "tiny-ffffffff"}):
            pytest.fail("started")


async def test_the_default_model_is_the_first_by_name_unless_it_is_set(repository: Path) -> None:
    write_tiny_repository(repository, "zebra", size=64)
    async with running_gateway(repository) as gateway:
        assert gateway.catalog.default_alias == "tiny"
    async with running_gateway(repository, default_model="zebra") as gateway:
        report = await gateway.tasks.register(red_registration(), Call())
        assert report.header.model == "zebra"
        with pytest.raises(NotFoundError), gateway.catalog.lease("unheard-of"):
            pytest.fail("leased")
    with pytest.raises(RepositoryError):
        async with running_gateway(repository, default_model="unheard-of"):
            pytest.fail("started")


async def test_a_task_whose_model_is_gone_says_so(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    zebra = write_tiny_repository(repository, "zebra", size=64)
    async with running_gateway(repository, store=SqliteStore(path)) as gateway:
        await gateway.tasks.register(red_registration(model="zebra"), Call())
    for folder in repository.glob(f"{zebra}_*"):
        shutil.rmtree(folder)
    async with running_gateway(repository, store=SqliteStore(path)) as gateway:
        with pytest.raises(FailedPreconditionError) as refusal:
            await gateway.segmenter.segment(query(red_query()), Call())
        assert refusal.value.reason == "MODEL_GONE"
        await gateway.tasks.delete(TASK, "")


@pytest.mark.parametrize(("binary", "stack"), [(True, False), (False, True), (True, True)])
async def test_other_methods_shapes_pass_through_the_same_core(
    tmp_path: Path, binary: bool, stack: bool
) -> None:
    root = tmp_path / "other"
    write_tiny_repository(root, size=64, binary=binary, stack=stack)
    async with running_gateway(root, store=MemoryStore()) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        answer = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
        assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
        assert answer.probabilities is not None
        assert answer.probabilities.shape == (1 if binary else 2, 64, 64)
        assert np.isfinite(answer.probabilities).all()


async def test_ready_means_that_every_model_answers(repository: Path) -> None:
    async with running_gateway(repository) as gateway:
        assert await gateway.catalog.ready()
        await gateway._engine.unload(gateway.catalog.families()["tiny"].name)
        assert not await gateway.catalog.ready()


async def test_an_alias_that_returns_to_its_family_stays_served(repository: Path) -> None:
    first = next(repository.glob("*_guide")).name.removesuffix("_guide")
    async with running_gateway(repository) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        session = await gateway.segmenter.open_stream(TASK, "", pinned=True, call=Call())
        second = write_newer(repository)
        with gateway.catalog.lease("tiny"):  # somebody still uses the first family
            assert await gateway.catalog.refresh() == ()
            for folder in repository.glob(f"{second}_*"):
                shutil.rmtree(folder)
            returning = asyncio.create_task(gateway.catalog.refresh())
            await asyncio.sleep(0)
        assert await returning == ()
        await gateway.catalog.close()
        assert gateway.catalog.families()["tiny"].name == first
        assert gateway._engine.loaded == {first}
        await gateway.segmenter.segment(query(red_query()), Call())
        answer = await session.segment(red_query(), OutputOptions(MaskFormat.RAW), Call())
        assert answer.family == first


async def test_guidance_that_the_engine_lost_is_rebuilt(repository: Path) -> None:
    async with running_gateway(repository) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        session = await gateway.segmenter.open_stream(TASK, "", pinned=True, call=Call())
        options = OutputOptions(MaskFormat.RAW)
        before = await session.segment(red_query(), options, Call())
        name = gateway.catalog.families()["tiny"].name
        for _ in range(2):
            await gateway._engine.unload(name)
            await gateway._engine.load(name)
            pinned = await session.segment(red_query(), options, Call())
            latest = await gateway.segmenter.segment(query(red_query()), Call())
            np.testing.assert_array_equal(labels_of(before), labels_of(pinned))
            np.testing.assert_array_equal(labels_of(before), labels_of(latest))
