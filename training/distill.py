# SPDX-License-Identifier: Apache-2.0
"""First stage: a random trunk learns to predict the teacher's maps at several strides."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from export.methods.compact import IMAGE_MEAN, IMAGE_STD, CompactTrunk
from training.pack import load_pack
from training.runs import (
    channels_last,
    parameter_groups,
    resume_run,
    save_run,
    save_weights,
    set_rate,
)
from training.teacher import MARGIN, Teacher
from training.views import ViewRule, random_views


@dataclass(frozen=True)
class DistillSettings:
    """Settings of the first stage.

    Attributes:
        pack: Folder that `python -m training pack` wrote.
        teacher: Archive of the teacher's weights.
        run: Folder for checkpoints.
        weights: Where the trunk's weights go.
        steps: Steps of the whole stage; the learning rate falls to its end over them.
        batch: Pictures per step.
        sizes: Sides of the pictures, in multiples of 32; the stage runs through them in order.
        rate: Peak learning rate.
        seed: Seed of all chance.
    """

    pack: Path
    teacher: Path
    run: Path
    weights: Path
    steps: int = 3900
    batch: int = 32
    sizes: tuple[int, ...] = (128, 128, 160, 160)
    rate: float = 2e-3
    seed: int = 0


class Imitation(nn.Module):
    """The student with the linear maps that are thrown away after this stage."""

    def __init__(self, trunk: CompactTrunk) -> None:
        """Puts projections onto the teacher's channels over `trunk`."""
        super().__init__()
        self.trunk = trunk
        features = trunk.feature_channels
        self.projections = nn.ModuleDict(
            {
                "fine": nn.Conv2d(64, 128, 1),
                "middle": nn.Conv2d(128, 256, 1),
                "inner": nn.Conv2d(256, 512, 1),
                "coarse": nn.Conv2d(256, 512, 1),
                "features_fine": nn.Conv2d(features, 128, 1),
                "features_middle": nn.Conv2d(features, 256, 1),
                "features_coarse": nn.Conv2d(features, 512, 1),
            }
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predicts the teacher's maps from each level of the trunk and from its features."""
        trunk = self.trunk
        fine = trunk.fine(trunk.stem(images))
        middle = trunk.middle(fine)
        inner = trunk.coarse[:4](middle)
        coarse = trunk.coarse[4:](inner)
        features = trunk.fuse(fine, middle, coarse)
        maps = {
            "fine": fine,
            "middle": middle,
            "inner": inner,
            "coarse": coarse,
            "features_fine": features,
            "features_middle": functional.avg_pool2d(features, 2),
            "features_coarse": functional.avg_pool2d(features, 4),
        }
        return {name: self.projections[name](value) for name, value in maps.items()}


WEIGHTS = {
    "fine": 0.5,
    "middle": 0.75,
    "inner": 0.75,
    "coarse": 1.0,
    "features_fine": 0.3,
    "features_middle": 0.4,
    "features_coarse": 1.0,
}
"""Weight of each prediction in the loss."""


def imitation_loss(
    predicted: dict[str, Tensor], targets: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Squared error and cosine distance to the teacher's maps, standardised over the batch."""
    standard = {
        name: functional.batch_norm(value, None, None, training=True)
        for name, value in targets.items()
    }
    total, parts = torch.zeros(()), {}
    for name, value in predicted.items():
        target = standard[name.removeprefix("features_")]
        value = value.float()
        loss = (
            functional.mse_loss(value, target)
            + (1 - functional.cosine_similarity(value, target)).mean()
        )
        total = total + WEIGHTS[name] * loss
        parts[name] = loss.item()
    return total, parts


def to_input(views: Tensor) -> Tensor:
    """Normalises views in [0, 1] into the trunk's input, channels last."""
    mean, std = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    return ((views - mean) / std).contiguous(memory_format=torch.channels_last)


def train(settings: DistillSettings) -> None:
    """Runs, or resumes, the stage."""
    torch.manual_seed(settings.seed)
    rng = torch.Generator().manual_seed(settings.seed)
    student = Imitation(CompactTrunk())
    channels_last(student)
    teacher, pack = Teacher(settings.teacher), load_pack(settings.pack)
    optimizer = torch.optim.AdamW(parameter_groups(student, 0.03), settings.rate, betas=(0.9, 0.98))
    checkpoint = settings.run / "distill.pt"
    first = resume_run(checkpoint, rng, student=student, optimizer=optimizer)
    saved, bar = (
        time.monotonic(),
        tqdm(range(first, settings.steps), initial=first, total=settings.steps, mininterval=5),
    )
    for step in bar:
        rate = set_rate(optimizer, step, settings.steps, settings.rate)
        loss, parts = _step(student, teacher, pack.images, settings, step, rng)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0:
            shown = " ".join(f"{name[:1]}{name[-4:]}={value:.3f}" for name, value in parts.items())
            bar.set_postfix_str(f"rate={rate:.1e} loss={loss.item():.3f} {shown}", refresh=False)
        if time.monotonic() - saved > 120:
            save_run(checkpoint, step + 1, rng, student=student, optimizer=optimizer)
            save_weights(student.trunk, settings.weights)
            saved = time.monotonic()
    save_run(checkpoint, settings.steps, rng, student=student, optimizer=optimizer)
    save_weights(student.trunk, settings.weights)


def _step(
    student: Imitation,
    teacher: Teacher,
    images: np.ndarray,
    settings: DistillSettings,
    step: int,
    rng: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    size = settings.sizes[
        min(step * len(settings.sizes) // settings.steps, len(settings.sizes) - 1)
    ]
    chosen = torch.randint(len(images), (settings.batch,), generator=rng).sort().values.numpy()
    views, _ = random_views(torch.from_numpy(images[chosen]), size + MARGIN, ViewRule(), rng)
    inner = views[:, :, MARGIN // 2 : MARGIN // 2 + size, MARGIN // 2 : MARGIN // 2 + size]
    targets = teacher(views)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = student(to_input(inner))
    return imitation_loss(predicted, targets)
