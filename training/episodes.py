# SPDX-License-Identifier: Apache-2.0
"""Second stage: the trunk learns to segment, on few-shot tasks.

Every picture of a task carries an annotation and is also a query: its classes' prototypes come from
a random few of the other pictures, now and then from itself as well, as when somebody annotates the
very image to be segmented.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from export.methods.compact import CompactTrunk
from training.annotations import annotate, draw_kind
from training.distill import to_input
from training.head import masked_average, score
from training.pack import load_pack
from training.runs import (
    channels_last,
    parameter_groups,
    resume_run,
    save_run,
    save_weights,
    set_rate,
)
from training.tasks import Task, TaskSource
from training.views import ViewRule, random_views, recolour

IGNORED = -100
"""Label of pixels that do not count."""

OWN_COLOURS = ViewRule(least_side=0.5, most_side=1.05, grey=0.0, strange=0.0, colour=0.15)
"""How views of one task differ from each other."""

SHARED_COLOURS = ViewRule(grey=0.2, strange=0.12, colour=0.4)
"""How a whole task differs from its pictures."""


@dataclass(frozen=True)
class EpisodeSettings:
    """Settings of the second stage.

    Attributes:
        pack: Folder that `python -m training pack` wrote.
        start: Weights of the first stage.
        run: Folder for checkpoints.
        weights: Where the trunk's weights go.
        steps: Steps of the whole stage; the learning rate falls to its end over them.
        tasks: Tasks per step.
        pictures: Pictures per task.
        sizes: Sides of the pictures; the stage runs through them in order.
        rate: Peak learning rate.
        seed: Seed of all chance.
        left_out: Classes never drawn, for a held-out check.
    """

    pack: Path
    start: Path
    run: Path
    weights: Path
    steps: int = 2100
    tasks: int = 4
    pictures: int = 4
    sizes: tuple[int, ...] = (192, 192, 192, 224)
    rate: float = 6e-4
    seed: int = 1
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Episode:
    """One task as tensors.

    Attributes:
        views: [pictures, 3, size, size] in [0, 1].
        masks: Zeros and ones, [pictures, ways, size, size].
        planes: Annotations, background first, [pictures, 1 + ways, size, size].
        shares: Weight of each picture in the prototypes of each query, [pictures, pictures].
    """

    views: Tensor
    masks: Tensor
    planes: Tensor
    shares: Tensor


def _shares(pictures: int, rng: torch.Generator) -> Tensor:
    """Draws which pictures support which query."""
    shares = torch.zeros(pictures, pictures)
    for query in range(pictures):
        order = [
            place for place in torch.randperm(pictures, generator=rng).tolist() if place != query
        ]
        shots = int(torch.randint(1, pictures, (1,), generator=rng))
        shares[query, order[:shots]] = 1
        if float(torch.rand(1, generator=rng)) < 0.25:
            shares[query, query] = 1
    return shares


def make_episode(task: Task, size: int, rng: torch.Generator) -> Episode:
    """Takes views of a task's pictures and annotates them."""
    views, masks = random_views(task.images, size, OWN_COLOURS, rng, task.masks)
    assert masks is not None
    tall = views.transpose(0, 1).reshape(1, 3, -1, size)
    views = recolour(tall, SHARED_COLOURS, rng).view(3, -1, size, size).transpose(0, 1)
    kind = draw_kind(rng)
    planes = torch.stack([annotate(mask, kind, rng) for mask in masks])
    return Episode(views, masks, planes, _shares(len(views), rng))


def episode_loss(features: Tensor, episode: Episode) -> tuple[Tensor, float]:
    """Cross-entropy and overlap loss of every picture as a query.

    Args:
        features: The trunk's maps of the views.
        episode: The task.

    Returns:
        The loss and the mean overlap of prediction and truth over classes present.
    """
    averages = masked_average(features, episode.planes)
    annotated = (episode.planes.sum((-2, -1)) > 0).float()
    prototypes = torch.einsum("qs,spc->qpc", episode.shares, averages)
    known = torch.einsum("qs,sp->qp", episode.shares, annotated) > 0
    scores = functional.interpolate(
        score(features, prototypes),
        size=episode.masks.shape[-2:],
        mode="bilinear",
        align_corners=False,
    )
    scores = scores.masked_fill(~known[:, :, None, None], -100.0)
    labels = _labels(episode.masks, known)
    counted = labels != IGNORED
    if not counted.any():
        return features.sum() * 0, 0.0
    loss = functional.cross_entropy(scores, labels, ignore_index=IGNORED)
    parts = scores.softmax(1)[:, 1:] * counted[:, None]
    truth = episode.masks * counted[:, None]
    shared, both = (parts * truth).sum((-2, -1)), (parts + truth).sum((-2, -1))
    present = (truth.sum((-2, -1)) > 20) & known[:, 1:] & known[:, :1]
    if not present.any():
        return loss, 0.0
    overlap = (shared / (both - shared + 1.0))[present].mean()
    return loss + 0.5 * (1 - overlap), overlap.item()


def _labels(masks: Tensor, known: Tensor) -> Tensor:
    """Returns class numbers; classes and backgrounds without a prototype are ignored."""
    labels = torch.zeros(masks[:, 0].shape, dtype=torch.long)
    for way in range(masks.shape[1]):
        number = torch.where(known[:, way + 1], way + 1, IGNORED).view(-1, 1, 1)
        labels = torch.where(masks[:, way] > 0.5, number, labels)
    usable = known[:, 0] & known[:, 1:].any(1)
    return torch.where(usable.view(-1, 1, 1), labels, IGNORED)


class Smoothed:
    """Exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float = 0.996) -> None:
        """Starts at the weights of `module`."""
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves a little towards the weights of `module`."""
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averages."""
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores averages."""
        self.values = state


def _write(smoothed: Smoothed, path: Path) -> None:
    trunk = CompactTrunk()
    trunk.load_state_dict(smoothed.values)
    save_weights(trunk, path)


def _freeze_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def train(settings: EpisodeSettings) -> None:
    """Runs, or resumes, the stage."""
    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    trunk = CompactTrunk.from_file(settings.start)
    channels_last(trunk)
    source = TaskSource(load_pack(settings.pack), rng, settings.left_out)
    optimizer = torch.optim.AdamW(parameter_groups(trunk, 0.02), settings.rate, betas=(0.9, 0.98))
    smoothed, checkpoint = Smoothed(trunk), settings.run / "episodes.pt"
    first = resume_run(checkpoint, rng, trunk=trunk, optimizer=optimizer, smoothed=smoothed)
    tally: dict[str, float] = {}
    saved = time.monotonic()
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, mininterval=5)
    for step in bar:
        rate = set_rate(optimizer, step, settings.steps, settings.rate)
        trunk.train()
        if step > settings.steps // 2:
            _freeze_statistics(trunk)
        loss = _step(trunk, source, settings, step, rng, tally)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trunk.parameters(), 2.0)
        optimizer.step()
        smoothed.update(trunk)
        if step % 20 == 0:
            shown = " ".join(f"{kind}={value:.2f}" for kind, value in sorted(tally.items()))
            bar.set_postfix_str(f"rate={rate:.1e} {shown}", refresh=False)
        if time.monotonic() - saved > 120:
            save_run(checkpoint, step + 1, rng, trunk=trunk, optimizer=optimizer, smoothed=smoothed)
            _write(smoothed, settings.weights)
            saved = time.monotonic()
    save_run(checkpoint, settings.steps, rng, trunk=trunk, optimizer=optimizer, smoothed=smoothed)
    _write(smoothed, settings.weights)


def _step(
    trunk: CompactTrunk,
    source: TaskSource,
    settings: EpisodeSettings,
    step: int,
    rng: torch.Generator,
    tally: dict[str, float],
) -> Tensor:
    size = settings.sizes[
        min(step * len(settings.sizes) // settings.steps, len(settings.sizes) - 1)
    ]
    tasks = [source.draw(settings.pictures) for _ in range(settings.tasks)]
    episodes = [make_episode(task, size, rng) for task in tasks]
    with torch.autocast("cpu", torch.bfloat16):
        features = trunk(to_input(torch.cat([episode.views for episode in episodes]))).float()
    total = torch.zeros(())
    for task, episode, maps in zip(tasks, episodes, features.split(settings.pictures), strict=True):
        loss, overlap = episode_loss(maps, episode)
        total = total + loss / settings.tasks
        for kind, value in ((task.kind, overlap), ("loss", loss.item())):
            tally[kind] = 0.98 * tally.get(kind, value) + 0.02 * value
    return total
