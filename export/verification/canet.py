# SPDX-License-Identifier: Apache-2.0
"""Verifies CANet from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.canet_family import ShotMerge, canet_checkpoint, canet_family
from export.family import Family
from export.goldens import Golden, read_keys, seeded_checkpoint
from export.methods.canet import CanetDecode, CanetGuide, CanetShotsDecode
from export.methods.scaled import PhiFeatures
from export.verification.comparing import map_error, relative, worst
from export.verification.driver import EMBEDDED, INPUT, TORCH, Application, Gateway, verify
from export.verification.episode import network_image, network_mask
from export.verification.measures import Measure
from export.verification.scores import GoldenScores, decide, resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3, and of masks shrunk with soft edges."""

FEATURE_TOLERANCE = 1e-4
"""Of features and vectors, relative to the largest."""

PROBABILITY_TOLERANCE = 2e-4
"""Of averaged probabilities, which are no official output."""


def verify_canet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(_Canet(), goldens, names=names, gateway=gateway, repository=repository)


class _Canet:
    """See `driver.Method`. Cases of several shots average the probabilities of each."""

    def export_key(self, golden: Golden) -> Hashable:
        facts = golden.facts
        settings = facts["network_size"], facts["iterations"], _merge(golden)
        return facts["weight_seed"], *settings

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        facts = golden.facts
        tensors = seeded_checkpoint(read_keys(goldens), facts["weight_seed"])
        for key, factor in facts["weight_scale_overrides"].items():
            tensors[key] *= factor
        checkpoint = folder / "best.pth"
        torch.save({f"module.{key}": value for key, value in tensors.items()}, checkpoint)
        return canet_family(
            alias="canet",
            network=canet_checkpoint(checkpoint),
            size=_size(golden),
            provenance={},
            iterations=facts["iterations"],
            merge=_merge(golden),
        )

    def episode(self, golden: Golden) -> Episode:
        arrays, size = golden.arrays, _size(golden)
        supports = []
        for image, mask in zip(arrays["support_images"], arrays["support_masks"], strict=True):
            small = network_mask(mask, size)
            planes = np.stack([small == 0, small == 1]).astype(np.float32)
            supports.append((network_image(image, size), planes))
        return Episode(supports, network_image(arrays["query_image"], size))

    def application(self, golden: Golden) -> Application:
        arrays = golden.arrays
        return Application(
            list(arrays["support_images"]), list(arrays["support_masks"]), arrays["query_image"]
        )

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        arrays, episode = golden.arrays, self.episode(golden)
        features = family.graphs[0].module
        assert isinstance(features, PhiFeatures)
        for name, image in (("query", episode.query), ("support0", episode.supports[0][0])):
            values = features.normalise(torch.tensor(image)[None])[0].numpy()
            error = map_error(values, arrays, f"{name}_tensor")
            yield Measure(golden.name, INPUT, f"{name} tensor", error, INPUT_TOLERANCE)
        masks = np.stack([planes[1:] for _, planes in episode.supports])
        wrong = worst(masks, arrays["support_mask_network"])
        yield Measure(golden.name, INPUT, "masks, pixels", wrong, 0.0)
        guide = family.graphs[2].module
        assert isinstance(guide, CanetGuide)
        wanted = arrays["support_mask_feature_grid"]
        soft = guide.shrink(torch.from_numpy(masks[:1]), wanted.shape[2:]).numpy()
        error = worst(soft, wanted)
        yield Measure(golden.name, INPUT, "mask on the grid", error, INPUT_TOLERANCE)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays = golden.arrays
        vectors = np.concatenate([shot["vectors"] for shot in outcome.shots])
        features = outcome.features["features"][:8]
        for quantity, values, wanted in (
            ("query features", features, arrays["query_features_ch0_8"][0]),
            ("vectors", vectors, arrays["guidance_vectors"]),
        ):
            error = relative(values, wanted)
            yield Measure(golden.name, stage, quantity, error, FEATURE_TOLERANCE)
        if stage == TORCH:
            yield _measure_passes(golden, family, outcome, vectors)
        scores, planes = _scores(golden), outcome.logits[:, 0]
        yield scores.measure_scores(stage, planes, _final(golden))
        logits = resized(planes, _size(golden), align_corners=True)
        yield scores.measure_logits(stage, logits)
        yield scores.measure_mask(stage, decide(logits), _mask(golden))

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        scores = _scores(golden)
        yield scores.measure_mask(stage, mask, _mask(golden))
        if _merge(golden) is ShotMerge.MEAN:
            yield scores.measure_probabilities(stage, probabilities)
            return
        error = worst(probabilities.astype(np.float32), scores.golden.arrays["logits"][0, 1:])
        yield Measure(golden.name, stage, "probabilities", error, PROBABILITY_TOLERANCE + 2.0**-12)


def _measure_passes(golden: Golden, family: Family, outcome: Outcome, vectors: Array) -> Measure:
    """Compares every pass of every shot, each run by itself, with golden ones."""
    decode, query = family.graphs[3].module, family.graphs[1].module
    assert isinstance(decode, CanetDecode | CanetShotsDecode)
    with torch.no_grad():
        compared = query(torch.from_numpy(outcome.features["features"])[None])
        passes = decode.refinement.passes(compared, torch.from_numpy(vectors)[None])
        found = torch.stack([margins[0] for margins in passes], dim=1).numpy()
    logits = golden.arrays["lowres_logits"]
    error = worst(found, logits[:, :, 1] - logits[:, :, 0]) / float(np.abs(logits).max())
    return Measure(golden.name, TORCH, "scores, every pass", error, 2e-4)


def _merge(golden: Golden) -> ShotMerge:
    return ShotMerge.MEAN if golden.facts["shots"] == 1 else ShotMerge.PROBABILITY


def _size(golden: Golden) -> tuple[int, int]:
    return golden.facts["network_size"], golden.facts["network_size"]


def _final(golden: Golden) -> Array:
    """Golden planes [2, h, w] on the network's grid: logits, or averaged probabilities."""
    arrays = golden.arrays
    final: Array
    if _merge(golden) is ShotMerge.MEAN:
        final = arrays["lowres_logits"][0, -1]
    else:
        final = arrays["derived_mask_average_probability_lowres"][0]
    return final


def _mask(golden: Golden) -> Array:
    arrays = golden.arrays
    mask: Array
    if _merge(golden) is ShotMerge.MEAN:
        mask = arrays["pred_per_iteration_shot0"][-1]
    else:
        mask = arrays["derived_mask_average_pred"]
    return mask


def _scores(golden: Golden) -> GoldenScores:
    if _merge(golden) is ShotMerge.PROBABILITY:
        planes = resized(_final(golden), _size(golden), align_corners=True)
        derived = Golden(golden.name, golden.facts, {"logits": planes[None]})
        return GoldenScores(derived, largest=1.0)
    stats = golden.facts["stats"]
    return GoldenScores(
        golden,
        largest=max(-stats["logit_min"], stats["logit_max"]),
        name=f"logits_iter{golden.facts['iterations'] - 1}",
    )
