"""A server that is killed at any moment: what it acknowledged is there, and answers the same."""

import itertools
import random
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from fewseg import BACKGROUND, Box, Client, FewSegError, NotFound, Points, SegmentResult, Support
from tests.helpers.gateway import RED, png, scene
from tests.helpers.server_process import serving
from tests.helpers.tiny_repository import write_tiny_repository

RED_BOX = (8, 8, 32, 32)
QUERY = png(scene((RED, (40, 16, 64, 48)), seed=9))
ADDED = 5


@dataclass
class Acknowledged:
    """What one client was told: the last answer about each of its tasks."""

    answers: dict[str, SegmentResult] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    #: The tasks that a change, or the deletion, was under way for when the server died.
    changing: str = ""
    deleting: str = ""


def red(seed):
    return Support(png(scene((RED, RED_BOX), seed=seed)), Box(*RED_BOX, "red"), id=f"s{seed}")


def change_until_it_dies(port, number, told):
    """Registers, adds to, annotates, segments and deletes tasks, one call after the other."""
    chance = random.Random(number)
    with Client(f"127.0.0.1:{port}", retries=0) as client:
        try:
            for round_ in itertools.count():
                told.changing = task = f"t{number}-{round_}"
                client.register(["red"], [red(0)], task_id=task)
                told.counts[task] = 1
                told.answers[task] = client.segment(task, QUERY)
                client.add_supports(task, [red(seed) for seed in range(1, 1 + ADDED)])
                told.counts[task] = 1 + ADDED
                told.answers[task] = client.segment(task, QUERY)
                click = Points(
                    (chance.uniform(40, 60), 50), BACKGROUND, radius=chance.randint(2, 9)
                )
                client.annotate(task, "s0", click, extend=True)
                told.answers[task] = client.segment(task, QUERY)
                if round_ % 3 == 2:
                    told.deleting = task = f"t{number}-{round_ - 1}"
                    client.delete_task(task)
                    told.deleted.add(task)
        except FewSegError:
            return


@pytest.mark.parametrize("seconds", [0.3, 0.9])
def test_every_acknowledged_task_answers_with_the_same_mask(tmp_path, seconds):
    repository = tmp_path / "models"
    write_tiny_repository(repository)
    clients = [Acknowledged() for _ in range(3)]
    with serving(repository) as (process, ready):
        threads = [
            threading.Thread(target=change_until_it_dies, args=(ready["port"], number, told))
            for number, told in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        threads[0].join(seconds)
        process.kill()
        for thread in threads:
            thread.join()
    assert any(told.answers for told in clients)

    with serving(repository) as (_, ready), Client(f"127.0.0.1:{ready['port']}") as client:
        for told in clients:
            check(client, told)


def check(client, told):
    for task in told.deleted:
        with pytest.raises(NotFound):
            client.get_task(task)
    for task in set(told.counts) - told.deleted - {told.deleting}:
        # The change that nobody was told about is there whole, or not at all.
        counts = {told.counts[task]} | ({1 + ADDED} if task == told.changing else set())
        assert client.get_task(task).support_count in counts
        if task in told.answers:
            answer = client.segment(task, QUERY)
            if task != told.changing:
                assert answer.etag == told.answers[task].etag
            if answer.etag == told.answers[task].etag:
                np.testing.assert_array_equal(answer.mask, told.answers[task].mask)
