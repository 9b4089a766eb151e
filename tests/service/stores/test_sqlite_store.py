"""What the SQLite store promises beyond what every store does."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from store_samples import change, holds_image, image, record, register, request, support

from service.core.errors import ResourceExhaustedError, UnavailableError
from service.core.types import TaskName
from service.stores import sqlite_schema
from service.stores.sqlite import SqliteStore

T = TaskName("default", "t")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(path)
    await opened.open()
    yield opened
    await opened.close()


CONTENTS = "SELECT name, sql FROM sqlite_master ORDER BY name"


async def refusal_to_open(path: Path) -> str:
    with pytest.raises(UnavailableError) as caught:
        await SqliteStore(path).open()
    assert caught.value.reason == "STORE_UNAVAILABLE"
    return caught.value.message


def look(path: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query).fetchall()


async def test_what_was_kept_is_there_after_a_restart(store: SqliteStore, path: Path) -> None:
    kept = record("t", support("b", 1), support("a", 0))
    remembered = request(expire_time=kept.header.create_time.replace(year=9000))
    await register(store, kept, remembered)
    await store.close()
    await store.open()
    assert await store.get(T) == kept
    assert await store.find_request("default", "RegisterTask", "r1") == remembered
    assert await holds_image(store, 0)


async def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "new" / "folder" / "tasks.db")
    await store.open()
    assert await store.count() == 0
    await store.close()


async def test_many_tasks_over_few_images_keep_each_image_once(
    store: SqliteStore, path: Path
) -> None:
    for number in range(16):
        await store.put_image("default", image(number))
    creations = [
        store.create(record(f"t{n}", support("a", n % 16), support("b", (n + 1) % 16)), None)
        for n in range(200)
    ]
    await asyncio.gather(*creations)
    assert look(path, "SELECT count(*) FROM image_data") == [(16,)]
    assert look(path, "SELECT count(*) FROM supports") == [(400,)]


async def test_a_change_of_one_support_writes_one_support(store: SqliteStore, path: Path) -> None:
    kept = record("t", *(support(f"s{n:04}", n % 4) for n in range(1000)))
    await register(store, kept)
    with closing(sqlite3.connect(path, isolation_level=None)) as observer:
        observer.execute("CREATE TABLE written (place TEXT)")
        for table in ("tasks", "supports", "images", "image_data"):
            for verb in ("INSERT", "UPDATE", "DELETE"):
                observer.execute(
                    f"CREATE TRIGGER {table}_{verb} AFTER {verb} ON {table} BEGIN"
                    f" INSERT INTO written VALUES ('{verb} {table}'); END"
                )
    await store.apply(change(kept.header, support("s0500", 0, version=2)))
    written = sorted(row[0] for row in look(path, "SELECT place FROM written"))
    assert written == ["UPDATE supports", "UPDATE tasks"]
    assert (await store.get(T)).supports[500] == support("s0500", 0, version=2)


async def test_a_full_store_keeps_nothing_of_a_call_and_works_again_with_room(path: Path) -> None:
    store = SqliteStore(path, max_bytes=400_000)
    await store.open()
    kept = record("t", support("a", 0))
    await register(store, kept)
    await store.put_image("default", image(50, 150_000))
    with pytest.raises(ResourceExhaustedError) as caught:
        await store.put_image("default", image(51, 300_000))
    assert (caught.value.reason, caught.value.retry_after) == ("STORE_FULL", 30.0)
    assert look(path, "SELECT count(*) FROM images") == [(2,)]
    many = [support(f"s{n}", 0) for n in range(3000)]
    with pytest.raises(ResourceExhaustedError):
        await store.apply(change(kept.header, *many, request=request()))
    assert await store.get(T) == kept
    assert look(path, "SELECT count(*) FROM requests") == [(0,)]
    assert await store.delete(T, None)
    await register(store, kept)
    await store.close()
    roomy = SqliteStore(path)
    await roomy.open()
    await roomy.put_image("default", image(51, 300_000))
    assert await roomy.get(T) == kept
    assert look(path, "PRAGMA integrity_check") == [("ok",)]
    await roomy.close()


async def test_a_second_server_is_refused_until_the_first_lets_go(
    store: SqliteStore, path: Path
) -> None:
    message = await refusal_to_open(path)
    assert str(path) in message
    assert "in use by another server" in message
    alias = path.with_name("alias.db")
    alias.symlink_to(path)
    assert "in use" in await refusal_to_open(alias)
    await store.put_image("default", image(0))
    await store.close()
    second = SqliteStore(path)
    await second.open()
    assert await holds_image(second, 0)
    await second.close()


async def test_a_file_of_a_later_release_is_refused_and_left_alone(
    store: SqliteStore, path: Path
) -> None:
    await store.close()
    look(path, "PRAGMA user_version = 99")
    before = look(path, CONTENTS)
    message = await refusal_to_open(path)
    assert str(path) in message
    assert "schema version 99" in message
    assert look(path, "PRAGMA user_version") == [(99,)]
    assert look(path, CONTENTS) == before


async def test_a_file_that_is_no_database_is_refused_by_name(path: Path) -> None:
    await asyncio.to_thread(path.write_bytes, b"these are holiday notes, not tables\n" * 100)
    message = await refusal_to_open(path)
    assert f"{path} is not a database" in message
    await asyncio.to_thread(path.unlink)
    store = SqliteStore(path)
    await store.open()
    await store.close()


async def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    look(path, "CREATE TABLE songs (title TEXT)")
    assert "another program" in await refusal_to_open(path)
    assert look(path, "SELECT name FROM sqlite_master") == [("songs",)]


async def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in await refusal_to_open(tmp_path / "file" / "tasks.db")
    (tmp_path / "folder.db").mkdir()
    assert str(tmp_path / "folder.db") in await refusal_to_open(tmp_path / "folder.db")


def test_a_migration_is_carried_out_whole_or_not_at_all(path: Path) -> None:
    first = sqlite_schema.MIGRATIONS
    second = (*first, ("ALTER TABLE tasks ADD COLUMN note TEXT",))
    broken = (*second, ("CREATE TABLE extra (x)", "INSERT INTO nowhere VALUES (1)"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        sqlite_schema.prepare(connection, path, first)
        with pytest.raises(sqlite3.OperationalError):
            sqlite_schema.prepare(connection, path, broken)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT note FROM tasks").fetchall() == []
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert ("extra",) not in tables


async def test_a_failure_of_the_database_is_unavailable_and_tells_no_paths(
    store: SqliteStore, path: Path
) -> None:
    await register(store, record("t", support("a")))
    look(path, "UPDATE supports SET support = x'c1'")
    with pytest.raises(UnavailableError) as caught:
        await store.get(T)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    look(path, "DROP TABLE supports")
    with pytest.raises(UnavailableError) as caught:
        await store.delete(T, None)
    assert str(path) not in caught.value.message
    assert "supports" not in caught.value.message
    assert await store.get_header(T) is not None


async def test_a_store_that_is_not_open_is_unavailable(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(UnavailableError):
        await store.count()
    await store.open()
    await store.close()
    with pytest.raises(UnavailableError):
        await store.put_image("default", image(0))


async def test_a_cancelled_call_is_whole_or_absent_and_holds_up_nothing(
    store: SqliteStore, path: Path
) -> None:
    kept = [record(f"t{n}", *(support(f"s{i}", i % 4) for i in range(200))) for n in range(30)]
    for number in range(4):
        await store.put_image("default", image(number))
    calls = [asyncio.create_task(store.create(each, None)) for each in kept]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in calls[1::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(o, asyncio.CancelledError) for o in outcomes)
    for each, came in zip(kept, outcomes, strict=True):
        found = await store.get(each.header.name)
        assert found == each or (found is None and came is not None)
    await store.apply(change(kept[0].header, support("s0", 0, version=2)))
    assert look(path, "PRAGMA integrity_check") == [("ok",)]


async def test_reads_do_not_wait_for_a_write(store: SqliteStore, path: Path) -> None:
    await register(store, record("t", support("a")))
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.put_image("default", image(9)))
        assert await asyncio.wait_for(store.get(T), 2) is not None
        assert not writing.done()
        holder.execute("ROLLBACK")
        await writing
    assert await holds_image(store, 9)


async def test_a_closed_store_leaves_no_thread_and_no_log(store: SqliteStore, path: Path) -> None:
    await register(store, record("t", support("a")))
    await store.close()
    for thread in threading.enumerate():
        if thread.name.startswith("fewseg-store"):
            thread.join(5)
            assert not thread.is_alive()
    assert sorted(p.name for p in path.parent.iterdir()) == ["tasks.db", "tasks.db.lock"]


async def test_importing_a_store_does_not_bring_in_an_engine_or_a_transport() -> None:
    probe = (
        "import sys, service.stores.sqlite\n"
        "sys.exit(any(m in sys.modules for m in ('grpc', 'onnxruntime', 'torch', 'tritonclient')))"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", probe], check=False)
    assert done.returncode == 0
