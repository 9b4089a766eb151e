"""Numbers of SCL on CANet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import read_goldens
from export.verification.driver import EMBEDDED
from export.verification.measures import Measure
from export.verification.scl_canet import verify_scl_canet

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(1800)

GOLDENS = Path(__file__).parent / "goldens" / "scl-canet"
SMALL = "sclca_129_1shot_single_scale"


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_scl_canet(GOLDENS, names=[SMALL]))


@pytest.mark.parametrize("stage", ["torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    assert [measure for measure in measures if measure.stage == stage]
    assert [measure for measure in measures if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2
    assert [measure for measure in found if not measure.passed] == []


def test_several_shots_and_scales_are_those_of_the_official_code_in_torch():
    """The export of three scales takes minutes; `fewseg-export verify` does it."""
    cases = {case.name for case in read_goldens(GOLDENS)} - {SMALL}
    found = list(verify_scl_canet(GOLDENS, names=sorted(cases), exported=False))
    assert {measure.case for measure in found if measure.quantity == "agreement"} == cases
    assert [measure for measure in found if not measure.passed] == []
