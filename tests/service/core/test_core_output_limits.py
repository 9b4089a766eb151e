from __future__ import annotations

import pytest
from core_family import binary, multiway

from service.core.errors import OutOfLimitsError
from service.core.family import ModelFamily
from service.core.limits import Limits
from service.core.output_limits import check_given_size, check_output
from service.core.types import Size


def refused(
    size: Size, ways: int, probabilities: bool, family: ModelFamily, limits: Limits, shots: int = 1
) -> tuple[str, str | None]:
    with pytest.raises(OutOfLimitsError) as caught:
        check_output(size, ways, probabilities, family, limits, shots=shots)
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize("size", [Size(7_000, 7_000), Size(4_000, 6_000)])
def test_photographs_of_a_few_classes_are_within_the_defaults(size: Size) -> None:
    for ways in (1, 20):
        check_output(size, ways, False, multiway(), Limits())


def test_many_classes_of_a_huge_mask_are_refused() -> None:
    too_large = ("OUTPUT_TOO_LARGE", "options")
    assert refused(Size(7_000, 7_000), 64, False, multiway(), Limits()) == too_large
    check_output(Size(10, 10), 5, False, multiway(), Limits(output_values=500))
    assert refused(Size(10, 10), 5, False, multiway(), Limits(output_values=499)) == too_large


def test_shots_that_decide_each_by_itself_count() -> None:
    limits = Limits(output_values=500)
    check_output(Size(10, 10), 1, False, binary(), limits, shots=5)
    assert refused(Size(10, 10), 1, False, binary(), limits, shots=6)[0] == "OUTPUT_TOO_LARGE"


def test_probabilities_must_fit_into_a_message() -> None:
    too_large = ("ANSWER_TOO_LARGE", "options.probabilities")
    limits = Limits(message_bytes=2 * 3 * 100)
    check_output(Size(10, 10), 2, True, multiway(), limits)
    check_output(Size(10, 10), 3, True, binary(), limits)
    assert refused(Size(10, 10), 3, True, multiway(), limits) == too_large
    assert refused(Size(10, 10), 4, True, binary(), limits) == too_large
    check_output(Size(10, 10), 4, False, binary(), limits)


@pytest.mark.parametrize("size", [Size(1, 30_001), Size(30_001, 1), Size(30_000, 30_000)])
def test_a_given_size_has_a_bounded_area_and_bounded_sides(size: Size) -> None:
    check_given_size(Size(30_000, 1_000), Limits())
    with pytest.raises(OutOfLimitsError) as caught:
        check_given_size(size, Limits())
    assert (caught.value.reason, caught.value.field) == (
        "OUTPUT_TOO_LARGE",
        "options.given_size",
    )
