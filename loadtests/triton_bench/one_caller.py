"""One caller: what a gateway adds to a direct call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from loadtests.bench.stand import Stand
from loadtests.floor import Clock
from loadtests.photographs import Photograph, photographs
from loadtests.triton_bench.stand import MILLI, Setup, infer, tensors_of, verdict

_WARM_UP = 10
_ANSWERING = ("gateway", "direct", "plain server")
#: What the gateway may add to a direct call, in floors.
_MOST_ADDED = 1.25


def one_caller(made: Setup, count: int) -> Table:
    """Compares a Segment with a direct call, a plain server and the floor, in turns.

    Before each of them runs the floor, so that none finds Triton warm from the one before it.
    """
    stand = made.stand
    task = stand.task("one", 1, seed=1)
    images = photographs(count + _WARM_UP, seed=2)
    rows: dict[str, list[float]] = {name: [] for name in (*_ANSWERING, "floor")}
    for number, (image, turns) in enumerate(zip(images, cycle(permutations(_ANSWERING)))):
        calls: dict[str, Callable[[], Any]] = {
            "gateway": partial(stand.segment, task, image),
            "direct": partial(infer, made, tensors_of(image, made.prototypes)),
            "plain server": partial(made.plain.call, image.jpeg),
        }
        taken, answers, floors = {}, {}, []
        for name in turns:
            floors.append(_floor(stand, image, made.prototypes))
            started = time.perf_counter()
            answers[name] = calls[name]()
            taken[name] = time.perf_counter() - started
        segmented = answers["gateway"]
        echo = stand.echo(segmented.request_bytes, segmented.answer_bytes)
        taken["floor"] = statistics.mean(floors) + echo
        if number >= _WARM_UP:
            for name, values in rows.items():
                values.append(taken[name])
    return _added(rows)


def _added(rows: dict[str, list[float]]) -> Table:
    """What gateway and plain server add to a direct call, in medians of the floor."""
    table = Table("one caller, ms", "p50")
    for name, values in rows.items():
        table.add_row(name, f"{statistics.median(values) * MILLI:.2f}")
    floor = statistics.median(rows["floor"])
    for name in ("gateway", "plain server"):
        added = np.subtract(rows[name], rows["direct"])
        low, middle, high = np.quantile(added, (0.25, 0.5, 0.75)) / floor
        between = (statistics.median(rows[name]) - statistics.median(rows["direct"])) / floor
        table.add_row(f"{name} - direct", f"{middle * floor * MILLI:.2f}")
        table.add_row(
            f"{name} - direct, in floors",
            f"{middle:.2f} (half of the pairs: {low:.2f} to {high:.2f}; of medians: {between:.2f})",
        )
        if name == "gateway":
            table.add_row(f"at most {_MOST_ADDED}", verdict(bool(middle <= _MOST_ADDED)))
    return table


def _floor(stand: Stand, image: Photograph, prototypes: NDArray[np.float32]) -> float:
    clock = Clock()
    stand.line.segment(image.jpeg, prototypes, image.height, image.width, clock)
    return clock.of("decode_resize", "answer")
