"""A store that forgets everything when the process ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from service.core.limits import Limits
from service.core.ports import RememberedRequest, Sweep, TaskChange
from service.core.refusals import request_id_reused, stale_etag, task_exists, task_not_found
from service.core.types import SourceImage, Support, TaskHeader, TaskName, TaskRecord
from service.stores import refusals

_MAX_TASKS: Final = Limits().tasks

_ImageKey = tuple[str, str]
_RequestKey = tuple[str, str, str]


@dataclass(slots=True)
class _KeptImage:
    """An image, how many supports use it, and since when it awaits a task that will."""

    image: SourceImage
    uses: int
    awaited_since: datetime | None

    def unused(self, cutoff: datetime) -> bool:
        """Whether no support uses it and no registration under way still awaits it."""
        awaited = self.awaited_since is not None and self.awaited_since > cutoff
        return self.uses == 0 and not awaited


class MemoryStore:
    """Implements ``service.core.ports.Store`` with dictionaries.

    No method awaits anything, and each checks before it changes: on one event
    loop every call is atomic. What is kept is immutable, so that answers need no copies.

    Args:
        max_tasks: Tasks it may hold, expired ones included.
        orphan_age: How long an image that was put awaits a task that uses it.
        now: Tells the time, UTC.
    """

    name = "memory"
    exclusive = True

    def __init__(
        self,
        *,
        max_tasks: int = _MAX_TASKS,
        orphan_age: timedelta = timedelta(hours=1),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._max_tasks = max_tasks
        self._orphan_age = orphan_age
        self._now = now
        self._tasks: dict[TaskName, TaskRecord] = {}
        self._images: dict[_ImageKey, _KeptImage] = {}
        self._requests: dict[_RequestKey, RememberedRequest] = {}

    async def open(self) -> None:
        """See ``Store``."""

    async def close(self) -> None:
        """See ``Store``."""

    async def put_image(self, tenant: str, image: SourceImage) -> datetime:
        """See ``Store``."""
        unopened = replace(image)
        kept = self._images.setdefault((tenant, image.digest), _KeptImage(unopened, 0, None))
        kept.awaited_since = now = self._now()
        return now

    async def withdraw_images(self, tenant: str, put: Mapping[str, datetime]) -> None:
        """See ``Store``."""
        for digest, moment in put.items():
            kept = self._images.get((tenant, digest))
            if kept is not None and kept.uses == 0 and kept.awaited_since == moment:
                del self._images[tenant, digest]

    async def get_image(self, tenant: str, digest: str) -> SourceImage:
        """See ``Store``."""
        kept = self._images.get((tenant, digest))
        if kept is None:
            raise refusals.image_not_found(digest)
        return kept.image

    async def create(self, record: TaskRecord, request: RememberedRequest | None) -> None:
        """See ``Store``."""
        name, now = record.header.name, self._now()
        self._check_request(request, now)
        former = self._tasks.get(name)
        if former is not None and not former.header.expired(now):
            raise task_exists(name)
        if len(self._tasks) - (former is not None) >= self._max_tasks:
            raise refusals.too_many_tasks(self._max_tasks)
        self._check_images(name.tenant, record.supports)
        # The new supports are counted first, so that images they share with the former survive.
        self._use(name.tenant, record.supports)
        if former is not None:
            self._release(name.tenant, former.supports, now)
        self._tasks[name] = record
        self._remember(request)

    async def get(self, name: TaskName) -> TaskRecord | None:
        """See ``Store``."""
        return self._tasks.get(name)

    async def get_support(self, name: TaskName, support_id: str) -> Support | None:
        """See ``Store``."""
        record = self._tasks.get(name)
        return None if record is None else record.support(support_id)

    async def get_header(self, name: TaskName) -> TaskHeader | None:
        """See ``Store``."""
        record = self._tasks.get(name)
        return record.header if record else None

    async def apply(self, change: TaskChange) -> None:
        """See ``Store``."""
        header, now = change.header, self._now()
        tenant = header.name.tenant
        self._check_request(change.request, now)
        former = self._tasks.get(header.name)
        if former is None:
            raise task_not_found(header.name)
        if (former.header.uid, former.header.revision) != (header.uid, header.revision - 1):
            raise stale_etag(header.name)
        self._check_images(tenant, change.upserted)
        removed, replaced = set(change.removed), {s.support_id for s in change.upserted}
        supports = {s.support_id: s for s in former.supports if s.support_id not in removed}
        supports.update((s.support_id, s) for s in change.upserted)
        self._use(tenant, [s for i, s in supports.items() if i in replaced])
        gone = [s for s in former.supports if s.support_id in removed | replaced]
        self._release(tenant, gone, now)
        self._tasks[header.name] = TaskRecord(header, tuple(supports.values()))
        self._remember(change.request)

    async def delete(self, name: TaskName, etag: str | None) -> bool:
        """See ``Store``."""
        record = self._tasks.get(name)
        if record is None:
            return False
        if etag is not None and etag != record.header.etag:
            raise stale_etag(name)
        del self._tasks[name]
        self._release(name.tenant, record.supports, self._now())
        return True

    async def list_headers(self, tenant: str, *, after: str, limit: int) -> Sequence[TaskHeader]:
        """See ``Store``."""
        names = sorted(n for n in self._tasks if n.tenant == tenant and n.task > after)
        return tuple(self._tasks[name].header for name in names[: max(0, limit)])

    async def count(self) -> int:
        """See ``Store``."""
        return len(self._tasks)

    async def find_request(
        self, tenant: str, method: str, request_id: str
    ) -> RememberedRequest | None:
        """See ``Store``."""
        request = self._requests.get((tenant, method, request_id))
        return request if request and request.expire_time > self._now() else None

    async def sweep(self, now: datetime) -> Sweep:
        """See ``Store``."""
        expired = sorted(n for n, r in self._tasks.items() if r.header.expired(now))
        images = 0
        for name in expired:
            images += self._release(name.tenant, self._tasks.pop(name).supports, now)
        images += self._drop_unused(self._images, now)
        requests = [k for k, r in self._requests.items() if r.expire_time <= now]
        for key in requests:
            del self._requests[key]
        return Sweep(tuple(expired), images, len(requests))

    def _check_request(self, request: RememberedRequest | None, now: datetime) -> None:
        if request is None:
            return
        former = self._requests.get((request.tenant, request.method, request.request_id))
        if former is not None and former.expire_time > now:
            raise request_id_reused(request.request_id)

    def _remember(self, request: RememberedRequest | None) -> None:
        if request is not None:
            self._requests[request.tenant, request.method, request.request_id] = request

    def _check_images(self, tenant: str, supports: Iterable[Support]) -> None:
        for support in supports:
            if (tenant, support.image_digest) not in self._images:
                raise refusals.image_not_found(support.image_digest)

    def _use(self, tenant: str, supports: Iterable[Support]) -> None:
        for support in supports:
            kept = self._images[tenant, support.image_digest]
            kept.uses += 1
            kept.awaited_since = None

    def _release(self, tenant: str, supports: Sequence[Support], now: datetime) -> int:
        for support in supports:
            self._images[tenant, support.image_digest].uses -= 1
        return self._drop_unused({(tenant, s.image_digest) for s in supports}, now)

    def _drop_unused(self, keys: Iterable[_ImageKey], now: datetime) -> int:
        cutoff = now - self._orphan_age
        unused = [key for key in keys if self._images[key].unused(cutoff)]
        for key in unused:
            del self._images[key]
        return len(unused)
