"""The default store: one SQLite file, owned by one server."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from service.core.errors import UnavailableError
from service.core.limits import Limits
from service.core.ports import RememberedRequest, Sweep, TaskChange
from service.core.types import SourceImage, Support, TaskHeader, TaskName, TaskRecord
from service.stores import sqlite_rows as rows
from service.stores.refusals import store_unavailable
from service.stores.sqlite_lane import Lane, Ownership, primary_code
from service.stores.sqlite_schema import prepare

T = TypeVar("T")

_MAX_TASKS: Final = Limits().tasks
#: Rows that one transaction of a sweep removes, so that calls get their turn in between.
_SWEEP_STEP: Final = 64
#: Seconds to wait for another program, such as a backup, that reads the file.
_BUSY_SECONDS: Final = 5.0
#: KiB of pages that a connection keeps in memory. The system caches the file beside it.
_CACHE_KIB: Final = 2 * 1024
#: Bytes that the write-ahead log shrinks to when it is reset.
_LOG_BYTES: Final = 64 * 1024 * 1024


class SqliteStore:
    """Implements ``service.core.ports.Store`` on a file.

    One thread writes, one transaction per change, on the disk before the call
    returns; another reads, so that reads do not wait for the disk. Supports and
    images stay on the disk but for the connections' page caches (2 MiB each).
    Room that deleted tasks leave is used again; the file does not shrink. On a full
    disk even a deletion lacks the room for its log; a store that reached
    ``max_bytes`` can still delete.

    An image that was put awaits a task: until ``create`` or ``apply`` names it,
    or ``orphan_age`` has passed, the end of other tasks does not remove it.

    Args:
        path: The database; made if missing, with ``-wal``, ``-shm`` and ``.lock`` files beside it.
        max_tasks: Tasks it may hold, expired ones included.
        orphan_age: How long an image that was put awaits a task that uses it.
        max_bytes: Size that the file may reach; None for as far as the disk goes.
        now: Tells the time, UTC.
    """

    name = "sqlite"
    exclusive = True

    def __init__(
        self,
        path: Path | str,
        *,
        max_tasks: int = _MAX_TASKS,
        orphan_age: timedelta = timedelta(hours=1),
        max_bytes: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        # Resolved, so that two names of one file meet at one lock.
        self._path = Path(path).resolve()
        self._max_tasks = max_tasks
        self._orphan_age = orphan_age
        self._max_bytes = max_bytes
        self._now = now
        self._writer: Lane | None = None
        self._reader: Lane | None = None

    async def open(self) -> None:
        """See ``Store``.

        Raises:
            UnavailableError: Another server has the file, it is not a database
                of this program or of a later release, or it cannot be written;
                the message names the file.
        """
        if self._writer is not None:
            return
        ownership = Ownership(self._path)
        writer = Lane("fewseg-store-writer", "BEGIN IMMEDIATE", on_close=ownership.release)
        await writer.open(partial(self._connect_writer, ownership))
        reader = Lane("fewseg-store-reader", "BEGIN")
        try:
            await reader.open(self._connect_reader)
        except BaseException:
            await writer.close()
            raise
        self._writer, self._reader = writer, reader

    async def close(self) -> None:
        """See ``Store``."""
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        try:
            if reader is not None:
                await reader.close()
        finally:
            if writer is not None:
                await writer.close()

    async def put_image(self, tenant: str, image: SourceImage) -> datetime:
        """See ``Store``."""
        clock = self._clock()
        await self._write(lambda c: rows.put_image(c, tenant, image, clock))
        return clock.now

    async def withdraw_images(self, tenant: str, put: Mapping[str, datetime]) -> None:
        """See ``Store``."""
        await self._write(lambda c: rows.withdraw_images(c, tenant, put))

    async def get_image(self, tenant: str, digest: str) -> SourceImage:
        """See ``Store``."""
        return await self._read(lambda c: rows.get_image(c, tenant, digest))

    async def create(self, record: TaskRecord, request: RememberedRequest | None) -> None:
        """See ``Store``."""
        clock = self._clock()
        await self._write(lambda c: rows.create(c, record, request, clock, self._max_tasks))

    async def get(self, name: TaskName) -> TaskRecord | None:
        """See ``Store``."""
        return await self._read(lambda c: rows.get(c, name))

    async def get_support(self, name: TaskName, support_id: str) -> Support | None:
        """See ``Store``."""
        return await self._read(lambda c: rows.get_support(c, name, support_id))

    async def get_header(self, name: TaskName) -> TaskHeader | None:
        """See ``Store``."""
        return await self._read(lambda c: rows.get_header(c, name))

    async def apply(self, change: TaskChange) -> None:
        """See ``Store``."""
        clock = self._clock()
        await self._write(lambda c: rows.apply(c, change, clock))

    async def delete(self, name: TaskName, etag: str | None) -> bool:
        """See ``Store``."""
        clock = self._clock()
        return await self._write(lambda c: rows.delete(c, name, etag, clock))

    async def list_headers(self, tenant: str, *, after: str, limit: int) -> Sequence[TaskHeader]:
        """See ``Store``."""
        return await self._read(lambda c: rows.list_headers(c, tenant, after, limit))

    async def count(self) -> int:
        """See ``Store``."""
        return await self._read(rows.count)

    async def find_request(
        self, tenant: str, method: str, request_id: str
    ) -> RememberedRequest | None:
        """See ``Store``."""
        clock = self._clock()
        return await self._read(lambda c: rows.find_request(c, tenant, method, request_id, clock))

    async def sweep(self, now: datetime) -> Sweep:
        """See ``Store``; works in short transactions, each of them whole."""
        clock = rows.Clock(now, self._orphan_age)
        expired: list[TaskName] = []
        images = 0
        while True:
            names, dropped = await self._write(lambda c: rows.sweep_tasks(c, clock, _SWEEP_STEP))
            expired += names
            images += dropped
            if len(names) < _SWEEP_STEP:
                break
        images += await self._sweep_all(lambda c: rows.sweep_images(c, clock, _SWEEP_STEP))
        requests = await self._sweep_all(lambda c: rows.sweep_requests(c, clock, _SWEEP_STEP))
        return Sweep(tuple(sorted(expired)), images, requests)

    async def _sweep_all(self, step: Callable[[sqlite3.Connection], int]) -> int:
        total = removed = await self._write(step)
        while removed == _SWEEP_STEP:
            removed = await self._write(step)
            total += removed
        return total

    def _clock(self) -> rows.Clock:
        return rows.Clock(self._now(), self._orphan_age)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None:
            raise store_unavailable()
        return await self._writer.run(work)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._reader is None:
            raise store_unavailable()
        return await self._reader.run(work)

    def _connect_writer(self, ownership: Ownership) -> sqlite3.Connection:
        ownership.take()
        return self._connect(self._prepare)

    def _connect_reader(self) -> sqlite3.Connection:
        return self._connect(lambda connection: connection.execute("PRAGMA query_only = ON"))

    def _connect(
        self, prepare_connection: Callable[[sqlite3.Connection], object]
    ) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            prepare_connection(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise _unusable(self._path, error) from error
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        prepare(connection, self._path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise store_unavailable(
                f"{self._path} lies on a file system without shared memory, which the store "
                "needs; name a file on a local disk."
            )
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        if self._max_bytes is not None:
            (page,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count = {max(1, self._max_bytes // page)}")


def _unusable(path: Path, error: sqlite3.Error) -> UnavailableError:
    if primary_code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return store_unavailable(
            f"{path} is not a database, or is damaged; restore it, or name another file."
        )
    return store_unavailable(f"{path} cannot be opened as the store: {error}.")
