"""A whole core over the tiny repository, and pictures whose right answer is known."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.core.family import GraphRole
from service.core.gateway import Gateway
from service.core.images import inspect
from service.core.limits import Limits
from service.core.ports import Engine, SilentTelemetry, Store
from service.core.settings import CoreSettings
from service.core.types import (
    BACKGROUND,
    AnnotationInput,
    Box,
    IndexMask,
    Mark,
    MaskFormat,
    OutputOptions,
    Points,
    Query,
    Registration,
    Segmentation,
    SourceImage,
    SupportInput,
    TaskName,
)
from service.engines.embedded import EmbeddedEngine
from service.stores.memory import MemoryStore

RED = (220, 30, 30)
BLUE = (40, 60, 220)
GREEN = (40, 160, 60)
TASK = TaskName("default", "reds")


@dataclass
class CountingTelemetry(SilentTelemetry):
    """Counts graph runs and what caches do."""

    runs: Counter[GraphRole] = field(default_factory=Counter)
    caches: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: Counter[GraphRole] = field(default_factory=Counter)

    def graph_run(self, role: GraphRole) -> None:
        self.runs[role] += 1

    def cache_hit(self, cache: str) -> None:
        self.caches[cache, "hit"] += 1

    def cache_miss(self, cache: str) -> None:
        self.caches[cache, "miss"] += 1

    def cache_evicted(self, cache: str, entries: int) -> None:
        self.caches[cache, "evicted"] += entries

    def newly_run(self) -> dict[str, int]:
        """Runs by role since this was asked last."""
        found = {str(role): count for role, count in self.since(self.told).items()}
        self.told = Counter(self.runs)
        return found

    def since(self, before: Counter[GraphRole]) -> Counter[GraphRole]:
        """Runs since a copy of ``runs`` was taken."""
        return self.runs - before


async def stream(*supports: SupportInput) -> AsyncIterator[SupportInput]:
    """Supports as ``add_supports`` takes them."""
    for support in supports:
        yield support


@dataclass
class Clock:
    """A clock that moves when it is told to."""

    moment: datetime = datetime(2026, 5, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, **parts: float) -> None:
        self.moment += timedelta(**parts)


def scene(
    *things: tuple[tuple[int, int, int], tuple[int, int, int, int]], side: int = 64, seed: int = 0
) -> NDArray[np.uint8]:
    """Coloured rectangles (colour, (x_min, y_min, x_max, y_max)) on green, faintly noisy."""
    pixels = np.full((side, side, 3), GREEN, np.uint8)
    for colour, (x_min, y_min, x_max, y_max) in things:
        pixels[y_min:y_max, x_min:x_max] = colour
    noise = np.random.default_rng(seed).integers(0, 4, pixels.shape)
    return (pixels + noise).astype(np.uint8)


def png(pixels: NDArray[Any]) -> bytes:
    """PNG bytes of an array."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def source(pixels: NDArray[np.uint8]) -> SourceImage:
    """An inspected picture."""
    return inspect(png(pixels), max_pixels=10_000_000)


def box_mark(class_name: str, box: tuple[int, int, int, int]) -> Mark:
    return Mark(Box(*map(float, box)), class_name)


def dense(labels: NDArray[np.uint8], classes: dict[int, str], **rest: Any) -> AnnotationInput:
    """An exhaustive index-mask annotation."""
    return AnnotationInput((Mark(IndexMask(png(labels), classes), None),), **rest)


RED_BOX = (8, 8, 32, 32)


def red_support(support_id: str = "", seed: int = 0) -> SupportInput:
    """A red square, wholly labelled by a box; the rest is labelled background by a box each."""
    labels = np.zeros((64, 64), np.uint8)
    labels[RED_BOX[1] : RED_BOX[3], RED_BOX[0] : RED_BOX[2]] = 1
    return SupportInput(
        support_id, source(scene((RED, RED_BOX), seed=seed)), dense(labels, {1: "red"})
    )


def red_registration(**changes: Any) -> Registration:
    """The task that most tests register."""
    values: dict[str, Any] = {
        "tenant": "default",
        "task_id": "reds",
        "display_name": "",
        "model": "",
        "classes": ("red",),
        "supports": (red_support(),),
    }
    return Registration(**(values | changes))


QUERY_BOX = (40, 16, 64, 48)


def red_query(seed: int = 9) -> SourceImage:
    """A picture whose red part is ``QUERY_BOX``."""
    return source(scene((RED, QUERY_BOX), seed=seed))


def query(image: SourceImage | str, task: TaskName = TASK, etag: str = "", **options: Any) -> Query:
    return Query(task, image, OutputOptions(**({"format": MaskFormat.RAW} | options)), etag)


def labels_of(segmentation: Segmentation) -> NDArray[np.uint8]:
    """The labels of an answer in RAW format."""
    size = segmentation.mask.size
    content = segmentation.mask.content
    assert isinstance(content, bytes)
    return np.frombuffer(content, np.uint8).reshape(size.height, size.width)


def intersection_over_union(labels: NDArray[Any], box: tuple[int, int, int, int]) -> float:
    """How well the first class of a mask covers a box."""
    truth = np.zeros(labels.shape, bool)
    truth[box[1] : box[3], box[0] : box[2]] = True
    found = labels == 1
    return float((truth & found).sum() / (truth | found).sum())


def negative(x: float, y: float) -> AnnotationInput:
    """One background click."""
    return AnnotationInput((Mark(Points(((x, y),)), BACKGROUND),))


@asynccontextmanager
async def running_gateway(
    repository: Path,
    *,
    engine: Engine | None = None,
    store: Store | None = None,
    telemetry: CountingTelemetry | None = None,
    limits: Limits | None = None,
    now: Callable[[], datetime] | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """A started core, on the embedded engine if ``engine`` is None; it is stopped at the end."""
    ears = telemetry or CountingTelemetry()
    gateway = Gateway(
        engine=engine or EmbeddedEngine(repository, threads=1, workers=2, telemetry=ears),
        store=store or MemoryStore(),
        limits=limits or Limits(),
        telemetry=ears,
        settings=CoreSettings(codec_threads=2, **({"drain_seconds": 5.0} | settings)),
        **({} if now is None else {"now": now}),
    )
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.stop()
