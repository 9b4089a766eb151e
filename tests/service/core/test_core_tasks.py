from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from service.core.calls import Call
from service.core.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfLimitsError,
)
from service.core.family import GraphRole
from service.core.gateway import Gateway
from service.core.limits import Limits
from service.core.ports import RememberedRequest
from service.core.types import (
    BACKGROUND,
    AnnotationInput,
    BackgroundEvidence,
    Mark,
    Points,
    SupportInput,
    TaskName,
    TaskRecord,
)
from service.stores.memory import MemoryStore
from tests.helpers.gateway import (
    BLUE,
    QUERY_BOX,
    RED,
    TASK,
    Clock,
    CountingTelemetry,
    box_mark,
    dense,
    intersection_over_union,
    labels_of,
    negative,
    png,
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

REQUEST = "5f0c7a52-9d9a-4c5e-8f4b-0c1f2f9f3f11"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_tiny_repository(root, size=64)
    return root


@pytest.fixture
def telemetry() -> CountingTelemetry:
    return CountingTelemetry()


@pytest.fixture
async def gateway(repository: Path, telemetry: CountingTelemetry) -> AsyncIterator[Gateway]:
    async with running_gateway(repository, telemetry=telemetry) as running:
        yield running


async def test_a_registered_task_finds_its_class(gateway: Gateway) -> None:
    report = await gateway.tasks.register(red_registration(), Call())
    assert str(report.header.name) == "tenants/default/tasks/reds"
    assert report.background is BackgroundEvidence.GIVEN
    assert report.guidance_bytes > 0
    answer = await gateway.segmenter.segment(query(red_query()), Call())
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
    assert answer.etag == report.header.etag
    assert answer.classes[0].box is not None


async def test_only_what_changed_is_computed_again(
    gateway: Gateway, telemetry: CountingTelemetry
) -> None:
    def runs_since(before: Counter[GraphRole]) -> dict[str, int]:
        return {str(role): count for role, count in telemetry.since(before).items()}

    before = Counter(telemetry.runs)
    report = await gateway.tasks.register(red_registration(), Call())
    assert runs_since(before) == {"features": 1, "guide": 1}

    support_id = report.supports[0].support_id
    before = Counter(telemetry.runs)
    await gateway.tasks.annotate_support(
        TASK, support_id, negative(60, 60), extend=True, etag="", request_id="", call=Call()
    )
    assert runs_since(before) == {"guide": 1}, "a new annotation must not run the trunk again"

    before = Counter(telemetry.runs)
    await gateway.tasks.add_supports(TASK, "", "", stream(red_support(seed=5)), Call())
    # One more shot costs its own image; the two decodes judge it by the other one.
    assert runs_since(before) == {"features": 1, "guide": 1, "decode": 1}

    before = Counter(telemetry.runs)
    await gateway.tasks.register(
        red_registration(task_id="other", supports=(red_support(seed=7),)), Call()
    )
    image = red_query()
    await gateway.segmenter.segment(query(image), Call())
    assert runs_since(before) == {"features": 2, "guide": 1, "decode": 1}

    before = Counter(telemetry.runs)
    await gateway.segmenter.segment(query(image, TaskName("default", "other")), Call())
    assert runs_since(before) == {"decode": 1}, "a second task on a known image costs a decode"

    before = Counter(telemetry.runs)
    await gateway.segmenter.segment(query(support_id), Call())
    assert runs_since(before) == {"decode": 1}, "a click costs guide and decode, no trunk"


async def test_removing_a_support_gives_the_guidance_of_never_having_had_it(
    gateway: Gateway,
) -> None:
    await gateway.tasks.register(red_registration(), Call())
    lone = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
    bad = SupportInput("bad", source(scene((BLUE, (8, 8, 32, 32)))), red_support().annotation)
    await gateway.tasks.add_supports(TASK, "", "", stream(bad), Call())
    spoilt = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
    await gateway.tasks.remove_support(TASK, "bad", etag="", request_id="", call=Call())
    again = await gateway.segmenter.segment(query(red_query(), probabilities=True), Call())
    assert lone.probabilities is not None
    assert again.probabilities is not None
    assert spoilt.probabilities is not None
    assert not np.array_equal(lone.probabilities, spoilt.probabilities)
    np.testing.assert_array_equal(lone.probabilities, again.probabilities)


async def test_leave_one_out_shows_a_bad_annotation(gateway: Gateway) -> None:
    good = [red_support(f"good-{i}", seed=i) for i in range(3)]
    wrong_place = np.zeros((64, 64), np.uint8)
    wrong_place[40:60, 40:60] = 1
    bad = SupportInput(
        "bad", source(scene((RED, (8, 8, 32, 32)), seed=8)), dense(wrong_place, {1: "red"})
    )
    report = await gateway.tasks.register(red_registration(supports=(*good, bad)), Call())
    iou = {key: agreements[0].iou for key, agreements in report.leave_one_out.items()}
    assert set(iou) == {"good-0", "good-1", "good-2", "bad"}
    assert iou["bad"] < 0.2
    assert min(iou[f"good-{i}"] for i in range(3)) > 0.7


async def test_a_class_that_no_other_support_shows_is_not_judged(gateway: Gateway) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[8:32, 8:32] = 1
    blue = SupportInput("b", source(scene((BLUE, (8, 8, 32, 32)))), dense(labels, {1: "blue"}))
    report = await gateway.tasks.register(
        red_registration(classes=("red", "blue"), supports=(red_support("r"), blue)), Call()
    )
    assert report.leave_one_out == {}


async def test_a_shot_that_shows_nothing_of_a_class_is_named(gateway: Gateway) -> None:
    """Red is covered by a later mark; blue is lost where 128 pixels become 64."""
    boxes = {1: (16, 16, 64, 64), 2: (80, 80, 120, 120)}
    image = source(scene((RED, boxes[1]), (BLUE, boxes[2]), side=128))
    classes = {1: "red", 2: "blue"}
    whole, dot = np.zeros((2, 128, 128), np.uint8)
    for number, (x_min, y_min, x_max, y_max) in boxes.items():
        whole[y_min:y_max, x_min:x_max] = number
    dot[16:64, 16:64], dot[100, 100] = 1, 2
    dotted = dense(dot, classes)
    covered = replace(dotted, marks=(*dotted.marks, box_mark(BACKGROUND, boxes[1])))
    supports = (
        SupportInput("good", image, dense(whole, classes)),
        SupportInput("bad", image, covered),
    )
    report = await gateway.tasks.register(
        red_registration(classes=("red", "blue"), supports=supports), Call()
    )
    assert [support.shot_classes for support in report.supports] == [("red", "blue")] * 2
    told = [support.classes_without_pixels for support in report.supports]
    assert told == [(), ("red", "blue")]
    report = await gateway.tasks.annotate_support(
        TASK, "bad", dotted, extend=False, etag="", request_id="", call=Call()
    )
    assert report.supports[1].classes_without_pixels == ("blue",)


async def test_ways_compete_and_keep_the_order_of_the_classes(gateway: Gateway) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[8:32, 8:32], labels[40:60, 40:60] = 10, 20
    both = SupportInput(
        "",
        source(scene((RED, (8, 8, 32, 32)), (BLUE, (40, 40, 60, 60)))),
        dense(labels, {10: "red", 20: "blue"}),
    )
    await gateway.tasks.register(
        red_registration(classes=("blue", "red"), supports=(both,)), Call()
    )
    image = source(scene((BLUE, (0, 0, 32, 32)), (RED, (32, 32, 64, 64)), seed=4))
    labels_found = labels_of(await gateway.segmenter.segment(query(image), Call()))
    assert (labels_found[16, 16], labels_found[48, 48], labels_found[48, 16]) == (1, 2, 0)


async def test_background_is_inferred_when_nobody_shows_it(gateway: Gateway) -> None:
    clicks = AnnotationInput((Mark(Points(((20.0, 20.0), (12.0, 12.0))), "red"),))
    support = SupportInput("s", source(scene((RED, (8, 8, 32, 32)))), clicks)
    report = await gateway.tasks.register(red_registration(supports=(support,)), Call())
    assert report.background is BackgroundEvidence.INFERRED
    answer = await gateway.segmenter.segment(query(red_query()), Call())
    assert answer.background is BackgroundEvidence.INFERRED
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8
    report = await gateway.tasks.annotate_support(
        TASK, "s", negative(60, 60), extend=True, etag="", request_id="", call=Call()
    )
    assert report.background is BackgroundEvidence.GIVEN
    assert (await gateway.tasks.get(TASK, Call())).background is BackgroundEvidence.GIVEN


async def test_an_exhaustive_annotation_without_background_still_infers(gateway: Gateway) -> None:
    everything = AnnotationInput((box_mark("red", (0, 0, 64, 64)),), exhaustive=True)
    support = SupportInput("", source(scene((RED, (0, 0, 64, 64)))), everything)
    report = await gateway.tasks.register(red_registration(supports=(support,)), Call())
    assert report.background is BackgroundEvidence.INFERRED


async def test_a_class_without_a_pixel_is_refused_and_nothing_is_kept(gateway: Gateway) -> None:
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.tasks.register(red_registration(classes=("red", "unicorn")), Call())
    assert (refusal.value.reason, refusal.value.field) == ("CLASS_WITHOUT_PIXELS", "supports")
    assert "unicorn" in refusal.value.message
    assert await gateway.tasks.list("default", page_size=10, after="") == []


async def test_a_change_that_would_empty_a_class_is_refused(gateway: Gateway) -> None:
    report = await gateway.tasks.register(red_registration(), Call())
    only = report.supports[0].support_id
    with pytest.raises(FailedPreconditionError):
        await gateway.tasks.remove_support(TASK, only, etag="", request_id="", call=Call())
    empty = dense(np.zeros((64, 64), np.uint8), {1: "red"})
    with pytest.raises(FailedPreconditionError):
        await gateway.tasks.annotate_support(
            TASK, only, empty, extend=False, etag="", request_id="", call=Call()
        )
    assert (await gateway.tasks.get(TASK, Call())).header == report.header


async def test_mixed_shots_need_not_show_every_class(gateway: Gateway) -> None:
    nothing = SupportInput(
        "empty", source(scene(seed=3)), dense(np.zeros((64, 64), np.uint8), {1: "red"})
    )
    report = await gateway.tasks.register(
        red_registration(supports=(red_support("full"), nothing)), Call()
    )
    assert [s.support_id for s in report.supports] == ["full", "empty"]
    answer = await gateway.segmenter.segment(query(red_query()), Call())
    assert intersection_over_union(labels_of(answer), QUERY_BOX) > 0.8


async def test_the_same_request_twice_is_carried_out_once(
    gateway: Gateway, telemetry: CountingTelemetry
) -> None:
    registration = red_registration(request_id=REQUEST, task_id="")
    first = await gateway.tasks.register(registration, Call())
    before = Counter(telemetry.runs)
    assert await gateway.tasks.register(registration, Call()) == first
    assert not telemetry.since(before)
    assert len(await gateway.tasks.list("default", page_size=10, after="")) == 1
    with pytest.raises(AlreadyExistsError) as refusal:
        await gateway.tasks.register(replace(registration, display_name="else"), Call())
    assert refusal.value.reason == "REQUEST_ID_REUSED"


async def test_the_same_request_twice_at_once_is_carried_out_once(gateway: Gateway) -> None:
    registration = red_registration(request_id=REQUEST, task_id="")
    first, second = await asyncio.gather(
        gateway.tasks.register(registration, Call()), gateway.tasks.register(registration, Call())
    )
    assert first == second


async def test_changes_are_remembered_too(gateway: Gateway) -> None:
    await gateway.tasks.register(red_registration(), Call())
    for _ in range(2):
        added = await gateway.tasks.add_supports(
            TASK, "", REQUEST, stream(red_support(seed=3)), Call()
        )
        assert (added.header.revision, len(added.supports)) == (2, 2)
    with pytest.raises(AlreadyExistsError):
        await gateway.tasks.add_supports(TASK, "", REQUEST, stream(red_support(seed=4)), Call())
    for _ in range(2):
        left = await gateway.tasks.remove_support(
            TASK, "support-2", etag="", request_id=REQUEST, call=Call()
        )
        assert (left.header.revision, len(left.supports)) == (3, 1)


async def test_etags_guard_every_change(gateway: Gateway) -> None:
    report = await gateway.tasks.register(red_registration(), Call())
    old, support_id = report.header.etag, report.supports[0].support_id
    fresh = await gateway.tasks.annotate_support(
        TASK, support_id, negative(60, 60), extend=True, etag=old, request_id="", call=Call()
    )
    assert fresh.header.etag != old
    with pytest.raises(AbortedError):
        await gateway.tasks.remove_support(TASK, support_id, etag=old, request_id="", call=Call())
    with pytest.raises(AbortedError):
        await gateway.tasks.add_supports(TASK, old, "", stream(red_support()), Call())
    with pytest.raises(AbortedError):
        await gateway.tasks.delete(TASK, old)
    with pytest.raises(AbortedError):
        await gateway.segmenter.segment(query(red_query(), etag=old), Call())
    with pytest.raises(InvalidArgumentError) as malformed:
        await gateway.segmenter.segment(query(red_query(), etag="what"), Call())
    assert malformed.value.reason == "MALFORMED_ETAG"
    await gateway.tasks.delete(TASK, fresh.header.etag)


async def test_two_clients_that_change_a_task_at_once_both_succeed(gateway: Gateway) -> None:
    await gateway.tasks.register(red_registration(), Call())
    await asyncio.gather(
        *(
            gateway.tasks.add_supports(TASK, "", "", stream(red_support(f"s{i}", seed=i)), Call())
            for i in range(5)
        )
    )
    after = await gateway.tasks.get(TASK, Call())
    assert after.header.revision == 6
    assert {s.support_id for s in after.supports} == {"support-1", *(f"s{i}" for i in range(5))}


async def test_ids_are_unique_in_a_task(gateway: Gateway) -> None:
    with pytest.raises(AlreadyExistsError) as refusal:
        await gateway.tasks.register(
            red_registration(supports=(red_support("a"), red_support("a", seed=2))), Call()
        )
    assert refusal.value.field == "supports[1].support_id"
    await gateway.tasks.register(red_registration(supports=(red_support("support-7"),)), Call())
    added = await gateway.tasks.add_supports(TASK, "", "", stream(red_support(seed=2)), Call())
    assert [s.support_id for s in added.supports] == ["support-7", "support-8"]
    with pytest.raises(AlreadyExistsError):
        await gateway.tasks.add_supports(TASK, "", "", stream(red_support("support-7")), Call())


async def test_errors_name_the_support_and_leave_nothing(gateway: Gateway) -> None:
    outside = replace(
        red_support(), annotation=AnnotationInput((Mark(Points(((64.0, 3.0),)), "red"),))
    )
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.tasks.register(red_registration(supports=(red_support(), outside)), Call())
    assert refusal.value.field is not None
    assert refusal.value.field.startswith("supports[1].annotation.marks[0]")
    data = png(scene((RED, (8, 8, 32, 32))))
    broken = replace(red_support().image, data=data[: len(data) // 2], digest="0" * 64)
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.tasks.register(
            red_registration(supports=(replace(red_support(), image=broken),)), Call()
        )
    assert refusal.value.field == "supports[0].image"
    await gateway.tasks.register(red_registration(), Call())
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.tasks.add_supports(TASK, "", "", stream(red_support(), outside), Call())
    assert refusal.value.field is not None
    assert refusal.value.field.startswith("supports[1].annotation")
    assert (await gateway.tasks.get(TASK, Call())).header.revision == 1


async def test_an_empty_stream_is_an_error(gateway: Gateway) -> None:
    await gateway.tasks.register(red_registration(), Call())
    with pytest.raises(InvalidArgumentError) as refusal:
        await gateway.tasks.add_supports(TASK, "", "", stream(), Call())
    assert refusal.value.reason == "NO_SUPPORTS"


async def test_unknown_names_are_not_found(gateway: Gateway) -> None:
    with pytest.raises(NotFoundError) as refusal:
        await gateway.tasks.register(red_registration(model="unheard-of"), Call())
    assert (refusal.value.reason, refusal.value.field) == ("UNKNOWN_MODEL", "task.model")
    with pytest.raises(NotFoundError):
        await gateway.tasks.register(red_registration(tenant="stranger"), Call())
    with pytest.raises(NotFoundError):
        await gateway.tasks.get(TASK, Call())
    with pytest.raises(NotFoundError):
        await gateway.tasks.delete(TASK, "")
    with pytest.raises(NotFoundError):
        await gateway.segmenter.segment(query(red_query()), Call())
    await gateway.tasks.register(red_registration(), Call())
    with pytest.raises(AlreadyExistsError) as taken:
        await gateway.tasks.register(red_registration(), Call())
    assert taken.value.reason == "TASK_EXISTS"
    with pytest.raises(NotFoundError) as no_support:
        await gateway.segmenter.segment(query("nobody"), Call())
    assert no_support.value.field == "support_id"
    with pytest.raises(NotFoundError):
        await gateway.tasks.remove_support(TASK, "nobody", etag="", request_id="", call=Call())


async def test_limits_on_supports_hold_everywhere(repository: Path) -> None:
    async with running_gateway(repository, limits=Limits(supports=2)) as gateway:
        with pytest.raises(OutOfLimitsError):
            await gateway.tasks.register(
                red_registration(supports=tuple(red_support(seed=i) for i in range(3))), Call()
            )
        await gateway.tasks.register(red_registration(), Call())
        with pytest.raises(OutOfLimitsError):
            await gateway.tasks.add_supports(
                TASK, "", "", stream(red_support(seed=1), red_support(seed=2)), Call()
            )


async def test_the_annotations_of_a_task_have_a_bound_together(repository: Path) -> None:
    one = len(png(np.zeros((64, 64), np.uint8)))
    async with running_gateway(repository, limits=Limits(annotation_bytes=3 * one)) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        with pytest.raises(OutOfLimitsError) as refusal:
            await gateway.tasks.add_supports(
                TASK, "", "", stream(*(red_support(seed=i) for i in range(1, 9))), Call()
            )
        assert refusal.value.reason == "ANNOTATIONS_TOO_LARGE"
        assert (await gateway.tasks.get(TASK, Call())).header.revision == 1


async def test_a_task_ends_when_its_time_is_over(repository: Path) -> None:
    clock = Clock()
    async with running_gateway(repository, store=MemoryStore(now=clock), now=clock) as gateway:
        report = await gateway.tasks.register(
            red_registration(expiration=timedelta(hours=1)), Call()
        )
        assert report.header.expire_time == clock.moment + timedelta(hours=1)
        await gateway.segmenter.segment(query(red_query()), Call())
        clock.advance(hours=1)
        with pytest.raises(NotFoundError):
            await gateway.segmenter.segment(query(red_query()), Call())
        assert await gateway.tasks.list("default", page_size=10, after="") == []
        await gateway.tasks.register(red_registration(), Call())
        await gateway.sweep()
        assert len(await gateway.tasks.list("default", page_size=10, after="")) == 1


async def test_tasks_are_listed_in_pages(gateway: Gateway) -> None:
    for task_id in ("c", "a", "b"):
        await gateway.tasks.register(red_registration(task_id=task_id), Call())
    first = await gateway.tasks.list("default", page_size=2, after="")
    assert [header.name.task for header in first] == ["a", "b"]
    rest = await gateway.tasks.list("default", page_size=2, after="b")
    assert [header.name.task for header in rest] == ["c"]


async def test_a_thousand_supports_stream_in_and_queries_do_not_grow(
    gateway: Gateway, telemetry: CountingTelemetry
) -> None:
    await gateway.tasks.register(red_registration(), Call())

    async def many() -> AsyncIterator[SupportInput]:
        image = red_support().image
        for index in range(1000):
            mark = Mark(Points(((8.5 + index % 24, 8.5 + index // 50),)), "red")
            yield SupportInput("", image, AnnotationInput((mark,), exhaustive=True))

    before = Counter(telemetry.runs)
    report = await gateway.tasks.add_supports(TASK, "", "", many(), Call())
    assert report.header.support_count == 1001
    assert len(report.leave_one_out) == 32
    assert GraphRole.FEATURES not in telemetry.since(before), "the image was known"
    before = Counter(telemetry.runs)
    await gateway.segmenter.segment(query(red_query()), Call())
    assert telemetry.since(before) == {GraphRole.FEATURES: 1, GraphRole.DECODE: 1}


async def test_callers_that_share_a_failure_hear_of_their_own_field(gateway: Gateway) -> None:
    data = red_support().image.data
    damaged = replace(red_support().image, data=data[: len(data) // 2], digest="0" * 64)
    bad = replace(red_support(), image=damaged)
    refusals = await asyncio.gather(
        gateway.tasks.register(red_registration(task_id="a", supports=(bad,)), Call()),
        gateway.tasks.register(
            red_registration(task_id="b", supports=(red_support(), bad)), Call()
        ),
        *(gateway.tasks.register(red_registration(task_id=f"c{i}", supports=(bad,)), Call())
          for i in range(3)),
        return_exceptions=True,
    )  # fmt: skip
    fields = [refusal.field for refusal in refusals if isinstance(refusal, InvalidArgumentError)]
    assert fields == ["supports[0].image", "supports[1].image", *["supports[0].image"] * 3]


class SlowStore(MemoryStore):
    """Takes its time to say that a change is kept."""

    slow = 0.0

    async def create(self, record: TaskRecord, request: RememberedRequest | None) -> None:
        await super().create(record, request)
        await asyncio.sleep(self.slow)


async def test_a_name_that_expired_can_be_taken_again_whatever_the_deadline(
    repository: Path,
) -> None:
    clock = Clock()
    store = SlowStore(now=clock)
    async with running_gateway(repository, store=store, now=clock) as gateway:
        await gateway.tasks.register(red_registration(expiration=timedelta(hours=1)), Call())
        await gateway.segmenter.segment(query(red_query()), Call())
        clock.advance(hours=2)
        again = red_registration(request_id=REQUEST)
        store.slow = 0.3
        with pytest.raises(DeadlineExceededError):
            await gateway.tasks.register(again, Call(deadline=time.monotonic() + 0.2))
        store.slow = 0.0
        report = await gateway.tasks.register(again, Call())
        answer = await gateway.segmenter.segment(query(red_query()), Call())
        assert answer.etag == report.header.etag
        await gateway.tasks.delete(TASK, "")


async def test_changes_that_wait_for_their_turn_hold_no_slot(repository: Path) -> None:
    async with running_gateway(repository, slots=2) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        await gateway.tasks.register(red_registration(task_id="other"), Call())
        async with gateway.tasks._locks.hold(TASK):
            changes = [
                asyncio.create_task(
                    gateway.tasks.annotate_support(
                        TASK, "support-1", negative(60, 60),
                        extend=True, etag="", request_id="", call=Call(),
                    )
                )
                for _ in range(4)
            ]  # fmt: skip
            await asyncio.sleep(0.05)
            await gateway.segmenter.segment(
                query(red_query(), TaskName("default", "other")),
                Call(deadline=time.monotonic() + 2),
            )
        await asyncio.gather(*changes)
        assert (await gateway.tasks.get(TASK, Call())).header.revision == 5


async def test_supports_added_in_vain_leave_no_image(repository: Path) -> None:
    store = MemoryStore()
    async with running_gateway(repository, store=store) as gateway:
        await gateway.tasks.register(red_registration(), Call())
        outside = replace(
            red_support(seed=9), annotation=AnnotationInput((box_mark("red", (0, 0, 99, 9)),))
        )
        with pytest.raises(InvalidArgumentError):
            await gateway.tasks.add_supports(
                TASK, "", "", stream(red_support(seed=5), red_support(seed=6), outside), Call()
            )

        async def endless() -> AsyncIterator[SupportInput]:
            yield red_support(seed=7)
            await asyncio.sleep(60)

        adding = asyncio.create_task(gateway.tasks.add_supports(TASK, "", "", endless(), Call()))
        while len(store._images) < 2:
            await asyncio.sleep(0.01)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        assert len(store._images) == 1


async def test_guidance_is_let_go_by_whatever_thread_collects_it(gateway: Gateway) -> None:
    await gateway.tasks.register(red_registration(), Call())
    held = gateway._engine.guidance_bytes
    assert held > 0
    cycle: list[object] = [
        gateway._builder.peek(
            gateway.catalog.families()["tiny"], (await gateway.tasks.get(TASK, Call())).header
        )
    ]
    cycle.append(cycle)
    gateway._guidance_cache.discard_where(lambda key: True)
    del cycle
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    collecting.join()
    await asyncio.sleep(0.05)
    assert gateway._engine.guidance_bytes == 0
