"""When requests are meant to leave.

An open-loop generator decides this before the run and without a look at the answers: a server that
stalls does not slow the arrivals down, so that its stall is counted in full.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Arrivals(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"
    CONSTANT = "constant"


def offsets(arrivals: Arrivals, rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Send times of a run.

    Args:
        arrivals: Independent arrivals (exponential gaps), or equal gaps.
        rate: Requests per second, above 0.
        seconds: Length of the run.
        seed: Of the random gaps.

    Returns:
        float64 [n], ascending seconds since the start, all below ``seconds``.

    Raises:
        ValueError: ``rate`` or ``seconds`` is not positive.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError("rate and seconds must be positive")
    if arrivals is Arrivals.CONSTANT:
        return np.arange(int(np.ceil(rate * seconds - 1e-9)), dtype=np.float64) / rate
    random = np.random.default_rng(seed)
    times: list[NDArray[np.float64]] = []
    last = 0.0
    while last < seconds:
        gaps = random.exponential(1.0 / rate, size=max(16, int(rate * seconds)))
        times.append(last + np.cumsum(gaps))
        last = float(times[-1][-1])
    every = np.concatenate(times)
    return every[every < seconds]


def zipf_choices(items: int, exponent: float, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draws items whose popularity falls as rank to the power of ``-exponent``.

    Args:
        items: How many there are.
        exponent: 0 draws evenly.
        count: How many are drawn.
        seed: Of the draws; those of ``offsets`` with the same seed are others.

    Returns:
        int64 [count] of 0 to ``items - 1``; popular items are not neighbours in number.
    """
    random = np.random.default_rng((seed, 1))
    weights = np.arange(1, items + 1, dtype=np.float64) ** -exponent
    ranks = random.choice(items, size=count, p=weights / weights.sum())
    number_of_rank = random.permutation(items)
    return number_of_rank[ranks].astype(np.int64)
