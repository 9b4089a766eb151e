"""What the suite finds: rows of one table."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import ArrayLike


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One promise.

    Attributes:
        name: Short, for ``--only``.
        what: The promise.
        target: In words.
        floor: What it is held against, in words and numbers.
        measured: What was found.
        met: Whether it was; None where nothing could be measured.
        figures: Every number behind it, by name; milliseconds unless the name says otherwise.
        note: What a reader must know, such as the reason of a miss.
    """

    name: str
    what: str
    target: str
    floor: str
    measured: str
    met: bool | None
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    note: str = ""


class RowError(Exception):
    """Rows that were asked for cannot be measured; the message says why."""


def unmeasured(name: str, what: str, target: str, reason: str) -> Row:
    """A row that could not be measured here."""
    return Row(name=name, what=what, target=target, floor="-", measured="-", met=None, note=reason)


def median_ms(seconds: ArrayLike) -> float:
    """Median in milliseconds."""
    return float(np.median(np.asarray(seconds))) * 1e3


def spread(values: ArrayLike) -> str:
    """The range of repeats, in words."""
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.2f} to {high:.2f}"
