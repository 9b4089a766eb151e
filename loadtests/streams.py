"""Load through streams: a video at its frame rate, and a batch as fast as it goes."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from fewseg.v1 import segmentation_service_pb2 as segmentation_pb2
from fewseg.v1 import types_pb2
from loadtests.photographs import Photograph
from loadtests.records import OK, Records, seconds_of
from loadtests.targets import STREAM, Target


@dataclass(frozen=True, slots=True)
class Video:
    """What one stream sends.

    Attributes:
        task: Its task.
        frames: Taken in turns.
        offsets: float64 [n], seconds from the start; one frame each. For a batch they are all 0.
        window: Frames without an answer, at most; 0: as many as the times ask for.
    """

    task: str
    frames: Sequence[Photograph]
    offsets: NDArray[np.float64]
    window: int = 0


def play(target: Target, videos: Sequence[Video], deadline: float) -> Records:
    """Plays videos at once and returns what became of every frame.

    Args:
        target: Where to.
        videos: A stream each.
        deadline: Seconds that a stream may go on after its last frame was due.
    """
    return asyncio.run(_play(target, videos, deadline))


async def _play(target: Target, videos: Sequence[Video], deadline: float) -> Records:
    used = resource.getrusage(resource.RUSAGE_SELF)
    async with target.aio_channel() as channel:
        await channel.channel_ready()
        start = time.monotonic() + 0.05
        parts = await asyncio.gather(
            *(_Player(target, channel, video, start).run(deadline) for video in videos)
        )
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - used.ru_utime - used.ru_stime
    return replace(Records.joined(parts), generator_cpu=cpu, started=start)


class _Player:
    """One stream: frames go at their times, answers come when they come."""

    def __init__(
        self, target: Target, channel: grpc.aio.Channel, video: Video, start: float
    ) -> None:
        self._target = target
        self._video = video
        self._start = start
        self._records = Records.empty(video.offsets)
        self._room = asyncio.Semaphore(video.window or max(1, len(video.offsets)))
        self._messages = [
            segmentation_pb2.SegmentStreamFrame(image=types_pb2.Image(encoded=frame.jpeg))
            for frame in video.frames
        ]
        self._open: Any = channel.stream_stream(
            STREAM,
            request_serializer=segmentation_pb2.SegmentStreamRequest.SerializeToString,
            response_deserializer=segmentation_pb2.SegmentStreamResponse.FromString,
        )

    async def run(self, deadline: float) -> Records:
        lasts = float(self._video.offsets[-1]) + deadline if len(self._video.offsets) else deadline
        call = self._open(timeout=lasts, metadata=self._target.metadata)
        sender = asyncio.create_task(self._send(call))
        try:
            async for answer in call:
                self._note(answer)
        except grpc.aio.AioRpcError as error:
            unanswered = self._records.latency == 0
            self._records.code[unanswered] = int(error.code().value[0])
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return self._records

    async def _send(self, call: Any) -> None:
        opening = segmentation_pb2.SegmentStreamOpening(name=self._video.task)
        await call.write(segmentation_pb2.SegmentStreamRequest(opening=opening))
        free = self._start
        for number, offset in enumerate(self._video.offsets.tolist()):
            due = self._start + offset
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # The sender's own lateness: while flow control held it up, the server was late.
            self._records.lag[number] = time.monotonic() - max(due, free)
            await self._room.acquire()
            if self._video.window:
                self._records.intended[number] = time.monotonic() - self._start
            frame = self._messages[number % len(self._messages)]
            frame.sequence_id = number
            await call.write(segmentation_pb2.SegmentStreamRequest(frame=frame))
            free = time.monotonic()
        await call.done_writing()

    def _note(self, answer: segmentation_pb2.SegmentStreamResponse) -> None:
        number, records = answer.sequence_id, self._records
        due = self._start + records.intended[number]
        records.latency[number] = time.monotonic() - due
        self._room.release()
        if answer.WhichOneof("result") == "error":
            records.code[number] = answer.error.code
            return
        records.code[number] = OK
        records.timings[number] = seconds_of(answer.segmentation.timings)
