"""Models, health, reflection and the end of a server, through a real channel."""

import asyncio

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from fewseg.v1 import model_service_pb2 as models
from fewseg.v1 import task_service_pb2 as tasks
from tests.helpers.live_server import register_request, segment_request, serving
from tests.helpers.tiny_repository import write_tiny_repository


async def test_models_and_limits_are_told(live):
    listed = await live.models.ListModels(models.ListModelsRequest())
    assert [(model.alias, model.default) for model in listed.models] == [("tiny", True)]
    assert listed.models[0].input_height == 32
    info = await live.models.GetServerInfo(models.GetServerInfoRequest())
    assert (info.api_version, info.engine, info.store) == ("v1", "embedded", "memory")
    assert info.limits.message_bytes == 64 * 1024 * 1024


async def test_a_new_family_is_taken_in_and_models_are_listed_page_by_page(tmp_path):
    write_tiny_repository(tmp_path, "alpha")
    async with serving(tmp_path) as live:
        write_tiny_repository(tmp_path, "beta")
        refreshed = await live.models.RefreshModels(models.RefreshModelsRequest())
        assert [model.alias for model in refreshed.models] == ["alpha", "beta"]
        assert not refreshed.problems
        first = await live.models.ListModels(models.ListModelsRequest(page_size=1))
        assert [model.alias for model in first.models] == ["alpha"]
        second = await live.models.ListModels(
            models.ListModelsRequest(page_size=1, page_token=first.next_page_token)
        )
        assert [model.alias for model in second.models] == ["beta"]
        assert second.next_page_token == ""


async def test_a_broken_family_is_reported_and_changes_nothing(tmp_path):
    write_tiny_repository(tmp_path, "alpha")
    async with serving(tmp_path) as live:
        family = write_tiny_repository(tmp_path, "beta")
        (tmp_path / f"{family}_decode" / "1" / "model.onnx").write_bytes(b"not a network")
        refreshed = await live.models.RefreshModels(models.RefreshModelsRequest())
        assert [model.alias for model in refreshed.models] == ["alpha"]
        assert any(family in problem for problem in refreshed.problems)


async def test_health_follows_the_models(repository, monkeypatch):
    async with serving(repository, ready_seconds=0.02) as live:
        stub = health_pb2_grpc.HealthStub(live.channel)
        for service in ("", "fewseg.v1.TaskService", "fewseg.v1.SegmentationService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING

        async def broken():
            raise RuntimeError

        monkeypatch.setattr(live.server._gateway.catalog, "ready", broken)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        monkeypatch.undo()
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()


async def test_the_services_can_be_discovered_by_reflection(live):
    stub = reflection_pb2_grpc.ServerReflectionStub(live.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert {"fewseg.v1.TaskService", "fewseg.v1.ModelService", "grpc.health.v1.Health"} <= names
    await call.done_writing()


async def test_stopping_lets_a_running_call_finish_and_does_not_wait_for_watchers(
    repository, monkeypatch
):
    async with serving(repository, drain_seconds=30.0) as live:
        await live.tasks.RegisterTask(register_request())
        entered, released = asyncio.Event(), asyncio.Event()
        segmenter = live.server._gateway.segmenter
        segment = segmenter.segment

        async def held(query, call):
            entered.set()
            await released.wait()
            return await segment(query, call)

        monkeypatch.setattr(segmenter, "segment", held)
        watching = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest())
        await watching.read()
        call = asyncio.ensure_future(live.segmentation.Segment(segment_request()))
        await entered.wait()
        stopping = asyncio.create_task(live.server.stop())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await live.tasks.ListTasks(tasks.ListTasksRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        released.set()
        assert (await call).mask.png
        async with asyncio.timeout(10):
            await stopping


def call_by_reflection(target, service, method, fields):
    """One call by somebody who has no .proto file: all types come from the server."""
    with grpc.insecure_channel(target) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        described = pool.FindServiceByName(service).FindMethodByName(method)
        request = GetMessageClass(described.input_type)()
        json_format.ParseDict(fields, request, descriptor_pool=pool)
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        return json_format.MessageToDict(call(request, timeout=10))


async def test_a_first_call_needs_nothing_but_reflection(live):
    def call(*arguments):
        return asyncio.to_thread(
            call_by_reflection, f"unix:{live.settings.unix_socket}", *arguments
        )

    info = await call("fewseg.v1.ModelService", "GetServerInfo", {})
    assert info["apiVersion"] == "v1"
    registration = json_format.MessageToDict(register_request())
    registered = await call("fewseg.v1.TaskService", "RegisterTask", registration)
    assert registered["task"]["name"] == "tenants/default/tasks/reds"
    query = json_format.MessageToDict(segment_request())
    answer = await call("fewseg.v1.SegmentationService", "Segment", query)
    assert int(answer["classes"][0]["area"]) > 0
