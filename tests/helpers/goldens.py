"""What every method's comparison with its goldens asks."""

from __future__ import annotations

from pathlib import Path

from export.verification.driver import Method, measure_torch


def check_torch(method: Method, goldens: Path, name: str) -> None:
    """Asserts that the torch network computes the numbers of one case, its inputs included."""
    found = list(measure_torch(method, goldens, name))
    assert {measure.stage for measure in found} == {"input", "torch"}
    assert [measure for measure in found if not measure.passed] == []
