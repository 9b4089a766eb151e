"""Rows about a server's life: its memory under many tasks, and its start."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from fewseg.v1 import types_pb2
from loadtests.bench.rows import Row, spread
from loadtests.bench.stand import REPOSITORY
from loadtests.cold import cold_start
from loadtests.photographs import Photograph, photographs
from loadtests.plans import register, segment_request, support_of
from loadtests.servers import running_server
from loadtests.targets import Connection

_MIB = 2**20
_TASKS = 2000
_IMAGES = 16
#: Small enough to be full: 16 images of 2.4 MB, and 2000 tasks of some 1.5 kB.
_FEATURE_MIB, _GUIDANCE_MIB = 16, 2
_ALLOWANCE_MB = 20
_CALLERS = 4
_STARTS = 9
#: Pixels of background around the thing that the warm-up looks for.
_BORDER = 8
_REQUESTS = 30


def memory(engine: str) -> Row:
    """Two thousand tasks over sixteen images, and then a query of each."""
    flags = {
        "repository": str(REPOSITORY),
        "store": "sqlite",
        "feature-bytes": f"{_FEATURE_MIB}MiB",
        "guidance-bytes": f"{_GUIDANCE_MIB}MiB",
    }
    images = photographs(_IMAGES, seed=700)
    with running_server(engine, flags) as server:
        connection = Connection(server.target)
        _warm(connection, images[0])
        # What the warm-up left in the caches is theirs, and counts against their budgets.
        rest = server.resident_bytes() - server.cached_bytes()
        peaks = []

        def watched(call: Callable[[int], None]) -> Callable[[int], None]:
            def one(number: int) -> None:
                call(number)
                if number % 50 == 0:
                    peaks.append(server.resident_bytes())

            return one

        names: dict[int, str] = {}
        failed: list[str] = []

        def registering(number: int) -> None:
            support = support_of(images[number % _IMAGES], number)
            names[number] = register(connection, f"bench-memory-{number}", [support])

        def answering(number: int) -> None:
            request = segment_request(names[number], images[(number + 1) % _IMAGES])
            try:
                connection.segmentation.Segment(request, timeout=30.0)
            except grpc.RpcError as error:
                failed.append(str(error))

        with ThreadPoolExecutor(_CALLERS) as callers:
            list(callers.map(watched(registering), range(_TASKS)))
            registered = server.resident_bytes()
            list(callers.map(watched(answering), range(_TASKS)))
        connection.close()
    grown = (max(peaks) - rest) / _MIB
    budget = _FEATURE_MIB + _GUIDANCE_MIB
    return Row(
        name="memory",
        what=f"Stateful memory: sqlite, {_TASKS} tasks over {_IMAGES} images",
        target=f"at most the budgets + {_ALLOWANCE_MB} MB above the warm server, caches empty; "
        "then every task answers",
        floor=f"budgets {budget} MiB (features {_FEATURE_MIB}, guidance {_GUIDANCE_MIB}); at rest "
        f"{rest / _MIB:.0f} MiB",
        measured=f"{grown:.0f} MiB above rest at the peak; "
        f"{_TASKS - len(failed)} of {_TASKS} tasks answer",
        met=grown <= budget + _ALLOWANCE_MB * 1e6 / _MIB and not failed,
        figures={
            "at rest (MiB)": rest / _MIB,
            "after registering (MiB)": registered / _MIB,
            "peak (MiB)": max(peaks) / _MIB,
            "grown (MiB)": grown,
            "budgets (MiB)": float(budget),
            "failed (count)": float(len(failed)),
        },
        note=f"First failure: {failed[0][:200]}" if failed else "",
    )


def _warm(connection: Connection, image: Photograph) -> None:
    """Uses every path once, as many callers at a time as there will be."""
    support = support_of(image, 0)
    # Of a thing that fills its image: a mask of little is little work, and takes little memory.
    right, bottom = image.width - _BORDER, image.height - _BORDER
    filling = types_pb2.Box(x_min=_BORDER, y_min=_BORDER, x_max=right, y_max=bottom)
    support.annotation.marks[0].box.CopyFrom(filling)
    task = register(connection, "bench-memory-warm", [support])
    warming = photographs(40, seed=701)

    def one(photograph: Photograph) -> None:
        connection.segmentation.Segment(segment_request(task, photograph), timeout=30.0)

    with ThreadPoolExecutor(_CALLERS) as callers:
        # More images than the cache holds would fill it, and hide what it takes: three only.
        list(callers.map(one, [warming[number % 3] for number in range(40)]))


def start(engine: str) -> Row:
    """A fresh process until it serves, and its first answer."""
    starts = [
        cold_start(engine, {"repository": str(REPOSITORY)}, _REQUESTS, seed=800 + number)
        for number in range(_STARTS)
    ]
    serving = float(np.median([one.serving for one in starts]))
    ratios = [one.first / one.steady for one in starts]
    ratio = float(np.median(ratios))
    first = float(np.median([one.first for one in starts])) * 1e3
    steady = float(np.median([one.steady for one in starts])) * 1e3
    return Row(
        name="start",
        what="Process start to SERVING, and the first request",
        target="at most 3 s; first request within 1.2 x steady p50",
        floor=f"steady p50 {steady:.1f} ms",
        measured=f"{serving:.2f} s; first {first:.1f} ms = {ratio:.2f} x ({spread(ratios)})",
        met=serving <= 3.0 and ratio <= 1.2,
        figures={
            "serving (s)": serving,
            "first": first,
            "steady": steady,
            "ratio (1)": ratio,
        },
    )
