"""The tables of the SQLite store, and how older files become this version's."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from service.stores.refusals import store_unavailable

#: Marks a file as ours ("FSEG"), so that another program's database is left alone.
_APPLICATION_ID: Final = 0x46534547

#: Entry i brings a file from version i to i + 1. Entries are never changed once released.
#:
#: tasks: ``header`` is the truth; the columns before it repeat what queries ask for.
#: images: ``awaited_since`` is set by a put and cleared by the task that uses the image.
#: image_data: apart, so that touching an image does not rewrite its bytes.
#: supports: ``position`` only grows, and so orders the supports of a task.
#: Times are microseconds since 1970 (UTC).
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        f"PRAGMA application_id = {_APPLICATION_ID}",
        """CREATE TABLE tasks (
             id INTEGER PRIMARY KEY,
             tenant TEXT NOT NULL,
             task TEXT NOT NULL,
             uid TEXT NOT NULL,
             revision INTEGER NOT NULL,
             expire_time INTEGER,
             header BLOB NOT NULL,
             UNIQUE (tenant, task))""",
        "CREATE INDEX tasks_by_expiry ON tasks (expire_time) WHERE expire_time IS NOT NULL",
        """CREATE TABLE images (
             id INTEGER PRIMARY KEY,
             tenant TEXT NOT NULL,
             digest TEXT NOT NULL,
             height INTEGER NOT NULL,
             width INTEGER NOT NULL,
             raw INTEGER NOT NULL,
             awaited_since INTEGER,
             UNIQUE (tenant, digest))""",
        "CREATE INDEX images_awaited ON images (awaited_since) WHERE awaited_since IS NOT NULL",
        """CREATE TABLE image_data (
             image INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
             data BLOB NOT NULL)""",
        """CREATE TABLE supports (
             position INTEGER PRIMARY KEY,
             task INTEGER NOT NULL REFERENCES tasks ON DELETE CASCADE,
             support_id TEXT NOT NULL,
             image INTEGER NOT NULL REFERENCES images,
             support BLOB NOT NULL,
             UNIQUE (task, support_id))""",
        "CREATE INDEX supports_in_order ON supports (task, position)",
        "CREATE INDEX supports_by_image ON supports (image)",
        """CREATE TABLE requests (
             tenant TEXT NOT NULL,
             method TEXT NOT NULL,
             request_id TEXT NOT NULL,
             body_digest TEXT NOT NULL,
             expire_time INTEGER NOT NULL,
             answer BLOB NOT NULL,
             PRIMARY KEY (tenant, method, request_id))""",
        "CREATE INDEX requests_by_expiry ON requests (expire_time)",
    ),
)


def prepare(
    connection: sqlite3.Connection,
    path: Path,
    migrations: tuple[tuple[str, ...], ...] = MIGRATIONS,
) -> None:
    """Checks that a file is ours and brings it to this version, whole steps only.

    Args:
        connection: In autocommit mode.
        path: The file, for messages.
        migrations: All steps, from an empty file on.

    Raises:
        UnavailableError: The file is another program's, or a later version's; it
            is left as it was.
    """
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    if application != _APPLICATION_ID and not (empty and version == 0):
        raise store_unavailable(
            f"{path} is the database of another program; name another file for the store."
        )
    if version > len(migrations):
        raise store_unavailable(
            f"{path} has schema version {version}, but this release knows only "
            f"{len(migrations)}; start the release that wrote it, or a later one."
        )
    for number, statements in enumerate(migrations[version:], version + 1):
        _migrate(connection, number, statements)


def _migrate(connection: sqlite3.Connection, number: int, statements: tuple[str, ...]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
