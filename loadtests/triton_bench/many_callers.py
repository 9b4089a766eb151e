"""Sixteen callers of different tasks: throughput and batching."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.table import Table

from loadtests.floor import Clock, network_image
from loadtests.photographs import Photograph, photographs
from loadtests.servers import cpu_seconds
from loadtests.triton_bench.stand import MILLI, Setup, infer, tensors_of, verdict

_ItemT = TypeVar("_ItemT")

_CALLERS = 16
_TURNS = 3
_SERVERS = ("gateway", "plain server", "Triton")
_ROLES = ("features", "decode", "query_decoder")
#: Of the throughput that the cores allow.
_LEAST_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Round:
    """What sixteen callers got in some seconds, and what it took.

    Attributes:
        answers: A second.
        generator: Cores that the callers took.
        triton, server: CPU seconds an answer; the server is what stands before Triton.
    """

    answers: float
    generator: float
    triton: float
    server: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Rounds right after one another, and what an answer has to take.

    Attributes:
        rounds: Of the gateway and of the plain server.
        engine: CPU seconds of an answer in Triton, called directly before and after.
        graphs, floor: CPU seconds of the graphs and of the floor, straight down.
    """

    rounds: Mapping[str, Round]
    engine: float
    graphs: float
    floor: float

    def allowed(self, name: str, engine: float) -> float:
        """Answers a second that the cores allow, the generator's own share taken off."""
        cores = (os.cpu_count() or 1) - self.rounds[name].generator
        return cores / (engine + self.floor)

    def share(self, name: str, engine: float) -> float:
        """Share of that by the clock."""
        return self.rounds[name].answers / self.allowed(name, engine)

    def share_of_cpu(self, name: str, engine: float) -> float:
        """The same without the clock: needed CPU seconds by those spent."""
        return (engine + self.floor) / (self.rounds[name].triton + self.rounds[name].server)


def many_callers(made: Setup, seconds: float) -> tuple[Table, Table]:
    """Runs callers of different tasks, each image its own, in turns with direct callers."""
    stand = made.stand
    tasks = [stand.task(f"many-{number}", 1, seed=100 + number) for number in range(_CALLERS)]
    # Twice what two cores answer; a faster machine's callers ask for some of them again.
    piles = [photographs(40, seed=1000 + number) for number in range(_CALLERS)]
    prepared = [[tensors_of(image, made.prototypes) for image in pile[:4]] for pile in piles]
    asked: dict[str, list[int]] = {name: [0] * _CALLERS for name in _SERVERS}

    def following(server: str, caller: int, pile: Sequence[_ItemT]) -> _ItemT:
        asked[server][caller] += 1
        return pile[asked[server][caller] % len(pile)]

    def segment(caller: int) -> None:
        stand.segment(tasks[caller], following("gateway", caller, piles[caller]))

    def plain(caller: int) -> None:
        made.plain.call(following("plain server", caller, piles[caller]).jpeg)

    def direct_call(caller: int) -> None:
        infer(made, following("Triton", caller, prepared[caller]))

    gateway = partial(_round, made, segment, seconds / _TURNS, stand.server.process)
    beside = partial(_round, made, plain, seconds / _TURNS, made.plain.process)
    direct = partial(_round, made, direct_call, seconds / _TURNS / 2, stand.server.process)
    images = photographs(20, seed=5)
    direct()  # warm-up
    batches: Counter[str] = Counter()
    turns = []
    for _ in range(_TURNS):
        first = direct()
        before = _counts(made)
        served = gateway()
        batches.update(_counts(made) - before)
        rounds = {"gateway": served, "plain server": beside()}
        engine = (first.triton + direct().triton) / 2
        turns.append(Turn(rounds, engine, *_cpu(made, images)))
    table = Table("while the gateway ran", "queries", "executions", "queries an execution")
    for role in _ROLES:
        queries, executions = batches[f"{role} queries"], batches[f"{role} executions"]
        if queries:
            table.add_row(role, str(queries), str(executions), f"{queries / executions:.1f}")
    return _throughput(turns), table


def _throughput(turns: Sequence[Turn]) -> Table:
    """Answers a second beside what the cores allow; CPU an answer beside what it has to take."""

    def of(figure: Callable[[Turn], float]) -> float:
        return statistics.median(map(figure, turns))

    table = Table(f"{_CALLERS} callers of different tasks", "gateway", "plain server")

    def row(title: str, figure: Callable[[Turn, str], float], form: str, scale: float = 1) -> None:
        columns = [
            statistics.median([figure(turn, name) for turn in turns]) for name in turns[0].rounds
        ]
        table.add_row(title, *(format(column * scale, form) for column in columns))

    row("answers/s", lambda turn, name: turn.rounds[name].answers, ".1f")
    row("generator, cores", lambda turn, name: turn.rounds[name].generator, ".2f")
    row("Triton, CPU ms an answer", lambda turn, name: turn.rounds[name].triton, ".1f", MILLI)
    row("before Triton, CPU ms", lambda turn, name: turn.rounds[name].server, ".1f", MILLI)
    for title, figure in (
        ("Triton, called directly, CPU ms", "engine"),
        ("graphs straight down, CPU ms", "graphs"),
        ("floor, CPU ms", "floor"),
    ):
        table.add_row(title, f"{of(attrgetter(figure)) * MILLI:.1f}", "")
    for title, engine in (("Triton", attrgetter("engine")), ("graphs", attrgetter("graphs"))):
        table.add_section()
        row(f"share of cores / ({title} + floor)", _by(Turn.share, engine), ".0%")
        row("the same by CPU time alone", _by(Turn.share_of_cpu, engine), ".0%")
    share = of(lambda turn: turn.share("gateway", turn.engine))
    table.add_row(f"at least {_LEAST_SHARE:.0%} of Triton + floor", verdict(share >= _LEAST_SHARE))
    return table


def _by(
    share: Callable[[Turn, str, float], float], engine: Callable[[Turn], float]
) -> Callable[[Turn, str], float]:
    return lambda turn, name: share(turn, name, engine(turn))


def _round(
    made: Setup, call: Callable[[int], None], seconds: float, before_triton: psutil.Process
) -> Round:
    """Lets all callers call, again and again, for some seconds.

    Args:
        made: What is measured.
        call: Of a caller's number.
        seconds: How long.
        before_triton: The server that they call.
    """
    own, triton = psutil.Process(), psutil.Process(made.triton.pid)

    def spent() -> NDArray[np.float64]:
        times = (sum(own.cpu_times()[:2]), cpu_seconds(triton), cpu_seconds(before_triton))
        return np.array(times)

    before, started = spent(), time.perf_counter()
    until = started + seconds

    def caller(number: int) -> int:
        done = 0
        while time.perf_counter() < until:
            call(number)
            done += 1
        return done

    with ThreadPoolExecutor(_CALLERS) as pool:
        done = sum(pool.map(caller, range(_CALLERS)))
    elapsed = time.perf_counter() - started
    generator, in_triton, in_server = spent() - before
    return Round(done / elapsed, generator / elapsed, in_triton / done, in_server / done)


def _counts(made: Setup) -> Counter[str]:
    """Queries and executions so far, by role, as Triton counts them."""
    counts: Counter[str] = Counter()
    for role in _ROLES:
        (stats,) = made.client.get_inference_statistics(f"{made.family}_{role}").model_stats
        counts[f"{role} queries"] = stats.inference_count
        counts[f"{role} executions"] = stats.execution_count
    return counts


def _cpu(made: Setup, images: Sequence[Photograph]) -> tuple[float, float]:
    """CPU seconds of the graphs and of the floor, a query, straight down."""
    line, prototypes = made.stand.line, made.prototypes
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
