"""``fewseg.v1.TaskService`` over the core: convert, call, convert."""

# gRPC finds the methods of a servicer by their names in the .proto.
# ruff: noqa: N802
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf import empty_pb2

from fewseg.v1 import task_service_pb2 as pb2
from fewseg.v1 import task_service_pb2_grpc as pb2_grpc
from service.api import answers, names, requests
from service.api.calls import ServicerContext, new_call
from service.api.fields import placing
from service.core.errors import InvalidArgumentError
from service.core.gateway import Gateway
from service.core.limits import Limits
from service.core.types import SupportInput, TaskReport

# gRPC shows a cancelled stream as one that ended, and cancels the call a moment
# later: without this pause every second cancelled stream would still be applied.
_SETTLING_SECONDS: Final = 0.02
# So many are shown in about a millisecond.
_FEW_SUPPORTS: Final = 100


class TaskServicer(pb2_grpc.TaskServiceServicer):
    """Registers tasks and changes their support sets.

    Args:
        gateway: The core.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def RegisterTask(
        self, request: pb2.RegisterTaskRequest, context: ServicerContext
    ) -> pb2.RegisterTaskResponse:
        """Registers a task with its first supports."""
        call = new_call(context)
        registration = await requests.off_the_loop(
            requests.registration, request, self._gateway.limits
        )
        report = await self._gateway.tasks.register(registration, call)
        return pb2.RegisterTaskResponse(
            task=await _shown(report), timings=answers.timings(call.clock)
        )

    async def GetTask(self, request: pb2.GetTaskRequest, context: ServicerContext) -> pb2.Task:
        """Returns a task."""
        call = new_call(context)
        name = names.task_name(request.name)
        return await _shown(await self._gateway.tasks.get(name, call))

    async def ListTasks(
        self, request: pb2.ListTasksRequest, context: ServicerContext
    ) -> pb2.ListTasksResponse:
        """Lists a page of tasks."""
        new_call(context)
        size = names.page_size(request.page_size)
        # One more than asked for tells whether there is another page.
        headers = await self._gateway.tasks.list(
            names.tenant_of(request.parent),
            page_size=size + 1,
            after=names.read_page_token(request.page_token),
        )
        shown = headers[:size]
        families = self._gateway.catalog.families()
        token = names.write_page_token(shown[-1].name.task) if len(headers) > size else ""
        return pb2.ListTasksResponse(
            tasks=[
                answers.listed_task(
                    header, families[header.model].name if header.model in families else ""
                )
                for header in shown
            ],
            next_page_token=token,
        )

    async def DeleteTask(
        self, request: pb2.DeleteTaskRequest, context: ServicerContext
    ) -> empty_pb2.Empty:
        """Deletes a task."""
        new_call(context)
        await self._gateway.tasks.delete(names.task_name(request.name), names.etag(request.etag))
        return empty_pb2.Empty()

    async def AddSupports(
        self, request_iterator: AsyncIterator[pb2.AddSupportsRequest], context: ServicerContext
    ) -> pb2.AddSupportsResponse:
        """Adds the supports of a stream, all or none."""
        call = new_call(context)
        header = await _header(request_iterator)
        with placing(pb2.AddSupportsHeader, "header"):
            report = await self._gateway.tasks.add_supports(
                names.task_name(header.name),
                names.etag(header.etag),
                names.request_id(header.request_id),
                _supports(request_iterator, self._gateway.limits),
                call,
            )
        return pb2.AddSupportsResponse(
            task=await _shown(report), timings=answers.timings(call.clock)
        )

    async def AnnotateSupport(
        self, request: pb2.AnnotateSupportRequest, context: ServicerContext
    ) -> pb2.AnnotateSupportResponse:
        """Replaces or extends the annotation of one support."""
        call = new_call(context)
        name = names.task_name(request.name)
        support_id = names.support_id(request.support_id, required=True)
        extend = requests.extends(request.mode)
        etag, request_id = names.etag(request.etag), names.request_id(request.request_id)
        annotation = await requests.off_the_loop(
            requests.new_annotation, request, self._gateway.limits
        )
        report = await self._gateway.tasks.annotate_support(
            name, support_id, annotation, extend=extend, etag=etag, request_id=request_id, call=call
        )
        return pb2.AnnotateSupportResponse(
            task=await _shown(report), timings=answers.timings(call.clock)
        )

    async def RemoveSupport(
        self, request: pb2.RemoveSupportRequest, context: ServicerContext
    ) -> pb2.RemoveSupportResponse:
        """Removes one support."""
        call = new_call(context)
        report = await self._gateway.tasks.remove_support(
            names.task_name(request.name),
            names.support_id(request.support_id, required=True),
            etag=names.etag(request.etag),
            request_id=names.request_id(request.request_id),
            call=call,
        )
        return pb2.RemoveSupportResponse(
            task=await _shown(report), timings=answers.timings(call.clock)
        )


async def _shown(report: TaskReport) -> pb2.Task:
    """Shows a task without holding up other calls: one of thousands of supports in a thread."""
    if len(report.supports) > _FEW_SUPPORTS:
        return await asyncio.to_thread(answers.task, report)
    return answers.task(report)


async def _header(messages: AsyncIterator[pb2.AddSupportsRequest]) -> pb2.AddSupportsHeader:
    first = await anext(aiter(messages), None)
    if first is None or first.WhichOneof("message") != "header":
        raise InvalidArgumentError(
            "NO_HEADER", "The first message of the stream names the task.", field="header"
        )
    return first.header


async def _supports(
    messages: AsyncIterator[pb2.AddSupportsRequest], limits: Limits
) -> AsyncIterator[SupportInput]:
    """Converts the supports of a stream as they come; one that is wrong ends it."""
    index = 0
    async for message in messages:
        kind = message.WhichOneof("message")
        if kind == "header":
            raise InvalidArgumentError(
                "SECOND_HEADER", "The header comes once, as the first message.", field="header"
            )
        if kind is None:
            raise InvalidArgumentError(
                "EMPTY_MESSAGE",
                "A message of the stream carries a support.",
                field=f"supports[{index}]",
            )
        requests.check_support_count(index + 1, limits)
        try:
            support = await requests.off_the_loop(requests.support_input, message.support, limits)
        except InvalidArgumentError as error:
            raise error.within(f"supports[{index}]") from None
        yield support
        index += 1
    await asyncio.sleep(_SETTLING_SECONDS)
