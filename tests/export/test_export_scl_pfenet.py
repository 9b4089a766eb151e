"""SCL on PFENet: what void pixels of a support are to the weights of shots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.configs import model_configs
from export.methods.scl_pfenet import SclPfenetMerge, SclPfenetNetwork
from export.methods.trunks import Backbone
from export.scl_pfenet_family import scl_pfenet_family
from service.core.family import ModelFamily, VoidRule
from service.core.planes import VOID, planes
from service.engines.manifest import read_catalog

SIDE = 65
BINS = (5.0, 3.0, 2.0, 1.0)
CHANNELS = 512
"""Of layer3 of VGG-16, which features start with."""


class GivenPass(nn.Module):
    """In place of a support's pass: finds what it is told to."""

    def __init__(self, margins: Tensor) -> None:
        super().__init__()
        self.found = margins
        self.enrichment = self

    def levels(self, support: Tensor, vectors: Tensor, finer: object = None) -> list[Tensor]:
        return [torch.zeros(len(support) * vectors.shape[1], 1, 1, 1)]

    def margins(self, levels: list[Tensor]) -> Tensor:
        return self.found[None]


@pytest.fixture(scope="module")
def network() -> SclPfenetNetwork:
    torch.manual_seed(0)
    return SclPfenetNetwork(Backbone.VGG16).eval()


@pytest.fixture(scope="module")
def family(network) -> ModelFamily:
    exported = scl_pfenet_family(
        alias="m", network=network, size=(SIDE, SIDE), provenance={}, bins=BINS
    )
    configs = {config.name: config for config in model_configs(exported).values()}
    catalog = read_catalog(configs)
    assert catalog.problems == []
    return catalog.families[exported.name].family


def judged(network: SclPfenetNetwork, family: ModelFamily, labels, margins: Tensor) -> float:
    merge = SclPfenetMerge(network, SIDE, BINS)
    merge.support_pass = GivenPass(margins)
    grid = network.grid(SIDE)
    evidence = torch.from_numpy(planes(labels, 1, {1}, family)).float()[None]
    features = torch.ones(1, CHANNELS + 2 * 256, grid, grid)
    vectors = torch.ones(1, 1, 1, 512)
    return float(merge(vectors, features, evidence, torch.ones(1, 1)))


def test_a_void_ring_does_not_count_in_the_weights_of_shots(network, family):
    assert family.void is VoidRule.UNKNOWN
    labels = np.zeros((SIDE, SIDE), np.int16)
    labels[:49, :49] = VOID
    labels[16:33, 16:33] = 1
    grid = network.grid(SIDE)
    cells = np.linspace(0, SIDE - 1, grid).astype(int)
    near = labels[np.ix_(cells, cells)]
    exact = torch.from_numpy(np.where(near == 1, 1.0, -1.0).astype(np.float32))
    spilled = exact.clone()
    spilled[0, 0] = 50.0
    assert labels[2, 2] == VOID
    assert judged(network, family, labels, spilled) == judged(network, family, labels, exact) > 0
    # Where the corner is known to be background, the same spill costs.
    labels[labels == VOID] = 0
    known = [judged(network, family, labels, found) for found in (spilled, exact)]
    assert known[0] < known[1]
