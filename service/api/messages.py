"""Messages of calls: read when they are wanted, measured, and only then parsed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError

from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.refusals import overloaded, stopping


class MessageTooLargeError(OutOfLimitsError):
    """A message takes more bytes than this server accepts."""


class Patience:
    """How long calls may wait for their next message: for ever, until the server stops."""

    def __init__(self) -> None:
        self._ending = False
        self._waits: dict[asyncio.Timeout, float] = {}

    def end(self) -> None:
        """Ends all waits, those to come included, as soon as each allows."""
        if self._ending:
            return
        self._ending = True
        for scope, seconds in self._waits.items():
            scope.reschedule(_from_now(seconds))

    async def next(self, raw: AsyncIterator[bytes], seconds: float) -> bytes:
        """Waits for the next message, once the server stops no longer than ``seconds``.

        Raises:
            StopAsyncIteration: There is none.
            UnavailableError: The server stops (STOPPING).
        """
        if self._ending and not seconds:
            raise stopping()
        scope = asyncio.timeout_at(_from_now(seconds) if self._ending else None)
        try:
            async with scope:
                self._waits[scope] = seconds
                return await anext(raw)
        except TimeoutError:
            if scope.expired():
                raise stopping() from None
            raise
        finally:
            self._waits.pop(scope, None)


def _from_now(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


class MessageMemory:
    """What the messages of single calls may take together.

    Args:
        budget: Bytes. One message is taken in whatever its size.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._lent = 0

    @contextmanager
    def lend(self, nbytes: int) -> Iterator[None]:
        """Counts a message while its call runs.

        Raises:
            ResourceExhaustedError: The other messages leave no room for it (OVERLOADED).
        """
        if self._lent and self._lent + nbytes > self._budget:
            raise overloaded()
        self._lent += nbytes
        try:
            yield
        finally:
            self._lent -= nbytes


class Messages:
    """The messages that the client of one call sends; iterates over them, parsed.

    Args:
        raw: The messages as bytes.
        parse: Makes a message of bytes.
        limit: Bytes that one may have.
        patience: Ends the wait for the next one when the server stops.
        seconds: The longest wait from then on.
    """

    def __init__(
        self,
        raw: AsyncIterable[bytes],
        parse: Callable[[bytes], Any],
        *,
        limit: int,
        patience: Patience,
        seconds: float,
    ) -> None:
        self._raw = raw
        self._parse = parse
        self._limit = limit
        self._patience = patience
        self._seconds = seconds

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self.parsed(await self.read())

    async def read(self) -> bytes:
        """The next message, not parsed yet.

        Raises:
            StopAsyncIteration: There is none.
            MessageTooLargeError: It is too large (MESSAGE_TOO_LARGE).
            UnavailableError: The server stops (STOPPING).
        """
        data = await self._patience.next(aiter(self._raw), self._seconds)
        if len(data) > self._limit:
            raise MessageTooLargeError(
                "MESSAGE_TOO_LARGE",
                f"The message takes {len(data)} bytes and this server accepts {self._limit}: send "
                "smaller images, or supports one by one in a stream.",
                metadata={"limit": str(self._limit), "size": str(len(data))},
            )
        return data

    async def read_only_one(self) -> bytes:
        """The only message of a call, not parsed yet; raises as ``read`` does."""
        data = await self.read()
        await self.close()
        return data

    async def close(self) -> None:
        """Reads no more. gRPC's reader keeps the newest message, and itself, until then."""
        reader: Any = aiter(self._raw)
        await reader.aclose()

    def parsed(self, data: bytes) -> Any:
        """Makes a message of bytes.

        Raises:
            InvalidArgumentError: They are none (MALFORMED_MESSAGE).
        """
        try:
            return self._parse(data)
        except DecodeError:
            raise InvalidArgumentError(
                "MALFORMED_MESSAGE", "The bytes of the message are not those of its type."
            ) from None
