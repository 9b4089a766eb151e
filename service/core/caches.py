"""A cache whose bound is in bytes, and which builds each missing value once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.core.ports import Telemetry


class Sized(Protocol):
    """A value that knows what it weighs."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)

#: Memory of an entry beyond its arrays: key, dictionary slot, objects. Measured
#: on CPython 3.11 with tasks of one class; keeps many tiny entries honest.
ENTRY_OVERHEAD = 1024


@dataclass(slots=True)
class _Flight(Generic[Value]):
    """A value that is being made, by what, and how many callers have need of it."""

    build: Callable[[], Awaitable[Value]]
    waiters: int = 0
    task: asyncio.Task[Value] | None = None


class ByteBudgetCache(Generic[Key, Value]):
    """Least recently used values within a budget of bytes.

    Missing values are built by one task however many callers ask (single
    flight). A value that exceeds the budget by itself is returned, not kept.

    Args:
        name: For telemetry.
        budget: Bytes that the values may take together.
        telemetry: Hears hits, misses, evictions, bytes.
    """

    def __init__(self, name: str, budget: int, telemetry: Telemetry) -> None:
        self._name = name
        self._budget = budget
        self._telemetry = telemetry
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._flights: dict[Key, _Flight[Value]] = {}
        self._nbytes = 0
        telemetry.watch_cache_bytes(name, lambda: self._nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes held now, never more than the budget."""
        return self._nbytes

    def __len__(self) -> int:
        """Number of values held."""
        return len(self._entries)

    def peek(self, key: Key) -> Value | None:
        """The value if it is held; counts as a use, not as a hit or miss."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def expects(self, key: Key) -> bool:
        """Whether the value is held, or being built."""
        return key in self._entries or key in self._flights

    async def get(
        self, key: Key, build: Callable[[], Awaitable[Value]], *, detached: bool = False
    ) -> tuple[Value, bool]:
        """Returns the value, building it if it is missing.

        Args:
            key: What is wanted.
            build: Makes it; its errors go to every caller that waits.
            detached: Whether the build goes on when every caller has given up.

        Returns:
            The value, and whether it was at hand.
        """
        value = self.peek(key)
        if value is not None:
            self._telemetry.cache_hit(self._name)
            return value, True
        self._telemetry.cache_miss(self._name)
        flight = self._flights.get(key) or self._depart(key, build)
        return await self._await(key, flight, detached), False

    def promise(self, key: Key, build: Callable[[], Awaitable[Value]]) -> Callable[[], None]:
        """Tells of a value, neither held nor being made, that its caller is about to ``put``.

        Args:
            key: What is being made.
            build: Waits for it, on behalf of those who ask for it before it is there; begins
                with the first of them.

        Returns:
            To be called once, when the value was put, or will not be.

        Raises:
            ValueError: It is held, or being made.
        """
        if self.expects(key):
            raise ValueError(f"{key} is held or being made already")
        self._telemetry.cache_miss(self._name)
        flight = self._depart(key, build)
        flight.waiters += 1
        return lambda: self._leave(key, flight, detached=False)

    def _depart(self, key: Key, build: Callable[[], Awaitable[Value]]) -> _Flight[Value]:
        flight = self._flights[key] = _Flight(build)
        return flight

    async def _await(self, key: Key, flight: _Flight[Value], detached: bool) -> Value:
        flight.waiters += 1
        if flight.task is None:
            flight.task = asyncio.ensure_future(self._build(key, flight))
            # Nobody may be left to hear of a failure.
            flight.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.shield(flight.task)
        finally:
            self._leave(key, flight, detached)

    def _leave(self, key: Key, flight: _Flight[Value], detached: bool) -> None:
        flight.waiters -= 1
        if flight.waiters == 0 and not detached:
            # Whoever comes next must begin anew, not join what is ending.
            self._land(key, flight)
            if flight.task is not None:
                flight.task.cancel()

    async def _build(self, key: Key, flight: _Flight[Value]) -> Value:
        try:
            value = await flight.build()
            self.put(key, value)
            return value
        finally:
            self._land(key, flight)

    def _land(self, key: Key, flight: _Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value, letting the least recently used go as needed."""
        self.discard(key)
        weight = value.nbytes + ENTRY_OVERHEAD
        if weight > self._budget:
            return
        self._entries[key] = value
        self._nbytes += weight
        evicted = 0
        while self._nbytes > self._budget:
            self._remove(next(iter(self._entries)))
            evicted += 1
        if evicted:
            self._telemetry.cache_evicted(self._name, evicted)

    def discard(self, key: Key) -> None:
        """Lets a value go, if it is held."""
        if key in self._entries:
            self._remove(key)

    def discard_where(self, condition: Callable[[Key], bool]) -> None:
        """Lets all values go whose key meets the condition."""
        for key in [key for key in self._entries if condition(key)]:
            self.discard(key)

    def _remove(self, key: Key) -> None:
        value = self._entries.pop(key)
        self._nbytes -= value.nbytes + ENTRY_OVERHEAD

    async def close(self) -> None:
        """Cancels builds under way and lets every value go."""
        flights = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        self.discard_where(lambda key: True)
