"""A measurement that is ended from outside takes its server along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.tiny_repository import write_tiny_repository

#: A start takes some three seconds; on a busy machine many times that.
_PATIENCE_SECONDS = 120.0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_is_ended_leaves_no_server(tmp_path: Path, ending: signal.Signals):
    with _measurement(tmp_path) as (process, server):
        process.send_signal(ending)
        assert process.wait(_PATIENCE_SECONDS) == 128 + ending
        assert not server.is_running()
        assert not list(tmp_path.glob("fewseg-load-*"))


def test_a_measurement_under_nohup_outlives_its_terminal(tmp_path: Path):
    with _measurement(tmp_path, "nohup") as (process, server):
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        assert server.is_running()


@contextmanager
def _measurement(
    folder: Path, *before: str
) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """Runs one that would take ten minutes, behind the command ``before``, with its server."""
    write_tiny_repository(folder / "models")
    command = [
        *(*before, sys.executable, "-m", "loadtests.cli", "run", "register-once-1-shot"),
        *("--flag", f"repository={folder / 'models'}"),
        *("--seconds", "600"),
        *("--output", str(folder / "results")),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(folder)},
        preexec_fn=_hear_the_terminal,
    )
    running = [psutil.Process(process.pid)]
    try:
        running.append(_server_of(running[0]))
        yield process, running[1]
    finally:
        for one in running:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _hear_the_terminal() -> None:
    # The tests themselves may run under nohup, and what is ignored is inherited.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _server_of(process: psutil.Process) -> psutil.Process:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        for child in process.children(recursive=True):
            if "service.main" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("the measurement started no server")
