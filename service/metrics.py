"""Metrics for Prometheus. Labels are bounded: never the name of a task or a tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from service.core.family import GraphRole
from service.core.timing import Stage

#: Seconds: 10 microseconds, and each bucket half as long again up to half a minute.
BUCKETS: Final = tuple(10e-6 * 1.5**step for step in range(38))


class Metrics:
    """What happens in one server; implements ``Telemetry`` and ``CallObserver``.

    Args:
        version: Of the server, for ``fewseg_build_info``.
        engine: Name of its engine.
        store: Name of its store.
    """

    def __init__(self, *, version: str, engine: str, store: str) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        seconds = partial(Histogram, buckets=BUCKETS, registry=registry)
        # A metric looks its child up by its labels under a lock: done once for each of them.
        self._calls = cache(
            seconds(
                "fewseg_rpc_duration_seconds",
                "Time of a call inside the server.",
                ["method", "code"],
            ).labels
        )
        self._calls_open = gauge("fewseg_rpcs_in_progress", "Calls that run now.", ["method"])
        self._stages = cache(
            seconds("fewseg_stage_duration_seconds", "Time of a stage of a call.", ["stage"]).labels
        )
        self._hits = cache(
            counter("fewseg_cache_hits", "Look-ups that a cache answered.", ["cache"]).labels
        )
        self._misses = cache(
            counter("fewseg_cache_misses", "Look-ups that it could not answer.", ["cache"]).labels
        )
        self._evictions = cache(
            counter(
                "fewseg_cache_evictions", "Entries let go to stay within the budget.", ["cache"]
            ).labels
        )
        self._cache_bytes = gauge("fewseg_cache_bytes", "Bytes that a cache holds.", ["cache"])
        self._graph_runs = cache(
            counter("fewseg_graph_runs", "Runs of graphs, by role.", ["role"]).labels
        )
        self._tasks = gauge("fewseg_tasks", "Tasks in the store.")
        self._in_flight = gauge(
            "fewseg_in_flight_requests", "Requests that run or wait for a slot."
        )
        build_info = gauge(
            "fewseg_build_info",
            "1, with what the server is made of as labels.",
            ["version", "engine", "store"],
        )
        build_info.labels(version, engine, store).set(1)

    def watch_calls(self, method: str, count: Callable[[], int]) -> None:
        """See ``CallObserver``."""
        self._calls_open.labels(method).set_function(count)

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """See ``CallObserver``."""
        self._calls(method, code).observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """See ``Telemetry``."""
        self._stages(stage.value).observe(seconds)

    def cache_hit(self, cache: str) -> None:
        """See ``Telemetry``."""
        self._hits(cache).inc()

    def cache_miss(self, cache: str) -> None:
        """See ``Telemetry``."""
        self._misses(cache).inc()

    def cache_evicted(self, cache: str, entries: int) -> None:
        """See ``Telemetry``."""
        self._evictions(cache).inc(entries)

    def watch_cache_bytes(self, cache: str, nbytes: Callable[[], int]) -> None:
        """See ``Telemetry``."""
        self._cache_bytes.labels(cache).set_function(nbytes)

    def graph_run(self, role: GraphRole) -> None:
        """See ``Telemetry``."""
        self._graph_runs(role.value).inc()

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """See ``Telemetry``."""
        self._in_flight.set_function(count)

    def tasks(self, count: int) -> None:
        """See ``Telemetry``."""
        self._tasks.set(count)


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """Metrics over HTTP, in a thread of its own.

    Attributes:
        server: Listens.
        thread: Serves.
    """

    server: WSGIServer
    thread: threading.Thread

    @classmethod
    def open(cls, metrics: Metrics, host: str, port: int) -> MetricsEndpoint:
        """Listens on a port, 0 for any free one.

        Raises:
            OSError: The port is taken, or the host is not this machine's.
        """
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
        return cls(server, thread)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server.server_port)

    def close(self) -> None:
        """Stops listening, and waits for the thread."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
