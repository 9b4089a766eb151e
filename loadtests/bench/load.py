"""Rows about many requests: throughput at saturation, and overload."""

from __future__ import annotations

import asyncio
import os
import time

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
from loadtests.results import Repeat
from loadtests.runs import Subject, capacity, run
from loadtests.sampling import ResourceSampler
from loadtests.scenarios import Work
from loadtests.servers import cpu_seconds
from loadtests.targets import Connection

_REPEATS = 3
_SECONDS = 8.0
_DEADLINE = 10.0
_SEED = 4242


def throughput(stand: Stand) -> Row:
    """Answers per second at saturation against what the cores could do at best."""
    cores = os.cpu_count() or 1
    task = stand.task("bench-throughput", 1, _SEED)
    sent = jobs(Work(), [task], 400, seed=500)
    asyncio.run(saturate(stand.server.target, sent[:50], 2.0, 4 * cores, _DEADLINE))
    rates, shares, others, per_request = [], [], [], []
    for _ in range(_REPEATS):
        line, echo = _line_cpu(), _echo_cpu()
        used = stand.server.cpu_seconds()
        with ResourceSampler(stand.server.process) as sampler:
            records = asyncio.run(
                saturate(stand.server.target, sent, _SECONDS, 4 * cores, _DEADLINE)
            )
        elapsed = _elapsed(records)
        answered = len(records.answered)
        rate = answered / elapsed
        per_request.append((stand.server.cpu_seconds() - used) / answered)
        free = cores - records.generator_cpu / elapsed
        others.append(
            float(np.mean(sampler.use.other_cores)) - records.generator_cpu / elapsed
            if sampler.use.other_cores
            else 0.0
        )
        rates.append(rate)
        shares.append(rate / (free / (line + echo)))
    share, rate = float(np.median(shares)), float(np.median(rates))
    disturbance = max(0.0, float(np.median(others)))
    return Row(
        name="throughput",
        what="Throughput at saturation",
        target="at least 90 % of cores / (engine + floor CPU seconds per request)",
        floor=f"{rate / share:.1f}/s: {(line + echo) * 1e3:.1f} ms of CPU a request at best",
        measured=f"{rate:.1f}/s = {share:.0%} ({spread(shares)})",
        met=share >= 0.9,
        figures={
            "rate (1/s)": rate,
            "share (1)": share,
            "CPU of the straight line": line * 1e3,
            "CPU of the echo": echo * 1e3,
            "CPU of the server per request": float(np.median(per_request)) * 1e3,
            "other processes (cores)": disturbance,
        },
        note=f"Other processes took {disturbance:.2f} cores meanwhile, which is charged to the "
        "service here."
        if disturbance > 0.05
        else "",
    )


def _elapsed(records: Records) -> float:
    return float((records.intended + records.latency).max())


def _line_cpu() -> float:
    """CPU seconds of one straight-line request, engine included, on one thread."""
    line = StraightLine(REPOSITORY, family_name(), threads=1)
    prototypes = line.prototypes(supports_of(1, _SEED))
    images = photographs(40, seed=600)
    for image in images[:8]:
        line.segment(image.jpeg, prototypes, image.height, image.width, Clock())
    used = time.process_time()
    for image in images[8:]:
        line.segment(image.jpeg, prototypes, image.height, image.width, Clock())
    return (time.process_time() - used) / len(images[8:])


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


def overload(stand: Stand, repeats: int = 2) -> Row:
    """Twice the capacity, open loop."""
    scenario = scenarios.load("overload")
    subject = Subject(stand.server.target, "embedded", stand.server)
    task = stand.task("bench-overload", 1, _SEED)
    # Open loop as well, so that the generator costs the same: the highest of a few rates.
    reached = capacity(scenario, subject, [task], 4.0)
    peak = max(_goodput(subject, share * reached) for share in (0.9, 1.05))
    peak = max(peak, 1e-9)
    load = msgspec.structs.replace(
        scenario.load, rate=2.0 * reached, capacity_share=None, repeats=repeats
    )
    result = run(msgspec.structs.replace(scenario, load=load), subject, lambda _: None)
    goodputs = [repeat.good_rate for repeat in result.repeats]
    share = float(np.median(goodputs)) / peak
    p99 = max(repeat.latency["p99"] for repeat in result.repeats)
    refusal = max(repeat.refusal_p99 for repeat in result.repeats)
    lost = sum(repeat.lost for repeat in result.repeats)
    late = sum(repeat.codes.get("DEADLINE_EXCEEDED", 0) for repeat in result.repeats)
    met = share >= 0.9 and p99 <= load.deadline_seconds and refusal <= 0.02 and lost == 0
    return Row(
        name="overload",
        what="Overload at twice the capacity",
        target=f"goodput >= 90 % of peak; admitted p99 <= {load.deadline_seconds:g} s; refusals "
        "p99 <= 20 ms; none lost",
        floor=f"peak {peak:.1f}/s",
        measured=f"goodput {np.median(goodputs):.1f}/s = {share:.0%}; admitted p99 "
        f"{p99 * 1e3:.0f} ms; refusals p99 {refusal * 1e3:.1f} ms; {lost} lost, {late} past "
        "their deadline",
        met=met,
        figures={
            "peak (1/s)": peak,
            "goodput (1/s)": float(np.median(goodputs)),
            "share (1)": share,
            "admitted p99": p99 * 1e3,
            "refusals p99": refusal * 1e3,
            "lost (count)": float(lost),
            "late (count)": float(late),
            "lag p99": max(repeat.lag_p99 for repeat in result.repeats) * 1e3,
        },
        note=_problems(result.repeats),
    )


def _problems(repeats: list[Repeat]) -> str:
    return "; ".join(sorted({repeat.problem for repeat in repeats if repeat.problem}))


def _goodput(subject: Subject, rate: float) -> float:
    """Open-loop goodput at a rate near the capacity."""
    scenario = scenarios.load("overload")
    load = msgspec.structs.replace(
        scenario.load, rate=rate, capacity_share=None, repeats=1, seconds=5.0, warm_up_seconds=1.0
    )
    result = run(msgspec.structs.replace(scenario, load=load), subject, lambda _: None)
    return result.repeats[0].good_rate
