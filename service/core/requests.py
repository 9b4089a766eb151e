"""Requests that must not be carried out twice (AIP-155)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from service.core.ports import RememberedRequest, Store
from service.core.records import decode_report, encode_report
from service.core.refusals import request_id_reused
from service.core.types import TaskReport


class KeyedLocks:
    """A lock per key, for as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Holds the key's lock for the body."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


class BodyDigest:
    """SHA-256 over the domain values of a request, fed piece by piece."""

    def __init__(self, *values: Any) -> None:
        self._hash = hashlib.sha256()
        self.add(*values)

    def add(self, *values: Any) -> None:
        """Counts further values in."""
        plain = msgspec.to_builtins(values, str_keys=True, builtin_types=(bytes,))
        encoded = msgspec.msgpack.encode(plain, order="deterministic")
        self._hash.update(len(encoded).to_bytes(8, "big") + encoded)

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class RequestId:
    """Which request this is; an empty ``value`` is remembered by nobody."""

    tenant: str
    method: str
    value: str


class RequestMemory:
    """Recalls the answers of requests that were carried out.

    Args:
        store: Where they are kept, in the transaction of the change itself.
        memory: For how long.
        now: The clock, UTC.
    """

    def __init__(self, store: Store, memory: timedelta, now: Callable[[], datetime]) -> None:
        self._store = store
        self._memory = memory
        self._now = now
        self._locks = KeyedLocks()

    async def recall(self, request: RequestId) -> RememberedRequest | None:
        """What is remembered of a request now."""
        if not request.value:
            return None
        return await self._store.find_request(request.tenant, request.method, request.value)

    @asynccontextmanager
    async def once(self, request: RequestId) -> AsyncIterator[RememberedRequest | None]:
        """Lets one request of an id in at a time, and says what is remembered of it."""
        if not request.value:
            yield None
            return
        async with self._locks.hold(request):
            yield await self.recall(request)

    def replay(self, remembered: RememberedRequest, body_digest: str) -> TaskReport:
        """The first answer again.

        Raises:
            AlreadyExistsError: The id was used for another body (REQUEST_ID_REUSED).
        """
        if remembered.body_digest != body_digest:
            raise request_id_reused(remembered.request_id)
        return decode_report(remembered.answer)

    def to_remember(
        self, request: RequestId, body_digest: str, report: TaskReport
    ) -> RememberedRequest | None:
        """What the store is to keep with the change; None without an id."""
        if not request.value:
            return None
        return RememberedRequest(
            tenant=request.tenant,
            method=request.method,
            request_id=request.value,
            body_digest=body_digest,
            answer=encode_report(report),
            expire_time=self._now() + self._memory,
        )
