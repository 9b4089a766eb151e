"""What became of every request: arrays, so that a run of many is small and can cross processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewseg.v1 import types_pb2

#: Stages of ``fewseg.v1.Timings``, in its order.
STAGES: tuple[str, ...] = tuple(
    field.name for field in types_pb2.Timings.DESCRIPTOR.fields if field.name != "total"
)
#: The stages in which the engine runs graphs.
ENGINE_STAGES = ("features", "guide", "decode")
_TOTAL = len(STAGES)

#: Code of a request that got neither an answer nor a status.
NO_ANSWER = -1
OK = 0


@dataclass(frozen=True, slots=True)
class Records:
    """One row per request.

    Attributes:
        intended: float64 [n], seconds from the start when it was meant to leave.
        lag: float64 [n], seconds by which it left later.
        latency: float64 [n], seconds from ``intended`` (not from when it left) to its answer.
        code: int16 [n], its gRPC code, or ``NO_ANSWER``.
        timings: float32 [n, stages + 1], seconds of the stages inside the server, the whole
            call last; 0 where a stage did not run, or nothing is known.
        generator_cpu: CPU seconds that the generator used.
        started: ``time.monotonic()`` that ``intended`` counts from.
    """

    intended: NDArray[np.float64]
    lag: NDArray[np.float64]
    latency: NDArray[np.float64]
    code: NDArray[np.int16]
    timings: NDArray[np.float32]
    generator_cpu: float = 0.0
    started: float = 0.0

    @classmethod
    def empty(cls, intended: NDArray[np.float64]) -> Records:
        """Rows to fill in."""
        count = len(intended)
        return cls(
            intended=np.array(intended, dtype=np.float64),
            lag=np.zeros(count),
            latency=np.zeros(count),
            code=np.full(count, NO_ANSWER, dtype=np.int16),
            timings=np.zeros((count, _TOTAL + 1), dtype=np.float32),
        )

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """The rows of several generators, by intended time."""
        order = np.argsort(np.concatenate([part.intended for part in parts]), kind="stable")
        return cls(
            intended=np.concatenate([part.intended for part in parts])[order],
            lag=np.concatenate([part.lag for part in parts])[order],
            latency=np.concatenate([part.latency for part in parts])[order],
            code=np.concatenate([part.code for part in parts])[order],
            timings=np.concatenate([part.timings for part in parts])[order],
            generator_cpu=sum(part.generator_cpu for part in parts),
            started=parts[0].started,
        )

    def rows(self, chosen: NDArray[Any]) -> Records:
        """Some of the rows."""
        return replace(
            self,
            intended=self.intended[chosen],
            lag=self.lag[chosen],
            latency=self.latency[chosen],
            code=self.code[chosen],
            timings=self.timings[chosen],
        )

    def since(self, seconds: float) -> Records:
        """The rows meant to leave from then on; times count from there."""
        kept = self.rows(self.intended >= seconds)
        return replace(kept, intended=kept.intended - seconds, started=self.started + seconds)

    @property
    def answered(self) -> Records:
        """The rows with a good answer."""
        return self.rows(self.code == OK)

    def stage(self, name: str) -> NDArray[np.float32]:
        """Seconds of a stage."""
        values: NDArray[np.float32] = self.timings[:, STAGES.index(name)]
        return values

    @property
    def server(self) -> NDArray[np.float32]:
        """Seconds of the call inside the server."""
        values: NDArray[np.float32] = self.timings[:, _TOTAL]
        return values

    @property
    def engine(self) -> NDArray[np.float32]:
        """Seconds in which the engine ran graphs."""
        return sum((self.stage(name) for name in ENGINE_STAGES), np.zeros(len(self), np.float32))

    def __len__(self) -> int:
        return len(self.intended)


def seconds_of(timings: types_pb2.Timings) -> NDArray[np.float32]:
    """A row of ``Records.timings``."""
    row = np.zeros(_TOTAL + 1, dtype=np.float32)
    for index, name in enumerate((*STAGES, "total")):
        if timings.HasField(name):
            duration = getattr(timings, name)
            row[index] = duration.seconds + duration.nanos * 1e-9
    return row


def engine_seconds(timings: types_pb2.Timings) -> float:
    """Seconds in which the engine ran graphs for one answer."""
    return seconds_in(seconds_of(timings), ENGINE_STAGES)


def seconds_in(row: NDArray[np.float32], stages: Iterable[str]) -> float:
    """Seconds of some stages, of a row of ``Records.timings``."""
    return float(sum(row[STAGES.index(name)] for name in stages))
