"""The floor must compute what the service computes, or nothing could be held against it."""

import sqlite3
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewseg import Annotation, Client, Polygon, Support
from fewseg.v1.task_service_pb2 import AnnotateSupportRequest
from loadtests.bench.stand import REPOSITORY, family_name, supports_of
from loadtests.floor import Clock, StraightLine
from loadtests.peers.plain_grpc import ANNOTATE, KNOW, SERVICE
from loadtests.peers.running import running_peer
from loadtests.photographs import Photograph, outline, photographs
from loadtests.plans import support_of
from service.core import types as shapes
from service.core.rasterise import paint

SHOTS, SEED = 2, 3


def test_the_straight_line_finds_what_the_service_finds() -> None:
    supports = [
        Support(one.jpeg, Annotation([Polygon(outline(one, number), "thing")], exhaustive=True))
        for number, one in enumerate(photographs(SHOTS, seed=SEED))
    ]
    line = StraightLine(REPOSITORY, family_name(), threads=1)
    # Drawn by the service's rules: those of the floor differ in pixels on the border, of which a
    # reading that is unsure makes more than the rest of the straight line does.
    prototypes = line.prototypes(
        [
            (one.jpeg, _planes(one, number))
            for number, one in enumerate(photographs(SHOTS, seed=SEED))
        ]
    )

    with Client(":embedded:") as client:
        task = client.register(["thing"], supports)
        areas = []
        for query in photographs(6, seed=SEED + 1):
            found = line.segment(query.jpeg, prototypes, query.height, query.width, Clock())
            served = client.segment(task, query.jpeg)

            mask = np.asarray(Image.open(BytesIO(found.png)))
            assert np.mean(mask == served.mask) > 0.995
            (thing,) = served.classes
            assert abs(found.area - thing.area) < 0.005 * mask.size
            assert abs(found.score - thing.mean_score) < 0.01
            areas.append(found.area)
    assert max(areas) > 1000


def _planes(photograph: Photograph, number: int) -> NDArray[np.float32]:
    """What an outline leaves on the planes, background first, [1, 2, 320, 320]."""
    labels = np.zeros((320, 320), np.int16)
    ring = tuple(outline(photograph, number))
    paint(labels, shapes.Polygon((ring,)), 1, shapes.Size(photograph.height, photograph.width))
    return np.stack([labels == 0, labels == 1])[None].astype(np.float32)


def test_the_plain_server_answers_with_the_graphs_seconds() -> None:
    prototypes = StraightLine(REPOSITORY, family_name(), threads=1).prototypes(
        supports_of(SHOTS, SEED)
    )
    with running_peer("grpc", REPOSITORY, family_name(), prototypes) as plain:
        for query in photographs(2, seed=SEED):
            started = time.perf_counter()
            seconds = plain.call(query.jpeg)
            assert 0 < seconds < time.perf_counter() - started
        process = plain.process
    assert not process.is_running()


def test_the_plain_server_annotates_and_commits() -> None:
    (support,) = photographs(1, seed=SEED)
    prototypes = StraightLine(REPOSITORY, family_name(), threads=1).prototypes(
        supports_of(SHOTS, SEED)
    )
    request = AnnotateSupportRequest(
        support_id="s0", annotation=support_of(support, 0).annotation
    ).SerializeToString()
    with (
        running_peer("grpc", REPOSITORY, family_name(), prototypes) as plain,
        grpc.insecure_channel(plain.address) as channel,
    ):
        folder = Path(plain.process.cwd())
        channel.unary_unary(f"/{SERVICE}/{KNOW}")(support.jpeg)
        assert channel.unary_unary(f"/{SERVICE}/{ANNOTATE}")(request)
        with closing(sqlite3.connect(folder / "floor.db")) as database:
            ((stored,),) = database.execute("SELECT support FROM tasks").fetchall()
    assert stored == request
    assert not folder.exists()
