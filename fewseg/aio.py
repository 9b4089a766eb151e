"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from fewseg import _answers, _requests
from fewseg._channel import (
    DEFAULT_MESSAGE_BYTES,
    DEFAULT_RETRIES,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    EMBEDDED,
    ChannelSettings,
    EmbeddedService,
    Stubs,
    TlsFiles,
    start_embedded,
)
from fewseg._endings import Ending, add_supports_call
from fewseg._requests import Format, OutputSize, Scope, TaskRef, Ttl
from fewseg._retries import Attempts
from fewseg._streams import FramePump, each
from fewseg.annotations import AnnotationLike, Support
from fewseg.errors import FewSegError, error_of_call
from fewseg.images import ImageLike
from fewseg.results import Fusion, ModelInfo, ModelRefresh, SegmentResult, ServerInfo, Task
from fewseg.v1 import model_service_pb2 as model_pb2
from fewseg.v1 import task_service_pb2 as task_pb2


class AsyncClient:
    """The same as ``Client``, for asyncio.

    It connects (and starts the embedded service) at the first call or on ``async with``. Images are
    read and compressed on worker threads. Arguments, answers and errors are those of ``Client``.

    Args:
        target: Address of a server, or ``":embedded:"`` for a service inside this process.
        timeout: Seconds that a call may take; None for no deadline.
        tls: None for plain text, True for an encrypted channel, or one's own files.
        retries: Further attempts of a call that finds the server UNAVAILABLE.
        max_message_bytes: What one message may hold, in either direction.
        tenant: Owner of tasks that are named by their id alone.
        **embedded_options: Settings of the embedded service, such as ``repository``, ``store``.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        tls: bool | TlsFiles | None = None,
        retries: int = DEFAULT_RETRIES,
        max_message_bytes: int = DEFAULT_MESSAGE_BYTES,
        tenant: str = "default",
        **embedded_options: Any,
    ) -> None:
        self._settings = ChannelSettings(
            target, timeout, tls, retries, max_message_bytes, embedded_options
        )
        self._scope = Scope(tenant, max_message_bytes)
        self._connecting = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._embedded: EmbeddedService | None = None
        self._closed = False
        self._stubs: Any = None

    async def connect(self) -> None:
        """Opens the connection, unless it is open.

        Raises:
            FailedPrecondition: The embedded service is not installed or does not start.
            RuntimeError: The client was closed.
        """
        async with self._connecting:
            if self._closed:
                raise RuntimeError("The client is closed.")
            if self._channel is not None:
                return
            settings = self._settings
            credentials, target = settings.credentials(), settings.target
            if target == EMBEDDED:
                self._embedded = await asyncio.to_thread(start_embedded, settings.embedded_options)
                target = self._embedded.target
            self._channel = (
                grpc.aio.insecure_channel(target, settings.options())
                if credentials is None
                else grpc.aio.secure_channel(target, credentials, settings.options())
            )
            self._stubs = Stubs(self._channel)

    async def close(self) -> None:
        """Ends the connection, and the embedded service. Closing twice is harmless."""
        async with self._connecting:
            self._closed = True
            if self._channel is not None:
                await self._channel.close()
                self._channel = None
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.close)
                self._embedded = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def register(
        self,
        classes: Sequence[str],
        supports: Sequence[Support],
        *,
        model: str = "",
        task_id: str = "",
        display_name: str = "",
        ttl: Ttl | None = None,
        expire_time: datetime | None = None,
        fusion: Fusion = "merged",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """Registers a task; see ``Client.register``."""
        request = await asyncio.to_thread(
            _requests.register_request,
            self._scope,
            classes,
            supports,
            model=model,
            task_id=task_id,
            display_name=display_name,
            ttl=ttl,
            expire_time=expire_time,
            fusion=fusion,
            request_id=request_id,
        )
        await self.connect()
        return _answers.changed_task(
            await self._call(self._stubs.tasks.RegisterTask, request, timeout)
        )

    async def get_task(self, task: TaskRef) -> Task:
        """Returns a task as it is now; see ``Client.get_task``."""
        await self.connect()
        request = task_pb2.GetTaskRequest(name=self._scope.name(task))
        return _answers.task_of(await self._call(self._stubs.tasks.GetTask, request))

    async def tasks(self, *, page_size: int = 0) -> AsyncIterator[Task]:
        """Iterates over the tenant's tasks; see ``Client.tasks``."""
        await self.connect()
        request = task_pb2.ListTasksRequest(parent=self._scope.parent, page_size=page_size)
        while True:
            page = await self._call(self._stubs.tasks.ListTasks, request)
            for message in page.tasks:
                yield _answers.task_of(message)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_task(self, task: TaskRef, *, etag: str = "") -> None:
        """Deletes a task; see ``Client.delete_task``."""
        await self.connect()
        request = task_pb2.DeleteTaskRequest(name=self._scope.name(task), etag=etag)
        await self._call(self._stubs.tasks.DeleteTask, request, repeatable=False)

    async def add_supports(
        self,
        task: TaskRef,
        supports: Iterable[Support] | AsyncIterable[Support],
        *,
        progress: Callable[[int], None] | None = None,
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """Adds any number of supports, all or none; see ``Client.add_supports``."""
        await self.connect()
        call = add_supports_call(self._channel, timeout)
        ending = Ending(call)
        try:
            await call.write(_requests.add_header(self._scope, task, etag, request_id))
            count = 0
            async for support in each(supports):
                with _requests.naming_support(count):
                    message = await asyncio.to_thread(
                        _requests.add_support, self._scope, task, support
                    )
                await call.write(message)
                count += 1
                if progress is not None:
                    progress(count)
            await call.done_writing()
            return _answers.changed_task(await call.read())
        except asyncio.InvalidStateError:  # the call ended while a support was read
            raise await ending.error(None) from None
        except grpc.RpcError as error:
            raise await ending.error(error) from None
        finally:
            call.cancel()

    async def annotate(
        self,
        task: TaskRef,
        support_id: str,
        annotation: AnnotationLike,
        *,
        extend: bool = False,
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """Changes the annotation of a support; see ``Client.annotate``."""
        request = await asyncio.to_thread(
            _requests.annotate_request,
            self._scope,
            task,
            support_id,
            annotation,
            extend=extend,
            etag=etag,
            request_id=request_id,
        )
        await self.connect()
        answer = await self._call(self._stubs.tasks.AnnotateSupport, request, timeout)
        return _answers.changed_task(answer)

    async def remove_support(
        self, task: TaskRef, support_id: str, *, etag: str = "", request_id: str | None = None
    ) -> Task:
        """Removes a support; see ``Client.remove_support``."""
        await self.connect()
        request = _requests.remove_request(
            self._scope, task, support_id, etag=etag, request_id=request_id
        )
        return _answers.changed_task(await self._call(self._stubs.tasks.RemoveSupport, request))

    async def segment(
        self,
        task: TaskRef,
        image: ImageLike | None = None,
        *,
        support_id: str = "",
        format: Format = "png",
        size: OutputSize = "original",
        probabilities: bool = False,
        etag: str = "",
        timeout: float | None = None,
    ) -> SegmentResult:
        """Segments one image; see ``Client.segment``."""
        options = _requests.segment_options(format, size, probabilities)
        request = await asyncio.to_thread(
            _requests.segment_request, self._scope, task, image, support_id, options, etag
        )
        await self.connect()
        answer = await self._call(self._stubs.segmentation.Segment, request, timeout)
        return await asyncio.to_thread(_answers.segmentation_of, answer)

    def segment_stream(
        self,
        task: TaskRef,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        pinned: bool = False,
        format: Format = "png",
        size: OutputSize = "original",
        probabilities: bool = False,
        etag: str = "",
        window: int = 8,
        timeout: float | None = None,
    ) -> AsyncIterator[SegmentResult | FewSegError]:
        """Segments images one after another; see ``Client.segment_stream``."""
        options = _requests.segment_options(format, size, probabilities)
        opening = _requests.stream_opening(self._scope, task, options, pinned=pinned, etag=etag)
        pump = FramePump(
            opening,
            _requests.several_images(images),
            lambda number, image: _requests.stream_frame(self._scope, number, image),
            _requests.checked_window(window),
        )
        return self._frames(pump, timeout)

    async def segment_many(
        self,
        task: TaskRef,
        images: Iterable[ImageLike] | AsyncIterable[ImageLike],
        **options: Any,
    ) -> list[SegmentResult]:
        """Segments all images; see ``Client.segment_many``."""
        results: list[SegmentResult] = []
        async for answer in self.segment_stream(task, images, **options):
            results.append(_requests.result_or_raise(answer, len(results)))
        return results

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that the server serves, by alias."""
        await self.connect()
        request = model_pb2.ListModelsRequest()
        models: list[ModelInfo] = []
        while True:
            page = await self._call(self._stubs.models.ListModels, request)
            models += map(_answers.model_of, page.models)
            if not page.next_page_token:
                return tuple(models)
            request.page_token = page.next_page_token

    async def refresh_models(self, *, timeout: float | None = None) -> ModelRefresh:
        """Makes the server look into its model repository again."""
        await self.connect()
        request = model_pb2.RefreshModelsRequest()
        return _answers.refresh_of(
            await self._call(self._stubs.models.RefreshModels, request, timeout)
        )

    async def server_info(self) -> ServerInfo:
        """Versions and limits of the server."""
        await self.connect()
        request = model_pb2.GetServerInfoRequest()
        return _answers.server_info_of(await self._call(self._stubs.models.GetServerInfo, request))

    async def _call(
        self, method: Any, request: Any, timeout: float | None = None, *, repeatable: bool = True
    ) -> Any:
        settings = self._settings
        retries = settings.retries if repeatable else 0
        attempts = Attempts(retries, timeout, default=settings.timeout)
        while True:
            try:
                return await method(request, timeout=attempts.time_left())
            except grpc.RpcError as error:
                failure = error_of_call(error)
            pause = attempts.pause_after(failure)
            if pause is None:
                raise failure
            await asyncio.sleep(pause)

    async def _frames(
        self, pump: FramePump, timeout: float | None
    ) -> AsyncIterator[SegmentResult | FewSegError]:
        await self.connect()
        call = self._stubs.segmentation.SegmentStream(timeout=timeout)
        ending = Ending(call)
        sending = asyncio.create_task(pump.run(call))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                for failure in pump.failures.before(message.sequence_id):
                    yield failure
                pump.answered()
                yield _answers.frame_of(message)
            for failure in pump.failures.rest():
                yield failure
        except grpc.RpcError as error:
            raise await ending.error(error) from None
        finally:
            sending.cancel()
            call.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if pump.broken is not None:
            raise pump.broken
