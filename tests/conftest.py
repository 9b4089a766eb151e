# SPDX-License-Identifier: Apache-2.0
"""What tests of several folders share."""

import functools
import os
import sys
from pathlib import Path

import pytest

from tests.helpers.memory import MemoryWatch
from triton_local import LocalTriton, ensure_environment
from triton_local.environment import LOCATION_VARIABLE, default_folder

ROOT = Path(__file__).parents[1]


#: Folders whose files take minutes, the longest first: they export networks.
LONG_FOLDERS = ("congruence", "parity", "export")


def pytest_configure(config):
    # What xdist starts, one entry a worker.
    workers = config.getoption("tx", default=())
    if workers and not hasattr(config, "workerinput"):
        config.pluginmanager.register(MemoryWatch(len(workers)))


def pytest_collection_modifyitems(config, items):
    """Lets the workers of `make test` begin with what takes longest, so that all end together."""
    if not hasattr(config, "workerinput"):
        return
    rank = {ROOT / "tests" / folder: place for place, folder in enumerate(LONG_FOLDERS)}
    items.sort(key=lambda item: rank.get(item.path.parent, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def exporter_unmeasured():
    """Has torch export without the tracer of coverage, under which it takes 1.6 times as long.

    What of this project runs inside, the modules of graphs, runs once more when an exported graph
    is compared with them; only what they do for the exporter alone is missing from the report.
    """
    # Every test is collected by now: what does not export has not imported torch.
    if "export.graphs" not in sys.modules:
        yield
        return
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", _untraced(torch.onnx.export))
        yield


def _untraced(function):
    @functools.wraps(function)
    def call(*arguments, **options):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)

    return call


@pytest.fixture(scope="session")
def triton_environment():
    """Where Triton is installed; the first run of the tests on a machine installs it."""
    folder = default_folder() if os.environ.get(LOCATION_VARIABLE) else ROOT / ".triton-venv"
    return ensure_environment(folder)


@pytest.fixture
def serve_triton(triton_environment):
    """Starts Tritons over repositories; they end with the test."""
    servers = []

    def serve(repository, **options):
        server = LocalTriton(repository, environment=triton_environment, **options)
        servers.append(server)
        server.start()
        return server

    yield serve
    for server in servers:
        # Stopping takes seconds; what a killed one leaves is removed just as well.
        server.kill()
        server.close()
