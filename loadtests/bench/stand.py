"""What the rows share: the server under test, the straight line, the echo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewseg.v1 import segmentation_service_pb2 as pb2
from loadtests.echo import ANSWER_AFTER, ANSWER_BYTES, METHOD, running_echo
from loadtests.floor import StraightLine, drawn_planes
from loadtests.photographs import Photograph, outline, photographs
from loadtests.plans import register, segment_request, support_of
from loadtests.records import engine_seconds
from loadtests.servers import RunningServer, running_server
from loadtests.targets import SEGMENT, Connection

REPOSITORY = Path("model_repository")
_ECHO_KINDS = ("threads", "aio")
_ECHOES = 100
_TIMEOUT = 30.0
#: The readiness probe runs graphs too, and graphs are counted here.
_FLAGS = {"repository": str(REPOSITORY), "ready-seconds": "3600"}


@dataclass(frozen=True, slots=True)
class Segmented:
    """One answer, as its client saw it.

    Attributes:
        seconds: From the call to the answer's bytes.
        engine: Seconds in which the engine ran graphs, as the answer says.
        answer: The answer.
        request_bytes, answer_bytes: Sizes of both messages.
    """

    seconds: float
    engine: float
    answer: pb2.SegmentResponse
    request_bytes: bytes
    answer_bytes: int


class Stand:
    """A served default model, and its floor.

    Args:
        server: Under test.
        echo: The echo's connection.
        line: The graphs, called directly.
    """

    def __init__(self, server: RunningServer, echo: Connection, line: StraightLine) -> None:
        self.server = server
        self.connection = Connection(server.target)
        self.line = line
        self._segment = self.connection.raw(SEGMENT)
        self._echo = echo.raw(METHOD)

    def segment(self, task: str, photograph: Photograph) -> Segmented:
        """Segments a photograph; only the call is timed."""
        request = segment_request(task, photograph).SerializeToString()
        started = time.perf_counter()
        content = self._segment(request, timeout=_TIMEOUT)
        seconds = time.perf_counter() - started
        answer = pb2.SegmentResponse.FromString(content)
        return Segmented(seconds, engine_seconds(answer.timings), answer, request, len(content))

    def echo(self, request: bytes, answer_bytes: int, after: float = 0.0) -> float:
        """Seconds that the transport of two messages takes.

        Args:
            request: Is sent.
            answer_bytes: Size of the answer.
            after: Seconds that the echo sleeps before it answers, as a client of a network has to
                wait for it; they are not counted, the way out of sleep is.
        """
        metadata = [(ANSWER_BYTES, str(answer_bytes))]
        if after:
            metadata.append((ANSWER_AFTER, f"{after * 1e3:.3f}"))
        started = time.perf_counter()
        self._echo(request, timeout=_TIMEOUT, metadata=metadata)
        return time.perf_counter() - started - after

    def task(self, task_id: str, shots: int, seed: int) -> str:
        """Registers a task of so many shots."""
        supports = [
            support_of(photograph, number)
            for number, photograph in enumerate(photographs(shots, seed=seed))
        ]
        return register(self.connection, task_id, supports)

    def prototypes(self, shots: int, seed: int) -> NDArray[np.float32]:
        """Guidance of the same task, made by the straight line."""
        return self.line.prototypes(supports_of(shots, seed))


def supports_of(shots: int, seed: int) -> list[tuple[bytes, NDArray[np.float32]]]:
    """JPEG and planes of the supports that ``Stand.task`` registers."""
    return [
        (one.jpeg, drawn_planes(outline(one, number), one.height, one.width))
        for number, one in enumerate(photographs(shots, seed=seed))
    ]


def family_name(repository: Path = REPOSITORY) -> str:
    """The family that the repository's default alias stands for: the only one, or the newest."""
    names = sorted(path.name.removesuffix("_features") for path in repository.glob("*_features"))
    compact = [name for name in names if name.startswith("compact-")]
    return max(compact or names, key=lambda name: _created(repository / f"{name}_features"))


def _created(model: Path) -> str:
    text = (model / "config.pbtxt").read_text()
    return text.partition('key: "fewseg.created"')[2].partition('string_value: "')[2][:20]


@contextlib.contextmanager
def open_stand(engine: str) -> Iterator[Stand]:
    """Starts a server and the faster of two echo servers, and loads the graphs."""
    line = StraightLine(REPOSITORY, family_name())
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(engine, _FLAGS))
        stands = []
        for kind in _ECHO_KINDS:
            target, _ = stack.enter_context(running_echo(kind))
            connection = Connection(target)
            stack.callback(connection.close)
            stand = Stand(server, connection, line)
            stack.callback(stand.connection.close)
            request = bytes(45_000)
            seconds = sorted(stand.echo(request, 2_500) for _ in range(_ECHOES))
            stands.append((seconds[_ECHOES // 2], stand))
        yield min(stands, key=lambda pair: pair[0])[1]
