"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import grpc

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
from fewseg._requests import Format, OutputSize, Scope, TaskRef, Ttl
from fewseg._retries import Attempts
from fewseg._streams import FrameFeed, Outbox
from fewseg.annotations import AnnotationLike, Support
from fewseg.errors import FewSegError, error_of_call
from fewseg.images import ImageLike
from fewseg.results import Fusion, ModelInfo, ModelRefresh, SegmentResult, ServerInfo, Task
from fewseg.v1 import model_service_pb2 as model_pb2
from fewseg.v1 import task_service_pb2 as task_pb2


class Client:
    """Talks to a FewSeg server, or runs one inside this process.

    A client may be used from several threads. Every method raises a ``FewSegError`` when the call
    does not succeed, and ``ValueError``, ``TypeError`` or ``OSError`` when an image or a mark of
    the caller cannot be sent.

    Args:
        target: Address of a server, or ``":embedded:"`` for a service inside this process.
        timeout: Seconds that a call may take; None for no deadline. Streams (``add_supports``,
            ``segment_stream``) have a deadline only if they are given one.
        tls: None for plain text, True for an encrypted channel that trusts the usual authorities,
            or one's own files.
        retries: Further attempts of a call that finds the server UNAVAILABLE. Calls that
            change a task carry a request id, so that a second attempt changes nothing twice.
        max_message_bytes: What one message may hold, in either direction.
        tenant: Owner of tasks that are named by their id alone.
        **embedded_options: Settings of the embedded service, such as ``repository``, ``store``.

    Raises:
        FailedPrecondition: The embedded service is not installed or does not start.
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
        self._settings = settings = ChannelSettings(
            target, timeout, tls, retries, max_message_bytes, embedded_options
        )
        self._scope = Scope(tenant, max_message_bytes)
        credentials, options = settings.credentials(), settings.options()
        self._embedded: EmbeddedService | None = None
        if target == EMBEDDED:
            self._embedded = start_embedded(embedded_options)
            target = self._embedded.target
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stubs = Stubs(self._channel)

    def close(self) -> None:
        """Ends the connection, and the embedded service. Closing twice is harmless."""
        self._channel.close()
        if self._embedded is not None:
            self._embedded.close()
            self._embedded = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def register(
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
        """Registers a task: what to segment, said by a few annotated images.

        Args:
            classes: Names of the classes; mask value i is the i-th of them, counted from one.
            supports: The first supports; together they show every class.
            model: Alias of a model; empty for the server's default.
            task_id: Last part of the task's name: 1 to 63 lower-case letters, digits or '-',
                starting with a letter; empty lets the server choose.
            display_name: Free text for people.
            ttl: Time from now after which the task ends by itself.
            expire_time: Moment when the task ends by itself; instead of ``ttl``.
            fusion: How the shots become one answer: "merged" by the model's own rule, or
                "cross_guided": each shot decodes an image alone, and is weighed by how well it
                finds the annotations of all shots. A query then costs one decoding per shot.
            request_id: UUID; the same request under the same id is carried out once.
            timeout: Seconds, instead of the client's; ``math.inf`` for no deadline.

        Returns:
            The task; each of its supports tells how well the others predict it.

        Raises:
            InvalidArgument: An image, an annotation, a class or a name is wrong.
            AlreadyExists: There is a task of that id.
        """
        request = _requests.register_request(
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
        return _answers.changed_task(self._call(self._stubs.tasks.RegisterTask, request, timeout))

    def get_task(self, task: TaskRef) -> Task:
        """Returns a task as it is now.

        Raises:
            NotFound: There is none.
        """
        request = task_pb2.GetTaskRequest(name=self._scope.name(task))
        return _answers.task_of(self._call(self._stubs.tasks.GetTask, request))

    def tasks(self, *, page_size: int = 0) -> Iterator[Task]:
        """Iterates over the tenant's tasks by name, without their supports, page by page."""
        request = task_pb2.ListTasksRequest(parent=self._scope.parent, page_size=page_size)
        while True:
            page = self._call(self._stubs.tasks.ListTasks, request)
            yield from map(_answers.task_of, page.tasks)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete_task(self, task: TaskRef, *, etag: str = "") -> None:
        """Deletes a task; with ``etag``, only that revision of it.

        Raises:
            NotFound: There is none.
            Aborted: It has another revision by now.
        """
        request = task_pb2.DeleteTaskRequest(name=self._scope.name(task), etag=etag)
        self._call(self._stubs.tasks.DeleteTask, request, repeatable=False)

    def add_supports(
        self,
        task: TaskRef,
        supports: Iterable[Support],
        *,
        progress: Callable[[int], None] | None = None,
        etag: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Task:
        """Adds any number of supports, all or none, in bounded memory.

        Args:
            task: The task.
            supports: Read one after another, as the server takes them.
            progress: Called with the number of supports handed over so far.
            etag: Only this revision is changed.
            request_id: UUID; the same request under the same id is carried out once.
            timeout: Seconds for all of it; None for no deadline.

        Raises:
            InvalidArgument: A support is wrong.
            NotFound: There is no such task.
            Aborted: The task has another revision by now.
        """
        outbox: Outbox[task_pb2.AddSupportsRequest] = Outbox()
        outbox.put(_requests.add_header(self._scope, task, etag, request_id))
        call = self._stubs.tasks.AddSupports.future(iter(outbox), timeout=timeout)
        call.add_done_callback(lambda _: outbox.abandon())
        try:
            for index, support in enumerate(supports):
                with _requests.naming_support(index):
                    message = _requests.add_support(self._scope, task, support)
                if not outbox.put(message):
                    break
                if progress is not None:
                    progress(index + 1)
            outbox.finish()
            return _answers.changed_task(call.result())
        except grpc.RpcError as error:
            raise error_of_call(error) from None
        finally:
            call.cancel()

    def annotate(
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
        """Replaces the annotation of a support, or paints further marks over it.

        Args:
            task: The task.
            support_id: Which support.
            annotation: The marks.
            extend: Paint them over those that are there.
            etag: Only this revision is changed.
            request_id: UUID; the same request under the same id is carried out once.
            timeout: Seconds, instead of the client's; ``math.inf`` for no deadline.

        Raises:
            InvalidArgument: The annotation is wrong.
            NotFound: There is no such task or support.
            Aborted: The task has another revision by now.
        """
        request = _requests.annotate_request(
            self._scope,
            task,
            support_id,
            annotation,
            extend=extend,
            etag=etag,
            request_id=request_id,
        )
        return _answers.changed_task(
            self._call(self._stubs.tasks.AnnotateSupport, request, timeout)
        )

    def remove_support(
        self, task: TaskRef, support_id: str, *, etag: str = "", request_id: str | None = None
    ) -> Task:
        """Removes a support.

        Raises:
            NotFound: There is no such task or support.
            FailedPrecondition: The task cannot do without it.
            Aborted: The task has another revision by now.
        """
        request = _requests.remove_request(
            self._scope, task, support_id, etag=etag, request_id=request_id
        )
        return _answers.changed_task(self._call(self._stubs.tasks.RemoveSupport, request))

    def segment(
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
        """Segments one image.

        Args:
            task: The task.
            image: The image.
            support_id: Instead of ``image``: segment the image of this support.
            format: How the mask crosses the wire.
            size: Of the mask.
            probabilities: Whether to return them per pixel.
            etag: Only this revision of the task answers.
            timeout: Seconds, instead of the client's; ``math.inf`` for no deadline.

        Raises:
            InvalidArgument: The image is wrong.
            NotFound: There is no such task or support.
            Aborted: The task has another revision by now.
        """
        options = _requests.segment_options(format, size, probabilities)
        request = _requests.segment_request(self._scope, task, image, support_id, options, etag)
        return _answers.segmentation_of(
            self._call(self._stubs.segmentation.Segment, request, timeout)
        )

    def segment_stream(
        self,
        task: TaskRef,
        images: Iterable[ImageLike],
        *,
        pinned: bool = False,
        format: Format = "png",
        size: OutputSize = "original",
        probabilities: bool = False,
        etag: str = "",
        window: int = 8,
        timeout: float | None = None,
    ) -> Iterator[SegmentResult | FewSegError]:
        """Segments images one after another over one connection.

        Args:
            task: The task.
            images: Read on another thread, as answers come in.
            pinned: Answer every image with the revision that the task has now, not the newest.
            format: How the masks cross the wire.
            size: Of the masks.
            probabilities: Whether to return them per pixel.
            etag: The stream opens only on this revision.
            window: Images that may be without an answer at a time.
            timeout: Seconds for the whole stream; None for no deadline.

        Returns:
            One answer per image, in order: its segmentation, or the error of this image alone.

        Raises:
            NotFound: There is no such task.
            Aborted: The task has another revision than ``etag``.
        """
        options = _requests.segment_options(format, size, probabilities)
        opening = _requests.stream_opening(self._scope, task, options, pinned=pinned, etag=etag)
        feed = FrameFeed(
            opening,
            _requests.several_images(images),
            lambda number, image: _requests.stream_frame(self._scope, number, image),
            _requests.checked_window(window),
        )
        method = self._stubs.segmentation.SegmentStream
        return feed.answers(lambda messages: method(messages, timeout=timeout))

    def segment_many(
        self, task: TaskRef, images: Iterable[ImageLike], **options: Any
    ) -> list[SegmentResult]:
        """Segments all images; ``options`` are those of ``segment_stream``.

        Raises:
            FewSegError: That of the first image that cannot be segmented; a note names it.
        """
        results = []
        for index, answer in enumerate(self.segment_stream(task, images, **options)):
            results.append(_requests.result_or_raise(answer, index))
        return results

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that the server serves, by alias."""
        request = model_pb2.ListModelsRequest()
        models: list[ModelInfo] = []
        while True:
            page = self._call(self._stubs.models.ListModels, request)
            models += map(_answers.model_of, page.models)
            if not page.next_page_token:
                return tuple(models)
            request.page_token = page.next_page_token

    def refresh_models(self, *, timeout: float | None = None) -> ModelRefresh:
        """Makes the server look into its model repository again."""
        request = model_pb2.RefreshModelsRequest()
        return _answers.refresh_of(self._call(self._stubs.models.RefreshModels, request, timeout))

    def server_info(self) -> ServerInfo:
        """Versions and limits of the server."""
        request = model_pb2.GetServerInfoRequest()
        return _answers.server_info_of(self._call(self._stubs.models.GetServerInfo, request))

    def _call(
        self, method: Any, request: Any, timeout: float | None = None, *, repeatable: bool = True
    ) -> Any:
        settings = self._settings
        retries = settings.retries if repeatable else 0
        attempts = Attempts(retries, timeout, default=settings.timeout)
        while True:
            try:
                return method(request, timeout=attempts.time_left())
            except grpc.RpcError as error:
                failure = error_of_call(error)
            pause = attempts.pause_after(failure)
            if pause is None:
                raise failure
            time.sleep(pause)
