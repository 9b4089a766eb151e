"""Runs of a scenario against one server: capacity, warm-up, repeats."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from loadtests.arrivals import Arrivals, offsets
from loadtests.generator import saturate
from loadtests.photographs import photographs
from loadtests.plans import Job, delete_tasks, jobs, register_tasks
from loadtests.processes import offer_from_processes, processes_for
from loadtests.records import Records
from loadtests.results import Repeat, Result, repeat_of, result_of
from loadtests.sampling import ResourceSampler
from loadtests.scenarios import Scenario
from loadtests.seeds import Draw, Seeds
from loadtests.servers import RunningServer, ServerError, running_server
from loadtests.streams import Video, play
from loadtests.targets import Connection, Target

_CAPACITY_SECONDS = 4.0
#: Of the images that a saturated turn at the rate before it would take: so that none comes twice.
SPARE = 1.5
#: A batch sends as many frames as its images; each stream gets this long for one.
_FRAME_SECONDS = 10.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured.

    Attributes:
        target: Where it answers.
        engine: For the result.
        server: The process, if it was started here.
    """

    target: Target
    engine: str
    server: RunningServer | None = None

    @property
    def process(self) -> psutil.Process | None:
        """The server's process, if it runs here."""
        return self.server.process if self.server else None


@contextmanager
def subject_of(scenario: Scenario, target: Target | None, engine: str) -> Iterator[Subject]:
    """The server that runs already, or one that is started for the scenario."""
    if target is not None:
        yield Subject(target, "remote")
        return
    with running_server(engine, scenario.server) as server:
        yield Subject(server.target, engine, server)


@contextmanager
def registered(target: Target, scenario: Scenario) -> Iterator[tuple[Connection, list[str]]]:
    """The scenario's tasks, deleted at the end."""
    connection = Connection(target)
    try:
        tasks = register_tasks(connection, scenario.work)
        try:
            yield connection, tasks
        finally:
            # A server that died under the load has been measured, too.
            with suppress(ServerError):
                delete_tasks(connection, tasks)
    finally:
        connection.close()


def run(
    scenario: Scenario,
    subject: Subject,
    tell: Tell,
    *,
    seeds: Seeds | None = None,
    distinct: bool = False,
) -> Result:
    """Runs a scenario: tasks, capacity if it is asked for, warm-up, repeats.

    Args:
        scenario: Any kind but ``cold_start``.
        subject: The server.
        tell: Hears what goes on.
        seeds: Of images and arrivals, one draw a repeat; None for fresh ones. Runs on one server
            need draws of their own, or it knows the images already.
        distinct: Whether every arrival brings an image of its own, however many there are.
    """
    seeds = seeds or Seeds()
    with registered(subject.target, scenario) as (_, tasks):
        if scenario.load.capacity_share is not None:
            scenario = _with_rate(scenario, subject, tasks, tell, seeds)
        open_loop = partial(_open_loop, distinct=distinct)
        measure = {"stream": _stream, "batch": _batch}.get(scenario.work.kind, open_loop)
        repeats = []
        for _ in range(scenario.load.repeats):
            repeat = measure(scenario, subject, tasks, seeds.draw())
            tell(summary(repeat))
            repeats.append(repeat)
    return result_of(scenario, subject.engine, repeats, seeds.base)


def summary(repeat: Repeat) -> str:
    """A repeat in one line."""
    line = (
        f"offered {repeat.offered_rate:.1f}/s, good {repeat.good_rate:.1f}/s, "
        f"p50 {repeat.latency['p50'] * 1e3:.1f} ms, p99 {repeat.latency['p99'] * 1e3:.1f} ms, "
        f"lost {repeat.lost}, lag p99 {repeat.lag_p99 * 1e3:.1f} ms"
    )
    return line if repeat.valid else f"{line}  INVALID: {repeat.problem}"


def capacity_reached(scenario: Scenario, subject: Subject, tasks: list[str], seeds: Seeds) -> float:
    """The capacity of a server that a second of the same load has warmed up."""
    about = capacity(scenario, subject, tasks, 1.0, seeds.draw())
    enough = _of_images(scenario, int(SPARE * about * _CAPACITY_SECONDS))
    return capacity(enough, subject, tasks, _CAPACITY_SECONDS, seeds.draw())


def capacity(
    scenario: Scenario, subject: Subject, tasks: list[str], seconds: float, draw: Draw
) -> float:
    """Requests per second with enough of them in flight to keep the server busy."""
    concurrency = 4 * (os.cpu_count() or 1)
    sent = jobs(scenario.work, tasks, scenario.work.images, draw.images, draw.arrivals)
    records = asyncio.run(
        saturate(subject.target, sent, seconds, concurrency, scenario.load.deadline_seconds)
    )
    good = records.answered
    ended = good.intended + good.latency
    return float(np.count_nonzero(ended <= seconds)) / seconds


def _of_images(scenario: Scenario, count: int) -> Scenario:
    """The scenario with so many distinct images, at least."""
    work = msgspec.structs.replace(scenario.work, images=max(scenario.work.images, count))
    return msgspec.structs.replace(scenario, work=work)


def _with_rate(
    scenario: Scenario, subject: Subject, tasks: list[str], tell: Tell, seeds: Seeds
) -> Scenario:
    reached = capacity_reached(scenario, subject, tasks, seeds)
    share = scenario.load.capacity_share or 1.0
    tell(f"capacity {reached:.1f}/s, offering {share:g} times that")
    load = msgspec.structs.replace(scenario.load, rate=max(0.1, share * reached))
    return msgspec.structs.replace(scenario, load=load)


def _open_loop(
    scenario: Scenario, subject: Subject, tasks: list[str], draw: Draw, *, distinct: bool
) -> Repeat:
    load = scenario.load
    rate = load.rate or 1.0
    times = offsets(load.arrivals, rate, load.warm_up_seconds + load.seconds, draw.arrivals)
    work = (_of_images(scenario, len(times)) if distinct else scenario).work
    sent = jobs(work, tasks, len(times), draw.images, draw.arrivals)
    with ResourceSampler(subject.process) as sampler:
        records = offer(scenario, subject, sent, times)
    return repeat_of(records.since(load.warm_up_seconds), scenario, sampler.use)


def offer(
    scenario: Scenario, subject: Subject, sent: list[Job], times: NDArray[np.float64]
) -> Records:
    """Offers jobs at their times, from as many processes as the rate takes."""
    load = scenario.load
    return offer_from_processes(
        subject.target,
        sent,
        times,
        deadline=load.deadline_seconds,
        processes=load.processes or processes_for(load.rate or 1.0),
    )


def _stream(scenario: Scenario, subject: Subject, tasks: list[str], draw: Draw) -> Repeat:
    load, work = scenario.load, scenario.work
    seconds = load.warm_up_seconds + load.seconds
    frames = photographs(work.images, work.sizes, draw.images)
    # Cameras do not start together.
    phase = 1.0 / (load.rate or 1.0) / work.streams
    videos = [
        Video(
            tasks[index % len(tasks)],
            frames[index :: work.streams] or frames,
            offsets(Arrivals(load.arrivals), load.rate or 1.0, seconds, draw.arrivals)
            + index * phase,
        )
        for index in range(work.streams)
    ]
    with ResourceSampler(subject.process) as sampler:
        records = play(subject.target, videos, load.deadline_seconds)
    return repeat_of(records.since(load.warm_up_seconds), scenario, sampler.use)


def _batch(scenario: Scenario, subject: Subject, tasks: list[str], draw: Draw) -> Repeat:
    work = scenario.work
    images = photographs(work.images, work.sizes, draw.images)
    videos = [
        Video(
            tasks[index % len(tasks)],
            images[index :: work.streams],
            np.zeros(len(images[index :: work.streams])),
            window=work.window,
        )
        for index in range(work.streams)
        if images[index :: work.streams]
    ]
    with ResourceSampler(subject.process) as sampler:
        records = play(subject.target, videos, _FRAME_SECONDS * work.images)
    took = float((records.intended + records.latency).max(initial=1e-9))
    # There is no schedule here that the generator could fall behind.
    records.lag[:] = 0.0
    return repeat_of(records, scenario, sampler.use, seconds=took)
