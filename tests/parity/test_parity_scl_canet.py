"""Numbers of SCL on CANet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import case_names
from export.verification.driver import EMBEDDED
from export.verification.measures import Measure
from export.verification.scl_canet import SCL_CANET, verify_scl_canet
from tests.helpers.goldens import check_torch

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(1800)

GOLDENS = Path(__file__).parent / "goldens" / "scl-canet"

#: Cases that go through graphs and the service, too.
EXPORTED = ["sclca_129_1shot_single_scale", "sclca_odd_5shot_multiscale"]


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_scl_canet(GOLDENS, names=EXPORTED))


@pytest.mark.parametrize("stage", ["torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == set(EXPORTED)
    assert [measure for measure in measures if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2 * len(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


@pytest.mark.parametrize("name", sorted(set(case_names(GOLDENS)) - set(EXPORTED)))
def test_the_network_computes_the_official_numbers(name):
    """One shot at all scales, in torch alone: the graphs are those of five."""
    check_torch(SCL_CANET, GOLDENS, name)
