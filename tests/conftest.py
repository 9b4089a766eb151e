# SPDX-License-Identifier: Apache-2.0
"""What tests of several folders share."""

import os
from pathlib import Path

import pytest

from triton_local import LocalTriton, ensure_environment
from triton_local.environment import LOCATION_VARIABLE, default_folder

ROOT = Path(__file__).parents[1]


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
