# SPDX-License-Identifier: Apache-2.0
"""Verifies SCL on CANet from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_model_keys
from export.methods.scaled import PhiFeatures, shrunk
from export.methods.scl import shot_weights
from export.methods.scl_canet import (
    SclCanetGuide,
    SclCanetRefiningDecode,
    SclCanetScaledDecode,
)
from export.scl_canet_family import scl_canet_checkpoint, scl_canet_family
from export.verification.comparing import HALF_PRECISION, relative, sigmoid, worst
from export.verification.driver import EMBEDDED, INPUT, TORCH, Application, Gateway, Method, verify
from export.verification.measures import Measure
from export.verification.scl import cases_of, scl_checkpoint
from export.verification.scores import resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3, and of masks shrunk with soft edges."""

FEATURE_TOLERANCE = 1e-4
"""Of features, vectors and logits, relative to the largest."""

AGREEMENT_TOLERANCE = 1e-4
"""Of overlaps; a pixel that flips changes one by about 1 / area."""

TIE = 4e-4
"""Share of the largest logit that leaves the decision open."""


def verify_scl_canet(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    cases = cases_of(goldens, "sclca_", names)
    return verify(SCL_CANET, goldens, names=cases, gateway=gateway, repository=repository)


class _SclCanet:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        facts = golden.facts
        weights = facts["weight_seed"], repr(facts["weight_overrides"])
        return *weights, facts["passes"], tuple(facts["scales"])

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        keys = read_model_keys(goldens, "sclca_resnet50")
        checkpoint = folder / "scl.pth"
        # A plain state dict, as the official code saves it.
        torch.save(scl_checkpoint(keys, golden.facts), checkpoint)
        return scl_canet_family(
            alias="scl-canet",
            network=scl_canet_checkpoint(checkpoint),
            provenance={},
            max_pixels=1 << 20,
            passes=golden.facts["passes"],
            multi_scale=len(golden.facts["scales"]) > 1,
        )

    def episode(self, golden: Golden) -> Episode:
        supports = []
        for image, mask in _supports(golden):
            supports.append((image, np.stack([mask == 0, mask == 1]).astype(np.float32)))
        return Episode(supports, golden.arrays["query_image"])

    def application(self, golden: Golden) -> Application:
        images, masks = zip(*_supports(golden), strict=True)
        return Application(list(images), list(masks), golden.arrays["query_image"])

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        arrays, episode = golden.arrays, self.episode(golden)
        features = family.graphs[0].module
        assert isinstance(features, PhiFeatures)
        values = features.normalise(torch.tensor(episode.query)[None])[0].numpy()
        wanted = arrays.get("query_tensor", arrays.get("query_tensor_crop"))
        if wanted is not None:
            offset = golden.facts.get("tensor_crop_offset", (0, 0))
            error = worst(_window(values, offset, wanted), wanted)
            yield Measure(golden.name, INPUT, "query tensor", error, INPUT_TOLERANCE)
        wanted = arrays["shot0_support_feature_mask"]
        mask = torch.from_numpy(episode.supports[0][1])[None, 1:]
        error = worst(shrunk(mask, wanted.shape)[0, 0].numpy(), wanted)
        yield Measure(golden.name, INPUT, "mask on the grid", error, INPUT_TOLERANCE)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays = golden.arrays
        vectors = np.stack([shot["vectors"][0] for shot in outcome.shots])
        for quantity, values, wanted in (
            ("query features", outcome.features["features"][:8], arrays["query_feat_probe"]),
            ("vectors", vectors, _vectors(arrays)),
        ):
            error = relative(values, wanted)
            yield Measure(golden.name, stage, quantity, error, FEATURE_TOLERANCE)
        if "iou_supportI_by_guidanceK" in arrays:
            error = worst(
                outcome.guidance["agreement"][..., 0], arrays["iou_supportI_by_guidanceK"]
            )
            yield Measure(golden.name, stage, "agreement", error, AGREEMENT_TOLERANCE)
        if stage == TORCH:
            yield _measure_support(golden, family)
            yield from _measure_passes(golden, family, outcome)
        margins = outcome.logits[0]
        if len(golden.facts["scales"]) == 1:
            margins = resized(margins, _size(golden))
        yield _measure_sum(golden, margins[0], stage)
        yield _measure_mask(golden, margins[0] > 0, stage)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield _measure_mask(golden, mask == 1, stage)
        wanted = _margins(golden.arrays[f"{_last(golden)}_logitsum_crop_f32"])
        found = _window(probabilities, golden.facts["crop_offset"], wanted[None])[0]
        error = worst(found.astype(np.float64), sigmoid(wanted))
        allowed = FEATURE_TOLERANCE * _largest(golden) / 2 + HALF_PRECISION
        yield Measure(golden.name, stage, "probabilities", error, allowed)


SCL_CANET: Method = _SclCanet()


def _measure_support(golden: Golden, family: Family) -> Measure:
    """Compares the first segmentation of the first support by itself."""
    features, guide = family.graphs[0].module, family.graphs[2].module
    assert isinstance(features, PhiFeatures)
    assert isinstance(guide, SclCanetGuide)
    image, _ = _supports(golden)[0]
    with torch.no_grad():
        maps = features.network.phi(features.normalise(torch.tensor(image)[None]))
        mean = torch.from_numpy(golden.arrays["shot0_z_initial"])[None, None]
        found = guide.support_margins(maps, mean)[0, 0].numpy()
    logits = golden.arrays["shot0_support_logits"]
    error = worst(found, _margins(logits)) / float(np.abs(logits).max())
    return Measure(golden.name, TORCH, "support by itself", error, FEATURE_TOLERANCE)


def _measure_passes(golden: Golden, family: Family, outcome: Outcome) -> Iterator[Measure]:
    """Compares the first pass at every scale, and the raised sum of every pass."""
    decode = family.graphs[-1].module
    facts, arrays = golden.facts, golden.arrays
    if not isinstance(decode, SclCanetRefiningDecode | SclCanetScaledDecode):
        return
    compared = [
        torch.from_numpy(outcome.maps[name])[None]
        for name in ("smaller", "compared", "larger")
        if name in outcome.maps
    ]
    shots = {name: torch.from_numpy(values)[None] for name, values in outcome.guidance.items()}
    with torch.no_grad():
        weights = shot_weights(shots["agreement"], shots["shown"], shots["validity"])
        extent = torch.tensor(_size(golden), dtype=torch.float32)
        passes = decode.passes.passes(compared, shots["vectors"], weights, extent)
    for scale, margins in zip(facts["scales"], passes[0], strict=True):
        logits = arrays[f"pass0_logits_scale_{scale}"]
        error = worst(margins[0, 0].numpy(), _margins(logits)) / float(np.abs(logits).max())
        yield Measure(golden.name, TORCH, f"pass 1, scale {scale}", error, FEATURE_TOLERANCE)
    for number, scales in enumerate(passes):
        total = np.sum([resized(margins[0].numpy(), _size(golden)) for margins in scales], axis=0)
        yield _measure_sum(golden, total[0], TORCH, f"pass{number}")


def _measure_sum(golden: Golden, margins: Array, stage: str, name: str = "") -> Measure:
    """Compares margins [H, W] at the image's size, summed over scales."""
    which = name or _last(golden)
    wanted = _margins(golden.arrays[f"{which}_logitsum_crop_f32"])
    found = _window(margins[None], golden.facts["crop_offset"], wanted[None])[0]
    error = worst(found, wanted) / _largest(golden, which)
    return Measure(golden.name, stage, f"{which}, sum", error, FEATURE_TOLERANCE)


def _measure_mask(golden: Golden, mask: Array, stage: str) -> Measure:
    """Counts pixels that differ where the golden sum, as far as it is stored, is no tie."""
    sums = golden.arrays[f"{_last(golden)}_logitsum_f16"].astype(np.float32)
    largest = float(np.abs(sums).max())
    # Large sums are stored at every second row and column.
    step = -(-mask.shape[0] // sums.shape[1])
    decided = np.abs(_margins(sums)) > (TIE + 2 * HALF_PRECISION) * largest
    differing = (mask != golden.arrays[f"{_last(golden)}_pred"])[::step, ::step]
    return Measure(golden.name, stage, "mask, pixels", float((differing & decided).sum()), 0.0)


def _supports(golden: Golden) -> list[tuple[Array, Array]]:
    return [
        (golden.arrays[f"support_image_{shot}"], golden.arrays[f"support_mask_{shot}"])
        for shot in range(golden.facts["shot"])
    ]


def _vectors(arrays: Any) -> Array:
    """Primary and auxiliary vectors, float32 [shots, 512]."""
    if "v_pri_per_shot" in arrays:
        return np.concatenate([arrays["v_pri_per_shot"], arrays["v_aux_per_shot"]], axis=1)
    return np.concatenate([arrays["shot0_v_pri"], arrays["shot0_v_aux"]])[None]


def _window(planes: Array, offset: Sequence[int], like: Array) -> Array:
    """Cuts planes [P, H, W] to the size of others, at (top, left)."""
    (top, left), (height, width) = offset, like.shape[1:]
    return planes[:, top : top + height, left : left + width]


def _margins(logits: Array) -> Array:
    margins: Array = logits[1] - logits[0]
    return margins


def _largest(golden: Golden, which: str = "") -> float:
    sums = golden.arrays[f"{which or _last(golden)}_logitsum_f16"]
    return float(np.abs(sums.astype(np.float32)).max())


def _last(golden: Golden) -> str:
    return f"pass{golden.facts['passes'] - 1}"


def _size(golden: Golden) -> tuple[int, int]:
    height, width = golden.facts["query_hw"]
    return height, width
