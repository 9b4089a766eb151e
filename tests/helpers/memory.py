# SPDX-License-Identifier: Apache-2.0
"""What a run of the tests holds in memory, and that it stays below what a worker may take."""

from __future__ import annotations

import threading

import psutil
import pytest

#: Of each worker with all that it starts: two of them fit into 6 GB.
BYTES_PER_WORKER = 3_000_000_000


def held_bytes(root: psutil.Process) -> int:
    """Resident bytes of a process and all below it; what several share counts for each."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class MemoryWatch:
    """Plugin of the process that hands out tests: the run fails if it held more than its share."""

    def __init__(self, workers: int, allowed: int = BYTES_PER_WORKER) -> None:
        self.peak = 0
        self.allowed = workers * allowed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def pytest_sessionstart(self) -> None:
        self._thread.start()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._ended.set()
        self._thread.join()
        if self.peak > self.allowed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verdict = "above the" if self.peak > self.allowed else "of"
        terminalreporter.write_line(
            f"memory: {self.peak / 1e9:.1f} GB at the peak, {verdict} {self.allowed / 1e9:.0f} GB "
            "that the workers may take"
        )

    def _sample(self) -> None:
        root = psutil.Process()
        while not self._ended.wait(0.5):
            self.peak = max(self.peak, held_bytes(root))
