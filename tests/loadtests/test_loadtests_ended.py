"""A measurement that is ended from outside takes its server along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.tiny_repository import write_tiny_repository

#: A start takes some three seconds; on a busy machine many times that.
_PATIENCE_SECONDS = 120.0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_is_ended_leaves_no_server(tmp_path: Path, ending: signal.Signals):
    write_tiny_repository(tmp_path / "models")
    command = [
        *(sys.executable, "-m", "loadtests.cli", "run", "register-once-1-shot"),
        *("--flag", f"repository={tmp_path / 'models'}"),
        *("--seconds", "600"),
        *("--output", str(tmp_path / "results")),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        server = _server_of(psutil.Process(process.pid))
        process.send_signal(ending)
        assert process.wait(_PATIENCE_SECONDS) == 128 + ending
        assert not server.is_running()
        assert not list(tmp_path.glob("fewseg-load-*"))
    finally:
        process.kill()
        process.wait()


def _server_of(process: psutil.Process) -> psutil.Process:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        for child in process.children(recursive=True):
            if "service.main" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("the measurement started no server")
