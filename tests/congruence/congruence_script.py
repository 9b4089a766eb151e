# SPDX-License-Identifier: Apache-2.0
"""Every operation of the API, carried out in one order, and the comparison of two such rounds."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fewseg import (
    BACKGROUND,
    Annotation,
    AsyncClient,
    Box,
    FewSegError,
    IndexMask,
    Points,
    Polygon,
    Scribble,
    Support,
)
from tests.helpers.gateway import BLUE, RED, png, scene
from triton_local import LocalTriton

ENGINES = ("embedded", "triton")

#: What says nothing about the network: moments, random ids, and which server it was.
INCOMPARABLE = {
    "timings", "uid", "etag", "create_time", "update_time", "expire_time", "engine",
}  # fmt: skip

#: Probabilities, scores and overlaps. Triton runs ONNX Runtime 1.19, the embedded engine a later
#: one; probabilities are rounded to half precision on top.
CLOSE = 2e-3
#: Share of a mask's pixels that may differ: those whose classes tie but for rounding.
DIFFERING_PIXELS = 1e-3

Round = dict[str, Any]


def labels(*boxes: tuple[int, tuple[int, int, int, int]], side: int = 64) -> np.ndarray:
    """An index mask: (number, (x_min, y_min, x_max, y_max)) painted on zeros."""
    values = np.zeros((side, side), np.uint8)
    for number, (x_min, y_min, x_max, y_max) in boxes:
        values[y_min:y_max, x_min:x_max] = number
    return values


RED_BOX, BLUE_BOX = (8, 8, 32, 32), (36, 30, 60, 58)
BOTH = scene((RED, RED_BOX), (BLUE, BLUE_BOX), seed=1)
ONLY_RED = scene((RED, (20, 4, 50, 30)), seed=2)
QUERIES = [
    scene((RED, (40, 16, 64, 48)), (BLUE, (4, 4, 24, 40)), seed=seed, side=side)
    for seed, side in ((3, 64), (4, 64), (5, 96))
]


def dense_support() -> Support:
    """Both classes, every pixel labelled."""
    numbers = labels((1, RED_BOX), (2, BLUE_BOX))
    return Support(png(BOTH), IndexMask(numbers, {1: "red", 2: "blue"}), id="dense")


def marked_support() -> Support:
    """One class, by marks of several kinds."""
    marks = (
        Box(22, 6, 40, 28, "red"),
        Polygon([(40, 8), (49, 8), (45, 28)], "red"),
        Scribble([(4, 50), (60, 50)], BACKGROUND, width=3),
    )
    return Support(png(ONLY_RED), Annotation(marks), id="marked")


def client(engine: str, repository: Path, triton: LocalTriton, **settings: Any) -> AsyncClient:
    """A client of a service of its own over one of the engines.

    Images go by the ensemble the first time and by their feature maps the second time.
    """
    return AsyncClient(
        ":embedded:",
        timeout=60,
        repository=repository,
        engine=engine,
        feature_reuse="second_use",
        triton_address=(triton.grpc_address,),
        **settings,
    )


def carry_out_all(
    engine: str, repository: Path, triton: LocalTriton, models: Iterable[str]
) -> dict[str, Round]:
    """A round of operations for each model."""

    async def carry_out_each() -> dict[str, Round]:
        async with client(engine, repository, triton) as connected:
            return {model: await carry_out(connected, model) for model in models}

    return asyncio.run(carry_out_each())


async def carry_out(client: AsyncClient, model: str) -> Round:
    """Registers, segments, changes and deletes a task of a model, and asks what there is.

    Returns:
        The answer, or the error, of each step.
    """
    said: Round = {}

    async def step(name: str, call: Any) -> Any:
        try:
            said[name] = await call
        except FewSegError as error:
            said[name] = _told(error)
        return said[name]

    task, request = f"{model}-task", str(uuid.uuid5(uuid.NAMESPACE_OID, model))
    await step("server", client.server_info())
    await step("models", client.models())

    def register() -> Any:
        supports = [dense_support(), marked_support()]
        return client.register(
            ["red", "blue"], supports, model=model, task_id=task, request_id=request
        )

    first = await step("register", register())
    await step("repeat the request", register())
    await step("register again", client.register(["red"], [marked_support()], task_id=task))
    await _segment(client, task, step)
    await step("add", client.add_supports(task, [Support(png(QUERIES[1]), _blue(), id="added")]))
    await step("segment after adding", client.segment(task, png(QUERIES[0])))
    clicks = Annotation([Points([(50, 40)], "red"), Points([(2, 60)], BACKGROUND)])
    await step("annotate", client.annotate(task, "added", clicks, extend=True))
    await step("segment after annotating", client.segment(task, png(QUERIES[0])))
    await step("remove", client.remove_support(task, "marked"))
    await step("segment after removing", client.segment(task, png(QUERIES[0])))
    await step("get", client.get_task(task))
    await step("list", _all(client.tasks(page_size=1)))
    await step("refresh", client.refresh_models())
    await step("unknown task", client.segment("nobody", png(QUERIES[0])))
    await step("stale etag", client.segment(task, png(QUERIES[0]), etag=first.etag))
    await step("no image", client.segment(task, b"no image"))
    await step("no positives", client.annotate(task, "dense", Box(0, 0, 9, 9, BACKGROUND)))
    await step("delete", client.delete_task(task))
    await step("gone", client.get_task(task))
    await step(
        "register cross-guided",
        client.register(
            ["red", "blue"],
            [dense_support(), marked_support()],
            model=model,
            task_id=task,
            fusion="cross_guided",
        ),
    )
    await step("segment cross-guided", client.segment(task, png(QUERIES[0]), probabilities=True))
    await step("delete cross-guided", client.delete_task(task))
    return said


async def _segment(client: AsyncClient, task: str, step: Any) -> None:
    """Every way to segment."""
    for number, image in enumerate(QUERIES):
        await step(f"segment {number}", client.segment(task, png(image), probabilities=True))
    await step("segment as runs", client.segment(task, png(QUERIES[2]), format="rle"))
    await step("segment small", client.segment(task, png(QUERIES[2]), size="network"))
    await step("segment raw", client.segment(task, png(QUERIES[2]), format="raw", size=(40, 56)))
    await step("segment a support", client.segment(task, support_id="dense"))
    images = [png(image) for image in QUERIES]
    await step("many", client.segment_many(task, images))
    await step("stream", _all(client.segment_stream(task, images, pinned=True)))
    frames = [images[0], b"no image", images[1]]
    await step("stream with a broken frame", _all(client.segment_stream(task, frames)))


def _blue() -> IndexMask:
    return IndexMask(labels((1, (4, 4, 24, 40))), {1: "blue"})


async def _all(items: Any) -> list[Any]:
    return [_told(item) if isinstance(item, FewSegError) else item async for item in items]


def _told(error: FewSegError) -> tuple[str, str, str]:
    return error.code, error.reason, error.field


def compare(one: Any, other: Any, where: str = "") -> None:
    """Asserts that two answers agree, within the tolerances above.

    Args:
        one: A value of the SDK, or a container of such.
        other: The same of the other engine.
        where: Path to them, for the failure's message.
    """
    assert type(one) is type(other), where
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        for field in dataclasses.fields(one):
            if field.name not in INCOMPARABLE | {"png", "run_lengths"}:
                path = f"{where}.{field.name}"
                compare(getattr(one, field.name), getattr(other, field.name), path)
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            compare(one[key], other[key], f"{where}[{key}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            compare(*pair, f"{where}[{index}]")
    else:
        _compare_values(one, other, where)


def _compare_values(one: Any, other: Any, where: str) -> None:
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        if one.dtype == np.uint8:
            assert np.mean(one != other) <= DIFFERING_PIXELS, where
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE, err_msg=where)
    elif isinstance(one, float):
        assert abs(one - other) <= CLOSE, where
    elif not isinstance(one, datetime):
        assert one == other, where
