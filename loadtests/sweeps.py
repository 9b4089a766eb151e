"""Rate sweeps: from an idle server to the knee and past it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadtests.results import Result
from loadtests.runs import Subject, Tell, capacity, registered, run
from loadtests.scenarios import Scenario

#: Shares of the throughput at saturation that a sweep offers unless it is told rates.
SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
#: Past the knee: less than this share of the offered rate is answered well ...
_ANSWERED = 0.98
#: ... or the 99th percentile has grown by this factor since the lowest rate.
_GROWTH = 5.0


def sweep(scenario: Scenario, subject: Subject, rates: Sequence[float], tell: Tell) -> list[Result]:
    """Runs a scenario at ascending rates.

    Args:
        scenario: Of the kind ``segment`` or ``clicks``.
        subject: The server.
        rates: Arrivals per second; empty: shares of what the server can do.
        tell: Hears what goes on.
    """
    if not rates:
        with registered(subject.target, scenario) as (_, tasks):
            capacity(scenario, subject, tasks, 1.0)
            reached = capacity(scenario, subject, tasks, 4.0)
        tell(f"capacity {reached:.1f}/s")
        rates = [share * reached for share in SHARES]
    results = []
    for rate in sorted(rates):
        load = msgspec.structs.replace(scenario.load, rate=rate, capacity_share=None)
        tell(f"{rate:.1f}/s:")
        results.append(run(msgspec.structs.replace(scenario, load=load), subject, tell))
    return results


def knee(results: Sequence[Result]) -> float:
    """The highest rate that the server still keeps up with.

    Args:
        results: Of a sweep.

    Returns:
        Requests per second, in the median repeat: at least 98 % of them answered well, and a 99th
        percentile of at most five times that of the lowest rate. 0 if there is none.
    """
    points = sorted((_median(r, "offered_rate"), _median(r, "good_rate"), _p99(r)) for r in results)
    best = 0.0
    for offered, good, p99 in points:
        if good < _ANSWERED * offered or p99 > _GROWTH * points[0][2]:
            break
        best = offered
    return best


def _median(result: Result, name: str) -> float:
    values = sorted(getattr(repeat, name) for repeat in result.repeats)
    return float(values[len(values) // 2])


def _p99(result: Result) -> float:
    values = sorted(repeat.latency["p99"] for repeat in result.repeats)
    return float(values[len(values) // 2])
