# SPDX-License-Identifier: Apache-2.0
"""Verifies SCL on PFENet from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_model_keys
from export.methods.pfenet import PfenetFeatures
from export.scl_pfenet_family import scl_pfenet_checkpoint, scl_pfenet_family
from export.verification.comparing import relative, worst
from export.verification.driver import EMBEDDED, Application, Gateway, Method, verify
from export.verification.measures import Measure
from export.verification.pfenet import (
    compare_canvas,
    letterboxed_application,
    letterboxed_episode,
    measure_logits,
    measure_served,
)
from export.verification.scl import cases_of, scl_checkpoint
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

VECTOR_TOLERANCE = 5e-5
"""Of vectors, relative to the largest: 1e-5 of them, and the rounding of the input."""

AGREEMENT_TOLERANCE = 1e-4
"""Of overlaps; a pixel that flips changes one by about 1 / area."""


def verify_scl_pfenet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    cases = cases_of(goldens, "sclpfe_", names)
    return verify(SCL_PFENET, goldens, names=cases, gateway=gateway, repository=repository)


class _SclPfenet:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        facts = golden.facts
        weights = facts["weight_seed"], repr(facts["weight_overrides"])
        return *weights, facts["size"], tuple(facts["ppm_scales"])

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        state = scl_checkpoint(read_model_keys(goldens, "sclpfe_resnet50"), golden.facts)
        checkpoint = folder / "train_epoch_200.pth"
        torch.save({"epoch": 200, "state_dict": state, "optimizer": {"state": {}}}, checkpoint)
        side = golden.facts["size"]
        return scl_pfenet_family(
            alias="scl-pfenet",
            network=scl_pfenet_checkpoint(checkpoint),
            size=(side, side),
            bins=golden.facts["ppm_scales"],
            provenance={},
        )

    def episode(self, golden: Golden) -> Episode:
        return letterboxed_episode(golden)

    def application(self, golden: Golden) -> Application:
        return letterboxed_application(golden)

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        features = family.graphs[0].module
        assert isinstance(features, PfenetFeatures)
        yield from compare_canvas(golden, features.normalised)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays = golden.arrays
        vectors = np.stack([shot["vectors"][0] for shot in outcome.shots])
        wanted = np.concatenate([arrays["v_pri_per_shot"], arrays["v_aux_per_shot"]], axis=1)
        error = relative(vectors, wanted)
        yield Measure(golden.name, stage, "vectors", error, VECTOR_TOLERANCE)
        if "iou_bg_fg" in arrays:
            # Golden ones are by guiding shot first.
            overlaps = arrays["iou_bg_fg"].mean(axis=2).T
            error = worst(outcome.guidance["agreement"][..., 0], overlaps)
            yield Measure(golden.name, stage, "agreement", error, AGREEMENT_TOLERANCE)
        yield from measure_logits(_with_scores(golden), outcome.logits[:, 0], stage)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield from measure_served(_with_scores(golden), mask, probabilities, stage)


SCL_PFENET: Method = _SclPfenet()


def _with_scores(golden: Golden) -> Golden:
    """The case with logits [2, f, f] on the features' grid: weighed and summed over shots."""
    arrays = dict(golden.arrays)
    if "U" in arrays:
        logits = arrays["query_logits_feature_res_per_shot"]
        arrays["logits_feature_res"] = np.einsum("k,kphw->phw", arrays["U"] / 5.0, logits)
    return Golden(golden.name, golden.facts, arrays)
