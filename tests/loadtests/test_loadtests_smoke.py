"""The whole tool against a real server of this process, for a few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadtests import runs
from loadtests.results import Result
from loadtests.scenarios import Load, Scenario, Work
from loadtests.streams import Video, play
from loadtests.targets import Connection, Target
from service import embedded
from tests.helpers.tiny_repository import write_tiny_repository

#: Rounds that make ``decode`` take some 20 ms.
SLOW = 10_000


@contextmanager
def _subject(folder: Path, slow_decode: int = 0, **settings: Any) -> Iterator[runs.Subject]:
    repository = folder / "models"
    write_tiny_repository(repository, slow_decode=slow_decode)
    service = embedded.start(repository=repository, **settings)
    try:
        yield runs.Subject(Target(service.target), "embedded")
    finally:
        service.close()


def _scenario(work: dict[str, Any], **load: Any) -> Scenario:
    defaults = {
        "seconds": 3.0, "warm_up_seconds": 0.5, "repeats": 1, "lag_limit_seconds": 0.5,
    }  # fmt: skip
    return Scenario(
        name="smoke",
        title="Smoke",
        description="A few seconds.",
        load=msgspec.convert(defaults | load, Load),
        work=msgspec.convert({"images": 20} | work, Work),
    )


def _run(scenario: Scenario, subject: runs.Subject) -> Result:
    return runs.run(scenario, subject, lambda _: None)


def test_an_open_loop_of_three_seconds_loses_no_answer(tmp_path: Path) -> None:
    with _subject(tmp_path) as subject:
        (repeat,) = _run(_scenario({"shots": 2}, rate=20.0), subject).repeats

    assert repeat.lost == 0
    assert set(repeat.codes) == {"OK"}
    assert repeat.offered_rate == pytest.approx(20.0, rel=0.5)
    assert repeat.good_rate == repeat.offered_rate
    assert 0 < repeat.stages["engine"] < repeat.stages["server"] < repeat.latency["p99.9"] * 1.01
    assert len(repeat.series) == 3


def test_overload_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    limits = {"in_flight": 4}
    with _subject(tmp_path, SLOW, limits=limits, slots=2, engine_workers=1) as subject:
        scenario = _scenario({}, rate=150.0, processes=2, seconds=2.0, deadline_seconds=10.0)
        (repeat,) = _run(scenario, subject).repeats

    assert repeat.lost == 0
    assert set(repeat.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert repeat.codes["RESOURCE_EXHAUSTED"] > repeat.codes["OK"] > 10
    assert repeat.refusal_p99 > 0


def test_clicks_annotate_and_segment(tmp_path: Path) -> None:
    with _subject(tmp_path) as subject:
        (repeat,) = _run(
            _scenario({"kind": "clicks", "tasks": 2}, rate=10.0, seconds=1.5), subject
        ).repeats

    assert set(repeat.codes) == {"OK"}
    assert repeat.stages["guide"] > 0
    assert repeat.stages["decode"] > 0


def test_a_batch_through_streams_is_answered_whole(tmp_path: Path) -> None:
    with _subject(tmp_path) as subject:
        (repeat,) = _run(_scenario({"kind": "batch", "streams": 3, "images": 31}), subject).repeats

    assert repeat.codes == {"OK": 31}
    assert repeat.good_rate > 1


def test_a_stream_counts_from_the_time_of_each_frame(tmp_path: Path) -> None:
    with _subject(tmp_path) as subject:
        scenario = _scenario(
            {"kind": "stream", "streams": 2}, arrivals="constant", rate=10.0, seconds=1.0
        )
        (repeat,) = _run(scenario, subject).repeats

    assert set(repeat.codes) == {"OK"}
    assert sum(repeat.codes.values()) == pytest.approx(20, abs=3)


def test_frames_of_a_stream_that_is_refused_carry_its_code(tmp_path: Path) -> None:
    from loadtests.photographs import photographs

    with _subject(tmp_path) as subject:
        video = Video("tenants/default/tasks/none", photographs(2), np.zeros(4), window=2)
        records = play(subject.target, [video], 5.0)

    assert records.code.tolist() == [5] * 4


def test_a_server_that_is_not_there_does_not_serve() -> None:
    connection = Connection(Target("127.0.0.1:1"))
    try:
        assert not connection.serving(timeout=0.3)
    finally:
        connection.close()
