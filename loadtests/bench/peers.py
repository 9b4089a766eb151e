"""The row about peers: the same network behind LitServe and MLServer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewseg.v1 import segmentation_service_pb2 as pb2
from loadtests.arrivals import Arrivals, offsets
from loadtests.bench.rows import Row, unmeasured
from loadtests.bench.stand import REPOSITORY, Stand, family_name
from loadtests.peers.running import Call, environments, installed, running_peer
from loadtests.photographs import STANDARD_SIZE, Photograph, photographs
from loadtests.plans import segment_request
from loadtests.records import engine_seconds
from loadtests.targets import SEGMENT

WHAT = "The same network behind a plain LitServe and a plain MLServer endpoint"
TARGET = (
    "(latency - engine time) at p50 and p99 at least 2 x better at equal rate; throughput no worse"
)

_NAMES = ("litserve", "mlserver")
_SEED = 4242
_THREADS = 16
_BUSY = 4
_ROUNDS = 3
_SECONDS = 4.0
_SATURATED_SECONDS = 4.0
_WARM_UP = 20
_SHARE = 0.4
_IMAGES = 300


@dataclass(slots=True)
class _Measured:
    """What one server did.

    Attributes:
        beside: Seconds of latency beside the engine, all requests of all rounds.
        rates: Answers per second at saturation, by round.
    """

    beside: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Milliseconds beside the engine."""
        return float(np.percentile(self.beside, percent)) * 1e3

    @property
    def rate(self) -> float:
        """Median answers per second at saturation."""
        return float(np.median(self.rates))

    def __str__(self) -> str:
        return (
            f"p50 {self.percentile(50):.2f} ms, p99 {self.percentile(99):.1f} ms, {self.rate:.1f}/s"
        )


def peers(stand: Stand) -> Row:
    """Latency beside the engine at an equal rate, and throughput, server by server in turns."""
    present = [name for name in _NAMES if installed(name)]
    if not present:
        return unmeasured(
            "peers", WHAT, TARGET, f"no peer is installed under {environments()}: make bench-peers"
        )
    guidance = stand.prototypes(1, _SEED)
    with contextlib.ExitStack() as stack:
        calls: dict[str, Call] = {"fewseg": _own(stand)}
        for name in present:
            peer = stack.enter_context(running_peer(name, REPOSITORY, family_name(), guidance))
            calls[name] = peer.call
        measured = _measured(calls)
    return _row(measured)


def _own(stand: Stand) -> Call:
    task = stand.task("bench-peers", 1, _SEED)
    segment = stand.connection.raw(SEGMENT)

    def call(jpeg: bytes) -> float:
        # Inside the timed part, as the peers' requests are put together there too.
        photograph = Photograph(jpeg, *STANDARD_SIZE)
        answer = segment(segment_request(task, photograph).SerializeToString(), timeout=30.0)
        return engine_seconds(pb2.SegmentResponse.FromString(answer).timings)

    return call


def _measured(calls: dict[str, Call]) -> dict[str, _Measured]:
    measured = {name: _Measured() for name in calls}
    for number, call in enumerate(calls.values()):
        for image in photographs(_WARM_UP, seed=900 + number):
            call(image.jpeg)
    for rounds in range(_ROUNDS):
        # No server sees an image twice.
        jpegs = [one.jpeg for one in photographs(_IMAGES, seed=1000 + rounds)]
        for name, call in calls.items():
            measured[name].rates.append(_saturated(call, jpegs))
    rate = _SHARE * min(one.rate for one in measured.values())
    for rounds in range(_ROUNDS):
        times = offsets(Arrivals.POISSON, rate, _SECONDS, seed=rounds)
        jpegs = [one.jpeg for one in photographs(len(times), seed=2000 + rounds)]
        for name, call in calls.items():
            measured[name].beside += _open_loop(call, jpegs, times)
    return measured


def _open_loop(call: Call, jpegs: Sequence[bytes], times: NDArray[np.float64]) -> list[float]:
    """Seconds beside the engine, counted from the intended time."""
    start = time.monotonic() + 0.1

    def one(jpeg: bytes, due: float) -> float:
        engine = call(jpeg)
        return time.monotonic() - due - engine

    with ThreadPoolExecutor(_THREADS) as callers:
        answers = []
        for jpeg, offset in zip(jpegs, times.tolist(), strict=True):
            due = start + offset
            time.sleep(max(0.0, due - time.monotonic()))
            answers.append(callers.submit(one, jpeg, due))
        return [answer.result() for answer in answers]


def _saturated(call: Callable[[bytes], float], jpegs: Sequence[bytes]) -> float:
    """Answers per second with a few callers that never pause."""
    started = time.monotonic()
    turn = iter(range(1 << 62))
    lock = threading.Lock()

    def busy(_: int) -> int:
        answered = 0
        while True:
            with lock:
                number = next(turn)
            call(jpegs[number % len(jpegs)])
            if time.monotonic() - started > _SATURATED_SECONDS:
                return answered
            answered += 1

    with ThreadPoolExecutor(_BUSY) as callers:
        return sum(callers.map(busy, range(_BUSY))) / _SATURATED_SECONDS


def _row(measured: dict[str, _Measured]) -> Row:
    own = measured["fewseg"]
    others = {name: one for name, one in measured.items() if name != "fewseg"}
    gains = {
        percent: min(one.percentile(percent) for one in others.values()) / own.percentile(percent)
        for percent in (50, 99)
    }
    fastest = max(one.rate for one in others.values())
    missing = [name for name in _NAMES if name not in others]
    return Row(
        name="peers",
        what=WHAT,
        target=TARGET,
        floor="; ".join(f"{name} {one}" for name, one in others.items()),
        measured=f"p50 {own.percentile(50):.2f} ms = {gains[50]:.2f} x better, p99 "
        f"{own.percentile(99):.1f} ms = {gains[99]:.2f} x better than the best of them; "
        f"{own.rate:.1f}/s",
        met=gains[50] >= 2 and gains[99] >= 2 and own.rate >= fastest and not missing,
        figures={
            f"{name} {what}": value
            for name, one in measured.items()
            for what, value in (
                ("p50", one.percentile(50)),
                ("p99", one.percentile(99)),
                ("rate (1/s)", one.rate),
            )
        },
        note=(f"Not installed: {', '.join(missing)}. " if missing else "")
        + "The peers do the floor's own arithmetic around the network, on a task that is fixed "
        "when they start: only what lies above the floor can be won on them.",
    )
