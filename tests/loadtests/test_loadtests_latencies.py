import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.latencies import LatencyHistogram


@given(
    st.lists(st.floats(1e-5, 100.0), min_size=1, max_size=200),
    st.sampled_from([50.0, 90.0, 99.0, 100.0]),
)
@settings(deadline=None, max_examples=50)
def test_a_percentile_is_the_value_of_its_rank_to_three_digits(
    values: list[float], percent: float
) -> None:
    histogram = LatencyHistogram.of(values)

    # HdrHistogram takes the nearest rank.
    rank = max(1, int(percent / 100.0 * len(values) + 0.5))
    exact = np.sort(values)[rank - 1]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=2e-3, abs=2e-6)


def test_merging_equals_recording_together() -> None:
    random = np.random.default_rng(0)
    first, second = random.exponential(0.02, 500), random.exponential(0.05, 300)
    merged = LatencyHistogram.of(first)

    merged.merge(LatencyHistogram.of(second))

    together = LatencyHistogram.of(np.concatenate([first, second]))
    assert len(merged) == 800
    for percent in (1.0, 50.0, 99.0, 99.9):
        assert merged.percentile(percent) == together.percentile(percent)


def test_an_encoded_histogram_comes_back_whole() -> None:
    histogram = LatencyHistogram.of([0.001, 0.01, 0.1, 1.0])

    decoded = LatencyHistogram.decoded(histogram.encoded())

    assert len(decoded) == 4
    assert decoded.percentile(75) == histogram.percentile(75)
    assert decoded.mean() == pytest.approx(histogram.mean())


def test_values_beyond_the_range_count_at_its_ends() -> None:
    histogram = LatencyHistogram.of([0.0, 1e6])

    assert len(histogram) == 2
    assert histogram.percentile(100) == pytest.approx(3600.0, rel=1e-3)


def test_nothing_recorded_has_no_latency() -> None:
    assert LatencyHistogram().percentile(99) == 0.0
