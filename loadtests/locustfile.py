"""The standard scenario for those who live in Locust: one new photograph per request.

    pip install locust 'fewseg[loadtest]'
    locust -f loadtests/locustfile.py --host localhost:50051

Locust's users wait for their answers (closed loop): a server that stalls is asked less often, and
its stalls count once instead of for everybody who would have come meanwhile. For latencies to quote
use ``fewseg-loadtest``; this file is for driving load from a cluster of Locust workers.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any, ClassVar

import grpc
import grpc.experimental.gevent
from locust import User, constant_throughput, task
from locust.exception import LocustError

from loadtests.photographs import photographs
from loadtests.plans import register, segment_request, support_of
from loadtests.targets import SEGMENT, Connection, Target

# gRPC must yield to gevent before its first channel is made.
grpc.experimental.gevent.init_gevent()  # type: ignore[no-untyped-call]

_IMAGES = 200
_TIMEOUT = 30.0


class SegmentUser(User):  # type: ignore[misc]
    """Registers a task once for all users of this process, and segments new photographs."""

    wait_time = constant_throughput(1)
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _requests: ClassVar[Any] = None

    def on_start(self) -> None:
        """Connects, and prepares messages once."""
        if not self.host:
            raise LocustError("give the server's address by --host")
        self._connection = Connection(
            Target(self.host, bool(os.environ.get("FEWSEG_TLS")), token=_token())
        )
        with SegmentUser._lock:
            if SegmentUser._requests is None:
                support = support_of(photographs(1, seed=1)[0], 0)
                name = register(self._connection, "", [support])
                SegmentUser._requests = itertools.cycle(
                    segment_request(name, image).SerializeToString()
                    for image in photographs(_IMAGES, seed=os.getpid())
                )
        self._segment = self._connection.raw(SEGMENT)

    def on_stop(self) -> None:
        """Disconnects."""
        self._connection.close()

    @task
    def segment(self) -> None:
        """Segments the next photograph."""
        request = next(SegmentUser._requests)
        started = time.perf_counter()
        length, error = 0, None
        try:
            answer = self._segment(
                request, timeout=_TIMEOUT, metadata=self._connection.target.metadata
            )
            length = len(answer)
        except grpc.RpcError as problem:
            error = problem
        self.environment.events.request.fire(
            request_type="grpc",
            name="Segment",
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=length,
            exception=error,
        )


def _token() -> str:
    return os.environ.get("FEWSEG_TOKEN", "")
