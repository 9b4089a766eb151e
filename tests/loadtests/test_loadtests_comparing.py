import math
import re

import msgspec
import pytest
from load_samples import EXHAUSTED, LATE, records, result, scenario

from loadtests.comparing import Comparison, Verdict, compare, exit_status, judge
from loadtests.records import NO_ANSWER
from loadtests.results import Result, ResultError, repeat_of, result_of
from loadtests.sampling import ResourceUse
from loadtests.scenarios import Work


def _failed(answers: str) -> Result:
    """A run of which nothing was answered well."""
    codes = {"refused": EXHAUSTED, "lost": NO_ANSWER, "late": LATE}[answers]
    repeat = repeat_of(records([0.01] * 200, codes=[codes] * 200), scenario(), ResourceUse())
    return result_of(scenario(), "embedded", [repeat] * 3)


def _of_scenario(**changes: object) -> Result:
    """The usual result, of a scenario that was changed."""
    found = result()
    return msgspec.structs.replace(
        found, scenario=msgspec.structs.replace(found.scenario, **changes)
    )


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


def test_a_small_change_within_the_repeats_of_the_other_is_no_change() -> None:
    assert judge("p50", "ms", [10.0, 10.1, 11.5], [10.7, 10.6, 10.5], True).verdict is Verdict.SAME


def test_a_change_of_ten_per_cent_is_never_the_same() -> None:
    overlapping = judge("p50", "ms", [100.0, 100.0, 109.0], [108.0, 110.0, 112.0], True)
    faster = judge("p50", "ms", [108.0, 110.0, 112.0], [100.0, 100.0, 109.0], True)

    assert overlapping.change == pytest.approx(0.10)
    assert overlapping.verdict is Verdict.NOISY
    assert faster.verdict is Verdict.NOISY
    assert exit_status([overlapping]) == 3


@pytest.mark.parametrize("answers", ["refused", "lost", "late"])
def test_a_run_without_a_good_answer_is_worse_than_one_with_some(answers: str) -> None:
    failed = _failed(answers)

    compared = compare(result(), failed)

    good = _named(compared, "good answers")
    assert (good.before, good.after) == (pytest.approx(20.0), 0.0)
    assert good.change == math.inf
    assert good.verdict is Verdict.WORSE
    assert exit_status(compared) == 1
    back = compare(failed, result())
    assert _named(back, "good answers").verdict is Verdict.BETTER
    assert exit_status(back) == 0


def test_a_single_answer_more_that_is_lost_is_worse() -> None:
    whole = result()
    lossy = msgspec.structs.replace(
        whole, repeats=[*whole.repeats[:2], msgspec.structs.replace(whole.repeats[2], lost=1)]
    )

    compared = compare(whole, lossy)

    assert _named(compared, "lost answers").verdict is Verdict.WORSE
    assert _named(compared, "lost answers").after == pytest.approx(100 / 600)
    assert exit_status(compared) == 1
    assert exit_status(compare(lossy, lossy)) == 0
    assert _named(compare(lossy, whole), "lost answers").verdict is Verdict.BETTER
    # The same one answer, of a few requests less.
    fewer = msgspec.structs.replace(
        lossy,
        repeats=[
            msgspec.structs.replace(one, codes={name: n - 1 for name, n in one.codes.items()})
            for one in lossy.repeats
        ],
    )
    assert _named(compare(lossy, fewer), "lost answers").verdict is Verdict.SAME


def test_repeats_that_answered_nothing_count_as_no_latency() -> None:
    slow = result()
    failed = [_failed("refused").repeats[0], *slow.repeats[1:]]

    compared = compare(slow, msgspec.structs.replace(slow, repeats=failed))

    assert _named(compared, "p50").verdict is Verdict.SAME
    assert _named(compared, "good answers").verdict is Verdict.NOISY
    assert exit_status(compared) == 3


def test_a_start_that_takes_three_times_as_long_is_worse() -> None:
    def started(seconds: float) -> Result:
        found = result()
        for number, repeat in enumerate(found.repeats):
            repeat.stages["start_to_serving"] = seconds + 0.01 * number
            repeat.stages["first_request"] = 0.05
        return found

    compared = compare(started(2.0), started(6.0))

    assert _named(compared, "start to serving").verdict is Verdict.WORSE
    assert exit_status(compared) == 1
    assert exit_status(compare(started(2.0), started(2.0))) == 0


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


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (result(rate=21.0), "rate 20.0 and 21.0"),
        (result(deadline_seconds=0.5), "deadline_seconds 1.0 and 0.5"),
        (msgspec.structs.replace(result(), engine="triton"), "engine embedded and triton"),
        (_of_scenario(work=Work(shots=5)), "shots 1 and 5"),
        (_of_scenario(server={"slots": "3"}), "flag slots unset and 3"),
    ],
)
def test_results_that_were_not_measured_alike_are_not_compared(changed: Result, named: str) -> None:
    with pytest.raises(ResultError, match=re.escape(f"alike: {named}")):
        compare(result(), changed)


def test_another_machine_address_or_number_of_repeats_is_compared() -> None:
    moved = _of_scenario(server={"triton-address": "elsewhere:8001"})
    moved = msgspec.structs.replace(moved, machine={"cores": "64"}, repeats=moved.repeats[:2])

    assert exit_status(compare(result(), moved)) == 0


def test_the_rate_that_a_share_of_the_capacity_came_to_may_differ() -> None:
    slow, fast = (result(rate=rate, capacity_share=2.0) for rate in (20.0, 30.0))

    assert exit_status(compare(slow, fast)) == 0


def test_an_invalid_run_is_not_compared() -> None:
    behind = repeat_of(records([0.03] * 100, lag=0.5), scenario(), ResourceUse())
    invalid = result_of(scenario(), "embedded", [behind])

    with pytest.raises(ResultError, match="fell behind"):
        compare(result(), invalid)
