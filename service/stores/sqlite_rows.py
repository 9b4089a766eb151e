"""What the SQLite store does to rows. Each function runs inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from service.core.ports import RememberedRequest, TaskChange
from service.core.records import decode_header, decode_support, encode_header, encode_support
from service.core.refusals import request_id_reused, stale_etag, task_exists, task_not_found
from service.core.types import Size, SourceImage, Support, TaskHeader, TaskName, TaskRecord
from service.stores import refusals

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: An image that no support uses and that no registration under way still awaits.
_UNUSED: Final = """
    (awaited_since IS NULL OR awaited_since <= :cutoff)
    AND NOT EXISTS (SELECT 1 FROM supports WHERE supports.image = images.id)"""


@dataclass(frozen=True, slots=True)
class Clock:
    """The moment of a transaction.

    Attributes:
        now: UTC.
        orphan_age: How long an image that was put awaits a task that uses it.
    """

    now: datetime
    orphan_age: timedelta

    @property
    def cutoff(self) -> int:
        """Images awaited since then, or longer, are no longer awaited."""
        return micros(self.now - self.orphan_age)


def micros(moment: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def put_image(c: sqlite3.Connection, tenant: str, image: SourceImage, clock: Clock) -> None:
    """See ``Store.put_image``."""
    now = micros(clock.now)
    known = c.execute(
        "UPDATE images SET awaited_since = ? WHERE tenant = ? AND digest = ?",
        (now, tenant, image.digest),
    )
    if known.rowcount:
        return
    added = c.execute(
        "INSERT INTO images (tenant, digest, height, width, raw, awaited_since)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (tenant, image.digest, image.size.height, image.size.width, image.raw, now),
    )
    c.execute("INSERT INTO image_data (image, data) VALUES (?, ?)", (added.lastrowid, image.data))


def withdraw_images(c: sqlite3.Connection, tenant: str, put: Mapping[str, datetime]) -> None:
    """See ``Store.withdraw_images``."""
    c.executemany(
        "DELETE FROM images WHERE tenant = ? AND digest = ? AND awaited_since = ?"
        " AND NOT EXISTS (SELECT 1 FROM supports WHERE supports.image = images.id)",
        [(tenant, digest, micros(moment)) for digest, moment in put.items()],
    )


def get_image(c: sqlite3.Connection, tenant: str, digest: str) -> SourceImage:
    """See ``Store.get_image``."""
    row = c.execute(
        "SELECT data, height, width, raw FROM images JOIN image_data ON image = id"
        " WHERE tenant = ? AND digest = ?",
        (tenant, digest),
    ).fetchone()
    if row is None:
        raise refusals.image_not_found(digest)
    data, height, width, raw = row
    return SourceImage(data=data, size=Size(height, width), raw=bool(raw), digest=digest)


def create(
    c: sqlite3.Connection,
    record: TaskRecord,
    request: RememberedRequest | None,
    clock: Clock,
    max_tasks: int,
) -> None:
    """See ``Store.create``."""
    header = record.header
    remember(c, request, clock)
    former = _find(c, header.name)
    if former is not None and not former[1].expired(clock.now):
        raise task_exists(header.name)
    if count(c) - (former is not None) >= max_tasks:
        raise refusals.too_many_tasks(max_tasks)
    former_images = set() if former is None else _images_of(c, former[0])
    if former is not None:
        c.execute("DELETE FROM tasks WHERE id = ?", (former[0],))
    added = c.execute(
        "INSERT INTO tasks (tenant, task, uid, revision, expire_time, header)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (header.name.tenant, header.name.task, *_columns(header)),
    )
    _upsert(c, int(added.lastrowid or 0), header.name.tenant, record.supports)
    _drop_unused(c, former_images, clock)


def apply(c: sqlite3.Connection, change: TaskChange, clock: Clock) -> None:
    """See ``Store.apply``; writes the rows that change and no others."""
    header = change.header
    remember(c, change.request, clock)
    changed = c.execute(
        "UPDATE tasks SET uid = ?, revision = ?, expire_time = ?, header = ?"
        " WHERE tenant = ? AND task = ? AND uid = ? AND revision = ?",
        (
            *_columns(header),
            header.name.tenant,
            header.name.task,
            header.uid,
            header.revision - 1,
        ),
    )
    found = _find(c, header.name)
    if found is None:
        raise task_not_found(header.name)
    if not changed.rowcount:
        raise stale_etag(header.name)
    task = found[0]
    touched = {*change.removed, *(s.support_id for s in change.upserted)}
    former_images = _images_of(c, task, touched)
    c.executemany(
        "DELETE FROM supports WHERE task = ? AND support_id = ?",
        [(task, support_id) for support_id in change.removed],
    )
    _upsert(c, task, header.name.tenant, change.upserted)
    _drop_unused(c, former_images, clock)


def delete(c: sqlite3.Connection, name: TaskName, etag: str | None, clock: Clock) -> bool:
    """See ``Store.delete``."""
    found = _find(c, name)
    if found is None:
        return False
    if etag is not None and etag != found[1].etag:
        raise stale_etag(name)
    _remove(c, found[0], clock)
    return True


def get(c: sqlite3.Connection, name: TaskName) -> TaskRecord | None:
    """See ``Store.get``."""
    found = _find(c, name)
    if found is None:
        return None
    rows = c.execute("SELECT support FROM supports WHERE task = ? ORDER BY position", found[:1])
    return TaskRecord(found[1], tuple(decode_support(row[0]) for row in rows))


def get_support(c: sqlite3.Connection, name: TaskName, support_id: str) -> Support | None:
    """See ``Store.get_support``."""
    row = c.execute(
        "SELECT support FROM supports JOIN tasks ON tasks.id = supports.task"
        " WHERE tenant = ? AND tasks.task = ? AND support_id = ?",
        (name.tenant, name.task, support_id),
    ).fetchone()
    return None if row is None else decode_support(row[0])


def get_header(c: sqlite3.Connection, name: TaskName) -> TaskHeader | None:
    """See ``Store.get_header``."""
    found = _find(c, name)
    return found[1] if found else None


def list_headers(
    c: sqlite3.Connection, tenant: str, after: str, limit: int
) -> tuple[TaskHeader, ...]:
    """See ``Store.list_headers``."""
    # SQLite takes a negative limit for none at all.
    rows = c.execute(
        "SELECT header FROM tasks WHERE tenant = ? AND task > ? ORDER BY task LIMIT ?",
        (tenant, after, max(0, limit)),
    )
    return tuple(decode_header(row[0]) for row in rows)


def count(c: sqlite3.Connection) -> int:
    """See ``Store.count``."""
    return int(c.execute("SELECT count(*) FROM tasks").fetchone()[0])


def find_request(
    c: sqlite3.Connection, tenant: str, method: str, request_id: str, clock: Clock
) -> RememberedRequest | None:
    """See ``Store.find_request``."""
    row = c.execute(
        "SELECT body_digest, answer, expire_time FROM requests"
        " WHERE tenant = ? AND method = ? AND request_id = ? AND expire_time > ?",
        (tenant, method, request_id, micros(clock.now)),
    ).fetchone()
    if row is None:
        return None
    body_digest, answer, expire_time = row
    expires = _EPOCH + timedelta(microseconds=expire_time)
    return RememberedRequest(tenant, method, request_id, body_digest, answer, expires)


def remember(c: sqlite3.Connection, request: RememberedRequest | None, clock: Clock) -> None:
    """Keeps a request; raises ``AlreadyExistsError`` (REQUEST_ID_REUSED)."""
    if request is None:
        return
    written = c.execute(
        "INSERT INTO requests (tenant, method, request_id, body_digest, answer, expire_time)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (tenant, method, request_id) DO UPDATE SET"
        " body_digest = excluded.body_digest, answer = excluded.answer,"
        " expire_time = excluded.expire_time WHERE requests.expire_time <= ?",
        (
            request.tenant,
            request.method,
            request.request_id,
            request.body_digest,
            request.answer,
            micros(request.expire_time),
            micros(clock.now),
        ),
    )
    if not written.rowcount:
        raise request_id_reused(request.request_id)


def sweep_tasks(c: sqlite3.Connection, clock: Clock, limit: int) -> tuple[list[TaskName], int]:
    """Removes up to ``limit`` expired tasks; returns their names and how many images went."""
    rows = c.execute(
        "SELECT id, tenant, task FROM tasks WHERE expire_time <= ?"
        " ORDER BY expire_time, id LIMIT ?",
        (micros(clock.now), limit),
    ).fetchall()
    images = sum(_remove(c, task, clock) for task, _, _ in rows)
    return [TaskName(tenant, task) for _, tenant, task in rows], images


def sweep_images(c: sqlite3.Connection, clock: Clock, limit: int) -> int:
    """Removes up to ``limit`` images that were awaited in vain; returns how many."""
    return c.execute(
        f"DELETE FROM images WHERE id IN (SELECT id FROM images"
        f" WHERE awaited_since IS NOT NULL AND {_UNUSED} LIMIT :limit)",
        {"cutoff": clock.cutoff, "limit": limit},
    ).rowcount


def sweep_requests(c: sqlite3.Connection, clock: Clock, limit: int) -> int:
    """Forgets up to ``limit`` expired requests; returns how many."""
    return c.execute(
        "DELETE FROM requests WHERE rowid IN"
        " (SELECT rowid FROM requests WHERE expire_time <= ? LIMIT ?)",
        (micros(clock.now), limit),
    ).rowcount


def _find(c: sqlite3.Connection, name: TaskName) -> tuple[int, TaskHeader] | None:
    row = c.execute(
        "SELECT id, header FROM tasks WHERE tenant = ? AND task = ?", (name.tenant, name.task)
    ).fetchone()
    return None if row is None else (row[0], decode_header(row[1]))


def _columns(header: TaskHeader) -> tuple[str, int, int | None, bytes]:
    expire_time = None if header.expire_time is None else micros(header.expire_time)
    return header.uid, header.revision, expire_time, encode_header(header)


def _upsert(c: sqlite3.Connection, task: int, tenant: str, supports: Iterable[Support]) -> None:
    """Adds supports at the end or replaces them in place; their images are awaited no more."""
    images: dict[str, int] = {}
    for support in supports:
        digest = support.image_digest
        if digest not in images:
            images[digest] = _await_no_more(c, tenant, digest)
        c.execute(
            "INSERT INTO supports (task, support_id, image, support) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (task, support_id) DO UPDATE SET"
            " image = excluded.image, support = excluded.support",
            (task, support.support_id, images[digest], encode_support(support)),
        )


def _await_no_more(c: sqlite3.Connection, tenant: str, digest: str) -> int:
    row = c.execute(
        "SELECT id, awaited_since FROM images WHERE tenant = ? AND digest = ?", (tenant, digest)
    ).fetchone()
    if row is None:
        raise refusals.image_not_found(digest)
    if row[1] is not None:
        c.execute("UPDATE images SET awaited_since = NULL WHERE id = ?", row[:1])
    return int(row[0])


def _images_of(
    c: sqlite3.Connection, task: int, support_ids: Iterable[str] | None = None
) -> set[int]:
    """Images of a task's supports, or of those named."""
    if support_ids is None:
        return {r[0] for r in c.execute("SELECT image FROM supports WHERE task = ?", (task,))}
    query = "SELECT image FROM supports WHERE task = ? AND support_id = ?"
    rows = (c.execute(query, (task, support_id)).fetchone() for support_id in support_ids)
    return {row[0] for row in rows if row is not None}


def _remove(c: sqlite3.Connection, task: int, clock: Clock) -> int:
    """Removes a task with its supports; returns how many images went with it."""
    images = _images_of(c, task)
    c.execute("DELETE FROM tasks WHERE id = ?", (task,))
    return _drop_unused(c, images, clock)


def _drop_unused(c: sqlite3.Connection, images: Iterable[int], clock: Clock) -> int:
    dropped = 0
    for image in images:
        dropped += c.execute(
            f"DELETE FROM images WHERE id = :image AND {_UNUSED}",
            {"image": image, "cutoff": clock.cutoff},
        ).rowcount
    return dropped
