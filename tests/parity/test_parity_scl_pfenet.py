"""Numbers of SCL on PFENet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import case_names
from export.verification.driver import EMBEDDED
from export.verification.measures import Measure
from export.verification.scl_pfenet import SCL_PFENET, verify_scl_pfenet
from tests.helpers.goldens import check_torch

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(1800)

GOLDENS = Path(__file__).parent / "goldens" / "scl-pfenet"

#: Cases that go through graphs and the service, too.
EXPORTED = ["sclpfe_r50_s113_5shot"]


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_scl_pfenet(GOLDENS, names=EXPORTED))


@pytest.mark.parametrize("stage", ["torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == set(EXPORTED)
    assert [measure for measure in measures if not measure.passed] == []


@pytest.mark.parametrize("stage", ["torch", "onnxruntime"])
def test_the_weights_of_shots_are_compared(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found if measure.quantity == "agreement"} == set(EXPORTED)


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2 * len(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


@pytest.mark.parametrize("name", sorted(set(case_names(GOLDENS)) - set(EXPORTED)))
def test_the_network_computes_the_official_numbers(name):
    """One shot, and the bins of COCO, in torch alone: their graphs are made by the same code."""
    check_torch(SCL_PFENET, GOLDENS, name)
