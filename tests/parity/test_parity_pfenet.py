"""Numbers of PFENet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import read_goldens
from export.verification.driver import EMBEDDED, TORCH
from export.verification.measures import Measure
from export.verification.pfenet import measure_torch, verify_pfenet

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(900)

GOLDENS = Path(__file__).parent / "goldens" / "pfenet"
EXPORTED = "vgg16_s129_5shot"


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_pfenet(GOLDENS, names=[EXPORTED]))


@pytest.mark.parametrize("stage", ["input", "torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == {EXPORTED}
    assert [measure for measure in found if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2
    assert [measure for measure in found if not measure.passed] == []


def test_a_resnet_computes_the_official_numbers(tmp_path):
    """In torch alone: its graphs take as long to export as those above."""
    (golden,) = read_goldens(GOLDENS, ["r50_s113_1shot"])
    found = list(measure_torch(golden, GOLDENS, tmp_path))
    assert {measure.stage for measure in found} == {"input", TORCH}
    assert [measure for measure in found if not measure.passed] == []
