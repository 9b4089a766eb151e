"""The generator in processes of its own, all on one clock."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.generator import Share, offer
from loadtests.plans import Job
from loadtests.records import Records
from loadtests.targets import Target

#: What one process offers without falling behind, with a core to itself.
REQUESTS_PER_PROCESS = 400.0
#: Between the last process being ready and the first request.
_RUN_UP_SECONDS = 0.2
_START_SECONDS = 60.0


class GeneratorError(Exception):
    """A process of the generator failed; the message says why."""


def processes_for(rate: float) -> int:
    """How many processes offer a rate."""
    return max(1, int(np.ceil(rate / REQUESTS_PER_PROCESS)))


def offer_from_processes(
    target: Target,
    jobs: Sequence[Job],
    offsets: NDArray[np.float64],
    *,
    deadline: float,
    processes: int,
) -> Records:
    """Offers a load and returns what became of it.

    Args:
        target: Where to.
        jobs: One per arrival.
        offsets: float64 [n], when each is meant to leave.
        deadline: Seconds that a call may take.
        processes: How many share the arrivals; a lane stays with one of them.

    Raises:
        GeneratorError: A process failed.
    """
    context = multiprocessing.get_context("spawn")
    running = []
    try:
        for share in _shares(target, jobs, offsets, deadline, processes):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            here.send(share)
            running.append((process, here))
        for _, connection in running:
            _receive(connection, _START_SECONDS)
        start = time.monotonic() + _RUN_UP_SECONDS
        for _, connection in running:
            connection.send(start)
        return Records.joined([_receive(connection, None) for _, connection in running])
    finally:
        for process, connection in running:
            connection.close()
            process.join(timeout=5.0)
            if process.is_alive():
                process.terminate()
                process.join()


def _shares(
    target: Target,
    jobs: Sequence[Job],
    offsets: NDArray[np.float64],
    deadline: float,
    processes: int,
) -> list[Share]:
    process_of = np.array([job.lane for job in jobs[: len(offsets)]], dtype=np.int64) % processes
    chosen = [np.flatnonzero(process_of == process) for process in range(processes)]
    return [
        Share(target, [jobs[index] for index in mine.tolist()], offsets[mine], deadline)
        for mine in chosen
        if len(mine)
    ]


def _receive(connection: Connection, timeout: float | None) -> Any:
    if timeout is not None and not connection.poll(timeout):
        raise GeneratorError("a process of the generator did not start in time")
    try:
        answer = connection.recv()
    except EOFError:
        raise GeneratorError("a process of the generator ended early") from None
    if isinstance(answer, Exception):
        raise GeneratorError(str(answer)) from answer
    return answer


def _work(connection: Connection) -> None:
    try:
        share = connection.recv()
        connection.send("ready")
        start = connection.recv()
        connection.send(asyncio.run(offer(share, start)))
    except Exception as error:
        connection.send(GeneratorError(f"{type(error).__name__}: {error}"))
