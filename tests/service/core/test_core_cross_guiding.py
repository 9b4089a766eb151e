# SPDX-License-Identifier: Apache-2.0
"""Cross-guided tasks: what runs when, and that answers are those of the equations."""

import time
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest
from core_family import binary, resize

from service.core import guidance
from service.core.calls import Call
from service.core.deciding import MaskDecider
from service.core.decision import decide, grid_margins
from service.core.errors import DeadlineExceededError, OutOfLimitsError
from service.core.family import Decision, GraphRole, PostTarget
from service.core.fusing import by_the_others, fuse, shot_weights
from service.core.limits import Limits
from service.core.postchain import PostChain
from service.core.timing import Stage
from service.core.types import (
    AnnotationInput,
    OutputOptions,
    Query,
    ShotFusion,
    Size,
    SupportInput,
    TaskName,
)
from service.stores.memory import MemoryStore
from tests.helpers.families import panet_like
from tests.helpers.gateway import (
    BLUE,
    QUERY_BOX,
    RED,
    TASK,
    CountingTelemetry,
    box_mark,
    dense,
    intersection_over_union,
    labels_of,
    negative,
    query,
    red_query,
    red_registration,
    red_support,
    running_gateway,
    scene,
    source,
    stream,
)
from tests.helpers.tiny_repository import write_tiny_repository

CROSS = ShotFusion.CROSS_GUIDED
VARIANTS = {
    "multiway": {},
    "stack": {"stack": True},
    "binary": {"binary": True},
    "query-features": {"query_features": True},
    "positions": {"positions": True},
    "merge": {"merge": "joint"},
    "merge-judged": {"merge": "judged"},
    "any-shot": {"binary": True, "stack": True},
    "vote": {"binary": True, "stack": True, "vote": True},
}


@pytest.fixture
def telemetry():
    return CountingTelemetry()


def shots(count):
    """Red squares; the last of several is annotated beside the square."""
    given = [red_support(f"shot-{seed}", seed=seed) for seed in range(count)]
    if count > 1:
        labels = np.zeros((64, 64), np.uint8)
        labels[8:32, 20:44] = 1
        given[-1] = SupportInput(
            "bad", source(scene((RED, (8, 8, 32, 32)))), dense(labels, {1: "red"})
        )
    return tuple(given)


def two_ways(support_id, red, blue, seed, *, labelled_red=None):
    """A picture of both classes, wholly labelled; the red part rightly, unless said otherwise."""
    labels = np.zeros((64, 64), np.uint8)
    for value, (x_min, y_min, x_max, y_max) in ((1, labelled_red or red), (2, blue)):
        labels[y_min:y_max, x_min:x_max] = value
    pixels = scene((RED, red), (BLUE, blue), seed=seed)
    return SupportInput(support_id, source(pixels), dense(labels, {1: "red", 2: "blue"}))


def mixed():
    """Two shots of both classes, and one of red alone."""
    return (
        two_ways("one", (0, 0, 24, 24), (32, 32, 64, 64), 1),
        two_ways("two", (40, 0, 64, 32), (0, 40, 32, 64), 2),
        red_support("three", seed=3),
    )


async def answer(gateway, task=TASK, image=None):
    call = Call()
    options = OutputOptions(format=query(red_query()).options.format, probabilities=True)
    given = red_query() if image is None else image
    return await gateway.segmenter.segment(Query(task, given, options), call)


def margins_of(probabilities):
    """Margins over the background, of a multiway answer; NaN where half precision holds none."""
    exact = np.where(probabilities > 1e-4, probabilities, np.nan).astype(np.float64)
    return np.log(exact[1:] / exact[0])


async def test_what_runs_when_a_task_changes_and_when_it_is_asked(tmp_path, telemetry):
    write_tiny_repository(tmp_path, size=64, query_features=True)
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        before = Counter(telemetry.runs)

        def since():
            nonlocal before
            runs, before = telemetry.since(before), Counter(telemetry.runs)
            return [runs[role] for role in (GraphRole.FEATURES, GraphRole.GUIDE, GraphRole.DECODE)]

        given = tuple(red_support(f"shot-{seed}", seed=seed) for seed in range(3))
        report = await gateway.tasks.register(
            red_registration(supports=given, fusion=CROSS), Call()
        )
        assert since() == [3, 3, 9], "leave-one-out takes the pairs that there are"
        assert len(report.leave_one_out) == 3
        await gateway.tasks.add_supports(TASK, "", "", stream(red_support("new", 7)), Call())
        assert since() == [1, 1, 7], "2K + 1 pairs"
        found = await answer(gateway)
        assert since() == [1, 0, 4]
        assert intersection_over_union(labels_of(found), QUERY_BOX) > 0.8
        await answer(gateway)
        assert since() == [0, 0, 4]
        await gateway.tasks.annotate_support(
            TASK, "shot-0", negative(60, 60), extend=True, etag="", request_id="", call=Call()
        )
        assert since() == [0, 1, 7]
        await gateway.tasks.remove_support(TASK, "shot-1", etag="", request_id="", call=Call())
        assert since() == [0, 0, 0]
        await answer(gateway)
        assert since() == [0, 0, 3]


@pytest.mark.parametrize("reuse", ["never", "second_use"])
async def test_a_query_makes_its_features_once_whatever_the_policy(tmp_path, telemetry, reuse):
    write_tiny_repository(tmp_path, size=64)
    async with running_gateway(tmp_path, telemetry=telemetry, feature_reuse=reuse) as gateway:
        await gateway.tasks.register(red_registration(supports=shots(3), fusion=CROSS), Call())
        before = Counter(telemetry.runs)
        await answer(gateway)
        runs = telemetry.since(before)
    assert (runs[GraphRole.FEATURES], runs[GraphRole.DECODE]) == (1, 3)


async def test_answers_are_those_of_the_equations(tmp_path):
    """Each shot is a task of its own here, whose masks and margins are put together by hand."""
    write_tiny_repository(tmp_path, size=64)
    classes = ("red", "blue")
    image = source(scene((RED, (40, 16, 64, 48)), (BLUE, (0, 0, 24, 24)), seed=9))
    crooked = two_ways("two", (40, 0, 64, 32), (0, 40, 32, 64), 2, labelled_red=(28, 0, 56, 32))
    given = (mixed()[0], crooked)
    truth = [np.zeros((64, 64), np.uint8) for _ in given]
    for labels, red, blue in (
        (truth[0], np.s_[0:24, 0:24], np.s_[32:64, 32:64]),
        (truth[1], np.s_[0:32, 28:56], np.s_[40:64, 0:32]),
    ):
        labels[red], labels[blue] = 1, 2
    async with running_gateway(tmp_path) as gateway:
        margins, agreements = [], np.zeros((2, 2, 2))
        for guiding, support in enumerate(given):
            task = TaskName("default", f"alone-{guiding}")
            await gateway.tasks.register(
                red_registration(task_id=task.task, classes=classes, supports=(support,)), Call()
            )
            found = await answer(gateway, task, image)
            margins.append(margins_of(found.probabilities))
            for judged, other in enumerate(given):
                mask = labels_of(await answer(gateway, task, other.image))
                for way in (1, 2):
                    one, two = mask == way, truth[judged] == way
                    agreements[judged, guiding, way - 1] = (one & two).sum() / (one | two).sum()
        registration = red_registration(classes=classes, supports=given, fusion=CROSS)
        await gateway.tasks.register(registration, Call())
        fused = await answer(gateway, TASK, image)
    weights = agreements.mean(axis=0) / agreements.mean(axis=0).sum(axis=0)
    expected = sum(w[:, None, None] * m for w, m in zip(weights, margins, strict=True))
    difference = np.abs(margins_of(fused.probabilities) - expected)
    assert np.isfinite(difference).sum() > 200
    assert np.nanmax(difference) < 0.05
    assert np.abs(agreements - agreements.mean()).max() > 0.05, "weights that say something"


async def test_a_bad_annotation_weighs_less(tmp_path):
    write_tiny_repository(tmp_path, size=64)
    async with running_gateway(tmp_path) as gateway:
        registration = red_registration(supports=shots(4), fusion=CROSS)
        report = await gateway.tasks.register(registration, Call())
        found = await answer(gateway)
        merged = red_registration(task_id="merged", supports=shots(4))
        await gateway.tasks.register(merged, Call())
        other = await answer(gateway, TaskName("default", "merged"))
    (bad,) = report.leave_one_out["bad"]
    (good,) = report.leave_one_out["shot-0"]
    assert bad.iou < 0.5 < good.iou
    score, merged_score = found.classes[0].mean_score, other.classes[0].mean_score
    assert score > merged_score


@pytest.mark.parametrize("variant", VARIANTS)
async def test_one_shot_answers_as_if_merged(tmp_path, variant):
    write_tiny_repository(tmp_path, size=64, **VARIANTS[variant])
    async with running_gateway(tmp_path) as gateway:
        answers = []
        for fusion in ShotFusion:
            await gateway.tasks.register(
                red_registration(task_id=str(fusion.value[:5]), fusion=fusion), Call()
            )
            answers.append(await answer(gateway, TaskName("default", fusion.value[:5])))
    assert labels_of(answers[0]).any()
    np.testing.assert_array_equal(*(found.probabilities for found in answers))
    np.testing.assert_array_equal(*map(labels_of, answers))


@pytest.mark.parametrize("variant", VARIANTS)
async def test_guidance_is_rebuilt_after_an_eviction_and_a_restart(tmp_path, telemetry, variant):
    write_tiny_repository(tmp_path, size=64, **VARIANTS[variant])
    store = MemoryStore()
    async with running_gateway(tmp_path, store=store) as gateway:
        await gateway.tasks.register(red_registration(supports=shots(3), fusion=CROSS), Call())
        first = await answer(gateway)
        gateway._guidance_cache.discard_where(lambda key: True)
        again = await answer(gateway)
        assert not again.guidance_reused
        assert (await gateway.tasks.get(TASK, Call())).header.fusion is CROSS
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    async with running_gateway(
        tmp_path, store=store, telemetry=telemetry, guidance_bytes=1, feature_bytes=1
    ) as gateway:
        np.testing.assert_array_equal(first.probabilities, (await answer(gateway)).probabilities)


async def test_shots_of_other_classes_have_no_say(tmp_path):
    write_tiny_repository(tmp_path, size=64)
    async with running_gateway(tmp_path) as gateway:
        await gateway.tasks.register(
            red_registration(classes=("red", "blue"), supports=mixed(), fusion=CROSS), Call()
        )
        guidance = gateway._builder.peek(
            gateway.catalog.families()["tiny"], (await gateway.tasks.get(TASK, Call())).header
        )
    assert guidance.weights.shape == (3, 2)
    assert guidance.weights[2, 1] == 0
    assert (guidance.weights[:, 0] > 0).all()
    np.testing.assert_allclose(guidance.weights.sum(axis=0), 1, rtol=1e-6)


@pytest.fixture
def judged(monkeypatch):
    """Which ways the guidance of each judged decode shows, and the agreements that came of it."""
    seen = {"shown": [], "agreements": []}
    decided, weights = MaskDecider.decided, guidance.shot_weights

    async def noted(self, *arguments, shown, **options):
        seen["shown"].append(set(shown))
        return await decided(self, *arguments, shown=shown, **options)

    def weighed(agreements, *others):
        seen["agreements"].append(agreements)
        return weights(agreements, *others)

    monkeypatch.setattr(MaskDecider, "decided", noted)
    monkeypatch.setattr(guidance, "shot_weights", weighed)
    return seen


async def test_a_class_that_the_guiding_shot_does_not_show_takes_no_pixel(tmp_path, judged):
    write_tiny_repository(tmp_path, size=64)
    async with running_gateway(tmp_path) as gateway:
        await gateway.tasks.register(
            red_registration(classes=("red", "blue"), supports=mixed(), fusion=CROSS), Call()
        )
    assert sorted(map(sorted, judged["shown"])) == 3 * [[1]] + 6 * [[1, 2]]


async def test_a_support_without_a_pixel_of_its_class_judges_nobody(tmp_path, judged):
    write_tiny_repository(tmp_path, size=64)
    nothing = np.zeros((64, 64), np.uint8)
    empty = SupportInput("empty", source(scene(seed=9)), dense(nothing, {1: "red"}))
    async with running_gateway(tmp_path) as gateway:
        report = await gateway.tasks.register(
            red_registration(supports=(*shots(2), empty), fusion=CROSS), Call()
        )
    (agreements,) = judged["agreements"]
    assert np.isnan(agreements[2]).all()
    assert not np.isnan(agreements[:2, :2]).any()
    assert report.leave_one_out.keys() == {"shot-0", "bad"}


async def test_a_shot_without_background_infers_it_when_it_is_alone(tmp_path):
    write_tiny_repository(tmp_path, size=64)
    image = source(scene((RED, (8, 8, 32, 32)), seed=5))
    clicked = SupportInput("clicked", image, AnnotationInput((box_mark("red", (8, 8, 32, 32)),)))
    async with running_gateway(tmp_path) as gateway:
        given = (red_support("dense"), clicked)
        await gateway.tasks.register(red_registration(supports=given, fusion=CROSS), Call())
        found = await answer(gateway)
    assert intersection_over_union(labels_of(found), QUERY_BOX) > 0.8


async def test_a_family_that_weighs_its_shots_itself_keeps_both_kinds_of_pairs(tmp_path, telemetry):
    """Its graph runs for each shot alone; what it says of pairs is kept beside what they find."""
    write_tiny_repository(tmp_path, size=64, merge="judged")
    async with running_gateway(tmp_path, telemetry=telemetry) as gateway:
        given = tuple(red_support(f"shot-{seed}", seed=seed) for seed in range(3))
        await gateway.tasks.register(red_registration(supports=given), Call())
        telemetry.newly_run()
        crossed = red_registration(task_id="crossed", supports=given, fusion=CROSS)
        await gateway.tasks.register(crossed, Call())
        assert telemetry.newly_run() == {"decode": 9}, "the graph judged all pairs before"
        task = TaskName("default", "crossed")
        await gateway.tasks.add_supports(task, "", "", stream(red_support("new", 7)), Call())
        assert telemetry.newly_run() == {"features": 1, "guide": 1, "merge": 1, "decode": 7}
        await gateway.tasks.remove_support(task, "new", etag="", request_id="", call=Call())
        await gateway.tasks.remove_support(TASK, "shot-2", etag="", request_id="", call=Call())
        assert not telemetry.newly_run()


async def test_more_shots_than_may_judge_each_other_are_refused(tmp_path):
    write_tiny_repository(tmp_path, size=64, stack=True, shot_buckets=(1,))
    async with running_gateway(tmp_path, limits=Limits(cross_guided_supports=2)) as gateway:
        with pytest.raises(OutOfLimitsError) as refusal:
            await gateway.tasks.register(red_registration(supports=shots(3), fusion=CROSS), Call())
        assert refusal.value.reason == "TOO_MANY_SUPPORTS"
        assert "cross-guided" in refusal.value.message
        # A model that takes one shot takes as many as decode apart.
        await gateway.tasks.register(red_registration(supports=shots(2), fusion=CROSS), Call())
        with pytest.raises(OutOfLimitsError):
            await gateway.tasks.add_supports(TASK, "", "", stream(red_support("new", 7)), Call())
        assert labels_of(await answer(gateway)).any()


async def test_a_deadline_ends_all_shots_of_a_query(tmp_path):
    write_tiny_repository(tmp_path, size=64, slow_decode=50_000)
    async with running_gateway(tmp_path) as gateway:
        await gateway.tasks.register(red_registration(supports=shots(2), fusion=CROSS), Call())
        with pytest.raises(DeadlineExceededError):
            await gateway.segmenter.segment(
                query(red_query()), Call(deadline=time.monotonic() + 0.03)
            )
        assert gateway._admission.in_flight == 0
        call = Call()
        found = await gateway.segmenter.segment(query(red_query()), call)
        assert labels_of(found).any()
        assert call.clock.seconds[Stage.DECODE] <= call.clock.total()


async def test_a_task_stays_cross_guided_when_its_model_becomes_another_method(tmp_path):
    write_tiny_repository(tmp_path, size=64)
    async with running_gateway(tmp_path) as gateway:
        await gateway.tasks.register(red_registration(supports=shots(3), fusion=CROSS), Call())
        later = datetime(2026, 3, 1, tzinfo=UTC)
        family = write_tiny_repository(tmp_path, size=64, merge="judged", created=later)
        await gateway.catalog.refresh()
        found = await answer(gateway)
        guidance = gateway._builder.peek(
            gateway.catalog.families()["tiny"], (await gateway.tasks.get(TASK, Call())).header
        )
    assert found.family == family
    assert intersection_over_union(labels_of(found), QUERY_BOX) > 0.8
    assert guidance.weights.shape == (3, 1)


async def test_the_same_request_id_names_one_fusion(tmp_path):
    write_tiny_repository(tmp_path, size=64)
    request = "6f0cf3a4-1111-4222-8333-444455556666"
    async with running_gateway(tmp_path) as gateway:
        for _ in range(2):
            report = await gateway.tasks.register(
                red_registration(fusion=CROSS, request_id=request), Call()
            )
            assert report.header.fusion is CROSS
        with pytest.raises(Exception, match="different request"):
            await gateway.tasks.register(red_registration(request_id=request), Call())


def test_weights_add_up_to_one_where_a_way_is_shown():
    nan = np.nan
    agreements = np.array([[[0.9, nan], [0.3, nan]], [[0.5, 0.0], [0.7, 0.0]]])
    weights = shot_weights(agreements, [{1}, {1, 2}])
    np.testing.assert_allclose(weights[:, 0], [0.7 / 1.2, 0.5 / 1.2], rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 1], [0, 1])
    assert by_the_others(agreements, weights, 0, 1) == pytest.approx(0.3)
    assert by_the_others(agreements, weights, 0, 2) is None


def test_fused_logits_decide_as_the_weighted_margins_do():
    random = np.random.default_rng(0)
    family = panet_like()
    logits = [random.normal(size=(4, 1, 5, 5)).astype(np.float32) for _ in range(2)]
    weights = np.array([[0.25, 1.0], [0.75, 0.0]], np.float32)
    fused = fuse(logits, weights, family, 2)
    assert fused.shape == (3, 1, 5, 5)
    one, two = (grid_margins(shot, family, 2) for shot in logits)
    margins = grid_margins(fused, family, 2)
    np.testing.assert_allclose(margins[0], 0.25 * one[0] + 0.75 * two[0], rtol=1e-5)
    np.testing.assert_array_equal(margins[1], one[1])


@pytest.mark.parametrize("decision", [Decision.ANY_SHOT, Decision.VOTE])
def test_what_shots_that_decide_apart_say_together_is_one_margin(decision):
    random = np.random.default_rng(1)
    family = binary(decision=decision)
    # Each was decoded alone, padded to a bucket of two shots; the second does not show way 2.
    logits = [random.normal(size=(2, 2, 6, 6)).astype(np.float32) for _ in range(2)]
    for padded in logits:
        padded[:, 1] = -1e4
    logits[1][1] = -1e4
    weights = np.array([[0.25, 1.0], [0.75, 0.0]], np.float32)
    fused = fuse(logits, weights, family, 2)
    together = 0.25 * logits[0][0, 0] + 0.75 * logits[1][0, 0]
    alone = logits[0][1, 0]
    expected = np.where(np.maximum(together, alone) > 0, 1 + (alone > together), 0)
    axes = PostChain((resize(PostTarget.OUTPUT),)).axes(*[Size(6, 6)] * 4)
    mask = decide(fused, axes, family=family, ways=2, probabilities=True)
    np.testing.assert_array_equal(mask.labels, expected)
    likely = 1 / (1 + np.exp(-np.stack([together, alone])))
    np.testing.assert_allclose(mask.probabilities, likely, atol=1e-3)
