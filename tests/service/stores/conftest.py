from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from store_samples import TurnedClock

from service.core.ports import Store
from service.stores.memory import MemoryStore
from service.stores.sqlite import SqliteStore


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture(params=["memory", "sqlite"])
def new_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: TurnedClock
) -> Callable[..., Store]:
    """Makes a store of either kind; keyword arguments go to its constructor."""
    if request.param == "memory":
        return lambda **options: MemoryStore(now=clock, **options)
    return lambda **options: SqliteStore(tmp_path / "tasks.db", now=clock, **options)


@pytest.fixture
async def store(new_store: Callable[..., Store]) -> AsyncIterator[Store]:
    opened = new_store()
    await opened.open()
    yield opened
    await opened.close()
