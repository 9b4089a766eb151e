"""What training computes must be what is served."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from export.methods.compact import CompactGuide, CompactModel, emboldened
from training.annotations import KINDS, annotate
from training.episodes import Episodes, draw_shares, episode_losses, read_episodes
from training.evaluate import PackedSet, Reading, annotated_sets
from training.folds import FOLDS, SETS, left_out, never_drawn
from training.pack import Entry, Pack
from training.runs import Draws
from training.tasks import TaskSource

SIDE = 64


@pytest.fixture
def model() -> CompactModel:
    torch.manual_seed(0)
    made = CompactModel().eval()
    torch.nn.init.normal_(made.decode.correction.weight, std=0.1)
    return made


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def shown(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Parts [pictures, 1, SIDE, SIDE], one rectangle in each."""
    parts = torch.zeros(len(boxes), 1, SIDE, SIDE, dtype=torch.long)
    for part, (top, bottom, left, right) in zip(parts, boxes, strict=True):
        part[0, top:bottom, left:right] = 1
    return parts


PARTS = shown((8, 40, 8, 40), (16, 60, 20, 50), (4, 30, 30, 60))


@torch.no_grad()
def test_queries_of_training_are_queries_of_the_service(model, rng):
    views = torch.randn(3, 3, SIDE, SIDE, generator=rng)
    semantic, fine = model.trunk(views)
    planes = annotate(PARTS, torch.zeros(3, dtype=torch.long), rng)
    shares = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]])
    episodes = Episodes(views, (PARTS > 0).float(), planes, shares)
    _, corrected, known = read_episodes(model, semantic, fine, episodes)
    assert known.all()
    prototypes, weights = CompactGuide((SIDE, SIDE))(semantic, fine, planes)
    assert weights.tolist() == [[1.0, 1.0]] * 3
    merged = prototypes[1:].mean(0, keepdim=True)
    once = model.decode.margins(semantic[:1], fine[:1], merged)[1]
    torch.testing.assert_close(once[0], corrected[0], rtol=1e-4, atol=1e-4)
    logits = model.decode(semantic[:1], fine[:1], merged)
    assert torch.equal(logits[:, 0], torch.zeros_like(logits[:, 0]))
    assert torch.equal(logits[:, 1:, 0], model.decode.answer(semantic[:1], fine[:1], merged))


@torch.no_grad()
def test_a_reading_that_finds_nothing_is_left_alone(model, rng):
    semantic, fine = model.trunk(torch.randn(1, 3, SIDE, SIDE, generator=rng))
    nothing = torch.cat([semantic.mean((2, 3)), fine.mean((2, 3))], 1).reshape(1, 1, 192)
    prototypes = torch.cat([nothing, -nothing], 1)
    once = model.decode.margins(semantic, fine, prototypes)[1]
    assert once.max() < 0
    torch.testing.assert_close(model.decode.answer(semantic, fine, prototypes), once)


@torch.no_grad()
def test_a_class_that_fills_the_picture_lends_the_background_nothing(model, rng):
    semantic, fine = model.trunk(torch.randn(1, 3, SIDE, SIDE, generator=rng))
    everything = torch.cat([semantic.mean((2, 3)), fine.mean((2, 3))], 1).reshape(1, 1, 192)
    torch.nn.init.zeros_(model.decode.correction.weight)
    prototypes = torch.cat([-everything, everything], 1)
    first = model.decode.margins(semantic, fine, prototypes)[1]
    model.decode.scales.data *= 4 / first.mean()
    once = model.decode.margins(semantic, fine, prototypes)[1]
    assert once.min() > 0
    twice = model.decode.answer(semantic, fine, prototypes)
    assert twice.mean() > 0.9 * once.mean()


def test_a_timid_finding_is_raised_and_a_sure_one_is_not():
    margins = torch.full((1, 3, 20, 20), -1.0)
    for way, sure in enumerate((0.5, 2.0, 6.0)):
        margins[0, way, :2] = sure
    raised = emboldened(margins, 3.0, 0.5) - margins
    torch.testing.assert_close(raised[0, :, 0, 0], torch.tensor([0.5 * 2.5 * 0.5, 0.5, 0.0]))
    assert (raised.flatten(2).amax(2) == raised.flatten(2).amin(2)).all()


@torch.no_grad()
def test_a_way_is_read_alike_beside_others_and_beside_padding(model, rng):
    semantic, fine = model.trunk(torch.randn(1, 3, SIDE, SIDE, generator=rng))
    prototypes = torch.randn(1, 3, 192, generator=rng)
    padded = torch.cat([prototypes, torch.zeros(1, 2, 192)], 1)
    alone = model.decode(semantic, fine, prototypes[:, :2])
    together = model.decode(semantic, fine, padded)
    assert together.isfinite().all()
    torch.testing.assert_close(together[:, :2], alone, rtol=1e-4, atol=1e-4)


def test_pictures_without_a_class_leave_gradients_finite(model, rng):
    model.train()
    parts = PARTS.clone()
    parts[1:] = 0
    for kind in range(len(KINDS)):
        planes = annotate(parts, torch.full((3,), kind), rng)
        views = torch.randn(3, 3, SIDE, SIDE, generator=rng)
        episodes = Episodes(views, (parts > 0).float(), planes, draw_shares(1, 3, rng))
        base, corrected, known = read_episodes(model, *model.trunk(views), episodes)
        losses, _ = episode_losses(base, corrected, known, episodes.masks)
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_annotations_mark_what_is_there(kind, rng):
    planes = annotate(PARTS, torch.full((3,), kind), rng)
    ground, drawn = planes[:, 0], planes[:, 1]
    truth = (PARTS[:, 0] > 0).float()
    assert set(planes.unique().tolist()) <= {0.0, 1.0}
    assert (drawn.sum((1, 2)) > 0).all()
    assert (drawn * (1 - truth)).sum() == 0
    assert (drawn * ground).sum() == 0
    if KINDS[kind] == "mask":
        assert torch.equal(drawn, truth)
        assert torch.equal(ground, 1 - truth)
    if KINDS[kind] == "points":
        assert (drawn.sum((1, 2)) <= 8 * 9).all()


def test_no_picture_of_a_class_that_is_tested_is_drawn():
    kinds = ("person", "horse", "cat", "dog", "banana", "airplane")
    entries = [Entry("coco-mini", number, kinds[number % 6], number) for number in range(24)]
    entries += [Entry("saliency", 24 + number, "human", 24 + number) for number in range(3)]
    entries += [Entry("photos", 27)]
    blank = torch.zeros(1, 1)
    pack = Pack(blank, torch.zeros(28, 1, 1), (27,), tuple(entries))
    for fold in range(FOLDS):
        hidden = never_drawn(entries, fold)
        source = TaskSource(pack, np.random.default_rng(0), hidden)
        left = {entry.category for entry in (*source.single, *source.figures)}
        assert not left & hidden
    assert {"person", "human"} <= never_drawn(entries, 0)
    films = [Entry("davis16-20x10", 0, "blackswan", 0), Entry("coco-mini", 1, "bird", 1)]
    assert {"blackswan", "bird"} <= never_drawn(films, 0), "a swan is a bird under another name"
    tested = [left_out(entries, fold)["coco-mini"] for fold in range(FOLDS)]
    assert frozenset().union(*tested) == set(kinds)
    assert sum(map(len, tested)) == len(kinds)
    assert set(left_out(entries, 0)) == set(SETS)


def test_a_set_whose_colours_tell_everything_is_read_as_perfect(model):
    class Colours(torch.nn.Module):
        def forward(self, images):
            small = torch.nn.functional.avg_pool2d(images, 8)
            padded = torch.nn.functional.pad(small, (0, 0, 0, 0, 0, 157))
            return padded, torch.nn.functional.interpolate(padded[:, :32], scale_factor=2.0)

    torch.nn.init.zeros_(model.decode.correction.weight)
    model.trunk = Colours()
    truth = PARTS[:, 0].repeat_interleave(4, 1).repeat_interleave(4, 2).byte()
    images = torch.stack([200 * truth, 200 * (1 - truth), 0 * truth], 1)
    pack = Pack(images, truth, (), tuple(Entry("set", n, "red", n) for n in range(3)))
    held = PackedSet(model, pack, pack.entries, 320)
    assert held.read_class("red", Reading(2)) > 90
    # Three pictures lend a query two supports, however many are asked for.
    assert held.read_class("red", Reading(5)) == held.read_class("red", Reading(2))


class Halves(torch.nn.Module):
    """Maps in which each picture is of one look, on the left, and of another, on the right."""

    def forward(self, images):
        red = images[:, :1] > 0
        looks = torch.cat([red, ~red], 1).float()
        looks = torch.nn.functional.avg_pool2d(looks, 8)
        semantic = torch.nn.functional.pad(looks, (0, 0, 0, 0, 0, 158))
        return semantic, torch.nn.functional.interpolate(semantic[:, :32], scale_factor=2.0)


@pytest.mark.parametrize("once", [False, True])
def test_finds_are_counted_in_the_pictures_that_do_not_show_the_class(model, once):
    torch.nn.init.zeros_(model.decode.correction.weight)
    model.trunk = Halves()
    shown = torch.zeros(4, 256, 256, dtype=torch.uint8)
    # Red on the left of three pictures; a tenth of the last is red, and called something else.
    shown[:2, :, :128] = 1
    shown[2:, :, :26] = 1
    shown[2] = 0
    images = torch.stack([255 * shown, 0 * shown, 0 * shown], 1)
    kinds = ("red", "red", "other", "other")
    entries = tuple(Entry("set", n, kind, n) for n, kind in enumerate(kinds))
    held = PackedSet(model, Pack(images, shown, (), entries), entries, 320, once=once)
    assert held.false_finds("red", Reading(1)) == 50.0
    alone = PackedSet(model, Pack(images, shown, (), entries[:2]), entries[:2], 320, once=once)
    assert math.isnan(alone.false_finds("red", Reading(1))), "every picture shows the class"
    cars = [Entry("set", n, name, n) for n, name in enumerate(("car-shadow", "drift-straight"))]
    held = PackedSet(model, Pack(images, shown, (), tuple(cars)), cars, 320, once=once)
    assert math.isnan(held.false_finds("car-shadow", Reading(1))), "a car is a car"


def test_sets_of_ones_own_are_drawn_and_read():
    kinds = ("mug", "plate")
    entries = [Entry("mugs", number, kinds[number % 2], number) for number in range(8)]
    entries += [Entry("saliency", 8, "figure", 8), Entry("photos", 9)]
    blank = torch.zeros(1, 1)
    pack = Pack(blank, torch.zeros(10, 1, 1), (9,), tuple(entries))
    source = TaskSource(pack, np.random.default_rng(0))
    for _ in range(20):
        drawn = source.draw(2, 3, 1)
        for kind, masks in zip(drawn.kinds, drawn.masks, strict=True):
            assert kind != "category" or (masks >= 0).all()
    assert annotated_sets(entries) == ["mugs"]


def test_a_checkpoint_keeps_the_draws():
    draws = np.random.default_rng(3)
    draws.random(5)
    saved = Draws(draws).state_dict()
    expected = draws.random(3).tolist()
    restored = np.random.default_rng(0)
    Draws(restored).load_state_dict(saved)
    assert restored.random(3).tolist() == expected
