import asyncio
import time
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import task_service_pb2_grpc
from service.api.calls import new_call, request_id_of
from service.api.handlers import Handlers
from service.api.reception import CallBounds, Reception
from service.core.errors import DeadlineExceededError, NotFoundError
from service.core.limits import Limits
from tests.helpers.live_server import NAME, register_request, segment_request, serving

SERVING = health_pb2.HealthCheckResponse.SERVING


class FakeContext:
    """As much of a servicer context as a deadline takes."""

    def __init__(self, remaining):
        self.remaining = remaining

    def time_remaining(self):
        return self.remaining


def test_a_call_carries_the_deadline_of_its_client():
    call = new_call(FakeContext(5.0))
    assert call.deadline == pytest.approx(time.monotonic() + 5.0, abs=0.5)


def test_a_call_without_a_deadline_has_none():
    assert new_call(FakeContext(None)).deadline is None


def test_a_call_that_comes_too_late_is_refused_before_any_work():
    with pytest.raises(DeadlineExceededError):
        new_call(FakeContext(0.0))


def test_a_call_without_an_id_gets_one_of_its_own():
    assert request_id_of(None) != request_id_of(())
    assert request_id_of([("x-request-id", b"bytes")]) != "bytes"
    assert request_id_of([("other", "x"), ("x-request-id", "given")]) == "given"


def samples(live, method):
    """Counts of ended calls of a method by code."""
    metric = next(
        metric
        for metric in live.server._metrics.registry.collect()
        if metric.name == "fewseg_rpc_duration_seconds"
    )
    return {
        sample.labels["code"]: sample.value
        for sample in metric.samples
        if sample.name.endswith("_count") and sample.labels["method"].endswith(method)
    }


async def test_calls_are_counted_by_method_and_code(live):
    await live.tasks.RegisterTask(register_request())
    for name in (NAME, NAME + "x"):
        try:
            await live.tasks.GetTask(tasks.GetTaskRequest(name=name))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017
    assert samples(live, "TaskService/GetTask") == {"OK": 1.0, "NOT_FOUND": 1.0}


@pytest.mark.parametrize(("timeout", "code"), [(None, "CANCELLED"), (0.15, "DEADLINE_EXCEEDED")])
async def test_a_call_that_its_client_left_is_counted_as_such(live, monkeypatch, timeout, code):
    entered = asyncio.Event()

    async def held(query, call):
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(live.server._gateway.segmenter, "segment", held)
    call = live.segmentation.Segment(segment_request(), timeout=timeout)
    waiting = asyncio.ensure_future(call)
    await entered.wait()
    if timeout is None:
        call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await waiting
    async with asyncio.timeout(5):
        while code not in samples(live, "Segment"):
            await asyncio.sleep(0.01)
    assert samples(live, "SegmentationService/Segment") == {code: 1.0}


async def test_calls_before_the_start_is_complete_are_told_to_come_back(repository, monkeypatch):
    async with serving(repository) as live:
        fresh = Reception(None, CallBounds.of(Limits()))
        monkeypatch.setattr(live.server._reception, "_refuse", fresh._refuse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await live.tasks.ListTasks(tasks.ListTasksRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_calls_of_other_services_are_not_counted(live):
    await live.tasks.ListTasks(tasks.ListTasksRequest())
    health = health_pb2_grpc.HealthStub(live.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
    assert samples(live, "") == {"OK": 1.0}


async def test_a_method_that_a_service_does_not_have_is_unimplemented(live):
    call = live.channel.unary_unary("/fewseg.v1.TaskService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class ServerOfServices:
    """What of gRPC's server takes handlers; methods of their own are not expected."""

    def __init__(self):
        self.handlers = []

    def add_generic_rpc_handlers(self, handlers):
        self.handlers += handlers

    def of(self, method):
        details = SimpleNamespace(method=method, invocation_metadata=())
        found = [handler.service(details) for handler in self.handlers]
        return next((handler for handler in found if handler is not None), None)


def test_no_method_is_registered_besides_its_service():
    server = ServerOfServices()
    handlers = Handlers(server, lambda handler, method: (handler, method))
    add = task_service_pb2_grpc.add_TaskServiceServicer_to_server
    add(task_service_pb2_grpc.TaskServiceServicer(), handlers)
    for method in tasks.DESCRIPTOR.services_by_name["TaskService"].methods:
        name = f"fewseg.v1.TaskService/{method.name}"
        assert server.of(f"/{name}")[1] == name
    assert server.of("/fewseg.v1.TaskService/Nothing") is None


async def test_the_server_has_handlers_of_services_alone(repository, monkeypatch):
    def registered(*anything):
        raise AssertionError("each registered method costs every call a little")

    monkeypatch.setattr(grpc.aio.Server, "add_registered_method_handlers", registered)
    async with serving(repository) as live:
        await live.tasks.ListTasks(tasks.ListTasksRequest())


async def test_what_runs_now_is_told_while_it_runs(live, monkeypatch):
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def held(*anything, **more):
        entered.set()
        await go_on.wait()
        raise NotFoundError("TASK_NOT_FOUND", "held")

    def told(name, **labels):
        return live.server._metrics.registry.get_sample_value(name, labels)

    method = "fewseg.v1.SegmentationService/Segment"
    await live.tasks.RegisterTask(register_request())
    assert told("fewseg_rpcs_in_progress", method=method) == 0
    assert told("fewseg_cache_bytes", cache="features") > 0
    monkeypatch.setattr(live.server._gateway.segmenter, "_under_latest", held)
    call = live.segmentation.Segment(segment_request())
    waiting = asyncio.ensure_future(call)
    await entered.wait()
    assert told("fewseg_rpcs_in_progress", method=method) == 1
    assert told("fewseg_in_flight_requests") == 1
    go_on.set()
    with pytest.raises(grpc.aio.AioRpcError):
        await waiting
    assert told("fewseg_rpcs_in_progress", method=method) == 0
    assert told("fewseg_in_flight_requests") == 0
