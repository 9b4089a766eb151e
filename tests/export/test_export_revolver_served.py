"""A guided network of native size through the core: what runs when, and which images go in."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from export.family import Graph
from export.graphs import export_graph
from export.methods.revolver import GuidedModel, GuidedNetwork, ShotMean
from export.methods.revolver_early import EarlyNetwork
from export.repository import write_family
from export.revolver_family import revolver_family
from export.verification.stored import StoredFamily, TorchFamily
from service.core.calls import Call
from service.core.errors import InvalidArgumentError, OutOfLimitsError
from service.core.gateway import Gateway
from service.core.types import (
    AnnotationInput,
    IndexMask,
    Mark,
    Points,
    Registration,
    SupportInput,
    TaskName,
)
from tests.helpers.gateway import (
    CountingTelemetry,
    labels_of,
    negative,
    png,
    query,
    running_gateway,
    source,
    stream,
)

Network = TypeVar("Network", bound=torch.nn.Module)

LATE = ("shared", "unshared", "annotating")
OBJECTS, OTHERS = TaskName("default", "objects"), TaskName("default", "others")


def lively(network: Network) -> Network:
    """Lets what goes in come through all layers, so that answers depend on images and shots.

    Encoders are the same for all networks.
    """
    torch.manual_seed(5)
    for name, weight in network.named_parameters():
        if "encoder" in name and weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
        else:
            torch.nn.init.normal_(weight, std=0.1)
    return network.eval()


def make_early_family() -> Any:
    network = lively(EarlyNetwork(widths=(4, 4, 6, 6, 6)))
    return revolver_family(
        alias="early", network=network, provenance={"weights": "random"}, max_pixels=128 * 200
    )


def make_family(alias: str) -> Any:
    """One of `LATE`; "annotating" is unshared, with its mean over the shots that annotate."""
    model = GuidedModel("tiny", channels=8, shared=alias == "shared", buffers=False)
    network = lively(GuidedNetwork(model, widths=(4, 4, 6, 6, 6)))
    return revolver_family(
        alias=alias,
        network=network,
        provenance={"weights": "random"},
        max_pixels=128 * 200,
        mean=ShotMean.ANNOTATING if alias == "annotating" else ShotMean.ALL,
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("native")
    encoder = b""

    def export(graph: Graph) -> bytes:
        """Exports the encoder once, which is the same in all of them and takes seconds."""
        nonlocal encoder
        if graph.role != "features":
            return export_graph(graph)
        encoder = encoder or export_graph(graph)
        return encoder

    for alias in LATE:
        write_family(make_family(alias), root, export=export)
    write_family(make_early_family(), root)
    return root


@pytest.fixture
def telemetry() -> CountingTelemetry:
    return CountingTelemetry()


@pytest.fixture
async def gateway(repository: Path, telemetry: CountingTelemetry) -> AsyncIterator[Gateway]:
    async with running_gateway(repository, telemetry=telemetry, default_model="shared") as running:
        yield running


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(height: int, width: int) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[10:50, 20:70] = 1
    values[70:90, 5:60] = 2
    values[0:5] = 255
    return values


def support(seed: int, size: tuple[int, int] = (97, 130), **rest: Any) -> SupportInput:
    annotation = annotated(labels(*size), {1: "one", 2: "two"}, **rest)
    return SupportInput(f"s{seed}", source(picture(*size, seed)), annotation)


def annotated(values: np.ndarray, classes: dict[int, str], **rest: Any) -> AnnotationInput:
    return AnnotationInput((Mark(IndexMask(png(values), classes, (255,)), None),), **rest)


def registration(task: TaskName, *supports: SupportInput, model: str = "shared") -> Registration:
    return Registration(task.tenant, task.task, "", model, ("one", "two"), supports)


async def test_only_what_changed_is_computed_again(gateway, telemetry):
    def runs_since(before: Counter[Any]) -> dict[str, int]:
        return {str(role): count for role, count in telemetry.since(before).items()}

    before = Counter(telemetry.runs)
    await gateway.tasks.register(registration(OBJECTS, support(1)), Call())
    assert runs_since(before) == {"features": 1, "guide": 1}

    before = Counter(telemetry.runs)
    await gateway.tasks.annotate_support(
        OBJECTS, "s1", negative(60, 60), extend=True, etag="", request_id="", call=Call()
    )
    assert runs_since(before) == {"guide": 1}, "a new annotation needs no trunk"

    before = Counter(telemetry.runs)
    await gateway.tasks.add_supports(OBJECTS, "", "", stream(support(2, (70, 140))), Call())
    ran = runs_since(before)
    # Judging the new shot and the old one by each other takes their parts of the head as well.
    assert (ran["features"], ran["guide"]) == (1, 1), "one more shot costs one support image"

    await gateway.tasks.register(registration(OTHERS, support(3)), Call())
    image = source(picture(120, 90, seed=9))
    before = Counter(telemetry.runs)
    await gateway.segmenter.segment(query(image, OBJECTS), Call())
    assert runs_since(before) == {"features": 1, "query_features": 1, "decode": 1}
    before = Counter(telemetry.runs)
    await gateway.segmenter.segment(query(image, OTHERS), Call())
    assert runs_since(before) == {"decode": 1}, "a second task on a known image costs a decode"


async def test_clicks_on_the_query_itself_cost_guide_and_decode(gateway, telemetry):
    await gateway.tasks.register(registration(OBJECTS, support(1)), Call())
    await gateway.segmenter.segment(query("s1", OBJECTS), Call())
    before = Counter(telemetry.runs)
    await gateway.tasks.annotate_support(
        OBJECTS, "s1", negative(60, 60), extend=True, etag="", request_id="", call=Call()
    )
    await gateway.segmenter.segment(query("s1", OBJECTS), Call())
    assert {str(role): n for role, n in telemetry.since(before).items()} == {
        "guide": 1,
        "decode": 1,
    }


async def test_early_fusion_keeps_the_query_but_encodes_each_annotation(gateway, telemetry):
    await gateway.tasks.register(registration(OBJECTS, support(1), model="early"), Call())
    image = source(picture(120, 90, seed=9))
    answer = await gateway.segmenter.segment(query(image, OBJECTS), Call())
    assert labels_of(answer).shape == (120, 90)
    before = Counter(telemetry.runs)
    await gateway.tasks.annotate_support(
        OBJECTS, "s1", negative(60, 60), extend=True, etag="", request_id="", call=Call()
    )
    await gateway.segmenter.segment(query(image, OBJECTS), Call())
    ran = {str(role): count for role, count in telemetry.since(before).items()}
    assert ran == {"guide": 1, "decode": 1}


@pytest.mark.parametrize("size", [(33, 33), (97, 200), (128, 64)])
async def test_images_go_in_and_masks_come_out_at_their_own_size(gateway, size):
    await gateway.tasks.register(registration(OBJECTS, support(1)), Call())
    answer = await gateway.segmenter.segment(query(source(picture(*size)), OBJECTS), Call())
    assert labels_of(answer).shape == size


async def test_images_that_the_network_cannot_take_are_refused(gateway):
    await gateway.tasks.register(registration(OBJECTS, support(1)), Call())
    for size, kind, reason in (
        ((32, 100), InvalidArgumentError, "IMAGE_TOO_SMALL_FOR_MODEL"),
        ((129, 200), OutOfLimitsError, "IMAGE_TOO_LARGE_FOR_MODEL"),
    ):
        with pytest.raises(kind) as caught:
            await gateway.segmenter.segment(query(source(picture(*size)), OBJECTS), Call())
        assert (caught.value.reason, caught.value.field) == (reason, "image")
    tall = SupportInput("tall", source(picture(300, 100)), negative(3, 3))
    with pytest.raises(OutOfLimitsError) as caught:
        await gateway.tasks.add_supports(OBJECTS, "", "", stream(tall), Call())
    assert caught.value.reason == "IMAGE_TOO_LARGE_FOR_MODEL"


async def test_two_ways_are_two_binary_tasks_where_the_head_is_not_shared(gateway):
    """Each way's own shots guide it, and the stronger margin wins."""
    shots = [
        support(1, shot_classes=("one",)),
        support(2, (70, 140), shot_classes=("one",)),
        support(3, shot_classes=("two",)),
    ]
    both = registration(OBJECTS, *shots, model="unshared")
    await gateway.tasks.register(both, Call())
    image = source(picture(120, 90, seed=9))
    together = await gateway.segmenter.segment(query(image, OBJECTS, probabilities=True), Call())
    assert together.probabilities is not None
    for way, name in enumerate(("one", "two")):
        own = tuple(s for s in shots if s.annotation.shot_classes == (name,))
        alone = Registration("default", name, "", "unshared", (name,), _only(own, name))
        await gateway.tasks.register(alone, Call())
        task = TaskName("default", name)
        answer = await gateway.segmenter.segment(query(image, task, probabilities=True), Call())
        np.testing.assert_allclose(
            answer.probabilities[0], together.probabilities[way], rtol=0, atol=1e-3
        )


def _only(shots: tuple[SupportInput, ...], name: str) -> tuple[SupportInput, ...]:
    """The shots as annotations of one class; pixels of the other class stay in no plane."""
    value = {"one": 1, "two": 2}[name]
    found = []
    for shot in shots:
        size = shot.image.size
        values = labels(size.height, size.width)
        values[(values > 0) & (values != value)] = 255
        found.append(SupportInput(shot.support_id, shot.image, annotated(values, {value: name})))
    return tuple(found)


def clicked(*annotations: AnnotationInput) -> AnnotationInput:
    """Marks one after another, as extending an annotation puts them."""
    return AnnotationInput(tuple(mark for given in annotations for mark in given.marks))


def click(x: float, y: float, name: str) -> AnnotationInput:
    return AnnotationInput((Mark(Points(((x, y),)), name),))


@pytest.mark.parametrize("model", LATE)
async def test_guidance_accumulated_click_by_click_is_that_of_all_at_once(gateway, model):
    """Supports of one class, of both, of none; clicks of every kind, and one annotation anew."""
    dense = support(1)
    sparse = SupportInput("s2", source(picture(70, 140, 2)), click(30, 20, "one"))
    void = np.full((97, 130), 255, np.uint8)
    empty = SupportInput("s3", source(picture(97, 130, 3)), annotated(void, {1: "one"}))
    wrong = SupportInput("s4", source(picture(64, 90, 4)), click(3, 3, "one"))
    clicks = [negative(60, 60), click(100, 40, "two"), click(101, 41, "one")]

    await gateway.tasks.register(registration(OBJECTS, dense, model=model), Call())
    for one in (sparse, empty, wrong):
        await gateway.tasks.add_supports(OBJECTS, "", "", stream(one), Call())
    for given in clicks:
        await gateway.tasks.annotate_support(
            OBJECTS, "s2", given, extend=True, etag="", request_id="", call=Call()
        )
    right = click(50, 30, "two")
    report = await gateway.tasks.annotate_support(
        OBJECTS, "s4", right, extend=False, etag="", request_id="", call=Call()
    )
    assert [one.shot_classes for one in report.supports] == [
        ("one", "two"), ("one", "two"), (), ("two",)
    ]  # fmt: skip

    whole = (
        dense,
        replace(sparse, annotation=clicked(sparse.annotation, *clicks)),
        empty,
        replace(wrong, annotation=right),
    )
    await gateway.tasks.register(registration(OTHERS, *whole, model=model), Call())
    image = source(picture(120, 90, seed=9))
    answers = [
        await gateway.segmenter.segment(query(image, task, probabilities=True), Call())
        for task in (OBJECTS, OTHERS)
    ]
    assert answers[0].probabilities.std() > 0
    np.testing.assert_array_equal(*(answer.probabilities for answer in answers))
    np.testing.assert_array_equal(*map(labels_of, answers))


async def test_only_the_mean_over_all_shots_shrinks_by_a_shot_without_annotation(gateway):
    void = np.full((97, 130), 255, np.uint8)
    empty = SupportInput("empty", source(picture(97, 130, 3)), annotated(void, {1: "one"}))
    image = source(picture(120, 90, seed=9))
    unmoved = []
    for model in LATE:
        found = []
        for supports in ((support(1),), (support(1), empty)):
            task = TaskName("default", f"{model}-{len(supports)}")
            await gateway.tasks.register(registration(task, *supports, model=model), Call())
            answer = await gateway.segmenter.segment(query(image, task, probabilities=True), Call())
            found.append(answer.probabilities)
        unmoved.append(np.array_equal(*found))
    assert unmoved == [True, False, True]


@pytest.mark.parametrize("model", LATE)
def test_exported_graphs_take_any_size_and_any_number_of_ways(repository, model):
    family = make_family(model)
    stored, torch_family = StoredFamily(repository, family.name), TorchFamily(family)
    for height, width, ways in ((33, 33, 1), (64, 97, 3), (160, 129, 1)):
        image = picture(height, width)[None]
        planes = np.zeros((1, 1 + ways, height, width), np.float32)
        for plane in range(1 + ways):
            planes[0, plane, 3 * plane : 3 * plane + 5] = 1
        results = []
        for run in (stored.run, torch_family.run):
            features = run("features", {"image": image})
            guidance = run("guide", {**features, "planes": planes})
            projected = run("query_features", features)
            taken = {tensor["name"]: guidance[tensor["name"]] for tensor in family.serving.guidance}
            logits = run("decode", {**projected, **taken})["logits"]
            results.append(logits)
        rows, columns = -(-height // 32) - 1, -(-width // 32) - 1
        assert results[0].shape == (1, ways + (model == "shared"), 1, rows, columns)
        np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)
