"""A server that is killed keeps what it acknowledged."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import pytest
from store_samples import image

from service.core.types import TaskRecord
from service.stores.sqlite import SqliteStore

#: Carries out the changes below one after the other and says so after each.
WORKER = """
import asyncio, sys
from dataclasses import replace
from store_samples import change, image, record, request, support
from service.core.types import TaskName
from service.stores.sqlite import SqliteStore
from test_sqlite_crash import changes

async def carry_out(store, verb, n):
    name = TaskName("default", f"t{n}")
    if verb == "create":
        for number in (n % 4, 10 + n):
            await store.put_image("default", image(number))
        kept = record(f"t{n}", support("a", n % 4), support("b", 10 + n))
        await store.create(kept, request(f"r{n}"))
    elif verb == "annotate":
        header = await store.get_header(name)
        await store.apply(change(header, *(support(i, n % 4, version=2) for i in "ac")))
    else:
        await store.delete(name, None)

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    for verb, n in changes():
        await carry_out(store, verb, n)
        print(verb, n, flush=True)

asyncio.run(main())
"""


def changes() -> Iterator[tuple[str, int]]:
    """An endless course of changes, the same every time."""
    for n in count():
        yield "create", n
        yield "annotate", n
        if n % 3 == 2:
            yield "delete", n - 1


def state_after(number: int) -> dict[str, int]:
    """Revision by task id, once the first ``number`` changes were made."""
    revisions: dict[str, int] = {}
    for verb, n in islice(changes(), number):
        if verb == "delete":
            del revisions[f"t{n}"]
        else:
            revisions[f"t{n}"] = 1 if verb == "create" else 2
    return revisions


def work_and_be_killed(path: Path, acknowledged: int, delay: float) -> int:
    """Returns how many changes were acknowledged before SIGKILL."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, env=environment
    ) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(acknowledged)]
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        lines += worker.stdout.readlines()
    assert worker.returncode == -signal.SIGKILL
    return sum(line.endswith(b"\n") for line in lines)


def check_supports(kept: TaskRecord) -> None:
    n = int(kept.header.name.task[1:])
    annotated = kept.header.revision == 2
    versions = [(s.support_id, int(s.annotation_digest, 16)) for s in kept.supports]
    assert versions == ([("a", 2), ("b", 1), ("c", 2)] if annotated else [("a", 1), ("b", 1)])
    assert kept.supports[1].image_digest == image(10 + n).digest


@pytest.mark.parametrize("seed", range(4))
async def test_every_acknowledged_change_survives_sigkill(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "tasks.db"
    acknowledged = work_and_be_killed(path, chance.randint(1, 60), chance.uniform(0, 0.01))

    store = SqliteStore(path)
    await store.open()
    headers = await store.list_headers("default", after="", limit=1_000)
    revisions = {header.name.task: header.revision for header in headers}
    assert revisions in (state_after(acknowledged), state_after(acknowledged + 1))
    for header in headers:
        kept = await store.get(header.name)
        assert kept is not None
        check_supports(kept)
        for support in kept.supports:
            found = await store.get_image("default", support.image_digest)
            assert found.digest == support.image_digest
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
