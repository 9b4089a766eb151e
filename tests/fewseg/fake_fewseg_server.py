"""A server that answers what a test wants, to see what the clients make of it."""

import io
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from PIL import Image

from fewseg.v1 import model_service_pb2 as models
from fewseg.v1 import model_service_pb2_grpc as models_grpc
from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import segmentation_service_pb2_grpc as segmentation_grpc
from fewseg.v1 import task_service_pb2 as tasks
from fewseg.v1 import task_service_pb2_grpc as tasks_grpc
from fewseg.v1 import types_pb2 as types


def status(code, message="Something is wrong.", *, reason="WRONG", field="", retry_after=None):
    """A google.rpc.Status as the service sends it."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="fewseg.dev", metadata={"k": "v"})]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=packed)


def left_half(image: types.Image) -> np.ndarray:
    """The mask that the server finds: class 1 in the left half."""
    if image.WhichOneof("source") == "raw":
        height, width = image.raw.height, image.raw.width
    else:
        width, height = Image.open(io.BytesIO(image.encoded)).size
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 1
    return mask


def written(mask: np.ndarray, format: int) -> types.Mask:
    height, width = mask.shape
    message = types.Mask(height=height, width=width)
    if format == types.MASK_FORMAT_RAW:
        message.raw = mask.tobytes()
    elif format == types.MASK_FORMAT_COCO_RLE:
        ones = height * (width // 2)
        lengths = types.RunLengths(counts=[0, ones, height * width - ones])
        runs = types.RunLengthMask(height=height, width=width, lengths=lengths)
        message.run_lengths.masks.append(runs)
    else:
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, format="PNG")
        message.png = buffer.getvalue()
    return message


@dataclass
class FakeServer(
    tasks_grpc.TaskServiceServicer,
    segmentation_grpc.SegmentationServiceServicer,
    models_grpc.ModelServiceServicer,
):
    """Keeps what it was asked, and fails as often as it is told to.

    Attributes:
        target: Where it listens.
        requests: What it got, by method.
        remaining: Seconds until the deadline of each, or more than anybody waits.
        failures: Statuses to answer with before anything else, by method.
        bad_frames: Sequence ids whose frames fail.
    """

    target: str = ""
    requests: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    remaining: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    bad_frames: set[int] = field(default_factory=set)
    stored: dict[str, tasks.Task] = field(default_factory=dict)

    def _meet(self, method, request, context):
        self.requests[method].append(request)
        self.remaining[method].append(context.time_remaining())
        if self.failures[method]:
            context.abort_with_status(rpc_status.to_status(self.failures[method].pop(0)))

    def _task(self, name, context):
        if name not in self.stored:
            missing = status("NOT_FOUND", "There is no such task.", reason="TASK_NOT_FOUND")
            context.abort_with_status(rpc_status.to_status(missing))
        return self.stored[name]

    def RegisterTask(self, request, context):  # noqa: N802
        self._meet("RegisterTask", request, context)
        task = tasks.Task()
        task.CopyFrom(request.task)
        task.name = f"{request.parent}/tasks/{request.task_id or 'chosen'}"
        task.etag = "u-1"
        task.support_count = len(request.supports)
        for support in request.supports:
            agreement = tasks.ClassAgreement(class_name=task.classes[0], iou=0.75)
            task.supports.add(support_id=support.support_id, leave_one_out=[agreement])
        task.create_time.GetCurrentTime()
        task.background_evidence = types.BACKGROUND_EVIDENCE_INFERRED
        self.stored[task.name] = task
        timings = types.Timings(total=duration_pb2.Duration(nanos=250_000_000))
        return tasks.RegisterTaskResponse(task=task, timings=timings)

    def GetTask(self, request, context):  # noqa: N802
        self._meet("GetTask", request, context)
        return self._task(request.name, context)

    def ListTasks(self, request, context):  # noqa: N802
        self._meet("ListTasks", request, context)
        names = sorted(self.stored)
        first = int(request.page_token or 0)
        last = first + (request.page_size or 50)
        return tasks.ListTasksResponse(
            tasks=[self.stored[name] for name in names[first:last]],
            next_page_token=str(last) if last < len(names) else "",
        )

    def DeleteTask(self, request, context):  # noqa: N802
        self._meet("DeleteTask", request, context)
        self._task(request.name, context)
        del self.stored[request.name]
        return empty_pb2.Empty()

    def AddSupports(self, request_iterator, context):  # noqa: N802
        header = next(request_iterator).header
        self._meet("AddSupports", header, context)
        task = self._task(header.name, context)
        for message in request_iterator:
            self.requests["AddSupports.support"].append(message.support)
            if message.support.support_id == "refused":
                context.abort_with_status(rpc_status.to_status(status("INVALID_ARGUMENT")))
            task.support_count += 1
        return tasks.AddSupportsResponse(task=task)

    def AnnotateSupport(self, request, context):  # noqa: N802
        self._meet("AnnotateSupport", request, context)
        return tasks.AnnotateSupportResponse(task=self._task(request.name, context))

    def RemoveSupport(self, request, context):  # noqa: N802
        self._meet("RemoveSupport", request, context)
        return tasks.RemoveSupportResponse(task=self._task(request.name, context))

    def _segmentation(self, image, options):
        mask = left_half(image)
        area = int(mask.sum())
        box = types.PixelBox(x_max=mask.shape[1] // 2, y_max=mask.shape[0])
        answer = segmentation.SegmentResponse(
            mask=written(mask, options.format),
            classes=[
                types.ClassResult(class_name="coin", value=1, area=area, box=box, mean_score=0.9)
            ],
            family="compact-12345678",
            etag="u-1",
            background_evidence=types.BACKGROUND_EVIDENCE_GIVEN,
            timings=types.Timings(total=duration_pb2.Duration(nanos=1_500_000)),
            reuse=types.Reuse(guidance=True),
        )
        if options.probabilities:
            planes = np.stack([1.0 - mask, mask]).astype("<f2")
            answer.probabilities.CopyFrom(
                types.Probabilities(
                    values=planes.tobytes(), planes=2, height=mask.shape[0], width=mask.shape[1]
                )
            )
        return answer

    def Segment(self, request, context):  # noqa: N802
        self._meet("Segment", request, context)
        return self._segmentation(request.image, request.options)

    def SegmentStream(self, request_iterator, context):  # noqa: N802
        opening = next(request_iterator).opening
        self._meet("SegmentStream", opening, context)
        for message in request_iterator:
            frame = message.frame
            self.requests["SegmentStream.frame"].append(frame.sequence_id)
            answer = segmentation.SegmentStreamResponse(sequence_id=frame.sequence_id)
            if frame.sequence_id in self.bad_frames:
                answer.error.CopyFrom(status("INVALID_ARGUMENT", reason="IMAGE_BROKEN"))
            else:
                answer.segmentation.CopyFrom(self._segmentation(frame.image, opening.options))
            yield answer

    def ListModels(self, request, context):  # noqa: N802
        self._meet("ListModels", request, context)
        first = not request.page_token
        model = models.Model(
            alias="compact" if first else "panet",
            family="compact-12345678",
            method="panet",
            input_height=0 if first else 417,
            input_width=0 if first else 417,
            default=first,
        )
        return models.ListModelsResponse(models=[model], next_page_token="2" if first else "")

    def RefreshModels(self, request, context):  # noqa: N802
        self._meet("RefreshModels", request, context)
        found = [models.Model(alias="compact", family="compact-12345678")]
        return models.RefreshModelsResponse(models=found, problems=["broken-1 lacks decode"])

    def GetServerInfo(self, request, context):  # noqa: N802
        self._meet("GetServerInfo", request, context)
        limits = models.Limits(message_bytes=1000, supports=5)
        return models.ServerInfo(
            version="0.1.0", api_version="v1", engine="embedded", store="memory", limits=limits
        )


@contextmanager
def running(credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeServer]:
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    fake = FakeServer()
    tasks_grpc.add_TaskServiceServicer_to_server(fake, server)
    segmentation_grpc.add_SegmentationServiceServicer_to_server(fake, server)
    models_grpc.add_ModelServiceServicer_to_server(fake, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    fake.target = f"127.0.0.1:{port}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(0).wait()
