"""The generator: sends at the intended times, whatever the answers do.

Latency counts from the intended time. A generator that is late itself makes latencies longer, never
shorter, and its lag is recorded, so that a run which measured the generator can be told.
"""

from __future__ import annotations

import asyncio
import gc
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
from fewseg.v1 import task_service_pb2 as task_pb2
from loadtests.plans import Job
from loadtests.records import NO_ANSWER, OK, Records, seconds_of
from loadtests.targets import ANNOTATE, SEGMENT, Target

_ANSWERS: dict[str, Any] = {
    SEGMENT: segmentation_pb2.SegmentResponse,
    ANNOTATE: task_pb2.AnnotateSupportResponse,
}
#: Time after the deadline for the status of a call to arrive.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of the generator does.

    Attributes:
        target: Where to.
        jobs: What each arrival does.
        offsets: float64 [n], seconds from the start, ascending.
        deadline: Seconds that a call may take.
    """

    target: Target
    jobs: Sequence[Job]
    offsets: NDArray[np.float64]
    deadline: float


async def offer(share: Share, start: float) -> Records:
    """Sends a share of the load.

    Args:
        share: What and when.
        start: ``time.monotonic()`` at which the offsets count from.
    """
    records = Records.empty(share.offsets)
    cpu = _cpu_seconds()
    async with share.target.aio_channel() as channel:
        calls = {
            rpc.method: channel.unary_unary(rpc.method) for job in share.jobs for rpc in job.rpcs
        }
        await asyncio.wait_for(channel.channel_ready(), timeout=_GRACE_SECONDS)
        gc.collect()
        gc.freeze()
        pending: set[asyncio.Task[None]] = set()
        for index, offset in enumerate(share.offsets.tolist()):
            due = start + offset
            await _until(due)
            records.lag[index] = time.monotonic() - due
            task = asyncio.create_task(_issue(share, index, due, calls, records))
            pending.add(task)
            task.add_done_callback(pending.discard)
        if pending:
            longest = share.deadline * max(len(job.rpcs) for job in share.jobs)
            await asyncio.wait(set(pending), timeout=longest + _GRACE_SECONDS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return replace(records, generator_cpu=_cpu_seconds() - cpu, started=start)


async def _until(due: float) -> None:
    """Sleeps until a moment; yields at least once, so that answers are read between sends."""
    await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _issue(
    share: Share, index: int, due: float, calls: dict[str, Any], records: Records
) -> None:
    for rpc in share.jobs[index].rpcs:
        code, answer = await call_once(
            calls[rpc.method], rpc.request, share.deadline, share.target.metadata
        )
        # Before the answer is taken apart: that is the client's pleasure.
        records.latency[index] = time.monotonic() - due
        records.code[index] = code
        if code != OK:
            return
        records.timings[index] += seconds_of(_ANSWERS[rpc.method].FromString(answer).timings)


async def call_once(
    call: Any, request: bytes, timeout: float, metadata: Sequence[tuple[str, str]]
) -> tuple[int, bytes]:
    """Makes one call and returns its gRPC code and its answer."""
    try:
        return OK, await call(request, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return int(error.code().value[0]), b""
    except (grpc.aio.UsageError, grpc.aio.InternalError):
        return NO_ANSWER, b""


async def saturate(
    target: Target, jobs: Sequence[Job], seconds: float, concurrency: int, deadline: float
) -> Records:
    """Keeps a number of requests in flight: for throughput, never for latency.

    Args:
        target: Where to.
        jobs: Taken in turns.
        seconds: For how long.
        concurrency: Requests in flight.
        deadline: Seconds that a call may take.

    Returns:
        Those that were begun within the time; intended means begun here.
    """
    cpu = _cpu_seconds()
    start = time.monotonic()
    finished: list[tuple[float, float, int, NDArray[np.float32]]] = []
    turn = iter(range(1 << 62))

    async with target.aio_channel() as channel:
        calls = {rpc.method: channel.unary_unary(rpc.method) for job in jobs for rpc in job.rpcs}

        async def keep_busy() -> None:
            while time.monotonic() - start < seconds:
                job = jobs[next(turn) % len(jobs)]
                begun = time.monotonic()
                for rpc in job.rpcs:
                    code, answer = await call_once(
                        calls[rpc.method], rpc.request, deadline, target.metadata
                    )
                    if code != OK:
                        break
                row = (
                    seconds_of(_ANSWERS[rpc.method].FromString(answer).timings)
                    if code == OK
                    else np.zeros(Records.empty(np.zeros(1)).timings.shape[1], np.float32)
                )
                finished.append((begun - start, time.monotonic() - begun, code, row))

        await asyncio.gather(*(keep_busy() for _ in range(concurrency)))
    records = Records.empty(np.array([row[0] for row in finished]))
    records.latency[:] = [row[1] for row in finished]
    records.code[:] = [row[2] for row in finished]
    records.timings[:] = [row[3] for row in finished]
    return replace(records, generator_cpu=_cpu_seconds() - cpu, started=start)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
