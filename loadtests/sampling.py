"""CPU and memory of a process while it is measured."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import msgspec
import psutil

from loadtests.servers import cpu_seconds

_PERIOD_SECONDS = 0.25


class ResourceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a process took.

    Attributes:
        seconds: Since the start, one per sample.
        cores: Cores that the process kept busy up to each sample, since the one before.
        resident_bytes: Memory at each sample.
        other_cores: Cores that everything else on the machine kept busy.
        cpu_seconds: CPU seconds of the process over the whole time.
        started: ``time.monotonic()`` that ``seconds`` count from.
    """

    seconds: list[float] = msgspec.field(default_factory=list)
    cores: list[float] = msgspec.field(default_factory=list)
    resident_bytes: list[int] = msgspec.field(default_factory=list)
    other_cores: list[float] = msgspec.field(default_factory=list)
    cpu_seconds: float = 0.0
    started: float = 0.0

    def during(self, start: float, seconds: float) -> ResourceUse:
        """The samples of a part, whose seconds count from its start (``time.monotonic()``)."""
        moved = [self.started + second - start for second in self.seconds]
        kept = [index for index, second in enumerate(moved) if 0 <= second <= seconds]
        return msgspec.structs.replace(
            self,
            seconds=[moved[index] for index in kept],
            cores=[self.cores[index] for index in kept],
            resident_bytes=[self.resident_bytes[index] for index in kept],
            other_cores=[self.other_cores[index] for index in kept],
            started=start,
        )

    @property
    def peak_bytes(self) -> int:
        """Most memory at any sample."""
        return max(self.resident_bytes, default=0)


class ResourceSampler:
    """Samples a process in a thread, as a context manager.

    Args:
        process: The process; None samples nothing (a server on another machine).
    """

    def __init__(self, process: psutil.Process | None) -> None:
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.use = ResourceUse()

    def __enter__(self) -> Self:
        if self._process is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._process is not None:
            self._thread.join()

    def _sample(self) -> None:
        assert self._process is not None
        use = self.use
        started = moment = time.monotonic()
        first = busy = cpu_seconds(self._process)
        machine = _machine_seconds()
        while not self._ended.wait(_PERIOD_SECONDS):
            try:
                resident = self._process.memory_info().rss
            except psutil.NoSuchProcess:
                break
            now, busy_now, machine_now = (
                time.monotonic(),
                cpu_seconds(self._process),
                _machine_seconds(),
            )
            share = (busy_now - busy) / (now - moment)
            use.seconds.append(now - started)
            use.cores.append(share)
            use.resident_bytes.append(int(resident))
            use.other_cores.append(max(0.0, (machine_now - machine) / (now - moment) - share))
            moment, busy, machine = now, busy_now, machine_now
        self.use = msgspec.structs.replace(use, cpu_seconds=busy - first, started=started)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)
