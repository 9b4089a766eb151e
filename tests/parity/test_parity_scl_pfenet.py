"""Numbers of SCL on PFENet against those of its authors' code."""

from __future__ import annotations

from pathlib import Path

from export.goldens import read_goldens
from export.verification.scl_pfenet import verify_scl_pfenet

GOLDENS = Path(__file__).parent / "goldens" / "scl-pfenet"


def test_every_number_of_the_network_is_that_of_the_official_code():
    """Its export takes minutes; `fewseg-export verify` does it, and PFENet's parity its serving."""
    found = list(verify_scl_pfenet(GOLDENS, exported=False))
    cases = {case.name for case in read_goldens(GOLDENS)}
    assert {measure.case for measure in found if measure.quantity == "agreement"} == cases
    assert {measure.stage for measure in found} == {"input", "torch"}
    assert [measure for measure in found if not measure.passed] == []
