"""The floor must compute what the service computes, or nothing could be held against it."""

import time
from io import BytesIO

import numpy as np
from PIL import Image

from fewseg import Annotation, Client, Polygon, Support
from loadtests.bench.stand import REPOSITORY, family_name, supports_of
from loadtests.floor import Clock, StraightLine
from loadtests.peers.running import running_peer
from loadtests.photographs import outline, photographs

SHOTS, SEED = 2, 3


def test_the_straight_line_finds_what_the_service_finds() -> None:
    supports = [
        Support(one.jpeg, Annotation([Polygon(outline(one, number), "thing")], exhaustive=True))
        for number, one in enumerate(photographs(SHOTS, seed=SEED))
    ]
    line = StraightLine(REPOSITORY, family_name(), threads=1)
    prototypes = line.prototypes(supports_of(SHOTS, SEED))

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
