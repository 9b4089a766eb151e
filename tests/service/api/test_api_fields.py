import pytest

from fewseg.v1 import segmentation_service_pb2 as segmentation
from fewseg.v1 import task_service_pb2 as tasks
from service.api.fields import placed, placing
from service.core import errors

HEADER = tasks.AddSupportsHeader.DESCRIPTOR


def path_of(error, message, within=""):
    return placed(error, message, within).field


@pytest.mark.parametrize(
    ("kind", "reason", "message", "field"),
    [
        (errors.NotFoundError, "TASK_NOT_FOUND", tasks.GetTaskRequest, "name"),
        (errors.NotFoundError, "TENANT_NOT_FOUND", tasks.GetTaskRequest, "name"),
        (errors.NotFoundError, "TENANT_NOT_FOUND", tasks.ListTasksRequest, "parent"),
        (errors.NotFoundError, "TENANT_NOT_FOUND", tasks.RegisterTaskRequest, "parent"),
        (errors.AlreadyExistsError, "TASK_EXISTS", tasks.RegisterTaskRequest, "task_id"),
        (errors.AbortedError, "TASK_CHANGING", segmentation.SegmentRequest, "name"),
        (
            errors.FailedPreconditionError,
            "CLASS_WITHOUT_PIXELS",
            tasks.RemoveSupportRequest,
            "support_id",
        ),
        (
            errors.FailedPreconditionError,
            "CLASS_WITHOUT_PIXELS",
            tasks.AnnotateSupportRequest,
            "annotation",
        ),
    ],
)
def test_an_error_without_a_path_gets_that_of_what_it_is_about(kind, reason, message, field):
    assert path_of(kind(reason, "Wrong."), message.DESCRIPTOR) == field


def test_a_path_that_is_there_stays():
    error = errors.InvalidArgumentError("X", "Wrong.", field="supports[1].image")
    assert placed(error, tasks.RegisterTaskRequest.DESCRIPTOR) is error


@pytest.mark.parametrize(
    ("field", "whole"),
    [
        ("etag", "header.etag"),
        ("request_id", "header.request_id"),
        (None, "header.name"),
        ("supports[3].image", "supports[3].image"),
        ("header", "header"),
    ],
)
def test_a_path_into_a_part_of_a_stream_begins_with_that_part(field, whole):
    error = errors.NotFoundError("X", "Wrong.", field=field)
    assert path_of(error, HEADER, "header") == whole


@pytest.mark.parametrize(
    "error",
    [
        errors.UnavailableError("STORE_UNAVAILABLE", "No.", retry_after=1.0),
        errors.DeadlineExceededError("DEADLINE_EXCEEDED", "Late."),
        errors.RepositoryError("GRAPH_MISSING", "No graph."),
    ],
)
def test_what_no_field_is_to_blame_for_names_none(error):
    assert path_of(error, HEADER, "header") is None


def test_a_message_without_a_subject_is_not_blamed():
    error = errors.NotFoundError("X", "Wrong.")
    assert path_of(error, segmentation.OutputSize.DESCRIPTOR) is None


def test_errors_of_a_body_are_placed_as_they_leave_it():
    with pytest.raises(errors.AbortedError) as caught, placing(tasks.AddSupportsHeader, "header"):
        raise errors.AbortedError("STALE_ETAG", "Old.", field="etag")
    assert caught.value.field == "header.etag"
