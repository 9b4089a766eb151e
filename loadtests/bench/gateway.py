"""Rows about single requests: overhead, shots, registering at all, annotating, a second task."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from fewseg.v1 import task_service_pb2 as task_pb2
from loadtests.bench.rows import Row, median_ms, spread
from loadtests.bench.stand import REPOSITORY, Stand, family_name, supports_of
from loadtests.floor import Annotator, Clock, finding, network_image
from loadtests.peers import plain_grpc
from loadtests.peers.running import Call, running_peer
from loadtests.photographs import Photograph, outline, photographs
from loadtests.plans import register, support_of
from loadtests.records import STAGES, engine_seconds, seconds_in, seconds_of
from loadtests.targets import ANNOTATE

_REPEATS = 3
_PAIRS = 50
_WARM_UP = 15
#: Every so many pairs, an echo that lets its client wait as long as the engine does.
_LATE_EVERY = 3
_SUPPORT_SEED = 4242
#: What the straight line does besides the graphs.
_CODEC_STAGES = ("image_decode", "resize", "upsample", "encode")


@dataclass(slots=True)
class _Pairs:
    """What was measured, in turns, on the same images."""

    overhead: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    own_floor: list[float] = field(default_factory=list)
    echo: list[float] = field(default_factory=list)
    late_echo: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    stages: list[NDArray[np.float32]] = field(default_factory=list)

    def floors(self, overhead: list[float]) -> float:
        """Median of an overhead in medians of the floor."""
        return float(np.median(overhead) / np.median(self.floor))


def _paired(
    stand: Stand, plain: Call, prototypes: NDArray[np.float32], task: str, repeat: int
) -> _Pairs:
    """Service, echo, straight line and plain server in turns, image by image."""
    pairs = _Pairs()
    for number, image in enumerate(photographs(_PAIRS + _WARM_UP, seed=100 + repeat)):
        answer = stand.segment(task, image)
        echo = stand.echo(answer.request_bytes, answer.answer_bytes)
        clock = Clock()
        stand.line.segment(image.jpeg, prototypes, image.height, image.width, clock)
        started = time.perf_counter()
        engine = plain(image.jpeg)
        beside = time.perf_counter() - started - engine
        if number < _WARM_UP:
            continue
        pairs.client.append(answer.seconds)
        pairs.engine.append(answer.engine)
        pairs.overhead.append(answer.seconds - answer.engine)
        pairs.echo.append(echo)
        if number % _LATE_EVERY == 0:
            late = stand.echo(answer.request_bytes, answer.answer_bytes, answer.engine)
            pairs.late_echo.append(late)
        pairs.floor.append(echo + clock.of("decode_resize", "answer"))
        pairs.direct.append(clock.of("features", "decode"))
        pairs.plain.append(beside)
        stages = seconds_of(answer.answer.timings)
        pairs.own_floor.append(echo + seconds_in(stages, _CODEC_STAGES))
        pairs.stages.append(stages)
    return pairs


def gateway_overhead(stand: Stand) -> Row:
    """Client time minus engine time, against echo plus straight line."""
    task = stand.task("bench-overhead", 1, _SUPPORT_SEED)
    prototypes = stand.prototypes(1, _SUPPORT_SEED)
    with running_peer("grpc", REPOSITORY, family_name(), prototypes) as plain:
        repeats = [
            _paired(stand, plain.call, prototypes, task, repeat) for repeat in range(_REPEATS)
        ]
    ratios = [pairs.floors(pairs.overhead) for pairs in repeats]
    ratio = float(np.median(ratios))
    plain_ratio = float(np.median([pairs.floors(pairs.plain) for pairs in repeats]))
    own = [np.median(pairs.overhead) / np.median(pairs.own_floor) for pairs in repeats]
    own_ratio = float(np.median(own))

    def of(name: str) -> float:
        return float(np.median([median_ms(getattr(pairs, name)) for pairs in repeats]))

    return Row(
        name="overhead",
        what="Gateway overhead per Segment (client time - engine time), concurrency 1",
        target="at most 1.25 x floor",
        floor=f"{of('floor'):.2f} ms: echo {of('echo'):.2f} + codec and arithmetic "
        f"{of('floor') - of('echo'):.2f}",
        measured=f"{of('overhead'):.2f} ms = {ratio:.2f} x floor ({spread(ratios)}); "
        f"{own_ratio:.2f} x echo + the service's own stages",
        met=ratio <= 1.25,
        figures={
            "overhead": of("overhead"),
            "floor": of("floor"),
            "echo": of("echo"),
            "echo after the engine's time": of("late_echo"),
            "ratio (1)": ratio,
            "echo and the service's own stages": of("own_floor"),
            "overhead in those (1)": own_ratio,
            "client": of("client"),
            "engine as served": of("engine"),
            "graphs called directly": of("direct"),
            "plain server": of("plain"),
            "plain server, ratio (1)": plain_ratio,
            **_stage_figures([stage for pairs in repeats for stage in pairs.stages]),
        },
        note="An echo that sleeps as long as the engine runs before it answers takes "
        f"{of('late_echo'):.2f} ms beyond its sleep: client and server have to be woken. The floor "
        "counts the echo that answers at once. A plain gRPC server of asyncio that runs the "
        "straight line in a thread, and checks, keeps and bounds nothing, takes "
        f"{plain_ratio:.2f} x floor. The service upsamples only where a class can be, and weighs "
        "only its pixels, where the floor goes straight through the whole mask: against the echo "
        "and the service's own decoding, resizing, upsampling and encoding the overhead is "
        f"{own_ratio:.2f} x.",
    )


def _stage_figures(stages: list[NDArray[np.float32]]) -> dict[str, float]:
    medians = np.median(np.array(stages), axis=0) * 1e3
    named = zip((*STAGES, "total"), medians.tolist(), strict=True)
    return {f"stage {name}": value for name, value in named if value > 0}


def shots(stand: Stand) -> Row:
    """Five shots against one, image by image, in turns."""
    one = stand.task("bench-one-shot", 1, _SUPPORT_SEED)
    five = stand.task("bench-five-shots", 5, _SUPPORT_SEED + 1)
    ratios, runs, asked = [], 0, 0
    medians: dict[str, list[float]] = {"1 shot": [], "5 shots": []}
    for repeat in range(_REPEATS):
        images = photographs(2 * (_PAIRS + _WARM_UP), seed=200 + repeat)
        before = stand.server.graph_runs()
        seconds: dict[str, list[float]] = {one: [], five: []}
        for number, image in enumerate(images):
            # ABBA: neither is always the one that comes second.
            task = (one, five, five, one)[number % 4]
            taken = stand.segment(task, image).seconds
            if number >= 2 * _WARM_UP:
                seconds[task].append(taken)
        runs += stand.server.graph_runs()["features"] - before["features"]
        asked += len(images)
        medians["1 shot"].append(median_ms(seconds[one]))
        medians["5 shots"].append(median_ms(seconds[five]))
        ratios.append(medians["5 shots"][-1] / medians["1 shot"][-1])
    ratio, single = float(np.median(ratios)), float(np.median(medians["1 shot"]))
    return Row(
        name="shots",
        what="5-shot Segment p50 against 1-shot (mean-merged)",
        target="at most 1.05 x; `features` once per new image",
        floor=f"{single:.2f} ms (1 shot)",
        measured=f"{ratio:.3f} x ({spread(ratios)}); {runs} `features` runs for {asked} images",
        met=ratio <= 1.05 and runs == asked,
        figures={
            "1 shot": single,
            "5 shots": float(np.median(medians["5 shots"])),
            "ratio (1)": ratio,
            "features runs (count)": float(runs),
            "images (count)": float(asked),
        },
    )


def registering(stand: Stand) -> Row:
    """Support and query together every time, against a registered task."""
    figures: dict[str, float] = {}
    parts, met = [], True
    for k in (1, 5):
        task = stand.task(f"bench-registered-{k}", k, _SUPPORT_SEED + 10 + k)
        together, segmented, support_time, query_time = [], [], [], []
        for number, image in enumerate(photographs(24, seed=300 + k)):
            supports = supports_of(k, 5000 + 100 * k + number)
            clock = Clock()
            prototypes = stand.line.timed_prototypes(supports, clock)
            supporting = clock.of("codec", "features", "guide")
            query = Clock()
            stand.line.segment(image.jpeg, prototypes, image.height, image.width, query)
            querying = query.of("decode_resize", "features", "decode", "answer")
            answer = stand.segment(task, image)
            payload = b"".join(jpeg for jpeg, _ in supports) + answer.request_bytes
            echo = stand.echo(payload, answer.answer_bytes)
            if number >= 4:
                together.append(echo + clock.of("codec", "features", "guide", "merge") + querying)
                segmented.append(answer.seconds)
                support_time.append(supporting / k)
                query_time.append(querying)
        gain = median_ms(together) / median_ms(segmented)
        ideal = 1 + k * median_ms(support_time) / median_ms(query_time)
        parts.append(f"{k} shot{'s' * (k > 1)}: {gain:.2f} x (ideal {ideal:.2f})")
        met = met and gain > 1
        figures |= {
            f"together, {k}": median_ms(together),
            f"registered, {k}": median_ms(segmented),
            f"gain, {k} (1)": gain,
            f"ideal, {k} (1)": ideal,
        }
    return Row(
        name="registering",
        what="Support and query sent together every time, same network",
        target="the gain of registering, beside its ideal 1 + k x (support / query time)",
        floor="straight line and echo, without a service around them",
        measured="; ".join(parts),
        met=met,
        figures=figures,
        note="The straight line stands in for a service that takes both together; a real one would "
        "be slower, and the gain larger.",
    )


def annotating(stand: Stand) -> Row:
    """AnnotateSupport on a known image, against echo, drawing, ``guide`` and a commit."""
    (support,) = photographs(1, seed=_SUPPORT_SEED + 20)
    task = register(stand.connection, "bench-annotating", [support_of(support, 0)])
    before = stand.server.graph_runs()["features"]
    prototypes = stand.prototypes(1, _SUPPORT_SEED)
    with (
        tempfile.TemporaryDirectory(prefix="fewseg-load-") as folder,
        closing(Annotator(stand.line, Path(folder))) as line,
        running_peer("grpc", REPOSITORY, family_name(), prototypes) as peer,
        grpc.insecure_channel(peer.address) as channel,
    ):
        line.know(support.jpeg)
        channel.unary_unary(f"/{plain_grpc.SERVICE}/{plain_grpc.KNOW}")(support.jpeg)
        plain = channel.unary_unary(f"/{plain_grpc.SERVICE}/{plain_grpc.ANNOTATE}")
        rounds = [
            _annotated(stand, task, support, number, line, plain)
            for number in range(_PAIRS * 2 + _WARM_UP)
        ]
    runs = stand.server.graph_runs()["features"] - before
    medians = np.median([list(one.values()) for one in rounds[_WARM_UP:]], axis=0) * 1e3
    found = dict(zip(rounds[0], medians.tolist(), strict=True))
    floor = found["floor"]
    ratio, plain_ratio = found["client"] / floor, found["plain server"] / floor
    return Row(
        name="annotating",
        what="AnnotateSupport on a known image",
        target="at most 1.25 x (echo + rasterise + `guide` + commit); no `features` run",
        floor=f"{floor:.2f} ms: `guide` {found['guide called directly']:.2f}, commit "
        f"{found['commit']:.2f}",
        measured=f"{found['client']:.2f} ms = {ratio:.2f} x floor; {runs} `features` runs",
        met=ratio <= 1.25 and runs == 0,
        figures={
            **found,
            "ratio (1)": ratio,
            "plain server, ratio (1)": plain_ratio,
            "features runs (count)": float(runs),
        },
        note="A plain gRPC server of asyncio that draws and runs `guide` in a thread, commits in "
        f"another, and checks, keeps and bounds nothing, takes {plain_ratio:.2f} x floor.",
    )


def _annotated(
    stand: Stand,
    task: str,
    support: Photograph,
    number: int,
    line: Annotator,
    plain: Callable[[bytes], bytes],
) -> dict[str, float]:
    """Seconds of one annotation: by the service, its floor and parts, by a plain server."""
    request = task_pb2.AnnotateSupportRequest(
        name=task, support_id="s0", annotation=support_of(support, number).annotation
    ).SerializeToString()
    started = time.perf_counter()
    content = stand.connection.raw(ANNOTATE)(request)
    taken = time.perf_counter() - started
    served = engine_seconds(task_pb2.AnnotateSupportResponse.FromString(content).timings)
    echo = stand.echo(request, len(content))
    clock = line.guide(outline(support, number))
    line.commit(request)
    clock.lap("commit")
    started = time.perf_counter()
    plain(request)
    return {
        "client": taken,
        "floor": echo + clock.of("draw", "guide", "commit"),
        "plain server": time.perf_counter() - started,
        "guide as served": served,
        "guide called directly": clock.of("guide"),
        "commit": clock.of("commit"),
    }


def second_task(stand: Stand) -> Row:
    """The same image under another task, right after the first."""
    first = stand.task("bench-first-task", 1, _SUPPORT_SEED + 30)
    second = stand.task("bench-second-task", 1, _SUPPORT_SEED + 31)
    prototypes = stand.prototypes(1, _SUPPORT_SEED + 31)
    taken, floors = [], []
    images = photographs(_PAIRS + _WARM_UP, seed=400)
    runs = 0
    for number, image in enumerate(images):
        stand.segment(first, image)
        before = stand.server.graph_runs()["features"] if number % 10 == 0 else None
        answer = stand.segment(second, image)
        if before is not None:
            runs += stand.server.graph_runs()["features"] - before
        echo = stand.echo(answer.request_bytes, answer.answer_bytes)
        clock = Clock()
        features = stand.line.features(network_image(image.jpeg))
        clock.lap("features")
        clock = Clock()
        network_image(image.jpeg)
        clock.lap("image")
        logits = stand.line.decode(features, prototypes)
        finding(logits, image.height, image.width)
        clock.lap("answer")
        if number >= _WARM_UP:
            taken.append(answer.seconds)
            floors.append(echo + clock.of("image", "answer"))
    ratio = median_ms(taken) / median_ms(floors)
    return Row(
        name="second-task",
        what="Second task on an image just segmented (same family)",
        target="no `features` run; time = decode of the image + `decode` + I/O",
        floor=f"{median_ms(floors):.2f} ms",
        measured=f"{median_ms(taken):.2f} ms = {ratio:.2f} x floor; {runs} `features` runs",
        met=runs == 0 and ratio <= 1.25,
        figures={
            "client": median_ms(taken),
            "floor": median_ms(floors),
            "ratio (1)": ratio,
            "features runs (count)": float(runs),
        },
    )
