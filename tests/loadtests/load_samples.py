"""Results with figures that tests choose."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from loadtests.records import OK, STAGES, Records
from loadtests.results import Result, repeat_of, result_of
from loadtests.sampling import ResourceUse
from loadtests.scenarios import Load, Scenario, Work

EXHAUSTED, LATE, UNAVAILABLE = 8, 4, 14


def scenario(**load: object) -> Scenario:
    """A scenario of ten seconds."""
    values = {"rate": 20.0, "seconds": 10.0, "deadline_seconds": 1.0} | load
    return Scenario(
        name="sample",
        title="A sample",
        description="For tests.",
        load=msgspec.convert(values, Load),
        work=Work(),
    )


def records(
    latency: Sequence[float] | np.ndarray,
    *,
    codes: Sequence[int] | None = None,
    lag: float | Sequence[float] = 0.0,
    seconds: float = 10.0,
) -> Records:
    """Rows spread evenly over a run."""
    made = Records.empty(np.linspace(0.0, seconds, len(latency), endpoint=False))
    made.latency[:] = latency
    made.lag[:] = lag
    made.code[:] = OK if codes is None else codes
    made.timings[:, STAGES.index("features")] = 0.4 * made.latency
    made.timings[:, STAGES.index("decode")] = 0.1 * made.latency
    made.timings[:, -1] = 0.8 * made.latency
    return made


def result(scale: float = 1.0, spread: float = 0.01, seed: int = 0, **load: object) -> Result:
    """Three repeats around 30 ms times ``scale``, each off by up to ``spread``."""
    chosen = scenario(**load)
    use = ResourceUse(
        seconds=[1.0, 2.0], cores=[1.0, 1.2], resident_bytes=[200 << 20, 210 << 20],
        other_cores=[0.1, 0.1], cpu_seconds=10.0, started=0.0,
    )  # fmt: skip
    repeats = []
    for number in range(3):
        base = 0.030 * scale * (1.0 + spread * (number - 1))
        noise = np.random.default_rng((seed, number)).exponential(0.002, 200)
        repeats.append(repeat_of(records(base + noise), chosen, use))
    return result_of(chosen, "embedded", repeats)
