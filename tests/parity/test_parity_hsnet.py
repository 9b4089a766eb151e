# SPDX-License-Identifier: Apache-2.0
"""Numbers of HSNet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import case_names
from export.verification.driver import EMBEDDED
from export.verification.hsnet import HSNET, verify_hsnet
from export.verification.measures import Measure
from tests.helpers.goldens import check_torch

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(900)

GOLDENS = Path(__file__).parent / "goldens" / "hsnet"

#: Cases that go through graphs and the service, too.
EXPORTED = ["rn50_s200_1shot"]


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_hsnet(GOLDENS, names=EXPORTED))


@pytest.mark.parametrize("stage", ["input", "torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == set(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 3 * len(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


@pytest.mark.parametrize("name", sorted(set(case_names(GOLDENS)) - set(EXPORTED)))
def test_the_network_computes_the_official_numbers(name):
    """Another trunk and more shots, in torch alone: their graphs are made by the same code."""
    check_torch(HSNET, GOLDENS, name)
