# SPDX-License-Identifier: Apache-2.0
"""First stage: a random trunk learns to predict the teacher's maps at several strides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from export.methods.compact import CompactTrunk, normalise_views, unit_length
from training.pack import Pack, load_pack
from training.runs import (
    Budget,
    Run,
    Smoothed,
    Stateful,
    parameter_groups,
    precise,
    quickest_layout,
    save_weights,
    set_rate,
)
from training.teacher import MARGIN, Teacher
from training.views import ViewRule, chance, random_views, uniform

NOTE_EVERY = 50


@dataclass(frozen=True)
class DistillSettings:
    """Settings of the first stage.

    Attributes:
        pack: File that `python -m training pack` wrote.
        teacher: Archive of the teacher's weights.
        run: Folder for checkpoints and the learning curve.
        weights: Where the student's weights go.
        steps: Most steps of the whole stage.
        minutes: Most minutes of the whole stage.
        batch: Pictures per step.
        sizes: Sides of the pictures, in multiples of 32; the stage runs through them in order.
        rate: Peak learning rate.
        seed: Seed of all chance.
        device: Where to compute.
    """

    pack: Path
    teacher: Path
    run: Path
    weights: Path
    steps: int = 3900
    minutes: float | None = None
    batch: int = 32
    sizes: tuple[int, ...] = (128, 128, 160, 160)
    rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"


WEIGHTS = {
    "fine": 0.5,
    "middle": 0.75,
    "inner": 0.75,
    "coarse": 1.0,
    "features_fine": 0.3,
    "features_middle": 0.4,
    "features_coarse": 1.0,
    "angles": 4.0,
}
"""Weight of each prediction in the loss."""


class Imitation(nn.Module):
    """The student with the linear maps that are thrown away in the end.

    Attributes:
        basis: The directions in which the teacher's coarse map is largest, [160, 512]; the
            student's `semantic` map is to have the angles between cells that the teacher's has.
    """

    basis: Tensor

    def __init__(self, trunk: CompactTrunk) -> None:
        """Puts projections onto the teacher's channels over `trunk`."""
        super().__init__()
        self.trunk = trunk
        semantic, fine = trunk.semantic_channels, trunk.fine_channels
        self.register_buffer("basis", torch.zeros(semantic, 512))
        self.projections = nn.ModuleDict(
            {
                "fine": nn.Conv2d(64, 128, 1),
                "middle": nn.Conv2d(128, 256, 1),
                "inner": nn.Conv2d(256, 512, 1),
                "coarse": nn.Conv2d(256, 512, 1),
                "features_fine": nn.Conv2d(fine, 128, 1),
                "features_middle": nn.Conv2d(semantic, 256, 1),
                "features_coarse": nn.Conv2d(semantic, 512, 1),
            }
        )

    @classmethod
    def from_file(cls, path: Path) -> Imitation:
        """Reads what the first stage wrote."""
        student = cls(CompactTrunk())
        student.load_state_dict(load_file(path))
        return student

    def forward(
        self, images: Tensor, *, frozen: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns both feature maps, not of unit length, and predictions of the teacher's maps.

        With `frozen`, no gradient reaches the bottom-up part of the trunk.
        """
        trunk = self.trunk
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            fine = trunk.fine(trunk.stem(images))
            middle = trunk.middle(fine)
            half = len(trunk.coarse) // 2
            inner = trunk.coarse[:half](middle)
            coarse = trunk.coarse[half:](inner)
        semantic, detail = trunk.fuse(fine, middle, coarse)
        pooled = functional.avg_pool2d(semantic, 2)
        maps = {
            "fine": fine,
            "middle": middle,
            "inner": inner,
            "coarse": coarse,
            "features_fine": detail,
            "features_middle": semantic,
            "features_coarse": pooled,
        }
        predicted = {name: self.projections[name](value) for name, value in maps.items()}
        return semantic, detail, {**predicted, "angles": pooled}


def imitation_loss(
    predicted: dict[str, Tensor], targets: dict[str, Tensor], basis: Tensor
) -> dict[str, Tensor]:
    """Squared error and cosine distance to the teacher's maps, standardised over the batch."""
    standard = {
        name: functional.batch_norm(value.float(), None, None, training=True)
        for name, value in targets.items()
    }
    losses = {}
    for name, value in predicted.items():
        if name == "angles":
            target = torch.einsum("kc,nchw->nkhw", basis, targets["coarse"].float())
            losses[name] = 1 - (unit_length(value.float()) * unit_length(target)).sum(1).mean()
            continue
        target = standard[name.removeprefix("features_")]
        value = value.float()
        distance = 1 - functional.cosine_similarity(value, target).mean()
        losses[name] = functional.mse_loss(value, target) + distance
    return losses


def weighed(losses: dict[str, Tensor]) -> Tensor:
    """The sum of losses by `WEIGHTS`."""
    return torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()


def inner_part(views: Tensor) -> Tensor:
    """The student's part of views whose margin is the teacher's alone."""
    return views[..., MARGIN // 2 : -(MARGIN // 2), MARGIN // 2 : -(MARGIN // 2)]


@torch.no_grad()
def _largest_directions(
    teacher: Teacher, pack: Pack, count: int, size: int, rng: torch.Generator
) -> Tensor:
    """The directions that hold most of the teacher's coarse maps, the mean left in."""
    products = torch.zeros(512, 512, device=rng.device)
    for _ in range(8):
        chosen = torch.randint(len(pack.images), (32,), generator=rng, device=rng.device)
        views = random_views(pack.images[chosen], size + MARGIN, ViewRule(), rng)
        cells = teacher(views)["coarse"].float().transpose(0, 1).flatten(1)
        products += cells @ cells.T
    vectors: Tensor = torch.linalg.eigh(products).eigenvectors
    return vectors.flip(1)[:, :count].T.contiguous()


def train(settings: DistillSettings) -> None:
    """Runs, or resumes, the stage."""
    torch.manual_seed(settings.seed)
    rng = torch.Generator(settings.device).manual_seed(settings.seed)
    student = Imitation(CompactTrunk()).to(settings.device)
    teacher = Teacher.on(settings.device, settings.teacher)
    pack = load_pack(settings.pack, settings.device)
    student.basis.copy_(
        _largest_directions(teacher, pack, student.trunk.semantic_channels, settings.sizes[0], rng)
    )
    layout = quickest_layout(student, settings.sizes[-1], settings.batch, settings.device)
    optimizer = torch.optim.AdamW(
        parameter_groups(student, 0.03),
        settings.rate,
        betas=(0.9, 0.98),
        fused=settings.device != "cpu",
    )
    smoothed = Smoothed(student, 0.998)
    run = Run(settings.run, "distill", Budget(settings.steps, settings.minutes))
    parts: dict[str, Stateful] = {"student": student, "optimizer": optimizer, "smoothed": smoothed}
    run.resume(rng, **parts)
    for progress, due in run.steps():
        set_rate(optimizer, progress, run.step, settings.rate)
        size = settings.sizes[int(progress * len(settings.sizes))]
        views = _views(pack, size, settings.batch, rng)
        targets = teacher(views)
        with precise(settings.device):
            images = normalise_views(inner_part(views)).contiguous(memory_format=layout)
            predicted = student(images)[2]
        losses = imitation_loss(predicted, targets, student.basis)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(weighed(losses))
        norm = nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        if norm.isfinite():
            optimizer.step()
            smoothed.update(student)
        if run.step % NOTE_EVERY == 0:
            run.note(progress, size=size, loss=weighed(losses).detach(), **losses)
        if due:
            run.save(rng, **parts)
            save_weights(smoothed.values, settings.weights)
    run.save(rng, **parts)
    save_weights(smoothed.values, settings.weights)


def _views(pack: Pack, size: int, batch: int, rng: torch.Generator) -> Tensor:
    """Views with the teacher's margin; some are two views laid over each other."""
    chosen = torch.randint(len(pack.images), (batch,), generator=rng, device=rng.device)
    views = random_views(pack.images[chosen], size + MARGIN, ViewRule(), rng)
    share = torch.where(chance(batch, rng) < 0.15, uniform(batch, 0.2, 0.5, rng), 0.0)
    return views.lerp(views.flip(0), share.view(-1, 1, 1, 1))
