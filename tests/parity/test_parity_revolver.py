"""Numbers of guided networks against those of their authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.goldens import case_names
from export.verification.driver import EMBEDDED
from export.verification.measures import Measure
from export.verification.revolver import REVOLVER, verify_revolver
from tests.helpers.goldens import check_torch

#: Exports take a minute on a quiet machine, and several on a busy one.
pytestmark = pytest.mark.timeout(900)

GOLDENS = Path(__file__).parent / "goldens" / "revolver"

#: Cases that go through graphs and the service, too.
EXPORTED = [
    "s1_unshared_1shot_dense_129",
    "s3_late_lite_5shot_mixed_129",
    "s5_interactive_late_glob_lite_1point_129",
]


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_revolver(GOLDENS, names=EXPORTED))


@pytest.mark.parametrize("stage", ["input", "torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == set(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    """Dense, mixed shots that lack a class, one click on the query itself."""
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2 * len(EXPORTED)
    assert [measure for measure in found if not measure.passed] == []


@pytest.mark.parametrize("name", sorted(set(case_names(GOLDENS)) - set(EXPORTED)))
def test_the_network_computes_the_official_numbers(name):
    """Points on a wide support, in torch alone: the graphs are those of the cases above."""
    check_torch(REVOLVER, GOLDENS, name)
