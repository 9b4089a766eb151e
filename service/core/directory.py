"""Finding tasks: names, expiry, revisions."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime

from service.core.annotations import weight
from service.core.calls import Call
from service.core.errors import InvalidArgumentError, NotFoundError
from service.core.ports import Store
from service.core.refusals import stale_etag, task_not_found
from service.core.timing import Stage
from service.core.types import TaskHeader, TaskName, TaskRecord

#: Headers kept in memory when nobody else changes the store; a few hundred bytes each.
_HEADERS_KEPT = 1024
#: Tasks that people work on now are kept whole, if they are small: so many, and bytes of each.
_RECORDS_KEPT = 64
_RECORD_BYTES = 32 * 1024
#: Memory of a support beyond its annotation.
_SUPPORT_BYTES = 1024
_ETAG = re.compile(r"[0-9a-f]{16}-[1-9][0-9]{0,9}")


class TaskDirectory:
    """Looks tasks up, and says clearly why one cannot be used.

    Args:
        store: Where tasks are kept.
        tenants: The tenants that exist.
        now: The clock, UTC.
    """

    def __init__(self, store: Store, tenants: frozenset[str], now: Callable[[], datetime]) -> None:
        self._store = store
        self._tenants = tenants
        self._now = now
        self._headers: OrderedDict[TaskName, TaskHeader] = OrderedDict()
        self._records: OrderedDict[TaskName, TaskRecord] = OrderedDict()
        #: What was read before a change must not be remembered after it.
        self._changes = 0

    def check_tenant(self, tenant: str) -> None:
        """Raises NotFoundError (TENANT_NOT_FOUND) for a tenant that does not exist."""
        if tenant not in self._tenants:
            raise NotFoundError(
                "TENANT_NOT_FOUND",
                f"There is no tenant '{tenant}'.",
                metadata={"tenant": tenant},
            )

    async def header(self, name: TaskName, call: Call, *, etag: str = "") -> TaskHeader:
        """The task without its supports.

        Args:
            name: Resource name.
            call: Gets the STORE stage.
            etag: If not empty, the revision that the task must have.

        Raises:
            NotFoundError: No such tenant or task, or it has expired.
            AbortedError: The task has another revision (STALE_ETAG).
            InvalidArgumentError: The etag is none of this service's (MALFORMED_ETAG).
        """
        self.check_tenant(name.tenant)
        header = self._headers.get(name)
        # An expired name may have been registered anew meanwhile.
        if header is None or header.expired(self._now()):
            changes = self._changes
            with call.clock.measure(Stage.STORE):
                header = await self._store.get_header(name)
            if header is not None and changes == self._changes:
                self._keep(header)
        return self._usable(name, header, etag)

    async def record(self, name: TaskName, call: Call, *, etag: str = "") -> TaskRecord:
        """The task with its supports; raises as ``header`` does."""
        self.check_tenant(name.tenant)
        record = self._records.get(name)
        if record is None or record.header.expired(self._now()):
            changes = self._changes
            with call.clock.measure(Stage.STORE):
                record = await self._store.get(name)
            if record is not None and changes == self._changes:
                self._keep_whole(record)
        self._usable(name, record.header if record else None, etag)
        if record is None:
            raise task_not_found(name)
        return record

    async def is_free(self, name: TaskName, call: Call) -> bool:
        """Whether a task of that name could be registered."""
        with call.clock.measure(Stage.STORE):
            header = await self._store.get_header(name)
        return header is None or header.expired(self._now())

    async def list(self, tenant: str, *, limit: int, after: str) -> Sequence[TaskHeader]:
        """Headers in the order of task ids, expired ones left out; a short answer is the end."""
        self.check_tenant(tenant)
        now = self._now()
        alive: list[TaskHeader] = []
        while len(alive) < limit:
            page = await self._store.list_headers(tenant, after=after, limit=limit)
            alive.extend(header for header in page if not header.expired(now))
            if len(page) < limit:
                break
            after = page[-1].name.task
        return alive[:limit]

    def note(self, record: TaskRecord) -> None:
        """Remembers the task that a change has just committed."""
        self._changes += 1
        self._keep(record.header)
        self._keep_whole(record)

    def _keep(self, header: TaskHeader) -> None:
        if not self._store.exclusive:
            return
        self._headers[header.name] = header
        self._headers.move_to_end(header.name)
        if len(self._headers) > _HEADERS_KEPT:
            self._headers.popitem(last=False)

    def _keep_whole(self, record: TaskRecord) -> None:
        self._records.pop(record.header.name, None)
        supports = record.supports
        nbytes = sum(_SUPPORT_BYTES + weight(support.annotation) for support in supports)
        if not self._store.exclusive or nbytes > _RECORD_BYTES:
            return
        self._records[record.header.name] = record
        if len(self._records) > _RECORDS_KEPT:
            self._records.popitem(last=False)

    def forget(self, name: TaskName) -> None:
        """Forgets what was remembered of a task, and what is being read of it."""
        self._changes += 1
        self._headers.pop(name, None)
        self._records.pop(name, None)

    def _usable(self, name: TaskName, header: TaskHeader | None, etag: str) -> TaskHeader:
        if etag and not _ETAG.fullmatch(etag):
            raise InvalidArgumentError(
                "MALFORMED_ETAG", "This is not an etag that this service gave.", field="etag"
            )
        if header is None or header.expired(self._now()):
            raise task_not_found(name)
        if etag and etag != header.etag:
            raise stale_etag(name)
        return header
