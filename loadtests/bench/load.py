"""Rows about many requests: throughput at saturation, and overload."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np

from loadtests import scenarios
from loadtests.bench.rows import Row, spread
from loadtests.bench.stand import REPOSITORY, Stand, family_name, supports_of
from loadtests.echo import ANSWER_BYTES, METHOD, running_echo
from loadtests.floor import Clock, StraightLine
from loadtests.generator import saturate
from loadtests.photographs import photographs
from loadtests.plans import jobs
from loadtests.records import Records
from loadtests.results import Repeat, problems
from loadtests.runs import SPARE, Subject, capacity, run
from loadtests.sampling import ResourceSampler
from loadtests.scenarios import Work
from loadtests.seeds import Seeds
from loadtests.servers import cpu_seconds
from loadtests.targets import Connection

#: Short turns: the speed of a shared machine changes within a minute.
_TURNS = 6
_SECONDS = 4.0
#: Images of a turn before the rate is known.
_IMAGES = 250
_DEADLINE = 10.0
_OVERLOADS = 2
_OVERLOAD_SECONDS = 8.0
_SEED = 4242


@dataclass(slots=True)
class _Saturated:
    """What turns at saturation, between two readings of the straight line each, came to."""

    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    per_request: list[float] = field(default_factory=list)


def throughput(stand: Stand) -> Row:
    """Answers per second at saturation against what the cores could do at best."""
    task = stand.task("bench-throughput", 1, _SEED)
    warm_up = _Saturated()
    _saturated(stand, task, 500, _IMAGES, warm_up)
    images = int(SPARE * _SECONDS * warm_up.rates[0])
    echo, line_cpu = _echo_cpu(), _LineCpu()
    found = _Saturated()
    lines = [line_cpu()]
    for turn in range(_TURNS):
        free = _saturated(stand, task, 501 + turn, images, found)
        lines.append(line_cpu())
        found.shares.append(found.rates[-1] * (float(np.mean(lines[-2:])) + echo) / free)
    line = float(np.median(lines))
    share, rate = float(np.median(found.shares)), float(np.median(found.rates))
    disturbance = max(0.0, float(np.median(found.others or [0.0])))
    return Row(
        name="throughput",
        what="Throughput at saturation",
        target="at least 90 % of cores / (engine + floor CPU seconds per request)",
        floor=f"{rate / share:.1f}/s: {(line + echo) * 1e3:.1f} ms of CPU a request at best",
        measured=f"{rate:.1f}/s = {share:.0%} ({spread(found.shares)})",
        met=share >= 0.9,
        figures={
            "rate (1/s)": rate,
            "share (1)": share,
            "CPU of the straight line": line * 1e3,
            "CPU of the echo": echo * 1e3,
            "CPU of the server per request": float(np.median(found.per_request)) * 1e3,
            "other processes (cores)": disturbance,
        },
        note=f"Other processes took {disturbance:.2f} cores meanwhile, which is charged to the "
        "service here."
        if disturbance > 0.05
        else "",
    )


def _callers() -> int:
    return 4 * (os.cpu_count() or 1)


def _saturated(stand: Stand, task: str, seed: int, images: int, found: _Saturated) -> float:
    """Keeps the server busy for a turn; returns the cores that the generator left."""
    sent = jobs(Work(images=images), [task], images, seed=seed)
    used = stand.server.cpu_seconds()
    with ResourceSampler(stand.server.process) as sampler:
        records = asyncio.run(saturate(stand.server.target, sent, _SECONDS, _callers(), _DEADLINE))
    elapsed = _elapsed(records)
    answered = len(records.answered)
    generator = records.generator_cpu / elapsed
    found.rates.append(answered / elapsed)
    found.per_request.append((stand.server.cpu_seconds() - used) / answered)
    if sampler.use.other_cores:
        found.others.append(float(np.mean(sampler.use.other_cores)) - generator)
    return (os.cpu_count() or 1) - generator


def _elapsed(records: Records) -> float:
    return float((records.intended + records.latency).max())


class _LineCpu:
    """CPU seconds of one straight-line request, engine included, on one thread."""

    def __init__(self) -> None:
        self._line = StraightLine(REPOSITORY, family_name(), threads=1)
        self._prototypes = self._line.prototypes(supports_of(1, _SEED))
        self._images = photographs(32, seed=600)
        self()

    def __call__(self) -> float:
        used = time.process_time()
        for image in self._images:
            self._line.segment(image.jpeg, self._prototypes, image.height, image.width, Clock())
        return (time.process_time() - used) / len(self._images)


def _echo_cpu() -> float:
    """CPU seconds that an echo of the same payloads costs its server."""
    request = bytes(45_000)
    with running_echo("threads") as (target, process):
        connection = Connection(target)
        call = connection.raw(METHOD)
        metadata = ((ANSWER_BYTES, "2500"),)
        for _ in range(50):
            call(request, metadata=metadata)
        used = cpu_seconds(process)
        for _ in range(400):
            call(request, metadata=metadata)
        seconds = (cpu_seconds(process) - used) / 400
        connection.close()
    return seconds


def overload(stand: Stand) -> Row:
    """Twice the capacity, open loop, in turns with loads near it."""
    scenario = scenarios.load("overload")
    subject = Subject(stand.server.target, "embedded", stand.server)
    task = stand.task("bench-overload", 1, _SEED)
    seeds = Seeds(_SEED)
    reached = capacity(scenario, subject, [task], 4.0, seeds.draw())
    # Open loop as well, so that the generator costs the same: the highest of a few rates.
    peaks, repeats, shares = [_peak(subject, reached, seeds)], [], []
    for _ in range(_OVERLOADS):
        repeats.append(_offered(subject, 2.0 * reached, seeds, _OVERLOAD_SECONDS))
        peaks.append(_peak(subject, reached, seeds))
        shares.append(repeats[-1].good_rate / max(float(np.mean(peaks[-2:])), 1e-9))
    deadline = scenario.load.deadline_seconds
    goodput, share = float(np.median([one.good_rate for one in repeats])), float(np.median(shares))
    p99 = max(repeat.latency["p99"] for repeat in repeats)
    refusal = max(repeat.refusal_p99 for repeat in repeats)
    lost = sum(repeat.lost for repeat in repeats)
    # The percentile is that of answers in time; what was admitted and came late counts here.
    late = sum(repeat.codes.get("DEADLINE_EXCEEDED", 0) for repeat in repeats)
    admitted = late + sum(repeat.codes.get("OK", 0) for repeat in repeats)
    in_time = p99 <= deadline and late <= 0.01 * admitted
    return Row(
        name="overload",
        what="Overload at twice the capacity",
        target=f"goodput >= 90 % of peak; admitted p99 <= {deadline:g} s; refusals p99 <= 20 ms; "
        "none lost",
        floor=f"peak {np.median(peaks):.1f}/s",
        measured=f"goodput {goodput:.1f}/s = {share:.0%} ({spread(shares)}); admitted p99 "
        f"{p99 * 1e3:.0f} ms; refusals p99 {refusal * 1e3:.1f} ms; {lost} lost, {late} past "
        "their deadline",
        met=share >= 0.9 and in_time and refusal <= 0.02 and lost == 0,
        figures={
            "peak (1/s)": float(np.median(peaks)),
            "goodput (1/s)": goodput,
            "share (1)": share,
            "admitted p99": p99 * 1e3,
            "refusals p99": refusal * 1e3,
            "lost (count)": float(lost),
            "late (count)": float(late),
            "lag p99": max(repeat.lag_p99 for repeat in repeats) * 1e3,
        },
        note="; ".join(problems(repeats)),
    )


def _peak(subject: Subject, reached: float, seeds: Seeds) -> float:
    """The better goodput of two loads near the capacity."""
    return max(_offered(subject, share * reached, seeds).good_rate for share in (0.9, 1.05))


def _offered(subject: Subject, rate: float, seeds: Seeds, seconds: float = 4.0) -> Repeat:
    """Some seconds of the scenario at a rate, with images that the server has not seen."""
    scenario = scenarios.load("overload")
    load = msgspec.structs.replace(
        scenario.load,
        rate=rate,
        capacity_share=None,
        repeats=1,
        seconds=seconds,
        warm_up_seconds=1.0,
    )
    scenario = msgspec.structs.replace(scenario, load=load)
    return run(scenario, subject, lambda _: None, seeds=seeds, distinct=True).repeats[0]
