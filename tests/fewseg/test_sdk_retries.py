"""When a call is sent again."""

from __future__ import annotations

import grpc
import pytest

from fewseg._retries import Attempts
from fewseg.errors import Unavailable, error_of_call


def failure(reason: str) -> Unavailable:
    return Unavailable("no", code="UNAVAILABLE", reason=reason)


def test_attempts_come_to_an_end() -> None:
    attempts = Attempts(2, 100.0)
    pauses = [attempts.pause_after(failure("ENGINE_UNREACHABLE")) for _ in range(3)]
    assert [pause is None for pause in pauses] == [False, False, True]


def test_a_server_that_starts_is_waited_for_until_the_deadline() -> None:
    attempts = Attempts(2, 100.0)
    assert all(attempts.pause_after(failure("STARTING")) for _ in range(20))
    assert attempts.pause_after(failure("ENGINE_UNREACHABLE")) is not None
    assert Attempts(2, 0.05).pause_after(failure("STARTING")) is None


@pytest.mark.parametrize("reason", ["STARTING", "ENGINE_UNREACHABLE"])
def test_pauses_grow_and_stay_bounded(reason: str) -> None:
    attempts = Attempts(30, None)
    pauses = [attempts.pause_after(failure(reason)) or 0.0 for _ in range(12)]
    assert pauses[0] < 0.2
    assert 1.0 < pauses[-1] <= 2.4


class Ended(grpc.RpcError):
    """A call that ended without details of ours."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_a_connection_that_ends_under_a_call_may_be_tried_again() -> None:
    assert isinstance(error_of_call(Ended(grpc.StatusCode.CANCELLED, "CANCELLED")), Unavailable)
    closed = error_of_call(Ended(grpc.StatusCode.CANCELLED, "Channel closed!"))
    assert not isinstance(closed, Unavailable)
