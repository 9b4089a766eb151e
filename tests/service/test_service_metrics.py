import urllib.error
import urllib.request
from itertools import pairwise

import pytest

from service.core.family import GraphRole
from service.core.timing import Stage
from service.metrics import BUCKETS, Metrics, MetricsEndpoint


def metrics():
    return Metrics(version="1.2.3", engine="embedded", store="memory")


def test_what_happens_is_counted():
    heard = metrics()
    heard.stage(Stage.DECODE, 0.02)
    heard.cache_hit("guidance")
    heard.cache_miss("guidance")
    heard.cache_evicted("guidance", 3)
    heard.watch_cache_bytes("features", lambda: 4096)
    heard.graph_run(GraphRole.GUIDE)
    heard.graph_run(GraphRole.GUIDE)
    heard.watch_in_flight(lambda: 5)
    heard.tasks(7)
    heard.watch_calls("fewseg.v1.TaskService/GetTask", lambda: 1)
    heard.call_ended("fewseg.v1.TaskService/GetTask", "OK", 0.01)
    read = heard.registry.get_sample_value
    call = {"method": "fewseg.v1.TaskService/GetTask"}
    assert read("fewseg_stage_duration_seconds_count", {"stage": "decode"}) == 1
    assert read("fewseg_cache_hits_total", {"cache": "guidance"}) == 1
    assert read("fewseg_cache_misses_total", {"cache": "guidance"}) == 1
    assert read("fewseg_cache_evictions_total", {"cache": "guidance"}) == 3
    assert read("fewseg_cache_bytes", {"cache": "features"}) == 4096
    assert read("fewseg_graph_runs_total", {"role": "guide"}) == 2
    assert read("fewseg_in_flight_requests") == 5
    assert read("fewseg_tasks") == 7
    assert read("fewseg_rpcs_in_progress", call) == 1
    assert read("fewseg_rpc_duration_seconds_count", {**call, "code": "OK"}) == 1
    build = {"version": "1.2.3", "engine": "embedded", "store": "memory"}
    assert read("fewseg_build_info", build) == 1


def test_two_servers_count_apart():
    one, other = metrics(), metrics()
    one.tasks(1)
    other.tasks(2)
    assert one.registry.get_sample_value("fewseg_tasks") == 1


def test_buckets_grow_by_half_from_ten_microseconds_to_half_a_minute():
    assert BUCKETS[0] == pytest.approx(10e-6)
    assert 30 < BUCKETS[-1] < 35
    assert all(b / a == pytest.approx(1.5) for a, b in pairwise(BUCKETS))


def test_the_endpoint_shows_the_metrics_until_it_is_closed():
    endpoint = MetricsEndpoint.open(metrics(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert b"fewseg_build_info" in answer.read()
    endpoint.close()
    assert not endpoint.thread.is_alive()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_a_taken_port_is_an_error():
    endpoint = MetricsEndpoint.open(metrics(), "127.0.0.1", 0)
    try:
        with pytest.raises(OSError, match="in use"):
            MetricsEndpoint.open(metrics(), "127.0.0.1", endpoint.port)
    finally:
        endpoint.close()
