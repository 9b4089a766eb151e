"""What the gateway adds to Triton: ``python -m loadtests.triton_bench``.

It starts a real Triton over the default repository, a gateway in front of it, and an echo server,
and prints three tables:

* one caller: a Segment through the gateway, a call of the same ensemble with tritonclient, and the
  floor of what lies between (an echo of the same payloads; decoding, resizing, upsampling,
  decision, statistics and encoding written straight down);
* the bytes that a Segment exchanges with Triton, by the graphs that it runs;
* sixteen callers of different tasks: Triton's own statistics of batching, and the throughput beside
  what the cores allow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferenceServerClient, InferInput

from loadtests.bench.stand import Stand, family_name
from loadtests.echo import running_echo
from loadtests.floor import Clock, StraightLine, network_image
from loadtests.photographs import Photograph, photographs
from loadtests.servers import cpu_seconds, running_server
from loadtests.targets import Connection
from triton_local import LocalTriton

REPOSITORY = Path("model_repository")
CALLERS = 16
_FLAGS = {"ready-seconds": "3600"}
_MILLI = 1e3
_WARM_UP = 10
#: What the gateway may add to a direct call, in floors.
_MOST_ADDED = 1.25
#: Of the throughput that the cores allow.
_LEAST_SHARE = 0.9

_out = Console()


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured, and beside what."""

    triton: LocalTriton
    stand: Stand
    family: str
    client: InferenceServerClient


@contextmanager
def setup(repository: Path = REPOSITORY) -> Iterator[Setup]:
    """Starts Triton over a repository of the default model, the gateway and the echo server."""
    with ExitStack() as stack:
        triton = stack.enter_context(LocalTriton(repository))
        flags = _FLAGS | {"triton-address": triton.grpc_address, "slots": "32"}
        flags["repository"] = str(repository)
        server = stack.enter_context(running_server("triton", flags))
        target, _ = stack.enter_context(running_echo("aio"))
        echo = Connection(target)
        stack.callback(echo.close)
        family = family_name(repository)
        stand = Stand(server, echo, StraightLine(repository, family))
        stack.callback(stand.connection.close)
        client = stack.enter_context(InferenceServerClient(triton.grpc_address))
        yield Setup(triton, stand, family, client)


def one_caller(made: Setup, count: int) -> None:
    """Compares a Segment with a direct call and with the floor, one after another in turn."""
    stand = made.stand
    task = stand.task("one", 1, seed=1)
    prototypes = stand.prototypes(1, seed=1)
    images = photographs(count + _WARM_UP, seed=2)
    rows: dict[str, list[float]] = {"gateway": [], "direct": [], "floor": []}
    for number, image in enumerate(images):
        segmented = stand.segment(task, image)
        direct = _direct(made, image, prototypes)
        floor = _floor(stand, image, prototypes)
        floor += stand.echo(segmented.request_bytes, segmented.answer_bytes)
        if number < _WARM_UP:
            continue
        for name, seconds in zip(rows, (segmented.seconds, direct, floor), strict=True):
            rows[name].append(seconds)
    added = np.subtract(rows["gateway"], rows["direct"])
    low, ratio, high = np.quantile(added, (0.25, 0.5, 0.75)) / statistics.median(rows["floor"])
    table = Table("one caller, ms", "p50")
    for name, values in (*rows.items(), ("gateway - direct", added.tolist())):
        table.add_row(name, f"{statistics.median(values) * _MILLI:.2f}")
    table.add_row("the same / floor (half of the pairs)", f"{ratio:.2f} ({low:.2f} to {high:.2f})")
    table.add_row(f"at most {_MOST_ADDED}", _verdict(ratio <= _MOST_ADDED))
    _out.print(table)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _direct(made: Setup, image: Photograph, prototypes: NDArray[np.float32]) -> float:
    """Seconds of a call of the ensemble by somebody who has its tensors."""
    inputs = _tensors(image, prototypes)
    started = time.perf_counter()
    _infer(made, inputs)
    return time.perf_counter() - started


def _tensors(image: Photograph, prototypes: NDArray[np.float32]) -> list[Any]:
    """Inputs of the ensemble."""
    inputs = []
    for name, values, kind in (
        ("image", network_image(image.jpeg), "UINT8"),
        ("prototypes", prototypes, "FP32"),
    ):
        tensor = InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def _infer(made: Setup, inputs: Sequence[Any]) -> None:
    made.client.infer(f"{made.family}_query_decoder", inputs).as_numpy("logits")


def _floor(stand: Stand, image: Photograph, prototypes: NDArray[np.float32]) -> float:
    clock = Clock()
    stand.line.segment(image.jpeg, prototypes, image.height, image.width, clock)
    return clock.of("decode_resize", "answer")


def wire(made: Setup) -> None:
    """Prints what a Segment of one class exchanges with Triton."""
    table = Table("bytes of a Segment", "to Triton", "from Triton")
    for roles in (("query_decoder",), ("features", "decode"), ("decode",)):
        sent = received = 0
        for role in roles:
            config = made.client.get_model_config(f"{made.family}_{role}").config
            sent += sum(_bytes(tensor) for tensor in config.input)
            received += sum(_bytes(tensor) for tensor in config.output)
        table.add_row(" + ".join(roles), f"{sent:,}", f"{received:,}")
    _out.print(table)


def _bytes(tensor: Any) -> int:
    """Bytes of a tensor whose open extent is background and one class."""
    size = 1 if tensor.data_type == 2 else 4
    return size * int(np.prod([2 if extent == -1 else extent for extent in tensor.dims]))


@dataclass(frozen=True, slots=True)
class Round:
    """What sixteen callers got in some seconds, and what it took.

    Attributes:
        answers: A second.
        generator: Cores that the callers took.
        triton, gateway: CPU seconds an answer.
    """

    answers: float
    generator: float
    triton: float
    gateway: float


def many_callers(made: Setup, seconds: float) -> None:
    """Runs callers of different tasks, each image its own; before and after, direct callers."""
    stand = made.stand
    tasks = [stand.task(f"many-{number}", 1, seed=100 + number) for number in range(CALLERS)]
    piles = [photographs(40, seed=1000 + number) for number in range(CALLERS)]
    guidance = stand.prototypes(1, seed=1)
    prepared = [[_tensors(image, guidance) for image in pile[:4]] for pile in piles]

    def segment(caller: int, done: int) -> None:
        stand.segment(tasks[caller], piles[caller][done % len(piles[caller])])

    def infer(caller: int, done: int) -> None:
        _infer(made, prepared[caller][done % len(prepared[caller])])

    _round(made, infer, 1.0)  # warm-up
    direct = [_round(made, infer, seconds / 2)]
    before = _counts(made)
    served = _round(made, segment, seconds)
    after = _counts(made)
    direct.append(_round(made, infer, seconds / 2))
    graphs, floor = _cpu(stand, photographs(30, seed=5))
    _out.print(_throughput(served, direct, graphs, floor))
    table = Table("while they ran", "queries", "executions", "queries an execution")
    for role, (queries, executions) in after.items():
        more = queries - before[role][0], executions - before[role][1]
        if more[0]:
            table.add_row(role, str(more[0]), str(more[1]), f"{more[0] / more[1]:.1f}")
    _out.print(table)


def _throughput(served: Round, direct: Sequence[Round], graphs: float, floor: float) -> Table:
    """Answers a second beside what the cores allow; CPU an answer beside what it has to take."""
    engine = statistics.mean(one.triton for one in direct)
    cores = (os.cpu_count() or 1) - served.generator
    table = Table(f"{CALLERS} callers of different tasks", "")
    table.add_row("answers/s", f"{served.answers:.1f}")
    table.add_row("generator, cores", f"{served.generator:.2f}")
    for name, cpu in (
        ("Triton", served.triton),
        ("Triton, called directly", engine),
        ("graphs straight down", graphs),
        ("gateway", served.gateway),
        ("floor", floor),
    ):
        table.add_row(f"{name}, CPU ms an answer", f"{cpu * _MILLI:.1f}")
    spent = served.triton + served.gateway
    for name, needed in (("Triton", engine), ("graphs", graphs)):
        allowed = cores / (needed + floor)
        share = served.answers / allowed
        table.add_row(f"cores / ({name} + floor), answers/s", f"{allowed:.1f}")
        table.add_row("share of that", f"{share:.0%}, {_verdict(share >= _LEAST_SHARE)}")
        table.add_row("the same by CPU time alone", f"{(needed + floor) / spent:.0%}")
    return table


def _round(made: Setup, call: Callable[[int, int], None], seconds: float) -> Round:
    """Lets all callers call, again and again, for some seconds.

    Args:
        made: What is measured.
        call: Of a caller's number, and how often it has called.
        seconds: How long.
    """
    own, server = psutil.Process(), psutil.Process(made.triton.pid)

    def spent() -> NDArray[np.float64]:
        gateway = made.stand.server.cpu_seconds()
        return np.array([sum(own.cpu_times()[:2]), cpu_seconds(server), gateway])

    before, started = spent(), time.perf_counter()
    until = started + seconds

    def caller(number: int) -> int:
        done = 0
        while time.perf_counter() < until:
            call(number, done)
            done += 1
        return done

    with ThreadPoolExecutor(CALLERS) as pool:
        done = sum(pool.map(caller, range(CALLERS)))
    elapsed = time.perf_counter() - started
    generator, triton, gateway = spent() - before
    return Round(done / elapsed, generator / elapsed, triton / done, gateway / done)


def _counts(made: Setup) -> dict[str, tuple[int, int]]:
    """Queries and executions so far, by role, as Triton counts them."""
    counts = {}
    for role in ("features", "decode", "query_decoder"):
        (stats,) = made.client.get_inference_statistics(f"{made.family}_{role}").model_stats
        counts[role] = (stats.inference_count, stats.execution_count)
    return counts


def _cpu(stand: Stand, images: Sequence[Photograph]) -> tuple[float, float]:
    """CPU seconds of the graphs and of the floor, a query, straight down."""
    line, prototypes = stand.line, stand.prototypes(1, seed=1)
    engine = floor = 0.0
    for image in images:
        started = time.process_time()
        pixels = network_image(image.jpeg)
        prepared = time.process_time()
        logits = line.decode(line.features(pixels), prototypes)
        ran = time.process_time()
        clock = Clock()
        line.segment(image.jpeg, prototypes, image.height, image.width, clock)
        engine += ran - prepared
        floor += prepared - started + clock.of("answer")
        del logits
    return engine / len(images), floor / len(images)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser("loadtests.triton_bench", description=__doc__)
    parser.add_argument(
        "--count", type=int, default=100, help="calls of the one caller; 0 for none"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of the sixteen callers")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="of the default model")
    options = parser.parse_args()
    with setup(options.repository) as made:
        if options.count:
            wire(made)
            one_caller(made, options.count)
        many_callers(made, options.seconds)


if __name__ == "__main__":
    main()
