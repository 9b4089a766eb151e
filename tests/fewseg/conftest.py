from collections.abc import Iterator

import numpy as np
import pytest
from fake_fewseg_server import FakeServer, running

from fewseg import Client


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, timeout=10) as opened:
        yield opened


@pytest.fixture
def photo() -> np.ndarray:
    """uint8 [24, 40, 3]."""
    return np.random.default_rng(7).integers(0, 256, (24, 40, 3), np.uint8)


@pytest.fixture
def coin(photo: np.ndarray) -> np.ndarray:
    """Booleans [24, 40]."""
    mask = np.zeros(photo.shape[:2], bool)
    mask[6:15, 10:22] = True
    return mask
