"""The real server over the tiny repository, behind a Unix socket of its own."""

import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from fewseg.v1 import model_service_pb2_grpc as models_grpc
from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import segmentation_service_pb2_grpc as segmentation_grpc
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import task_service_pb2_grpc as tasks_grpc
from fewseg.v1 import types_pb2 as types
from service.config import Settings
from service.server import Server
from service.wiring import build
from tests.helpers.gateway import RED, png, scene

NAME = "tenants/default/tasks/reds"
RED_BOX = (8, 8, 32, 32)
QUERY_BOX = (40, 16, 64, 48)


@dataclass
class Live:
    """A server that runs, and stubs that speak to it."""

    server: Server
    settings: Settings
    channel: grpc.aio.Channel
    tasks: tasks_grpc.TaskServiceStub
    segmentation: segmentation_grpc.SegmentationServiceStub
    models: models_grpc.ModelServiceStub


def box(corners):
    return types.Box(**dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True)))


def red_support(support_id="", seed=0):
    """A red square on green: a box on the square, and one around it for the background."""
    return tasks.SupportInput(
        support_id=support_id,
        image=types.Image(encoded=png(scene((RED, RED_BOX), seed=seed))),
        annotation=types.Annotation(
            marks=[types.Mark(class_name="red", box=box(RED_BOX))], exhaustive=True
        ),
    )


def register_request(**fields):
    values = {
        "task_id": "reds",
        "task": tasks.Task(classes=["red"]),
        "supports": [red_support("a", seed=1)],
    }
    return tasks.RegisterTaskRequest(**(values | fields))


def query_image(seed=9):
    """A picture whose red part is ``QUERY_BOX``."""
    return types.Image(encoded=png(scene((RED, QUERY_BOX), seed=seed)))


def segment_request(**fields):
    values = {"name": NAME, "image": query_image()}
    if "support_id" in fields:
        del values["image"]
    return segmentation.SegmentRequest(**(values | fields))


@asynccontextmanager
async def serving(repository, **changes):
    with tempfile.TemporaryDirectory(prefix="fs-") as folder:
        values = {
            "host": "",
            "unix_socket": Path(folder) / "s",
            "metrics_host": "",
            "store": "memory",
            "repository": repository,
            "drain_seconds": 2.0,
        }
        settings = Settings(**(values | changes))
        server = build(settings)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{settings.unix_socket}") as channel:
                yield Live(
                    server,
                    settings,
                    channel,
                    tasks_grpc.TaskServiceStub(channel),
                    segmentation_grpc.SegmentationServiceStub(channel),
                    models_grpc.ModelServiceStub(channel),
                )
        finally:
            await server.stop(late_calls_seconds=0.0)
