# SPDX-License-Identifier: Apache-2.0
"""Many supports take what the budgets allow and a little for each, not what they weigh."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from service.core.calls import Call
from service.core.images import inspect
from service.core.types import AnnotationInput, SupportInput
from service.stores.sqlite import SqliteStore
from tests.helpers.gateway import (
    RED,
    TASK,
    box_mark,
    red_registration,
    red_support,
    running_gateway,
    stream,
)
from tests.helpers.tiny_repository import write_tiny_repository

#: Supports that fill the caches first, and those that come after.
FIRST, MORE = 60, 400
SIDE = 256
#: Of a feature map: cells of eight channels.
MAP = (SIDE // 8) ** 2 * 8 * 4
#: Of feature maps and of guidance each: a fiftieth of what all maps take.
BUDGET = 8 * MAP
#: What a support may leave in memory until the task is committed: its record without pixels, the
#: guidance of its shot (76 bytes of numbers), its line of the answer.
PER_SUPPORT = 2 * 1024
#: Four photographs at a time, each as decoded bytes, as a tensor of bytes and as one of floats;
#: what an allocator keeps of those that are gone is of that size too.
IN_HAND = 4 * (1 + 1 + 4) * SIDE * SIDE * 3
BOUND = MORE * PER_SUPPORT + IN_HAND


def support(seed: int) -> SupportInput:
    """A photograph of a red square on noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[32:128, 32:128] = RED
    file = BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    annotation = AnnotationInput((box_mark("red", (32, 32, 128, 128)),))
    return SupportInput("", inspect(file.getvalue(), max_pixels=SIDE**2), annotation)


async def grown(folder: Path) -> int:
    """Bytes by which this process grows, at most, when more supports stream in."""
    process = psutil.Process()
    highest = 0

    async def given(first: int, count: int) -> AsyncIterator[SupportInput]:
        nonlocal highest
        for seed in range(first, first + count):
            highest = max(highest, process.memory_info().rss)
            yield support(seed)

    write_tiny_repository(folder / "models", size=SIDE)
    async with running_gateway(
        folder / "models",
        store=SqliteStore(folder / "tasks.db"),
        feature_bytes=BUDGET,
        guidance_bytes=BUDGET,
    ) as gateway:
        await gateway.tasks.register(red_registration(supports=(support(0),)), Call())
        await gateway.tasks.add_supports(TASK, "", "", given(1, FIRST), Call())
        before, highest = process.memory_info().rss, 0
        report = await gateway.tasks.add_supports(TASK, "", "", given(1 + FIRST, MORE), Call())
        highest = max(highest, process.memory_info().rss)
    assert report.header.support_count == 1 + FIRST + MORE
    return highest - before


def grown_by_itself(folder: Path) -> int:
    return asyncio.run(grown(folder))


def test_supports_that_stream_in_take_no_more_than_the_budgets(tmp_path: Path) -> None:
    """In a process of its own: nothing that other tests left behind can be used again.

    The caches are full before the count begins. Without their budgets, the maps alone would take
    more than twice the bound, and so would the files of the photographs.
    """
    assert min(MORE * MAP, MORE * len(support(0).image.data)) > 2 * BOUND
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawned) as pool:
        assert pool.submit(grown_by_itself, tmp_path).result() < BOUND


@pytest.mark.parametrize(
    ("variant", "times"), [({}, 1), ({"binary": True}, 1), ({"stack": True}, 16)]
)
async def test_guidance_that_is_a_mean_does_not_grow_with_shots(
    tmp_path: Path, variant: dict[str, Any], times: int
) -> None:
    """That of a model which stacks its shots does."""
    write_tiny_repository(tmp_path, size=64, **variant)
    more = [red_support(f"shot-{seed}", seed) for seed in range(1, 16)]
    async with running_gateway(tmp_path) as gateway:
        one = await gateway.tasks.register(red_registration(), Call())
        many = await gateway.tasks.add_supports(TASK, "", "", stream(*more), Call())
    assert many.header.support_count == 16
    assert 0 < many.guidance_bytes == times * one.guidance_bytes
