import gc
import logging
import weakref

import pytest
from google.rpc import code_pb2, error_details_pb2

from service.api.errors import DOMAIN, let_go, status_of
from service.api.messages import MessageTooLargeError
from service.core import errors


def details_of(status):
    """Unpacked details by type name."""
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RequestInfo,
    )
    found = {}
    for packed in status.details:
        kind = next(kind for kind in kinds if packed.Is(kind.DESCRIPTOR))
        found[kind.__name__] = kind.FromString(packed.value)
    return found


def every_kind(base=errors.FewSegError):
    yield base
    for kind in base.__subclasses__():
        yield from every_kind(kind)


EXPECTED = {
    errors.FewSegError: code_pb2.INTERNAL,
    errors.InvalidArgumentError: code_pb2.INVALID_ARGUMENT,
    errors.OutOfLimitsError: code_pb2.INVALID_ARGUMENT,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    errors.FailedPreconditionError: code_pb2.FAILED_PRECONDITION,
    errors.AbortedError: code_pb2.ABORTED,
    errors.ResourceExhaustedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.DeadlineExceededError: code_pb2.DEADLINE_EXCEEDED,
    errors.RepositoryError: code_pb2.FAILED_PRECONDITION,
    MessageTooLargeError: code_pb2.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_kind_has_its_code(kind):
    retry = {"retry_after": 2.5} if issubclass(kind, errors.RetryableError) else {}
    status = status_of(kind("REASON", "A sentence.", **retry), "r1")
    assert (status.code, status.message) == (EXPECTED[kind], "A sentence.")
    details = details_of(status)
    assert details["ErrorInfo"].reason == "REASON"
    assert details["ErrorInfo"].domain == DOMAIN
    assert details["RequestInfo"].request_id == "r1"
    assert ("RetryInfo" in details) == bool(retry)


def test_no_kind_is_missing_from_this_test():
    concrete = {kind for kind in every_kind() if kind.__module__ == errors.__name__}
    assert concrete - {errors.RetryableError} == set(EXPECTED) - {MessageTooLargeError}


def test_a_field_is_told_where_there_is_one():
    error = errors.InvalidArgumentError("EMPTY_BOX", "Empty.", field="marks[0].box")
    violation = details_of(status_of(error.within("annotation"), ""))["BadRequest"]
    assert violation.field_violations[0].field == "annotation.marks[0].box"
    assert violation.field_violations[0].description == "Empty."


def test_a_refusal_says_when_to_come_back():
    error = errors.ResourceExhaustedError("OVERLOADED", "Full.", retry_after=0.25)
    assert details_of(status_of(error, ""))["RetryInfo"].retry_delay.ToMilliseconds() == 250


@pytest.mark.parametrize(
    ("key", "kind"), [("name", "fewseg.dev/Task"), ("model", "fewseg.dev/Model")]
)
def test_the_thing_that_is_missing_is_named(key, kind):
    error = errors.NotFoundError("X_NOT_FOUND", "Missing.", metadata={key: "it"})
    resource = details_of(status_of(error, ""))["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == (kind, "it")


def test_a_timeout_is_an_exceeded_deadline_only_once_the_deadline_has_passed():
    assert status_of(TimeoutError(), "", overdue=True).code == code_pb2.DEADLINE_EXCEEDED
    assert status_of(TimeoutError(), "").code == code_pb2.INTERNAL


def test_an_error_that_was_dealt_with_keeps_nothing_in_memory():
    class Pixels:
        pass

    seen = []

    def fail():
        pixels = Pixels()
        seen.append(weakref.ref(pixels))
        raise ValueError(pixels)

    def wrap():
        try:
            fail()
        except ValueError as first:
            held = Pixels()
            seen.append(weakref.ref(held))
            first.args = ()
            raise ExceptionGroup("all", [first]) from None

    gc.disable()
    try:
        kept = None
        try:
            wrap()
        except ExceptionGroup as error:
            kept = error
        assert [one() is not None for one in seen] == [True, True]
        let_go(kept)
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()


def test_an_unexpected_exception_leaks_nothing_but_is_logged(caplog):
    with caplog.at_level(logging.ERROR):
        status = status_of(ValueError("password=hunter2"), "r7")
    assert (status.code, status.message) == (code_pb2.INTERNAL, "internal error")
    assert b"hunter2" not in status.SerializeToString()
    assert details_of(status)["RequestInfo"].request_id == "r7"
    record = caplog.records[-1]
    assert record.request_id == "r7"
    assert "hunter2" in caplog.text


def test_a_status_fits_into_trailers_whatever_it_quotes():
    metadata = {f"key{index}": "ü" * 10_000 for index in range(100)}
    error = errors.InvalidArgumentError("LONG", "ü" * 100_000, field="x", metadata=metadata)
    assert len(status_of(error, "").SerializeToString()) < 8 * 1024
