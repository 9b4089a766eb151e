import numpy as np
import pytest

from loadtests.arrivals import Arrivals, offsets, zipf_choices


def test_constant_arrivals_are_equally_spaced_and_as_many_as_the_rate_says() -> None:
    times = offsets(Arrivals.CONSTANT, 8.0, 2.5)

    assert len(times) == 20
    np.testing.assert_allclose(np.diff(times), 0.125)
    assert times[0] == 0.0


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(offsets(Arrivals.POISSON, 100.0, 200.0, seed=3))

    assert np.mean(gaps) == pytest.approx(0.01, rel=0.03)
    # Of an exponential law the standard deviation equals the mean, and 1 - 1/e lie below it.
    assert np.std(gaps) == pytest.approx(0.01, rel=0.05)
    assert np.mean(gaps < 0.01) == pytest.approx(1 - np.exp(-1), abs=0.01)


@pytest.mark.parametrize("arrivals", list(Arrivals))
def test_times_ascend_and_stay_within_the_run(arrivals: Arrivals) -> None:
    times = offsets(arrivals, 37.0, 3.0, seed=1)

    assert np.all(np.diff(times) >= 0)
    assert times[-1] < 3.0


def test_a_seed_repeats_its_times_and_another_does_not() -> None:
    first = offsets(Arrivals.POISSON, 10.0, 5.0, seed=1)

    np.testing.assert_array_equal(first, offsets(Arrivals.POISSON, 10.0, 5.0, seed=1))
    assert not np.array_equal(first[:5], offsets(Arrivals.POISSON, 10.0, 5.0, seed=2)[:5])


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_a_rate_or_a_time_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        offsets(Arrivals.CONSTANT, rate, seconds)


def test_zipf_popularity_falls_with_the_rank() -> None:
    chosen = zipf_choices(50, 1.0, 200_000, seed=5)

    shares = np.sort(np.bincount(chosen, minlength=50))[::-1] / len(chosen)
    expected = 1.0 / np.arange(1, 51)
    expected /= expected.sum()
    np.testing.assert_allclose(shares[:10], expected[:10], rtol=0.05)


def test_zipf_with_exponent_zero_is_even() -> None:
    counts = np.bincount(zipf_choices(10, 0.0, 100_000), minlength=10)

    np.testing.assert_allclose(counts, 10_000, rtol=0.06)
