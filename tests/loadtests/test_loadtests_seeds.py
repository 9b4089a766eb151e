"""Whose images come twice, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from load_samples import scenario

from loadtests import runs
from loadtests.arrivals import Arrivals
from loadtests.plans import Job
from loadtests.records import OK, Records
from loadtests.scenarios import Scenario, Work
from loadtests.seeds import Seeds
from loadtests.sweeps import sweep
from loadtests.targets import Target

SUBJECT = runs.Subject(Target("nowhere:1"), "embedded")


def _quick(**load: Any) -> Scenario:
    """A scenario with fewer images than arrivals."""
    asked = {"rate": 4.0, "seconds": 2.0, "warm_up_seconds": 1.0, "repeats": 2} | load
    chosen = scenario(arrivals=Arrivals.CONSTANT, **asked)
    return msgspec.structs.replace(chosen, work=Work(images=5, sizes=((24, 32),)))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What a server would get; every request is answered at once."""
    requests: list[bytes] = []

    @contextmanager
    def registered(*_: Any) -> Iterator[tuple[None, list[str]]]:
        yield None, ["tenants/default/tasks/one"]

    def offer(scenario: Scenario, subject: runs.Subject, jobs: list[Job], times: Any) -> Records:
        requests.extend(job.rpcs[0].request for job in jobs)
        records = Records.empty(times)
        records.code[:] = OK
        records.latency[:] = 0.01
        return records

    monkeypatch.setattr(runs, "registered", registered)
    monkeypatch.setattr(runs, "offer", offer)
    return requests


def test_within_a_sweep_no_image_comes_twice(sent: list[bytes]) -> None:
    swept = sweep(_quick(), SUBJECT, [8.0, 4.0], lambda _: None)

    assert [one.scenario.load.rate for one in swept] == [4.0, 8.0]
    assert len(sent) == 2 * (12 + 24)
    assert len(set(sent)) == len(sent)


def test_a_rate_that_is_named_twice_is_offered_once(sent: list[bytes]) -> None:
    assert len(sweep(_quick(), SUBJECT, [4.0, 4.0], lambda _: None)) == 1


def test_two_runs_share_no_image_and_have_their_own_seeds(sent: list[bytes]) -> None:
    first = runs.run(_quick(), SUBJECT, lambda _: None)
    half = set(sent)
    second = runs.run(_quick(), SUBJECT, lambda _: None)

    assert first.seed != second.seed
    assert len(set(sent)) == 2 * len(half)


def test_the_seed_of_a_result_repeats_its_run(sent: list[bytes]) -> None:
    first = runs.run(_quick(), SUBJECT, lambda _: None)
    before = list(sent)
    sent.clear()
    runs.run(_quick(), SUBJECT, lambda _: None, seeds=Seeds(first.seed))

    assert sent == before


def test_seeds_that_are_neighbours_share_no_draw() -> None:
    bases = [Seeds(base) for base in range(3)]

    images = [seeds.draw().images for seeds in bases for _ in range(100)]

    assert len(set(images)) == 300


def test_every_command_sends_at_the_same_times() -> None:
    first, second = Seeds(), Seeds()

    assert [first.draw().arrivals for _ in range(3)] == [second.draw().arrivals for _ in range(3)]


def test_what_a_share_of_the_capacity_takes_is_drawn_as_well(
    monkeypatch: pytest.MonkeyPatch, sent: list[bytes]
) -> None:
    measured: list[bytes] = []

    async def saturate(target: Target, jobs: list[Job], seconds: float, *_: Any) -> Records:
        measured.extend(job.rpcs[0].request for job in jobs)
        records = Records.empty(np.linspace(0.0, seconds / 2, int(4 * seconds)))
        records.code[:] = OK
        return records

    monkeypatch.setattr(runs, "saturate", saturate)
    runs.run(_quick(rate=None, capacity_share=2.0), SUBJECT, lambda _: None)

    # Five for the warm-up, and half as many again as four seconds at 4/s take.
    assert len(measured) == 5 + 24
    assert len(set(measured)) == len(measured)
    assert not set(measured) & set(sent)
