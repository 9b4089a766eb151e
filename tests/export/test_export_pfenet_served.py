"""PFENet through the core: what runs when, and what is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.methods.pfenet import PfenetNetwork
from export.methods.trunks import Backbone
from export.pfenet_family import pfenet_family
from export.repository import write_family
from service.core.calls import Call
from service.core.gateway import Gateway
from service.core.types import AnnotationInput, IndexMask, Mark, SupportInput, TaskName
from tests.helpers.gateway import (
    TASK,
    CountingTelemetry,
    box_mark,
    labels_of,
    negative,
    png,
    query,
    red_registration,
    running_gateway,
    source,
    stream,
)

OTHERS = TaskName("default", "others")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = PfenetNetwork(Backbone.VGG16).eval()
    root = tmp_path_factory.mktemp("pfenet")
    family = pfenet_family(
        alias="pfenet", network=network, size=(65, 65), bins=(5, 3, 2, 1), provenance={}
    )
    write_family(family, root)
    return root


@pytest.fixture
def telemetry() -> CountingTelemetry:
    return CountingTelemetry()


@pytest.fixture
async def gateway(repository: Path, telemetry: CountingTelemetry) -> AsyncIterator[Gateway]:
    async with running_gateway(repository, telemetry=telemetry) as running:
        yield running


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def support(seed: int, box: tuple[int, int, int, int] = (10, 10, 70, 60)) -> SupportInput:
    annotation = AnnotationInput((box_mark("red", box),))
    return SupportInput(f"s{seed}", source(picture(seed)), annotation)


async def test_only_what_changed_is_computed_again(
    gateway: Gateway, telemetry: CountingTelemetry
) -> None:
    runs = telemetry.newly_run
    runs()
    await gateway.tasks.register(red_registration(supports=(support(1),)), Call())
    assert runs() == {"features": 1, "guide": 1}

    await gateway.segmenter.segment(query(source(picture(9))), Call())
    assert runs() == {"features": 1, "query_features": 1, "decode": 1}
    await gateway.segmenter.segment(query(source(picture(9))), Call())
    assert runs() == {"decode": 1}, "the same image again"

    change = {"etag": "", "request_id": "", "call": Call()}
    await gateway.tasks.annotate_support(TASK, "s1", negative(60, 60), extend=True, **change)
    assert runs() == {"guide": 1}, "a new annotation runs layer4 and nothing before it"

    await gateway.tasks.add_supports(TASK, "", "", stream(support(2)), Call())
    # One more shot costs its own image; judging it by the other one makes it a query as well.
    assert runs() == {"features": 1, "guide": 1, "query_features": 1, "decode": 1}

    other = red_registration(task_id="others", supports=(support(3),))
    await gateway.tasks.register(other, Call())
    assert runs() == {"features": 1, "guide": 1}
    await gateway.segmenter.segment(query(source(picture(9)), task=OTHERS), Call())
    assert runs() == {"decode": 1}, "a second task on the same image"

    await gateway.segmenter.segment(query("s2"), Call())
    assert runs() == {"decode": 1}, "a support as the query"


async def test_a_task_keeps_the_foreground_cells_of_its_shots(gateway: Gateway) -> None:
    # 90 x 120 covers 48 x 64 of 65 x 65, whose grid is 5 x 5 with 16 pixels between cells.
    numbers = np.zeros((90, 120), np.uint8)
    numbers[45:, 60:] = 1
    mask = AnnotationInput((Mark(IndexMask(png(numbers), {1: "red"}), None),))
    supports = (SupportInput("quarter", source(picture(1)), mask), support(2, (0, 0, 2, 2)))
    report = await gateway.tasks.register(red_registration(supports=supports), Call())
    # Rows 32 and columns 32 and 48: two cells; the other shot shows the corner's cell.
    prototype, cell, weight = 256 * 4, 512 * 2, 4
    assert report.guidance_bytes == prototype + 2 * (2 * cell + weight)
    answer = await gateway.segmenter.segment(query(source(picture(9)), size="network"), Call())
    assert labels_of(answer).shape == (48, 64)
