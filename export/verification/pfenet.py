# SPDX-License-Identifier: Apache-2.0
"""Verifies PFENet from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, overridden, read_model_keys, seeded_checkpoint
from export.methods.pfenet import PfenetFeatures, PfenetGuide
from export.methods.prior import mean_prior
from export.pfenet_family import pfenet_checkpoint, pfenet_family
from export.verification.comparing import worst
from export.verification.driver import EMBEDDED, INPUT, TORCH, Application, Gateway, Method, verify
from export.verification.letterbox import canvas_image, canvas_mask, original_logits
from export.verification.measures import Measure
from export.verification.scores import GoldenScores, decide, resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 5e-5
"""Of the normalised image, whose values lie within +-3 and are rounded to 256ths of 1 / 255."""

CELL_TOLERANCE = 1e-6
"""Of masks on the features' grid."""

PROTOTYPE_TOLERANCE = 5e-5
"""Of prototypes, relative to the largest: 1e-5 of them, and the rounding of the input."""

PRIOR_TOLERANCE = 5e-4
"""Of priors, whose stored positions are float16."""

SCORE_TOLERANCE = 1e-4
"""Of logits, relative to the largest."""


def verify_pfenet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(PFENET, goldens, names=names, gateway=gateway, repository=repository)


class _Pfenet:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        facts = golden.facts
        return (
            facts["backbone"], facts["weight_seed"], facts["size"], tuple(facts["ppm_scales"]),
            str(facts["weight_overrides"]),
        )  # fmt: skip

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        checkpoint = folder / "train_epoch_200.pth"
        save_checkpoint(golden, goldens, golden.facts["backbone"], checkpoint)
        return pfenet_family(
            alias="pfenet",
            network=pfenet_checkpoint(checkpoint),
            size=_size(golden),
            bins=golden.facts["ppm_scales"],
            provenance={},
        )

    def episode(self, golden: Golden) -> Episode:
        return letterboxed_episode(golden)

    def application(self, golden: Golden) -> Application:
        return letterboxed_application(golden)

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        features, guide = family.graphs[0].module, family.graphs[2].module
        assert isinstance(features, PfenetFeatures)
        assert isinstance(guide, PfenetGuide)
        yield from compare_canvas(golden, features.normalised)
        masks = np.stack([planes[1] for _, planes in self.episode(golden).supports])
        cells = guide.shrink(torch.from_numpy(masks)[None])[0].numpy()
        error = worst(cells, golden.arrays["feature_mask_per_shot"])
        yield Measure(golden.name, INPUT, "masks on the grid", error, CELL_TOLERANCE)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays = golden.arrays
        wanted = arrays["prototype"]
        error = worst(outcome.guidance["prototypes"][0], wanted) / float(np.abs(wanted).max())
        yield Measure(golden.name, stage, "prototype", error, PROTOTYPE_TOLERANCE)
        if stage == TORCH:
            error = worst(_prior(family, outcome), arrays["prior"])
            yield Measure(golden.name, stage, "prior", error, PRIOR_TOLERANCE)
        yield from measure_logits(golden, outcome.logits[:, 0], stage)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield from measure_served(golden, mask, probabilities, stage)


PFENET: Method = _Pfenet()


def save_checkpoint(golden: Golden, goldens: Path, model: str, path: Path) -> None:
    """Saves the seeded weights of a case as official training does."""
    keys = read_model_keys(goldens, model)
    shapes = {key.removeprefix("module."): entry.shape for key, entry in keys.items()}
    tensors = seeded_checkpoint(shapes, golden.facts["weight_seed"])
    tensors = overridden(tensors, golden.facts["weight_overrides"])
    state = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"epoch": 200, "state_dict": state, "optimizer": {"state": {}}}, path)


def letterboxed_episode(golden: Golden) -> Episode:
    """What graphs take of a case, whose images lie on a canvas."""
    side, arrays = golden.facts["size"], golden.arrays
    supports = []
    for shot in range(golden.facts["shot"]):
        labels = canvas_mask(arrays[f"support_mask_{shot}"], side)
        planes = np.stack([labels == 0, labels == 1]).astype(np.float32)
        supports.append((canvas_image(arrays[f"support_image_{shot}"], side), planes))
    return Episode(supports, canvas_image(arrays["query_image"], side))


def letterboxed_application(golden: Golden) -> Application:
    """What an application has in hand; the official script answers at the photograph's size."""
    shots, arrays = range(golden.facts["shot"]), golden.arrays
    return Application(
        [arrays[f"support_image_{shot}"] for shot in shots],
        [arrays[f"support_mask_{shot}"] for shot in shots],
        arrays["query_image"],
        size="original",
    )


def compare_canvas(golden: Golden, normalised: Any) -> Iterator[Measure]:
    """Compares the masks, and the normalised query and support as far as the case stores them.

    Args:
        golden: The case.
        normalised: From an image tensor with a batch to what the trunk takes.
    """
    episode, arrays = letterboxed_episode(golden), golden.arrays
    for name, image, whole, window in (
        ("query", episode.query, "query_tensor", "query_tensor_crop"),
        ("support0", episode.supports[0][0], "support_tensor_shot0", "support_tensor_crop"),
    ):
        values = normalised(torch.tensor(image)[None])[0].numpy()
        if whole in arrays:
            wanted = arrays[whole]
        elif window not in arrays:
            continue
        else:
            wanted = arrays[window].reshape(-1, 3, *arrays[window].shape[-2:])[0]
            start = (values.shape[-1] - wanted.shape[-1]) // 2
            stop = start + wanted.shape[-1]
            values = values[:, start:stop, start:stop]
        yield Measure(golden.name, INPUT, f"{name} tensor", worst(values, wanted), INPUT_TOLERANCE)
    labels = arrays["support_label_tensor"]
    wrong = sum(
        float(((planes[1] != (label == 1)) | (planes[0] != (label == 0))).sum())
        for (_, planes), label in zip(episode.supports, labels, strict=True)
    )
    yield Measure(golden.name, INPUT, "masks, pixels", wrong, 0.0)


def measure_logits(golden: Golden, margins: Array, stage: str) -> Iterator[Measure]:
    """Compares margins [1, f, f], and what they come to at the network's and the original size."""
    arrays, scores = golden.arrays, _scores(golden)
    yield scores.measure_scores(stage, margins, arrays["logits_feature_res"])
    raised = resized(margins, _size(golden), align_corners=True)
    yield scores.measure_logits(stage, raised)
    yield _measure_pixels(golden, stage, "mask", decide(raised), "pred", _raised(golden))
    found = original_logits(margins, golden.facts["size"], arrays["query_image"].shape[:2])
    yield _measure_pixels(
        golden, stage, "mask of the original", decide(found), "pred_ori", _original(golden)
    )


def measure_served(
    golden: Golden, mask: Array, probabilities: Array, stage: str
) -> Iterator[Measure]:
    """Compares a mask and probabilities at the original size."""
    wanted = _original(golden)
    yield _measure_pixels(golden, stage, "mask of the original", mask, "pred_ori", wanted)
    derived = Golden(golden.name, golden.facts, {"logits": wanted[None]})
    yield GoldenScores(
        derived, largest=_largest(golden), tolerance=SCORE_TOLERANCE
    ).measure_probabilities(stage, probabilities)


def _measure_pixels(
    golden: Golden, stage: str, quantity: str, mask: Array, name: str, logits: Array
) -> Measure:
    """Counts pixels of a mask that differ where golden logits are no tie."""
    decided = np.abs(logits[1] - logits[0]) > 2 * SCORE_TOLERANCE * _largest(golden)
    wrong = float(((mask != golden.arrays[name]) & decided).sum())
    return Measure(golden.name, stage, f"{quantity}, pixels", wrong, 0.0)


def _prior(family: Family, outcome: Outcome) -> Array:
    """The prior [f, f] that decode makes of an outcome."""
    with torch.no_grad():
        high, _ = family.graphs[1].module(torch.from_numpy(outcome.features["features"])[None])
        stored = [
            torch.from_numpy(outcome.guidance[name])[None]
            for name in ("positions", "weights", "validity")
        ]
        values: Array = mean_prior(high, *stored)[0, 0].numpy()
    return values


def _raised(golden: Golden) -> Array:
    """Golden logits [2, S, S] at the network's size, by torch."""
    return resized(golden.arrays["logits_feature_res"], _size(golden), align_corners=True)


def _original(golden: Golden) -> Array:
    """Golden logits [2, H, W] at the photograph's size, by torch."""
    arrays = golden.arrays
    return original_logits(
        arrays["logits_feature_res"], golden.facts["size"], arrays["query_image"].shape[:2]
    )


def _scores(golden: Golden) -> GoldenScores:
    """Scores against the stored logits of the network's size: whole, or a window."""
    if "logits" in golden.arrays:
        arrays = {"logits": golden.arrays["logits"][None]}
    else:
        window = golden.arrays["logits_crop_f32"]
        offset = np.array([*golden.facts["logits_crop_offset"], *window.shape[-2:]])
        arrays = {"logits_crop": window[None], "logits_crop_yx": offset}
    derived = Golden(golden.name, golden.facts, arrays)
    return GoldenScores(derived, largest=_largest(golden), tolerance=SCORE_TOLERANCE)


def _largest(golden: Golden) -> float:
    least, most = golden.facts["logits_stats"][:2]
    return float(max(-least, most))


def _size(golden: Golden) -> tuple[int, int]:
    return golden.facts["size"], golden.facts["size"]
