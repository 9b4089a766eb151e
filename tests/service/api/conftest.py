import pytest

from tests.helpers.live_server import serving
from tests.helpers.tiny_repository import write_tiny_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_repository(root)
    return root


@pytest.fixture
async def live(repository):
    async with serving(repository) as running:
        yield running
