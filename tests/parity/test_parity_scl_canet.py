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


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_scl_canet(GOLDENS))


@pytest.mark.parametrize("stage", ["torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == {case.name for case in read_goldens(GOLDENS)}
    assert [measure for measure in measures if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2 * len(read_goldens(GOLDENS))
    assert [measure for measure in found if not measure.passed] == []
