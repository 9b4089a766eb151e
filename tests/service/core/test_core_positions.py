"""Guidance that stores as many positions as a shot needs, in half precision."""

from pathlib import Path

import numpy as np

from service.core.calls import Call
from service.core.family import GraphRole
from service.core.types import AnnotationInput, SupportInput
from service.engines.embedded import EmbeddedEngine
from tests.helpers.gateway import (
    QUERY_BOX,
    RED,
    CountingTelemetry,
    box_mark,
    intersection_over_union,
    labels_of,
    query,
    red_query,
    red_registration,
    running_gateway,
    scene,
    source,
)
from tests.helpers.tiny_repository import write_tiny_repository

#: Of 64 cells of 8 x 8 pixels, the boxes hold 9 and 2.
LARGE, SMALL = (8, 8, 32, 32), (40, 0, 56, 8)


class NotedEngine(EmbeddedEngine):
    """Notes the stored positions that decode is given."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository, telemetry=CountingTelemetry(), threads=1)
        self.given: list[np.ndarray] = []

    async def run_hosting(self, family, role, prepare, finish, **more):
        def noting():
            inputs = prepare()
            if role is GraphRole.DECODE and "stored" in inputs:
                self.given.append(inputs["stored"])
            return inputs

        return await super().run_hosting(family, role, noting, finish, **more)

    async def put_guidance(self, family, tensors):
        self.given.append(tensors["stored"])
        return await super().put_guidance(family, tensors)


def shot(support_id: str, box: tuple[int, int, int, int]) -> SupportInput:
    image = source(scene((RED, box), seed=len(support_id)))
    return SupportInput(support_id, image, AnnotationInput((box_mark("red", box),)))


async def test_shots_of_several_sizes_are_served(tmp_path: Path) -> None:
    write_tiny_repository(tmp_path, size=64, positions=True)
    engine = NotedEngine(tmp_path)
    async with running_gateway(tmp_path, engine=engine) as gateway:
        engine.given.clear()  # of the family's probe
        supports = (shot("large", LARGE), shot("small", SMALL))
        report = await gateway.tasks.register(red_registration(supports=supports), Call())
        answer = await gateway.segmenter.segment(query(red_query()), Call())
    # Under the small shot, under the large one, and under both: 2, 9 and 9 cells, in buckets.
    shapes = sorted(stored.shape for stored in engine.given)
    assert shapes == [(1, 1, 1, 4, 8), (1, 1, 1, 16, 8), (1, 2, 1, 16, 8)]
    (task,) = (stored[0] for stored in engine.given if stored.shape[1] == 2)
    assert task.dtype == np.float16
    assert task.any(axis=-1).sum(axis=-1).ravel().tolist() == [9, 2]
    # What is kept is compact: two shots of nine rows of eight numbers.
    assert report.guidance_bytes == 2 * 9 * 8 * 2
    assert all(found[0].iou > 0.8 for found in report.leave_one_out.values())
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
