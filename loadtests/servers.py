"""Servers that are started for a measurement, and what is seen of them from outside."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests import BLAS_THREADS, SET_BLAS_THREADS
from loadtests.targets import Connection, Target

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class ServerError(Exception):
    """A server did not start or refused what it must not; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server of this machine.

    Attributes:
        target: Where it answers.
        process: The process, for CPU and memory.
        metrics_port: Of its Prometheus endpoint.
        seconds_to_serving: From the start of the process to SERVING, as a client sees it.
    """

    target: Target
    process: psutil.Process
    metrics_port: int
    seconds_to_serving: float

    def graph_runs(self) -> dict[str, int]:
        """Graphs run since the start, by role."""
        return {
            labels["role"]: int(value) for labels, value in self._samples("fewseg_graph_runs_total")
        }

    def cached_bytes(self) -> int:
        """What its caches hold now, by their own account."""
        return int(sum(value for _, value in self._samples("fewseg_cache_bytes")))

    def _samples(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    yield sample.labels, sample.value

    def resident_bytes(self) -> int:
        """Resident memory of the process now."""
        return int(self.process.memory_info().rss)

    def cpu_seconds(self) -> float:
        """CPU seconds of the process so far."""
        return cpu_seconds(self.process)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system seconds of a process and of its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        total = 0.0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        return total
    return 0.0


@contextlib.contextmanager
def running_server(
    engine: str = "embedded", flags: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Runs ``fewseg-serve`` on free ports of this machine, with a store of its own.

    Args:
        engine: ``embedded``, or ``triton`` with its address among the flags.
        flags: Further flags, by name without the dashes.

    Raises:
        ServerError: It does not serve within a minute.
    """
    with tempfile.TemporaryDirectory(prefix="fewseg-load-") as folder:
        settings = {
            "port": "0",
            "metrics-port": "0",
            "engine": engine,
            "store-path": str(Path(folder) / "tasks.db"),
        } | dict(flags or {})
        command = [sys.executable, "-m", "service.main"]
        for name, value in settings.items():
            command += [f"--{name}", value]
        log_path = Path(folder) / "server.log"
        with log_path.open("w+b") as log:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
            try:
                yield _serving(process, log, log_path, started)
            finally:
                stop(process)


def _environment() -> dict[str, str]:
    """That of a server which somebody else starts: without what this package sets for itself."""
    environment = dict(os.environ) | {"ORT_DISABLE_TELEMETRY": "1"}
    if SET_BLAS_THREADS:
        environment.pop(BLAS_THREADS, None)
    return environment


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that was started here, gracefully if it can."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serving(
    process: subprocess.Popen[bytes], log: IO[bytes], path: Path, started: float
) -> RunningServer:
    """Waits for the line that names the ports, and then for SERVING."""
    while time.monotonic() - started < _START_SECONDS:
        ports = _ports(path)
        if ports is not None:
            target = Target(f"127.0.0.1:{ports['port']}")
            connection = Connection(target)
            try:
                serving = connection.serving()
            finally:
                connection.close()
            if serving:
                seconds = time.monotonic() - started
                return RunningServer(
                    target, psutil.Process(process.pid), ports["metrics_port"], seconds
                )
        if process.poll() is not None:
            break
        time.sleep(0.005)
    raise ServerError(f"fewseg-serve does not serve: {path.read_text()[-2000:].strip()}")


def _ports(log: Path) -> dict[str, Any] | None:
    for line in log.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            facts = json.loads(line)
            if isinstance(facts, dict) and facts.get("event") == "serving":
                return facts
    return None
