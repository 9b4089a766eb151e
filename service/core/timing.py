"""Where the time of a call goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Stage(StrEnum):
    """The stages of a call; the names are those of ``fewseg.v1.Timings``."""

    QUEUE = "queue"
    IMAGE_DECODE = "image_decode"
    RESIZE = "resize"
    RASTERISE = "rasterise"
    FEATURES = "features"
    GUIDE = "guide"
    MERGE = "merge"
    DECODE = "decode"
    UPSAMPLE = "upsample"
    ENCODE = "encode"
    STORE = "store"
    LEAVE_ONE_OUT = "leave_one_out"


class StageClock:
    """Adds up the seconds of each stage of one call.

    Not thread-safe: one call owns one clock, and a visit to a worker thread another, merged
    into it when the visit is over.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: dict[Stage, float] = {}

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Adds the time of the with-block to ``stage``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Adds seconds to ``stage``."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def merge(self, other: StageClock) -> None:
        """Adds the stages of another clock."""
        for stage, seconds in other.seconds.items():
            self.add(stage, seconds)

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started
