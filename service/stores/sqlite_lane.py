"""Threads that each own one SQLite connection, and what keeps a second server out."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from service.core.errors import FewSegError
from service.core.records import RecordError
from service.core.workers import WorkerThreads
from service.stores.refusals import store_full, store_unavailable

T = TypeVar("T")


class Ownership:
    """The right to be the only server of a database file.

    A lock of the operating system on ``<file>.lock``: it ends with the process,
    however that ends. The empty file stays, because removing it would let two
    processes lock two files of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises ``UnavailableError`` when another server has the file."""
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise store_unavailable(f"{lock} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise store_unavailable(
                f"{self._path} is in use by another server; stop it, or name another file."
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets others have the file. Releasing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Lane:
    """One thread and the connection that only it touches; work runs in the order it came.

    A caller that is cancelled while its work waits takes the work back; once
    the work has begun it ends by itself, committed or rolled back.

    Args:
        name: Of the thread.
        begin: The statement that opens each transaction.
        on_close: Called in the thread, last of all.
    """

    def __init__(self, name: str, begin: str, on_close: Callable[[], None] = lambda: None) -> None:
        self._thread = WorkerThreads(1, name)
        self._begin = begin
        self._on_close = on_close
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self, connect: Callable[[], sqlite3.Connection]) -> None:
        """Connects in the thread; lets the thread go when that fails."""

        def connect_here() -> None:
            self._connection = connect()

        try:
            await self._thread.run(connect_here)
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``work`` as one transaction.

        Raises:
            ResourceExhaustedError: The disk is full (STORE_FULL).
            UnavailableError: The database fails, or is closed (STORE_UNAVAILABLE).
        """
        if self._closed:
            raise store_unavailable()
        return await self._thread.run(self._transact, work)

    async def close(self) -> None:
        """Ends the thread once the work that waits is done. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        # Shielded: a cancelled caller must not take the closing itself back.
        await asyncio.shield(asyncio.ensure_future(self._end()))

    async def _end(self) -> None:
        try:
            await self._thread.run(self._disconnect)
        finally:
            self._thread.close()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise store_unavailable()
        try:
            connection.execute(self._begin)
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some errors, such as a full disk.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, RecordError) as error:
            raise _refusal(error) from error
        return result

    def _disconnect(self) -> None:
        try:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        finally:
            self._on_close()


def _refusal(error: Exception) -> FewSegError:
    """What a caller is told; SQLite's own words may name paths of the server."""
    if primary_code(error) == sqlite3.SQLITE_FULL:
        return store_full()
    return store_unavailable()


def primary_code(error: Exception) -> int | None:
    """SQLite's result code without the extension bits; None for errors that have none."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
