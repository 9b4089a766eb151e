from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from service.core.calls import Call
from service.core.errors import NotFoundError
from service.core.ports import RememberedRequest
from service.core.put_images import PutImages
from service.core.types import TaskName, TaskRecord
from service.stores.memory import MemoryStore
from tests.helpers.gateway import TASK, red_query, red_registration, running_gateway
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_tiny_repository(tmp_path, size=64)
    return tmp_path


class AnotherTaskEnds(MemoryStore):
    """Before a task is created, another one over its images is created and deleted."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def create(self, record: TaskRecord, request: RememberedRequest | None) -> None:
        if self.times:
            self.times -= 1
            name = TaskName("default", "another")
            await super().create(replace(record, header=replace(record.header, name=name)), None)
            await super().delete(name, None)
        await super().create(record, request)


async def test_a_task_is_kept_though_another_one_over_its_images_ends(repository: Path) -> None:
    store = AnotherTaskEnds(times=2)
    async with running_gateway(repository, store=store) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        kept = await store.get(TASK)
        assert kept is not None
        assert await store.get_image("default", kept.supports[0].image_digest)


async def test_a_task_whose_images_never_stay_is_refused(repository: Path) -> None:
    async with running_gateway(repository, store=AnotherTaskEnds(times=100)) as gateway:
        with pytest.raises(NotFoundError):
            await gateway.tasks.register(red_registration(), Call())


async def test_an_image_stays_until_the_last_call_that_put_it_has_failed() -> None:
    store, image = MemoryStore(), red_query()
    images = PutImages(store)

    async def fail_after(course: Awaitable[None] | None = None) -> None:
        async with images.of_call("default") as put:
            await put(image)
            if course is not None:
                with pytest.raises(ZeroDivisionError):
                    await course
                assert await store.get_image("default", image.digest)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after(fail_after())
    with pytest.raises(NotFoundError):
        await store.get_image("default", image.digest)
