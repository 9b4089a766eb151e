from pathlib import Path

import msgspec
import numpy as np
import pytest
from load_samples import EXHAUSTED, LATE, UNAVAILABLE, records, result, scenario

from loadtests import results
from loadtests.latencies import LatencyHistogram
from loadtests.records import NO_ANSWER, OK, Records
from loadtests.sampling import ResourceUse

USE = ResourceUse()


def test_rates_count_only_good_answers_within_the_deadline() -> None:
    latency = np.full(100, 0.02)
    latency[:10] = 1.5
    repeat = results.repeat_of(records(latency), scenario(), USE)

    assert repeat.offered_rate == pytest.approx(10.0)
    assert repeat.good_rate == pytest.approx(9.0)


def test_refusals_and_missed_deadlines_are_answers_and_all_else_is_lost() -> None:
    codes = [OK] * 6 + [EXHAUSTED] * 2 + [LATE] + [UNAVAILABLE] * 3 + [NO_ANSWER]
    repeat = results.repeat_of(records(np.full(13, 0.01), codes=codes), scenario(), USE)

    assert repeat.lost == 4
    assert repeat.codes == {
        "OK": 6, "RESOURCE_EXHAUSTED": 2, "DEADLINE_EXCEEDED": 1, "UNAVAILABLE": 3, "LOST": 1,
    }  # fmt: skip


def test_a_generator_that_fell_behind_makes_the_run_invalid() -> None:
    lag = np.zeros(1000)
    lag[:11] = 0.05
    behind = results.repeat_of(records(np.full(1000, 0.06), lag=lag), scenario(), USE)
    lag[10:] = 0.0
    lag[0:2] = 0.0
    in_time = results.repeat_of(records(np.full(1000, 0.06), lag=lag), scenario(), USE)

    assert not behind.valid
    assert "fell behind" in behind.problem
    assert in_time.valid
    assert in_time.lag_max == pytest.approx(0.05)


def test_stages_split_the_latency_into_engine_server_and_the_rest() -> None:
    repeat = results.repeat_of(records(np.full(50, 0.1)), scenario(), USE)

    assert repeat.stages["engine"] == pytest.approx(0.05, rel=1e-5)
    assert repeat.stages["server"] == pytest.approx(0.08, rel=1e-5)
    assert repeat.stages["outside"] == pytest.approx(0.02, rel=1e-5)
    assert "guide" not in repeat.stages


def test_the_warm_up_is_cut_off_and_times_count_from_there() -> None:
    kept = records(np.full(100, 0.01), seconds=10.0).since(4.0)

    assert len(kept) == 60
    assert kept.intended[0] == pytest.approx(0.0)


def test_rows_of_several_generators_are_joined_in_order() -> None:
    first, second = Records.empty(np.array([0.0, 2.0])), Records.empty(np.array([1.0]))
    first.latency[:] = [0.1, 0.3]
    second.latency[:] = [0.2]

    joined = Records.joined([first, second])

    assert joined.latency.tolist() == [0.1, 0.2, 0.3]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = result()

    path = results.write(written, tmp_path / "run")

    assert results.read(path) == written
    assert results.read(tmp_path / "run") == written
    histogram = LatencyHistogram.decoded(written.repeats[0].histogram)
    assert histogram.percentile(99) == written.repeats[0].latency["p99"]


def test_what_is_no_result_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"schema": 1}')

    with pytest.raises(results.ResultError, match="no result"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "its schema is 2, this tool reads 1"),
        ({"repeats": []}, "it has no repeats"),
    ],
)
def test_a_result_that_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    results.write(msgspec.structs.replace(result(), **changes), tmp_path)

    with pytest.raises(results.ResultError, match=problem):
        results.read(tmp_path)


def test_a_result_without_a_percentile_is_refused(tmp_path: Path) -> None:
    lacking = result()
    del lacking.repeats[1].latency["p50"]
    results.write(lacking, tmp_path)

    with pytest.raises(results.ResultError, match="lacks p50"):
        results.read(tmp_path)


def test_a_result_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b'{"engine": "\xff"}')

    with pytest.raises(results.ResultError, match="no result"):
        results.read(tmp_path)


def test_a_result_from_before_seeds_is_read(tmp_path: Path) -> None:
    old = msgspec.to_builtins(result())
    del old["seed"]
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(old))

    assert results.read(tmp_path).seed == 0


def test_samples_of_the_server_are_cut_to_the_measured_part() -> None:
    use = ResourceUse(
        seconds=[1.0, 2.0, 3.0, 20.0],
        cores=[0.1, 0.2, 0.3, 0.4],
        resident_bytes=[1, 2, 3, 4],
        other_cores=[0.0] * 4,
        started=100.0,
    )

    kept = use.during(101.5, 10.0)

    assert kept.seconds == [0.5, 1.5]
    assert kept.cores == [0.2, 0.3]
    assert kept.peak_bytes == 3
