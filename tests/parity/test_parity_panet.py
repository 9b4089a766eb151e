"""Numbers of PANet against those of its authors' code: torch, ONNX Runtime and the gateway."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export.cli import app
from export.goldens import read_cases
from export.verification import panet
from export.verification.driver import EMBEDDED
from export.verification.measures import (
    TIE_MARGIN,
    Measure,
    decided_pixels,
    measure_input,
    measure_planes,
    measure_served,
    measured,
    read_each,
)
from export.verification.panet import verify_panet
from fewseg import Unavailable

GOLDENS = Path(__file__).parent / "goldens" / "panet"


@pytest.fixture(scope="module")
def measures() -> list[Measure]:
    return list(verify_panet(GOLDENS))


@pytest.mark.parametrize("stage", ["input", "torch", "onnxruntime", "ensembles as graphs"])
def test_every_number_is_that_of_the_official_code(measures, stage):
    found = [measure for measure in measures if measure.stage == stage]
    assert {measure.case for measure in found} == {case.name for case in read_cases(GOLDENS)}
    assert [measure for measure in found if not measure.passed] == []


def test_an_application_gets_the_official_mask(measures):
    found = [measure for measure in measures if measure.stage == EMBEDDED.stage]
    assert len(found) == 2 * len(read_cases(GOLDENS))
    assert [measure for measure in found if not measure.passed] == []


def test_a_wrong_golden_number_is_noticed(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "goldens")
    path = tmp_path / "goldens" / "s1_1way1shot_129.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["lowres_scores"] = arrays["lowres_scores"] + np.float32(0.01)
    np.savez(path, **arrays)
    result = CliRunner().invoke(
        app,
        f"verify panet --goldens {tmp_path / 'goldens'} --engine none --case s1_1way1shot_129",
    )
    assert result.exit_code == 1
    assert "s1_1way1shot_129, torch, scores: 1.0e-02 where 2.0e-03 is allowed" in result.output
    assert "2 of 18 comparisons failed" in result.output


def test_a_case_that_cannot_be_read_is_not_run_rather_than_passed(tmp_path):
    folder = tmp_path / "goldens"
    shutil.copytree(GOLDENS, folder)
    damaged = folder / "s2_2way1shot_129.npz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    cases, (measure,) = read_each(folder, (), read_cases)
    assert [case.name for case in cases] == ["s1_1way1shot_129", "s3_1way5shot_129"]
    assert not measure.passed
    result = CliRunner().invoke(app, f"verify panet --goldens {folder} --case {measure.case}")
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert "s2_2way1shot_129, golden case, all: not run" in told
    assert "1 of 1 comparisons failed or were not run" in told


def test_a_case_that_lacks_a_number_ends_itself_and_keeps_what_it_measured():
    case = read_cases(GOLDENS, ["s1_1way1shot_129"])[0]
    lacking = dataclasses.replace(case, arrays={**case.arrays})
    del lacking.arrays["query_tensor"]

    def course():
        yield measure_planes(lacking)
        yield measure_input(lacking, case.arrays["query_tensor"][0])

    planes, rest = measured(case.name, course())
    assert planes.passed
    assert not rest.passed
    assert "query_tensor" in rest.reason


def test_a_gateway_that_does_not_start_is_not_run_rather_than_passed(monkeypatch, family_stub):
    def refuse(*_: object) -> None:
        raise Unavailable("no engine")

    monkeypatch.setattr("export.verification.served.segment_served", refuse)
    case = read_cases(GOLDENS, ["s1_1way1shot_129"])[0]
    (measure,) = panet._verify_served(case, family_stub, Path("nowhere"), EMBEDDED)
    assert measure.error is None
    assert not measure.passed
    assert "no engine" in measure.reason


@pytest.fixture
def family_stub():
    return type("Family", (), {"alias": "panet"})()


def test_ties_may_be_decided_either_way_and_nothing_else():
    case = read_cases(GOLDENS, ["s1_1way1shot_129"])[0]
    logits = case.arrays["logits"][0]
    powers = np.exp(logits - logits.max(axis=0))
    probabilities = (powers / powers.sum(axis=0)).astype(np.float16)
    decided = decided_pixels(case)
    assert not decided[np.abs(logits[0] - logits[1]) <= TIE_MARGIN].any()
    mask = case.arrays["pred"].copy()
    mask[~decided] ^= 1
    assert all(m.passed for m in measure_served(case, "gateway", mask, probabilities))
    mask[tuple(np.argwhere(decided)[0])] ^= 1
    wrong, _ = measure_served(case, "gateway", mask, probabilities)
    assert wrong.error == 1


def test_a_background_that_swallows_another_class_is_noticed():
    """In the two-way case the first support shows the second class, too: neither plane has it."""
    case = read_cases(GOLDENS, ["s2_2way1shot_129"])[0]
    assert measure_planes(case).passed
    assert (case.arrays["support_labels"][0] == case.class_ids[1]).any()
    careless = dataclasses.replace(case, class_ids=(case.class_ids[0], 99))
    assert not measure_planes(careless).passed


def test_values_that_are_no_numbers_never_pass():
    case = read_cases(GOLDENS, ["s1_1way1shot_129"])[0]
    broken = np.full((2, 129, 129), np.nan, np.float16)
    _, probabilities = measure_served(case, "gateway", case.arrays["pred"], broken)
    assert not probabilities.passed
