"""Latency histograms (HdrHistogram: constant relative error, mergeable)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import ArrayLike

_MICROSECONDS = 1_000_000
_LONGEST_MICROSECONDS = 3600 * _MICROSECONDS
_DIGITS = 3


class LatencyHistogram:
    """Seconds between 1 microsecond and an hour, to three significant digits."""

    def __init__(self) -> None:
        self._counts: Any = HdrHistogram(1, _LONGEST_MICROSECONDS, _DIGITS)

    @classmethod
    def of(cls, seconds: ArrayLike) -> Self:
        """A histogram of many values."""
        histogram = cls()
        histogram.record(seconds)
        return histogram

    @classmethod
    def decoded(cls, text: str) -> Self:
        """The histogram that ``encoded`` wrote."""
        histogram = cls()
        histogram._counts.decode_and_add(text)
        return histogram

    def record(self, seconds: ArrayLike) -> None:
        """Adds values; those beyond the range count at its ends."""
        micros = np.rint(np.asarray(seconds, dtype=np.float64) * _MICROSECONDS)
        for value in np.clip(micros, 1, _LONGEST_MICROSECONDS).astype(np.int64).ravel().tolist():
            self._counts.record_value(value)

    def merge(self, other: Self) -> None:
        """Adds what another histogram holds."""
        self._counts.add(other._counts)

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the values do not exceed; 0 without values."""
        if not len(self):
            return 0.0
        return float(self._counts.get_value_at_percentile(percent)) / _MICROSECONDS

    def mean(self) -> float:
        """Mean seconds."""
        return float(self._counts.get_mean_value()) / _MICROSECONDS if len(self) else 0.0

    def encoded(self) -> str:
        """HdrHistogram V2, compressed, base64: what other HdrHistogram tools read."""
        encoded: bytes = self._counts.encode()
        return encoded.decode("ascii")

    def __len__(self) -> int:
        return int(self._counts.get_total_count())
