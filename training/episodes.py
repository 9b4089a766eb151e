# SPDX-License-Identifier: Apache-2.0
"""Second stage: trunk and reading learn to segment, on few-shot tasks.

Every picture of a task carries an annotation and is also a query: its classes' prototypes come from
a random few of the other pictures, now and then from itself as well, as when somebody annotates the
very image to be segmented. The teacher stays a companion, so that the trunk keeps what it knows of
kinds of things that the tasks do not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.methods.compact import CompactGuide, CompactModel, normalise_views, unit_length
from training.annotations import annotate, draw_kinds
from training.distill import Imitation, imitation_loss, inner_part, weighed
from training.folds import never_drawn
from training.pack import Pack, load_pack
from training.runs import (
    Budget,
    Draws,
    Run,
    Smoothed,
    Stateful,
    parameter_groups,
    precise,
    quickest_layout,
    save_weights,
    set_rate,
)
from training.scenes import blob_scenes, collages
from training.tasks import ANY_PART, Drawn, TaskSource
from training.teacher import MARGIN, Teacher
from training.views import ViewRule, chance, random_colours, random_windows, recolour, soften, warp

IGNORED = -100
"""Label of pixels that do not count."""

OWN_VIEWS = ViewRule(least_side=0.45, most_side=1.05, grey=0.0, strange=0.0, colour=0.15)
"""How views of one task differ from each other."""

SHARED_COLOURS = ViewRule(grey=0.12, strange=0.08, colour=0.4)
"""How a whole task differs from its pictures."""

WAYS = (1, 1, 1, 2, 1, 1, 3, 1)
"""Ways of the tasks of each step, in turn."""

FROZEN_FROM = 0.6
"""Progress from which batch statistics stay as they are."""

COMPANIONS = ("coarse", "features_coarse", "features_middle", "angles")
"""What keeps being predicted of the teacher's maps."""

NOTE_EVERY = 50


@dataclass(frozen=True)
class EpisodeSettings:
    """Settings of the second stage.

    Attributes:
        pack: File that `python -m training pack` wrote.
        teacher: Archive of the teacher's weights.
        start: Weights of the first stage.
        run: Folder for checkpoints and the learning curve.
        weights: Where the model's weights go.
        steps: Most steps of the whole stage.
        minutes: Most minutes of the whole stage.
        tasks: Tasks per step.
        pictures: Pictures per task.
        sizes: Sides of the pictures, in multiples of 16; the stage runs through them in order.
        rate: Peak learning rate of the reading.
        trunk_rate: That of the trunk, as a part of `rate`.
        companion: Weight of the teacher's company.
        frozen: Whether the bottom-up part of the trunk stays as the first stage left it.
        seed: Seed of all chance.
        device: Where to compute.
        fold: Fold of `training.folds` that is left out, for a held-out check; None for none.
    """

    pack: Path
    teacher: Path
    start: Path
    run: Path
    weights: Path
    steps: int = 2100
    minutes: float | None = None
    tasks: int = 3
    pictures: int = 6
    sizes: tuple[int, ...] = (192, 192, 192, 224)
    rate: float = 1.5e-3
    trunk_rate: float = 0.25
    companion: float = 0.15
    frozen: bool = False
    seed: int = 1
    device: str = "cpu"
    fold: int | None = None


@dataclass(frozen=True)
class Episodes:
    """The tasks of one step as tensors.

    Attributes:
        views: [tasks * pictures, 3, size + MARGIN, size + MARGIN] in [0, 1].
        masks: Zeros and ones, [tasks * pictures, ways, size, size].
        planes: Annotations, background first, [tasks * pictures, 1 + ways, size, size].
        shares: Weight of each picture in the prototypes of each query, [tasks, pictures, pictures].
    """

    views: Tensor
    masks: Tensor
    planes: Tensor
    shares: Tensor


def draw_shares(tasks: int, pictures: int, rng: torch.Generator) -> Tensor:
    """Draws which pictures support which query: one to all others, in a quarter also itself."""
    itself = torch.eye(pictures, device=rng.device)
    order = chance(tasks, rng, pictures, pictures) + 2 * itself
    shots = 1 + (chance(tasks, rng, pictures, 1) * (pictures - 1)).long()
    least = order.sort(2).values.gather(2, shots - 1)
    with_itself = (chance(tasks, rng, pictures, 1) < 0.2) * itself
    return ((order <= least).float() + with_itself).clamp(max=1)


def make_episodes(pack: Pack, drawn: Drawn, size: int, rng: torch.Generator) -> Episodes:
    """Takes views of the pictures of tasks, draws made-up scenes, and annotates all."""
    tasks, pictures = drawn.images.shape
    ways, side = drawn.masks.shape[2], size + MARGIN
    device, count = rng.device, tasks * pictures
    images = pack.images[torch.from_numpy(drawn.images.ravel()).to(device)].float() / 255
    numbers = torch.from_numpy(drawn.masks.reshape(count, ways)).to(device)
    wanted = torch.from_numpy(drawn.parts.reshape(count, ways, 1, 1)).to(device)
    stored = pack.masks[numbers.clamp(min=0)].long() * (numbers >= 0)[:, :, None, None]
    stored = torch.where((wanted == ANY_PART) | (stored == wanted), stored, 0)
    windows = random_windows(count, OWN_VIEWS, rng)
    views = warp(images, windows, side)
    parts = warp(stored.float(), windows, side, mode="nearest").round().long()
    parts[numbers < 0] = 0
    for kind in ("collage", "blobs"):
        places = [place for place, found in enumerate(drawn.kinds) if found == kind]
        if not places:
            continue
        first, end = places[0] * pictures, (places[-1] + 1) * pictures
        grounds = views[first:end].reshape(len(places), pictures, *views.shape[1:])
        if kind == "collage":
            figures = _cut_outs(pack, torch.from_numpy(drawn.figures[places]).to(device))
            scenes, made = collages(grounds, figures, ways, rng)
        else:
            scenes, made = blob_scenes(grounds[:, :3].mean(2), pictures, rng)
        views[first:end] = scenes
        parts[first:end] = 0
        parts[first:end, : made.shape[1]] = made
    colours = random_colours(count, OWN_VIEWS, rng)
    views = soften(recolour(views, colours), 0.1, rng)
    matrix, offset = random_colours(tasks, SHARED_COLOURS, rng)
    shared = matrix.repeat_interleave(pictures, 0), offset.repeat_interleave(pictures, 0)
    parts = inner_part(parts)
    kinds = draw_kinds(tasks, rng).repeat_interleave(pictures)
    return Episodes(
        views=recolour(views, shared),
        masks=(parts > 0).float(),
        planes=annotate(parts, kinds, rng),
        shares=draw_shares(tasks, pictures, rng),
    )


def _cut_outs(pack: Pack, figures: Tensor) -> Tensor:
    """Returns colours and masks [tasks, figures, 4, side, side] of [tasks, figures, 2]."""
    colour = pack.images[figures[..., 0]].float() / 255
    mask = (pack.masks[figures[..., 1]] > 0).float()
    return torch.cat([colour, mask.unsqueeze(2)], 2)


@lru_cache(maxsize=8)
def _guide(size: int, device: str) -> CompactGuide:
    return CompactGuide((size, size)).to(device)


def read_episodes(
    model: CompactModel, semantic: Tensor, fine: Tensor, episodes: Episodes
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges guidance as the service does, and reads every picture as a query.

    Args:
        model: The model.
        semantic: Features of unit length of all pictures.
        fine: The same, of stride 4.
        episodes: The tasks.

    Returns:
        Margins of cosines alone and corrected ones [pictures, ways, h / 4, w / 4], and which
        classes, background first, had an annotation, [pictures, 1 + ways].
    """
    tasks, pictures = episodes.shares.shape[:2]
    guide = _guide(episodes.planes.shape[-1], str(semantic.device))
    prototypes, weights = guide(semantic, fine, episodes.planes)
    prototypes = prototypes.unflatten(0, (tasks, pictures))
    weights = weights.unflatten(0, (tasks, pictures))
    shares = torch.einsum("tqs,tsw->tqsw", episodes.shares, weights)
    total = shares.sum(2)
    merged = torch.einsum("tqsw,tswc->tqwc", shares, prototypes)
    merged = (merged / total.clamp(min=1e-6).unsqueeze(3)).flatten(0, 1)
    base, corrected = model.decode.margins(semantic, fine, merged)
    return base, corrected, (total > 0).flatten(0, 1)


def _labels(masks: Tensor, known: Tensor) -> Tensor:
    """Returns class numbers; classes and backgrounds without a prototype are ignored."""
    labels = torch.zeros(masks[:, 0].shape, dtype=torch.long, device=masks.device)
    for way in range(masks.shape[1]):
        number = torch.where(known[:, way + 1], way + 1, IGNORED).view(-1, 1, 1)
        labels = torch.where(masks[:, way] > 0.5, number, labels)
    usable = known[:, 0] & known[:, 1:].any(1)
    return torch.where(usable.view(-1, 1, 1), labels, IGNORED)


def episode_losses(
    base: Tensor, corrected: Tensor, known: Tensor, masks: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Cross-entropy of both readings and overlap loss of the corrected one.

    Args:
        base: Margins of cosines alone, [pictures, ways, h, w].
        corrected: Those that are served.
        known: Which classes have a prototype, background first, [pictures, 1 + ways].
        masks: Truth of zeros and ones, [pictures, ways, height, width].

    Returns:
        The losses, and the overlap of prediction and truth of each picture, nan where there is no
        class to be found.
    """
    labels = _labels(masks, known)
    counted = labels != IGNORED
    losses = {}
    for name, margins in (("cosines", base), ("reading", corrected)):
        raised = functional.interpolate(
            margins.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False
        )
        raised = raised.masked_fill(~known[:, 1:, None, None], -30.0)
        scores = torch.cat([torch.zeros_like(raised[:, :1]), raised], 1)
        entropy = functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
        losses[name] = entropy / counted.sum().clamp(min=1)
    parts = scores.softmax(1)[:, 1:] * counted[:, None]
    truth = masks * counted[:, None]
    shared, both = (parts * truth).sum((-2, -1)), (parts + truth).sum((-2, -1))
    present = (truth.sum((-2, -1)) > 20) & known[:, 1:] & known[:, :1]
    overlaps = shared / (both - shared + 1.0)
    losses["overlap"] = ((1 - overlaps) * present).sum() / present.sum().clamp(min=1)
    found = torch.where(present, overlaps, torch.nan).nanmean(1)
    return losses, found.detach()


def _freeze_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


class Tally:
    """Running mean of the overlap of each kind of task."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self.values: dict[str, float] = {}

    def add(self, kinds: tuple[str, ...], overlaps: Tensor) -> None:
        """Counts the overlaps [tasks * pictures] of one step."""
        found = overlaps.view(len(kinds), -1).nanmean(1).tolist()
        for kind, value in zip(kinds, found, strict=True):
            if value == value:
                self.values[kind] = 0.9 * self.values.get(kind, value) + 0.1 * value


def train(settings: EpisodeSettings) -> None:
    """Runs, or resumes, the stage."""
    torch.manual_seed(settings.seed)
    rng = torch.Generator(settings.device).manual_seed(settings.seed)
    draws = np.random.default_rng(settings.seed)
    student = Imitation.from_file(settings.start).to(settings.device)
    model = CompactModel().to(settings.device)
    model.trunk = student.trunk
    teacher = Teacher.on(settings.device, settings.teacher)
    pack = load_pack(settings.pack, settings.device)
    hidden = frozenset() if settings.fold is None else never_drawn(pack.entries, settings.fold)
    source = TaskSource(pack, draws, hidden)
    layout = quickest_layout(
        student, settings.sizes[-1], settings.tasks * settings.pictures, settings.device
    )
    optimizer = torch.optim.AdamW(
        [
            *parameter_groups(model.decode, 0.03),
            *parameter_groups(student, 0.03, settings.trunk_rate),
        ],
        settings.rate,
        betas=(0.9, 0.98),
        fused=settings.device != "cpu",
    )
    smoothed, tally = Smoothed(model, 0.997), Tally()
    run = Run(settings.run, "episodes", Budget(settings.steps, settings.minutes))
    parts: dict[str, Stateful] = {
        "student": student,
        "model": model,
        "optimizer": optimizer,
        "smoothed": smoothed,
        "draws": Draws(draws),
    }
    run.resume(rng, **parts)
    for progress, due in run.steps():
        set_rate(optimizer, progress, run.step, settings.rate)
        model.train()
        if progress > FROZEN_FROM:
            _freeze_statistics(model)
        if settings.frozen:
            for part in (
                model.trunk.stem,
                model.trunk.fine,
                model.trunk.middle,
                model.trunk.coarse,
            ):
                _freeze_statistics(part)
        size = settings.sizes[int(progress * len(settings.sizes))]
        drawn = source.draw(settings.tasks, settings.pictures, WAYS[run.step % len(WAYS)])
        episodes = make_episodes(pack, drawn, size, rng)
        losses, overlaps = _losses(student, model, teacher, episodes, settings, layout)
        total = (
            losses["reading"]
            + 0.5 * losses["overlap"]
            + 0.4 * losses["cosines"]
            + settings.companion * losses["companion"]
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        if norm.isfinite():
            optimizer.step()
            smoothed.update(model)
        if run.step % 5 == 0:
            tally.add(drawn.kinds, overlaps)
        if run.step % NOTE_EVERY == 0:
            run.note(progress, size=size, **losses, **tally.values)
        if due:
            run.save(rng, **parts)
            save_weights(smoothed.values, settings.weights)
    run.save(rng, **parts)
    save_weights(smoothed.values, settings.weights)


def _losses(
    student: Imitation,
    model: CompactModel,
    teacher: Teacher,
    episodes: Episodes,
    settings: EpisodeSettings,
    layout: torch.memory_format,
) -> tuple[dict[str, Tensor], Tensor]:
    with precise(settings.device):
        images = normalise_views(inner_part(episodes.views)).contiguous(memory_format=layout)
        semantic, fine, predicted = student(images, frozen=settings.frozen)
    targets = teacher(episodes.views)
    kept = {name: predicted[name] for name in COMPANIONS}
    companion = weighed(imitation_loss(kept, targets, student.basis))
    semantic, fine = unit_length(semantic.float()), unit_length(fine.float())
    base, corrected, known = read_episodes(model, semantic, fine, episodes)
    losses, overlaps = episode_losses(base, corrected, known, episodes.masks)
    return {**losses, "companion": companion}, overlaps
