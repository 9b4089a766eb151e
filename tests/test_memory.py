# SPDX-License-Identifier: Apache-2.0
"""A run of the tests tells what it held in memory, and fails if that is too much."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from tests.helpers.memory import MemoryWatch, held_bytes

HOLD = "import sys; held = b'x' * 100_000_000; print(flush=True); sys.stdin.read()"


@pytest.fixture
def holder():
    """A process that holds 100 MB."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        yield process
        process.stdin.close()


def test_what_a_child_holds_counts(request):
    before = held_bytes(psutil.Process())
    request.getfixturevalue("holder")
    assert held_bytes(psutil.Process()) > before + 90_000_000


@pytest.mark.parametrize(("allowed", "failed"), [(1, True), (10**12, False)])
def test_a_run_that_holds_too_much_fails(allowed, failed):
    watch = MemoryWatch(workers=2, allowed=allowed)
    session, lines = SimpleNamespace(exitstatus=pytest.ExitCode.OK), []
    watch.pytest_sessionstart()
    while not watch.peak:
        time.sleep(0.05)
    watch.pytest_sessionfinish(session)
    watch.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    assert (session.exitstatus == pytest.ExitCode.TESTS_FAILED) is failed
    assert ("above" in lines[0]) is failed
