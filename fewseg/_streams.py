"""What streaming needs: bounded hand-over between the caller and gRPC."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import grpc

from fewseg._answers import frame_of
from fewseg.errors import FewSegError, InvalidArgument, error_of_call
from fewseg.images import ImageLike
from fewseg.results import SegmentResult
from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2

Item = TypeVar("Item")
Message = TypeVar("Message")

#: What goes wrong when an image or a mask of the caller cannot be made into a message.
LOCAL_ERRORS = (OSError, TypeError, ValueError)


#: What writing to an asyncio call raises once the call has ended.
CALL_OVER: Final = (asyncio.InvalidStateError, grpc.RpcError)


class LocalFailures:
    """The errors of frames that were never sent, kept until it is their turn."""

    def __init__(self) -> None:
        self._errors: deque[tuple[int, FewSegError]] = deque()

    def add(self, sequence_id: int, error: Exception) -> None:
        """Keeps why a frame could not be made into a message."""
        failure = InvalidArgument(
            str(error) or type(error).__name__, code="INVALID_ARGUMENT", reason="IMAGE_UNREADABLE"
        )
        failure.__cause__ = error
        self._errors.append((sequence_id, failure))

    def before(self, sequence_id: int) -> Iterator[FewSegError]:
        """Takes the errors of the frames below a number."""
        while self._errors and self._errors[0][0] < sequence_id:
            yield self._errors.popleft()[1]

    def rest(self) -> Iterator[FewSegError]:
        """Takes all errors."""
        while self._errors:
            yield self._errors.popleft()[1]


class Outbox(Generic[Message]):
    """Hands messages from the caller's thread to the one of gRPC that sends them.

    The caller's iterable is thus read on the caller's thread, and an error of it surfaces there.
    """

    _END = object()

    def __init__(self, capacity: int = 2) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(capacity)
        self._abandoned = threading.Event()

    def put(self, message: Message) -> bool:
        """Waits for room; returns False once nobody will take the message."""
        while not self._abandoned.is_set():
            try:
                self._queue.put(message, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def finish(self) -> None:
        """Says that there are no more messages."""
        self.put(self._END)  # type: ignore[arg-type]

    def abandon(self) -> None:
        """Lets go of both sides: the call is over."""
        self._abandoned.set()

    def __iter__(self) -> Iterator[Message]:
        while not self._abandoned.is_set():
            try:
                message = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if message is self._END:
                return
            yield message


class FrameFeed:
    """The messages of a stream of queries, made on the thread of gRPC as it can send them.

    Never more than ``window`` frames are without an answer.

    Attributes:
        broken: What the caller's iterable raised, if it did.
        failures: The frames that could not be sent.
    """

    def __init__(
        self,
        opening: segmentation_pb2.SegmentStreamRequest,
        images: Iterable[ImageLike],
        make_frame: Callable[[int, ImageLike], segmentation_pb2.SegmentStreamRequest],
        window: int,
    ) -> None:
        self.broken: Exception | None = None
        self.failures = LocalFailures()
        self._opening = opening
        self._images = images
        self._make_frame = make_frame
        self._slots = threading.Semaphore(window)
        self._closed = False

    def __iter__(self) -> Iterator[segmentation_pb2.SegmentStreamRequest]:
        yield self._opening
        try:
            yield from self._frames()
        except Exception as error:  # whatever it is, the caller gets it, not the log of gRPC
            self.broken = error

    def _frames(self) -> Iterator[segmentation_pb2.SegmentStreamRequest]:
        images = enumerate(self._images)
        while self._slots.acquire() and not self._closed:
            try:
                sequence_id, image = next(images)
            except StopIteration:
                return
            try:
                frame = self._make_frame(sequence_id, image)
            except LOCAL_ERRORS as error:
                self.failures.add(sequence_id, error)
                self._slots.release()
                continue
            yield frame

    def answers(
        self, open_call: Callable[[Iterator[segmentation_pb2.SegmentStreamRequest]], Any]
    ) -> Iterator[SegmentResult | FewSegError]:
        """Opens the call and yields the answer to each image, in order.

        Raises:
            FewSegError: The stream as a whole failed.
            Exception: What the caller's iterable raised, after the answers to what it gave.
        """
        call = open_call(iter(self))
        try:
            for message in call:
                yield from self.failures.before(message.sequence_id)
                self._slots.release()
                yield frame_of(message)
            yield from self.failures.rest()
        except grpc.RpcError as error:
            raise error_of_call(error) from None
        finally:
            # Ends the thread of gRPC as soon as the caller's iterable lets it.
            self._closed = True
            self._slots.release()
            call.cancel()
        if self.broken is not None:
            raise self.broken


async def each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """Iterates over either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class FramePump:
    """Sends the frames of a stream of queries from an asyncio task; see ``FrameFeed``."""

    def __init__(
        self,
        opening: segmentation_pb2.SegmentStreamRequest,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        make_frame: Callable[[int, ImageLike], segmentation_pb2.SegmentStreamRequest],
        window: int,
    ) -> None:
        self.broken: Exception | None = None
        self.failures = LocalFailures()
        self._opening = opening
        self._images = images
        self._make_frame = make_frame
        self._slots = asyncio.Semaphore(window)

    async def run(self, call: Any) -> None:
        """Sends everything; returns early when the call is over."""
        with suppress(*CALL_OVER):  # over: its reader tells why
            await call.write(self._opening)
            try:
                async for frame in self._frames():
                    await call.write(frame)
            except CALL_OVER:
                raise
            except Exception as error:  # the caller gets it, after the answers to what was sent
                self.broken = error
            await call.done_writing()

    async def _frames(self) -> AsyncIterator[segmentation_pb2.SegmentStreamRequest]:
        images, sequence_id = each(self._images), 0
        while await self._slots.acquire():
            try:
                image = await anext(images)
            except StopAsyncIteration:
                return
            try:
                # Reading and compressing images would hold up the event loop.
                yield await asyncio.to_thread(self._make_frame, sequence_id, image)
            except LOCAL_ERRORS as error:
                self.failures.add(sequence_id, error)
                self._slots.release()
            sequence_id += 1

    def answered(self) -> None:
        """Makes room for one more frame."""
        self._slots.release()
