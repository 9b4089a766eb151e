"""Cold starts: a fresh process, the moment it serves, its first answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loadtests.photographs import photographs
from loadtests.plans import register, segment_request, support_of
from loadtests.records import OK, Records, seconds_of
from loadtests.results import Result, repeat_of, result_of
from loadtests.runs import Tell
from loadtests.sampling import ResourceUse
from loadtests.scenarios import Scenario
from loadtests.seeds import Seeds
from loadtests.servers import running_server
from loadtests.targets import Connection

_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One start.

    Attributes:
        serving: Seconds from the start of the process to SERVING.
        first: Seconds of the first request that a client makes, after one registration.
        steady: Median seconds of those after the tenth.
        records: All of them, in order.
    """

    serving: float
    first: float
    steady: float
    records: Records


def cold_start(engine: str, flags: Mapping[str, str], requests: int, seed: int) -> ColdStart:
    """Starts a server, registers a task, and segments images one after another."""
    images = photographs(requests, seed=seed)
    support = support_of(photographs(1, seed=900 + seed)[0], 0)
    with running_server(engine, flags) as server:
        connection = Connection(server.target)
        task = register(connection, "", [support])
        records = Records.empty(np.zeros(requests))
        begun = time.monotonic()
        for number, image in enumerate(images):
            sent = time.monotonic()
            answer = connection.segmentation.Segment(segment_request(task, image), timeout=_TIMEOUT)
            records.latency[number] = time.monotonic() - sent
            records.intended[number] = sent - begun
            records.code[number] = OK
            records.timings[number] = seconds_of(answer.timings)
        connection.close()
    steady = float(np.median(records.latency[min(10, requests - 1) :]))
    return ColdStart(server.seconds_to_serving, float(records.latency[0]), steady, records)


def run_cold_starts(scenario: Scenario, engine: str, tell: Tell, seeds: Seeds) -> Result:
    """Runs a ``cold_start`` scenario: each repeat is a process of its own."""
    repeats = []
    for _ in range(scenario.load.repeats):
        start = cold_start(engine, scenario.server, scenario.work.images, seeds.draw().images)
        tell(
            f"SERVING after {start.serving:.2f} s, first request {start.first * 1e3:.1f} ms, "
            f"steady {start.steady * 1e3:.1f} ms"
        )
        took = float(start.records.intended[-1] + start.records.latency[-1])
        repeat = repeat_of(start.records, scenario, ResourceUse(), seconds=took)
        repeat.stages["start_to_serving"] = start.serving
        repeat.stages["first_request"] = start.first
        repeats.append(repeat)
    return result_of(scenario, engine, repeats, seeds.base)
