"""What a run found: figures, raw histograms, and the file that keeps them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np

from loadtests.latencies import LatencyHistogram
from loadtests.records import NO_ANSWER, OK, STAGES, Records
from loadtests.sampling import ResourceUse
from loadtests.scenarios import Scenario

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_SCHEMA = 1
_EXHAUSTED = int(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
_LATE = int(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
#: A run that offered less than this share of its schedule in time is invalid.
_LAG_PERCENT = 99.0


class ResultError(Exception):
    """A result cannot be read; the message says why."""


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One second of a run.

    Attributes:
        offered, good, refused: Requests meant to leave in it, by outcome.
        p50, p99: Latency of the good ones, seconds.
    """

    offered: int
    good: int
    refused: int
    p50: float
    p99: float


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One measured run.

    Attributes:
        offered_rate, good_rate: Requests per second meant to leave, and answered well
            within their deadline.
        codes: Requests by gRPC code; ``LOST`` counts those without any status.
        lost: Requests that got neither an answer nor a refusal nor word of their deadline.
        latency: Seconds by percentile, of good answers, from the intended time.
        refusal_p99: Seconds, of refusals, from the intended time.
        stages: Median seconds by stage; ``server`` is the whole call in the server, ``engine`` the
            graph runs, ``outside`` the rest of the latency: transport, client, lag.
        lag_p99, lag_max: Seconds by which requests left too late.
        valid: False when the generator fell behind; ``problem`` says how.
        histogram: Of good answers, HdrHistogram V2.
        refusal_histogram: Of refusals.
        lag_histogram: Of the lag.
        series: By second.
        use: CPU and memory of the server.
        generator_cpu: CPU seconds that the generator took.
    """

    offered_rate: float
    good_rate: float
    codes: dict[str, int]
    lost: int
    latency: dict[str, float]
    refusal_p99: float
    stages: dict[str, float]
    lag_p99: float
    lag_max: float
    valid: bool
    problem: str
    histogram: str
    refusal_histogram: str
    lag_histogram: str
    series: list[Second]
    use: ResourceUse
    generator_cpu: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All repeats of a scenario at one load.

    Attributes:
        schema: Of this file.
        scenario: What was run.
        created: RFC 3339.
        engine: Of the server, or "remote".
        machine: What the generator ran on.
        repeats: The runs.
        seed: That the command began with; the same one sends the same images. 0 in results from
            before there was one.
    """

    schema: int
    scenario: Scenario
    created: str
    engine: str
    machine: dict[str, str]
    repeats: list[Repeat]
    seed: int = 0

    @property
    def valid(self) -> bool:
        """Whether every repeat is."""
        return all(repeat.valid for repeat in self.repeats)


def repeat_of(
    records: Records, scenario: Scenario, use: ResourceUse, seconds: float | None = None
) -> Repeat:
    """Sums a run up.

    Args:
        records: One row per request, the warm-up cut off.
        scenario: Its deadline and its limit of lag.
        use: Of the server.
        seconds: How long the load lasted; that of the scenario if None.
    """
    seconds = seconds or scenario.load.seconds
    good = records.answered
    good = good.rows(good.latency <= scenario.load.deadline_seconds)
    refused = records.rows(records.code == _EXHAUSTED)
    lag = LatencyHistogram.of(np.maximum(records.lag, 0.0))
    latencies = LatencyHistogram.of(good.latency)
    refusals = LatencyHistogram.of(refused.latency)
    problem = _problem(lag, scenario)
    settled = np.isin(records.code, [OK, _EXHAUSTED, _LATE])
    return Repeat(
        offered_rate=len(records) / seconds,
        good_rate=len(good) / seconds,
        codes=_codes(records),
        lost=int(np.count_nonzero(~settled)),
        latency={f"p{percent:g}": latencies.percentile(percent) for percent in PERCENTILES},
        refusal_p99=refusals.percentile(99.0),
        stages=_stages(good),
        lag_p99=lag.percentile(99.0),
        lag_max=float(records.lag.max(initial=0.0)),
        valid=not problem,
        problem=problem,
        histogram=latencies.encoded(),
        refusal_histogram=refusals.encoded(),
        lag_histogram=lag.encoded(),
        series=_series(records, good, refused, seconds),
        use=use.during(records.started, seconds),
        generator_cpu=records.generator_cpu,
    )


def _problem(lag: LatencyHistogram, scenario: Scenario) -> str:
    behind, limit = lag.percentile(_LAG_PERCENT), scenario.load.lag_limit_seconds
    if behind > limit:
        return (
            f"the generator fell behind: 1 % of the requests left {behind * 1e3:.1f} ms or more "
            f"after their time ({limit * 1e3:.1f} ms allowed); give it more processes or cores"
        )
    return ""


def _codes(records: Records) -> dict[str, int]:
    name_of = {int(code.value[0]): code.name for code in grpc.StatusCode} | {NO_ANSWER: "LOST"}
    values, counts = np.unique(records.code, return_counts=True)
    return {name_of[int(value)]: int(count) for value, count in zip(values, counts, strict=True)}


def _stages(good: Records) -> dict[str, float]:
    if not len(good):
        return {}
    medians = {name: float(np.median(good.stage(name))) for name in STAGES}
    server = good.server.astype(np.float64)
    return {name: value for name, value in medians.items() if value > 0} | {
        "server": float(np.median(server)),
        "engine": float(np.median(good.engine)),
        "outside": float(np.median(good.latency - server)),
    }


def _series(records: Records, good: Records, refused: Records, seconds: float) -> list[Second]:
    def of(rows: Records, second: int) -> Any:
        return (rows.intended >= second) & (rows.intended < second + 1)

    series = []
    for second in range(int(np.ceil(seconds))):
        latencies = good.latency[of(good, second)]
        known = latencies if len(latencies) else np.zeros(1)
        series.append(
            Second(
                offered=int(np.count_nonzero(of(records, second))),
                good=len(latencies),
                refused=int(np.count_nonzero(of(refused, second))),
                p50=float(np.percentile(known, 50)),
                p99=float(np.percentile(known, 99)),
            )
        )
    return series


def problems(repeats: Iterable[Repeat]) -> list[str]:
    """What makes repeats invalid, each thing once."""
    return sorted({repeat.problem for repeat in repeats if repeat.problem})


def result_of(scenario: Scenario, engine: str, repeats: list[Repeat], seed: int = 0) -> Result:
    """Puts repeats together."""
    return Result(
        schema=_SCHEMA,
        scenario=scenario,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=engine,
        machine=machine(),
        repeats=repeats,
        seed=seed,
    )


def machine() -> dict[str, str]:
    """What this machine is, for people who compare."""
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def write(result: Result, folder: Path) -> Path:
    """Writes ``result.json`` with its raw histograms into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    return path


def read(path: Path) -> Result:
    """Reads a result.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        ResultError: It is none.
    """
    path = path / "result.json" if path.is_dir() else path
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise ResultError(f"{path} is no result of this tool: {error}") from error
    problem = _fault(result)
    if problem:
        raise ResultError(f"{path} cannot be used: {problem}")
    return result


def _fault(result: Result) -> str:
    """What the types of a file do not say; empty if nothing is wrong."""
    if result.schema != _SCHEMA:
        return f"its schema is {result.schema}, this tool reads {_SCHEMA}"
    if not result.repeats:
        return "it has no repeats"
    wanted = [f"p{percent:g}" for percent in PERCENTILES]
    missing = [
        name for name in wanted if any(name not in repeat.latency for repeat in result.repeats)
    ]
    return f"its latency lacks {', '.join(missing)}" if missing else ""
