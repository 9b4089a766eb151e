# SPDX-License-Identifier: Apache-2.0
"""Verifies MM-Former from an official checkpoint to the mask that an application gets.

What a layer of the mask decoder sees is decided by logits above zero. Where one lies within
rounding of it, two right computations may see different cells: one such flip was found to move
mask logits by 0.013, the score by up to 0.034, and 0.16 % of the mask. So proposals and scores are
held to a tolerance everywhere but at a few pixels, which are held to a wider one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_model_keys, read_notes, seeded_checkpoint
from export.methods.mmformer.graphs import MmformerDecode, MmformerFeatures, MmformerQuery
from export.methods.mmformer.network import LEVELS, Variant
from export.mmformer_family import mmformer_family
from export.mmformer_source import mmformer_checkpoint
from export.verification.comparing import HALF_PRECISION, sigmoid, worst
from export.verification.driver import EMBEDDED, INPUT, TORCH, Application, Gateway, Method, verify
from export.verification.episode import network_image
from export.verification.measures import Measure
from export.verification.scores import resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3."""

FEATURE_TOLERANCE = 1e-3
"""Of maps and vectors, whose values lie within +-10."""

LOGIT_TOLERANCE = 5e-3
"""Of mask logits, for all but `OUTLIERS` of them."""

PROBABILITY_TOLERANCE = LOGIT_TOLERANCE / 4
"""Of the proposals that they make: the logistic function passes on a quarter at most."""

SIMILARITY_TOLERANCE = 1e-5
"""Of cosines, and of the weights that are made of them."""

SCORE_TOLERANCE = 1e-3
"""Of scores, for all but `OUTLIERS` of them."""

FLIPPED_SCORE_TOLERANCE = 5e-2
"""Of any score: what flips of an attention mask may come to."""

OUTLIERS = 1e-3
"""Share of logits, scores or mask pixels that flips may move further."""


def verify_mmformer(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(MMFORMER, goldens, names=names, gateway=gateway, repository=repository)


class _Mmformer:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        facts = golden.facts
        return facts["variant"], facts["weight_seed"], _size(golden)

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        variant = Variant(golden.facts["variant"])
        keys = read_model_keys(goldens, "v1" if variant is Variant.V1 else "v2_and_v2svf")
        shapes = {name: key.shape for name, key in keys.items()}
        tensors = seeded_checkpoint(shapes, golden.facts["weight_seed"])
        _scale(tensors, read_notes(goldens)["weights"]["gains"])
        checkpoint = folder / "model_best.pth"
        torch.save({"model": tensors, "optimizer": {"state": {}}, "iteration": 1}, checkpoint)
        return mmformer_family(
            alias="mmformer",
            network=mmformer_checkpoint(checkpoint, variant),
            size=_size(golden),
            provenance={},
        )

    def episode(self, golden: Golden) -> Episode:
        arrays, size = golden.arrays, _size(golden)
        supports = []
        for image, labels in zip(
            arrays["raw_support_u8"], arrays["raw_support_masks_u8"], strict=True
        ):
            small = _network_mask(labels, size)
            planes = np.stack([small != 1, small == 1]).astype(np.float32)
            supports.append((network_image(image, size), planes))
        return Episode(supports, network_image(arrays["raw_query_u8"], size))

    def application(self, golden: Golden) -> Application:
        arrays = golden.arrays
        return Application(
            list(arrays["raw_support_u8"]),
            list(arrays["raw_support_masks_u8"]),
            arrays["raw_query_u8"],
        )

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        arrays, episode = golden.arrays, self.episode(golden)
        features = family.graphs[0].module
        assert isinstance(features, MmformerFeatures)
        values = features.normalise(torch.tensor(episode.query)[None])[0].numpy()
        error = worst(values[:, :32, :32], arrays["net_query_f32_crop"])
        yield Measure(golden.name, INPUT, "query tensor", error, INPUT_TOLERANCE)
        masks = np.stack([planes[1] for _, planes in episode.supports])
        wrong = worst(masks, arrays["resized_support_masks_u8"])
        yield Measure(golden.name, INPUT, "masks, pixels", wrong, 0.0)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        for quantity, error, allowed in _maps(golden, outcome):
            yield Measure(golden.name, stage, quantity, error, allowed)
        if stage == TORCH:
            for quantity, error, allowed in _inside(golden, family, outcome):
                yield Measure(golden.name, stage, quantity, error, allowed)
        margins = resized(outcome.logits[:, 0], _size(golden))[0]
        yield from _scores(golden, stage, (1 + margins) / 2)
        yield _mask(golden, stage, margins > 0)

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        yield from _scores(golden, stage, probabilities[0].astype(np.float32), bounded=True)
        yield _mask(golden, stage, mask)


MMFORMER: Method = _Mmformer()


def _maps(golden: Golden, outcome: Outcome) -> Iterator[tuple[str, float, float]]:
    """Compares what graphs hand each other."""
    arrays = golden.arrays
    for level in range(LEVELS):
        found = _middle(outcome.features[f"matching_{level}"], 16)
        yield "maps", worst(found, arrays[f"proj_q_{level}_crop"]), FEATURE_TOLERANCE
        grid = outcome.features[f"matching_{level}"].shape[1:]
        cells = outcome.shots[0][f"cells_{level}"][0].astype(np.float32)
        rows, columns = cells[:, -2:].T.astype(int)
        # What is stored, and where; the last cells of a shot may be no cells.
        masked, stored = np.zeros((16, *grid)), np.zeros((1, *grid))
        masked[:, rows, columns], stored[:, rows, columns] = cells[:, :16].T, 1
        wanted = arrays[f"masked_s0_{level}_crop"] * _middle(stored, 1)
        allowed = FEATURE_TOLERANCE + HALF_PRECISION * float(np.abs(wanted).max())
        yield "cells of supports", worst(_middle(masked, 16), wanted), allowed
    proposals = outcome.maps["proposals"]
    for found, logits in (
        (proposals[[0, 1, 33, 99]], arrays["mask_logits_selected"]),
        (_middle(proposals, len(proposals)), arrays["mask_logits_all_center"]),
    ):
        share = _share_beyond(found, sigmoid(logits), PROBABILITY_TOLERANCE)
        yield "proposals, share that flipped", share, OUTLIERS


def _inside(golden: Golden, family: Family, outcome: Outcome) -> Iterator[tuple[str, float, float]]:
    """Compares what stays inside of graphs."""
    arrays = golden.arrays
    by_role = {graph.role: graph for graph in family.graphs}
    query, decode = by_role["query_features"].module, by_role["decode"].module
    assert isinstance(query, MmformerQuery)
    assert isinstance(decode, MmformerDecode)
    with torch.no_grad():
        maps = [torch.tensor(values)[None] for values in outcome.features.values()]
        tokens = query.pixels.encode(maps[LEVELS : 2 * LEVELS])
        embedding = query.pixels.embed(tokens[-1], maps[-1])[0].numpy()
        memory = torch.cat(tokens, dim=1)[0].numpy()
        taken = {**outcome.maps, **outcome.guidance}
        inputs = [torch.tensor(taken[spec.name])[None] for spec in by_role["decode"].inputs]
        similarities = decode.similarities(*inputs)
        weights = decode.network.weigh(similarities)
    stride = max(1, len(memory) // 64)
    found = memory[::stride, :16]
    yield "encoder", worst(found, arrays["enc_memory_crop"]), FEATURE_TOLERANCE
    yield "embedding", worst(_middle(embedding, 16), arrays["mask_features_crop"]), 1e-3
    for name, values in (("S", similarities), ("coef", weights)):
        error = worst(values[0, 0].numpy(), arrays[name])
        yield {"S": "cosines", "coef": "weights"}[name], error, SIMILARITY_TOLERANCE


def _scores(
    golden: Golden, stage: str, scores: Array, *, bounded: bool = False
) -> Iterator[Measure]:
    """Compares scores [H, W]; bounded ones are in float16, within [0, 1]."""
    arrays = golden.arrays
    if "fg_score_f32" in arrays:
        wanted, rounding = arrays["fg_score_f32"], 0.0
    else:
        wanted = arrays["fg_score_f16"].astype(np.float32)
        rounding = HALF_PRECISION * float(np.abs(wanted).max())
        # The window that is stored in full.
        window = slice(208, 272), slice(208, 272)
        wanted[window] = arrays["fg_score_f32_crop"]
    if bounded:
        wanted, rounding = wanted.clip(0, 1), rounding + HALF_PRECISION
    share = _share_beyond(scores, wanted, SCORE_TOLERANCE + rounding)
    yield Measure(golden.name, stage, "score, share that flipped", share, OUTLIERS)
    error = worst(scores, wanted)
    yield Measure(golden.name, stage, "score", error, FLIPPED_SCORE_TOLERANCE + rounding)


def _mask(golden: Golden, stage: str, mask: Array) -> Measure:
    share = float((mask != golden.arrays["pred_mask_u8"]).mean())
    return Measure(golden.name, stage, "mask, share of pixels", share, OUTLIERS)


def _share_beyond(found: Array, wanted: Array, tolerance: float) -> float:
    """Share of values that differ by more; all of them where shapes differ."""
    if found.shape != wanted.shape:
        return 1.0
    return float((~(np.abs(found - wanted) <= tolerance)).mean())


def _middle(maps: Array, channels: int) -> Array:
    """The middle 4x4 cells of the first channels of maps [C, h, w]."""
    top, left = maps.shape[1] // 2 - 2, maps.shape[2] // 2 - 2
    middle: Array = maps[:channels, top : top + 4, left : left + 4]
    return middle


def _network_mask(labels: Array, size: tuple[int, int]) -> Array:
    """Resizes labels [H, W] as the official code does: torch's nearest, on float64."""
    values = torch.from_numpy(labels).double()[None, None]
    small = torch.nn.functional.interpolate(values, size=size, mode="nearest")
    found: Array = small[0, 0].numpy()
    return found


def _scale(tensors: dict[str, torch.Tensor], gains: Sequence[tuple[str, float]]) -> None:
    """Multiplies each tensor by the factor of the first pattern that its key matches."""
    for key, value in tensors.items():
        factor = next((gain for pattern, gain in gains if re.search(pattern, key)), None)
        if factor is not None:
            tensors[key] = value * torch.tensor(factor, dtype=torch.float32)


def _size(golden: Golden) -> tuple[int, int]:
    rows, columns = golden.facts["size_hw"]
    return rows, columns
