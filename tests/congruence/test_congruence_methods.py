# SPDX-License-Identifier: Apache-2.0
"""Every exported method answers the same with both engines, through the whole API.

The networks are the methods' own, with random weights and small inputs.
"""

import pytest
import torch
from congruence_script import ENGINES, carry_out_all, compare

from export.canet_family import canet_family
from export.check import check
from export.methods.canet import CanetNetwork
from export.methods.revolver import GuidedModel, GuidedNetwork
from export.methods.sgone import SgOneNetwork
from export.prototype_family import prototype_family
from export.repository import write_family
from export.revolver_family import revolver_family
from export.sgone_family import sgone_family
from export.sources import panet_seeded
from fewseg.results import SegmentResult, Task
from triton_local import LocalTriton


def panet():
    trunk = panet_seeded().trunk
    return prototype_family(
        method="panet", alias="panet", trunk=trunk, size=(65, 65), provenance={}
    )


def sgone():
    network = SgOneNetwork().eval()
    return sgone_family(alias="sgone", network=network, provenance={}, max_pixels=1 << 16)


def canet():
    network = CanetNetwork().eval()
    return canet_family(alias="canet", network=network, size=(65, 65), provenance={})


def revolver():
    model = GuidedModel("tiny", channels=8, shared=True, buffers=False)
    network = GuidedNetwork(model, widths=(4, 4, 6, 6, 6)).eval()
    return revolver_family(alias="revolver", network=network, provenance={}, max_pixels=1 << 16)


METHODS = (panet, sgone, canet, revolver)
ALIASES = [method.__name__ for method in METHODS]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("methods")
    for method in METHODS:
        torch.manual_seed(0)
        write_family(method(), root)
    return root


@pytest.fixture(scope="module")
def rounds(repository, triton_environment):
    with LocalTriton(repository, environment=triton_environment) as triton:
        return {engine: carry_out_all(engine, repository, triton, ALIASES) for engine in ENGINES}


def test_what_the_exporter_writes_passes_its_own_check(repository):
    assert check(repository) == []


@pytest.mark.parametrize("alias", ALIASES)
def test_every_operation_answers_the_same_for_every_method(rounds, alias):
    embedded, served = rounds["embedded"][alias], rounds["triton"][alias]
    assert isinstance(served["register"], Task)
    assert isinstance(served["segment 0"], SegmentResult)
    compare(embedded, served)
