from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from export.family import Family
from export.prototype_family import prototype_family
from export.repository import write_family


def tiny_trunk(seed: int = 0) -> nn.Module:
    """A trunk of stride eight and four channels that exports in no time."""
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 8, stride=8)


def tiny_family(
    alias: str = "tiny", seed: int = 0, size: tuple[int, int] = (40, 32), max_batch: int = 8
) -> Family:
    return prototype_family(
        method="panet",
        alias=alias,
        trunk=tiny_trunk(seed),
        size=size,
        provenance={"weights": "random"},
        max_batch=max_batch,
    )


@pytest.fixture(scope="session")
def make_family():
    return tiny_family


@pytest.fixture(scope="session")
def family() -> Family:
    return tiny_family()


@pytest.fixture(scope="session")
def repository(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository that holds the tiny family, really exported. Not to be written to."""
    root = tmp_path_factory.mktemp("repository")
    write_family(family, root)
    return root
