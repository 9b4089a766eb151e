# SPDX-License-Identifier: Apache-2.0
"""Verifies SG-One from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.family import Family
from export.goldens import Golden, read_keys, seeded_checkpoint
from export.methods.sgone import EMBEDDING_CHANNELS, SgOneFeatures
from export.sgone_family import ChannelOrder, ShotMerge, sgone_checkpoint, sgone_family
from export.verification.comparing import map_error, relative, worst
from export.verification.driver import EMBEDDED, INPUT, Application, Gateway, verify
from export.verification.measures import Measure
from export.verification.scores import GoldenScores, decide, resized
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-5
"""Of the normalised image, whose values lie within +-3."""

FEATURE_TOLERANCE = 1e-4
"""Of embeddings, side maps and vectors, relative to the largest."""

COSINE_TOLERANCE = 1e-4
"""Of cosines and of probabilities."""

MAX_PIXELS = 1024 * 1024


def verify_sgone(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(_SgOne(), goldens, names=names, gateway=gateway, repository=repository)


class _SgOne:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        return golden.facts["weight_seed"], golden.facts["channel_order"]

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        checkpoint = folder / "step_10000.pth.tar"
        tensors = seeded_checkpoint(read_keys(goldens), golden.facts["weight_seed"])
        content = {"global_counter": 10000, "state_dict": tensors, "optimizer": {"state": {}}}
        torch.save(content, checkpoint, _use_new_zipfile_serialization=False)
        return sgone_family(
            alias="sgone",
            network=sgone_checkpoint(checkpoint),
            provenance={},
            max_pixels=MAX_PIXELS,
            order=ChannelOrder(golden.facts["channel_order"]),
            merge=ShotMerge.MEAN,
        )

    def episode(self, golden: Golden) -> Episode:
        arrays = golden.arrays
        masks = arrays["support_masks"]
        planes = np.stack([masks == 0, masks == 1], axis=1).astype(np.float32)
        supports = list(zip(arrays["support_images"], planes, strict=True))
        return Episode(supports, arrays["query_image"])

    def application(self, golden: Golden) -> Application:
        arrays = golden.arrays
        return Application(
            list(arrays["support_images"]), list(arrays["support_masks"]), arrays["query_image"]
        )

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        module = family.graphs[0].module
        assert isinstance(module, SgOneFeatures)
        values = module.normalise(torch.tensor(golden.arrays["query_image"])[None])[0].numpy()
        error = map_error(values, golden.arrays, "query_tensor")
        yield Measure(golden.name, INPUT, "query tensor", error, INPUT_TOLERANCE)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays, features = golden.arrays, outcome.features["features"]
        embedding, side = features[:EMBEDDING_CHANNELS], features[EMBEDDING_CHANNELS:]
        (vector,) = outcome.guidance["vectors"]
        for quantity, values, wanted in (
            ("query embedding", embedding[:8], arrays["query_embedding_ch0_8"][0]),
            ("query side map", side[:8], arrays["query_side_ch0_8"][0]),
            ("vector", vector, arrays["guidance_vector"]),
        ):
            error = relative(values, wanted)
            yield Measure(golden.name, stage, quantity, error, FEATURE_TOLERANCE)
        if "cosine_map" in arrays:
            lengths = np.linalg.norm(embedding, axis=0) * np.linalg.norm(vector)
            cosines = np.tensordot(vector, embedding, 1) / lengths
            error = worst(cosines, arrays["cosine_map"][0])
            yield Measure(golden.name, stage, "cosines", error, COSINE_TOLERANCE)
        scores, margins = _scores(golden), outcome.logits[:, 0]
        yield scores.measure_scores(stage, margins, arrays["exit_layer_scores"][0])
        height, width = arrays["pred"].shape
        logits = resized(margins, (height, width))
        yield scores.measure_logits(stage, logits)
        yield scores.measure_mask(stage, decide(logits), arrays["pred"])

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        scores = _scores(golden)
        yield scores.measure_mask(stage, mask, golden.arrays["pred"])
        yield scores.measure_probabilities(stage, probabilities)


def _scores(golden: Golden) -> GoldenScores:
    stats = golden.facts["stats"]
    return GoldenScores(golden, largest=max(-stats["score_min"], stats["score_max"]))
