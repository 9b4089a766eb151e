"""``fewseg.v1.SegmentationService`` over the core: convert, call, convert."""

# gRPC finds the methods of a servicer by their names in the .proto.
# ruff: noqa: N802
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from fewseg.v1 import segmentation_service_pb2 as pb2
from fewseg.v1 import segmentation_service_pb2_grpc as pb2_grpc
from service.api import answers, names, requests
from service.api.calls import ServicerContext, current_request_id, is_overdue, new_call
from service.api.errors import let_go, status_of
from service.api.fields import placing
from service.api.pipeline import run_in_order
from service.core.errors import InvalidArgumentError
from service.core.gateway import Gateway
from service.core.segmentation import StreamSession
from service.core.types import OutputOptions


class SegmentationServicer(pb2_grpc.SegmentationServiceServicer):
    """Segments images under a registered task.

    Args:
        gateway: The core.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Segment(
        self, request: pb2.SegmentRequest, context: ServicerContext
    ) -> pb2.SegmentResponse:
        """Segments one image; a full server has refused the call at its door."""
        call = new_call(context)
        query = await requests.off_the_loop(
            requests.query, request, self._gateway.limits, quick=requests.is_quick(request.image)
        )
        result = await self._gateway.segmenter.segment(query, call)
        answer = pb2.SegmentResponse()
        await answers.write_segmentation(answer, result, call.clock)
        answers.check_size(answer, self._gateway.limits)
        return answer

    async def SegmentStream(
        self, request_iterator: AsyncIterator[pb2.SegmentStreamRequest], context: ServicerContext
    ) -> None:
        """Segments the images of a stream, pipelined and in order."""
        opening = await _opening(request_iterator)
        with _placing_in_opening():
            options = requests.within("options", requests.output_options, opening.options)
            session = await self._gateway.segmenter.open_stream(
                names.task_name(opening.name),
                names.etag(opening.etag),
                pinned=requests.is_pinned(opening.revision_policy),
                call=new_call(context),
            )

        async def work(frame: pb2.SegmentStreamFrame) -> pb2.SegmentStreamResponse:
            return await self._answer(frame, session, options, context)

        try:
            await run_in_order(
                _frames(request_iterator),
                work,
                context.write,
                bound=self._gateway.limits.stream_frames,
            )
        finally:
            session.close()

    async def _answer(
        self,
        frame: pb2.SegmentStreamFrame,
        session: StreamSession,
        options: OutputOptions,
        context: ServicerContext,
    ) -> pb2.SegmentStreamResponse:
        """Segments one frame; what goes wrong with it is its answer."""
        answer = pb2.SegmentStreamResponse(sequence_id=frame.sequence_id)
        limits = self._gateway.limits
        try:
            with _placing_in_opening():
                call = new_call(context)
                image = await requests.off_the_loop(
                    requests.image_of, frame, limits, quick=requests.is_quick(frame.image)
                )
                result = await session.segment(image, options, call)
                await answers.write_segmentation(answer.segmentation, result, call.clock)
                answers.check_size(answer, limits)
        except Exception as error:
            overdue = is_overdue(context)
            answer.error.CopyFrom(status_of(error, current_request_id.get(), overdue=overdue))
            let_go(error)
        return answer


def _placing_in_opening() -> AbstractContextManager[None]:
    return placing(pb2.SegmentStreamOpening, "opening")


async def _opening(messages: AsyncIterator[pb2.SegmentStreamRequest]) -> pb2.SegmentStreamOpening:
    first = await anext(aiter(messages), None)
    if first is None or first.WhichOneof("message") != "opening":
        raise InvalidArgumentError(
            "NO_OPENING", "The first message of the stream names the task.", field="opening"
        )
    return first.opening


async def _frames(
    messages: AsyncIterator[pb2.SegmentStreamRequest],
) -> AsyncIterator[pb2.SegmentStreamFrame]:
    async for message in messages:
        kind = message.WhichOneof("message")
        if kind == "opening":
            raise InvalidArgumentError(
                "SECOND_OPENING", "The opening comes once, as the first message.", field="opening"
            )
        if kind is None:
            raise InvalidArgumentError(
                "EMPTY_MESSAGE", "A message of the stream carries a frame.", field="frame"
            )
        yield message.frame
