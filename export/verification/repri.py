# SPDX-License-Identifier: Apache-2.0
"""Verifies RePRI from an official checkpoint to the mask that an application gets.

The official evaluation fits to the positions where the query's *label* is known. In the goldens
those are what the image covers, which is what the graphs are told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_model_keys, seeded_checkpoint
from export.methods.repri import (
    Evidence,
    RepriDecode,
    RepriFeatures,
    first_state,
    proportion,
    scores,
    update,
)
from export.repri_family import repri_checkpoint, repri_family
from export.verification.comparing import HALF_PRECISION, relative, sigmoid, worst
from export.verification.driver import EMBEDDED, TORCH, Application, Gateway, verify
from export.verification.measures import Measure
from export.verification.scores import resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

FEATURE_TOLERANCE = 1e-3
"""Of z, relative to its deviation."""

FIT_TOLERANCE = 1e-3
"""Of prototypes, biases and everything in the trace of the updates, relative to the largest."""

PROBABILITY_TOLERANCE = 2e-3

DIFFERING_SHARE = 2e-3
"""Of pixels, ties among them."""

_BACKBONE = "resnet50"


def verify_repri(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(_Repri(), goldens, names=names, gateway=gateway, repository=repository)


class _Repri:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        return golden.facts["weight_seed"], golden.facts["canvas"]

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        checkpoint = folder / "best.pth"
        state = {f"module.{key}": value for key, value in _seeded(golden, goldens).items()}
        torch.save({"epoch": 99, "state_dict": state, "optimizer": {"state": {}}}, checkpoint)
        side = golden.facts["canvas"]
        network = repri_checkpoint(checkpoint)
        return repri_family(alias="repri", network=network, size=(side, side), provenance={})

    def episode(self, golden: Golden) -> Episode:
        arrays, side = golden.arrays, golden.facts["canvas"]
        supports = []
        for image, mask in zip(arrays["support_u8"], arrays["support_masks_u8"], strict=True):
            planes = np.zeros((2, side, side), np.float32)
            planes[:, : mask.shape[0], : mask.shape[1]] = np.stack([mask == 0, mask == 1])
            supports.append((_canvas(image, side), planes))
        height, width = golden.facts["image_hw"]
        return Episode(supports, _canvas(arrays["query_u8"], side), (height, width))

    def application(self, golden: Golden) -> Application:
        arrays = golden.arrays
        images, masks = list(arrays["support_u8"]), list(arrays["support_masks_u8"])
        return Application(images, masks, arrays["query_u8"])

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        """Compares nothing: the images of the goldens have the size that they go in with."""
        yield from ()

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays = golden.arrays
        if stage == TORCH:
            yield from _measure_embedding(golden, family, self.episode(golden))
            yield from _measure_updates(golden, family, outcome)
        if "feat_query_f16" in arrays:
            wanted = arrays["feat_query_f16"].reshape(512, -1).T.astype(np.float32)
            wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
            error = worst(outcome.features["features"], wanted)
            # Both are stored in half precision; no element of a unit vector is above one.
            allowed = FEATURE_TOLERANCE + 2 * HALF_PRECISION
            yield Measure(golden.name, stage, "query vectors", error, allowed)
        error = relative(outcome.guidance["prototypes"][0], arrays["w0"])
        yield Measure(golden.name, stage, "first prototype", error, FIT_TOLERANCE)
        margins = outcome.logits[:, 0]
        wanted = arrays["logits_final"] - arrays["b_final"]
        error = worst(margins[0], wanted) / float(np.abs(arrays["logits_final"]).max())
        yield Measure(golden.name, stage, "scores", error, FIT_TOLERANCE)
        side = golden.facts["canvas"]
        raised = resized(margins, (side, side), align_corners=True)[0]
        yield from _measure_decision(golden, raised > 0, sigmoid(raised), stage)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield from _measure_decision(golden, mask, probabilities[0], stage)


def _seeded(golden: Golden, goldens: Path) -> dict[str, torch.Tensor]:
    """The seeded weights, those of some keys scaled as `cases.json` says."""
    keys = read_model_keys(goldens, _BACKBONE)
    shapes = {key: entry.shape for key, entry in keys.items()}
    tensors = seeded_checkpoint(shapes, golden.facts["weight_seed"])
    told = json.loads((goldens / "cases.json").read_text(encoding="utf-8"))
    gains: list[tuple[str, float]] = told["weights"]["gains"]
    for key, tensor in tensors.items():
        gain = next((gain for pattern, gain in gains if re.search(pattern, key)), None)
        if gain is not None:
            tensor *= gain
    return tensors


def _canvas(image: Array, side: int) -> Array:
    """Puts an image on a black canvas, as uint16 = value x 256."""
    canvas = np.zeros((side, side, 3), np.uint16)
    canvas[: image.shape[0], : image.shape[1]] = image.astype(np.uint16) << 8
    return canvas


def _measure_embedding(golden: Golden, family: Family, episode: Episode) -> Iterator[Measure]:
    """Compares z in single precision, before it is made a unit vector."""
    features = family.graphs[0].module
    assert isinstance(features, RepriFeatures)
    for name, image in (("query", episode.query), ("support0", episode.supports[0][0])):
        with torch.no_grad():
            embedded = features.embed(torch.tensor(image)[None])[0].numpy()
        top = embedded.shape[1] // 2 - 2
        window = embedded[:16, top : top + 4, top : top + 4]
        error = worst(window, golden.arrays[f"feat_{name}_crop"]) / golden.facts["feat_std"]
        yield Measure(golden.name, TORCH, f"{name} features", error, FEATURE_TOLERANCE)


def _measure_updates(golden: Golden, family: Family, outcome: Outcome) -> Iterator[Measure]:
    """Compares every update with the official trace, and where it all ends."""
    decode = family.graphs[-1].module
    assert isinstance(decode, RepriDecode)
    tensors = {name: torch.from_numpy(values)[None] for name, values in outcome.guidance.items()}
    evidence = decode.evidence(
        torch.from_numpy(outcome.features["features"])[None],
        tensors["vectors"],
        tensors["labels"],
        tensors["validity"],
        torch.tensor([golden.facts["image_hw"]], dtype=torch.float32),
    )
    state, rows = first_state(evidence, tensors["prototypes"]), []
    for refresh in decode.refreshes:
        rows.append(_traced(evidence, state, bool(refresh)))
        state = update(evidence, state, refresh)
    wanted = golden.arrays["trace"]
    errors = np.abs(np.array(rows) - wanted).max(axis=0) / np.abs(wanted).max(axis=0)
    yield Measure(golden.name, TORCH, "every update", float(errors.max()), FIT_TOLERANCE)
    weights, bias = (part[0, 0].numpy() for part in state[:2])
    for name, values in (("w", weights), ("b", bias)):
        error = relative(values, golden.arrays[f"{name}_final"])
        yield Measure(golden.name, TORCH, f"{name}, fitted", error, FIT_TOLERANCE)


def _traced(evidence: Evidence, state: tuple[torch.Tensor, ...], refresh: bool) -> list[float]:
    """What the official trace says before an update.

    Returns:
        Divergence, entropy, proportions of background and foreground, their estimates, the bias
        and the length of the prototype.
    """
    weights, bias, share, _ = state
    seen = torch.sigmoid(scores(evidence.query, weights, bias))
    logs = seen * torch.log(seen + 1e-10) + (1 - seen) * torch.log(1 - seen + 1e-10)
    now, entropy = float(proportion(evidence, seen)), -float(proportion(evidence, logs))
    estimate = now if refresh else float(share)
    divergence = now * np.log(now / estimate) + (1 - now) * np.log((1 - now) / (1 - estimate))
    proportions = [1 - now, now, 1 - estimate, estimate]
    return [divergence, entropy, *proportions, float(bias), float(weights.norm())]


def _measure_decision(
    golden: Golden, mask: Array, probabilities: Array, stage: str
) -> Iterator[Measure]:
    """Compares a mask and probabilities [H, W], which may leave out what no image covers."""
    height, width = mask.shape
    wanted = golden.arrays["prob_fg"][:height, :width].astype(np.float64)
    error = worst(probabilities.astype(np.float64), wanted)
    allowed = PROBABILITY_TOLERANCE + HALF_PRECISION
    yield Measure(golden.name, stage, "probabilities", error, allowed)
    differing = mask != golden.arrays["pred_mask_u8"][:height, :width]
    decided = np.abs(wanted - 0.5) > PROBABILITY_TOLERANCE
    yield Measure(golden.name, stage, "mask, pixels", float((differing & decided).sum()), 0.0)
    yield Measure(golden.name, stage, "mask, share", float(differing.mean()), DIFFERING_SHARE)
