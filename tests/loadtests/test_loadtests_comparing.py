import msgspec
import pytest
from load_samples import records, result, scenario

from loadtests.comparing import Comparison, Verdict, compare, exit_status, judge
from loadtests.results import ResultError, repeat_of, result_of
from loadtests.sampling import ResourceUse


def _named(compared: list[Comparison], name: str) -> Comparison:
    return next(one for one in compared if one.name == name)


def test_a_regression_of_ten_per_cent_shows() -> None:
    compared = compare(result(), result(scale=1.1, seed=1))

    slower = _named(compared, "p50")
    assert slower.verdict is Verdict.WORSE
    assert slower.change == pytest.approx(0.10, abs=0.02)
    assert exit_status(compared) == 1


def test_the_same_server_measured_twice_is_the_same() -> None:
    compared = compare(result(), result(seed=1))

    assert {one.verdict for one in compared} == {Verdict.SAME}
    assert exit_status(compared) == 0


def test_an_improvement_is_no_regression() -> None:
    compared = compare(result(), result(scale=0.8, seed=1))

    assert _named(compared, "p50").verdict is Verdict.BETTER
    assert exit_status(compared) == 0


def test_scatter_that_would_hide_a_regression_is_called_noise() -> None:
    compared = compare(result(spread=0.2), result(spread=0.2, seed=1))

    assert _named(compared, "p50").verdict is Verdict.NOISY
    assert exit_status(compared) == 3


def test_a_change_within_the_repeats_of_the_other_is_no_change() -> None:
    assert judge("p50", "ms", [10.0, 10.1, 11.5], [10.7, 10.6, 10.5], True).verdict is Verdict.SAME


def test_less_throughput_is_worse() -> None:
    one = judge("good answers", "/s", [50.0, 50.5, 49.8], [44.0, 44.2, 43.9], False)

    assert one.verdict is Verdict.WORSE
    assert one.change > 0.1


def test_different_scenarios_are_not_compared() -> None:
    other = result()
    renamed = msgspec.structs.replace(
        other, scenario=msgspec.structs.replace(other.scenario, name="another")
    )

    with pytest.raises(ResultError, match="different scenarios"):
        compare(result(), renamed)


def test_an_invalid_run_is_not_compared() -> None:
    behind = repeat_of(records([0.03] * 100, lag=0.5), scenario(), ResourceUse())
    invalid = result_of(scenario(), "embedded", [behind])

    with pytest.raises(ResultError, match="fell behind"):
        compare(result(), invalid)
