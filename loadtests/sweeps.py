"""Rate sweeps: from an idle server to the knee and past it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from loadtests.results import Result
from loadtests.runs import Subject, Tell, capacity_reached, registered, run
from loadtests.scenarios import Scenario
from loadtests.seeds import Seeds
from loadtests.servers import ServerError

#: Shares of the throughput at saturation that a sweep offers unless it is told rates.
SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
#: Past the knee: less than this share of the offered rate is answered well ...
_ANSWERED = 0.98
#: ... or the 99th percentile has grown by this factor since the lowest rate.
_GROWTH = 5.0


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a server stops to keep up.

    Attributes:
        rate: The highest rate that it kept up with, requests per second; 0 if there is none.
        reached: Whether it did not keep up with a higher one; without that, the knee lies
            somewhere above ``rate``.
    """

    rate: float
    reached: bool

    @property
    def words(self) -> str:
        """A sentence without its stop."""
        if not self.reached:
            if not self.rate:
                return "No knee to be seen: at no rate was anything measured validly"
            return f"No knee was reached up to {self.rate:.1f} requests a second"
        if not self.rate:
            return "The server kept up with none of the rates"
        return f"The server keeps up until {self.rate:.1f} requests a second"


def sweep(
    scenario: Scenario,
    subject: Subject,
    rates: Sequence[float],
    tell: Tell,
    seeds: Seeds | None = None,
) -> list[Result]:
    """Runs a scenario at ascending rates; no image comes twice.

    Args:
        scenario: Of the kind ``segment`` or ``clicks``.
        subject: The server.
        rates: Arrivals per second; empty: shares of what the server can do.
        tell: Hears what goes on.
        seeds: Of images and arrivals; None for fresh ones.
    """
    seeds = seeds or Seeds()
    if not rates:
        with registered(subject.target, scenario) as (_, tasks):
            reached = capacity_reached(scenario, subject, tasks, seeds)
        tell(f"capacity {reached:.1f}/s")
        if not reached:
            raise ServerError("the server answered nothing, so that no rates can be derived")
        rates = [share * reached for share in SHARES]
    results = []
    for rate in sorted(set(rates)):
        load = msgspec.structs.replace(scenario.load, rate=rate, capacity_share=None)
        tell(f"{rate:.1f}/s:")
        at_rate = msgspec.structs.replace(scenario, load=load)
        results.append(run(at_rate, subject, tell, seeds=seeds, distinct=True))
    return results


def knee(results: Sequence[Result]) -> Knee:
    """The highest rate that the server still keeps up with.

    The server keeps up with a rate if, in the median repeat, at least 98 % of the requests are
    answered well and the 99th percentile is at most five times that of the lowest rate. Rates at
    which the generator fell behind, or no request was due, say nothing about the server, and are
    left out.

    Args:
        results: Of a sweep.
    """
    points = sorted(
        (_median(r, "offered_rate"), _median(r, "good_rate"), _p99(r)) for r in results if r.valid
    )
    points = [point for point in points if point[0] > 0]
    best = 0.0
    for offered, good, p99 in points:
        if good < _ANSWERED * offered or p99 > _GROWTH * points[0][2]:
            return Knee(best, reached=True)
        best = offered
    return Knee(best, reached=False)


def _median(result: Result, name: str) -> float:
    values = sorted(getattr(repeat, name) for repeat in result.repeats)
    return float(values[len(values) // 2])


def _p99(result: Result) -> float:
    values = sorted(repeat.latency["p99"] for repeat in result.repeats)
    return float(values[len(values) // 2])
