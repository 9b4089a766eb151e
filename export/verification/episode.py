# SPDX-License-Identifier: Apache-2.0
"""An episode of PANet by the rules of its official code: images, planes, prototypes, scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from export.goldens import Case
from export.verification.stored import Arrays

Array = NDArray[Any]

Runner = Callable[[str, Arrays], dict[str, Array]]
"""Runs a graph by role on tensors by name, batch first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an episode came to.

    Attributes:
        features: Of the query, float32 [C, h, w].
        shots: Prototypes of each support, float32 [ways, shots, 1 + ways, C].
        prototypes: Of the task, float32 [1 + ways, C].
        scores: On the feature grid, float32 [1 + ways, h, w].
        logits: At the network's size, float32 [1 + ways, H, W].
    """

    features: Array
    shots: Array
    prototypes: Array
    scores: Array
    logits: Array


def network_image(image: Array, size: tuple[int, int]) -> Array:
    """Resizes RGB bytes [H, W, 3] as the official code does: Pillow's bilinear, aspect not kept."""
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def network_mask(mask: Array, size: tuple[int, int]) -> Array:
    """Resizes labels [H, W] as the official code does: Pillow's nearest."""
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)


def annotation_planes(case: Case, way: int, shot: int) -> Array:
    """Makes the planes of one support.

    Foreground is the way's class; background is what belongs to no class of the episode, void
    included; the other classes are in neither.

    Returns:
        float32 [1 + ways, H, W] at the network's size.
    """
    height, width = case.network_size
    values = network_mask(case.arrays["support_labels"][way, shot], case.network_size)
    planes = np.zeros((1 + case.ways, height, width), np.float32)
    planes[0] = ~np.isin(values, case.class_ids)
    planes[1 + way] = values == case.class_ids[way]
    return planes


def run_episode(case: Case, run: Runner) -> Outcome:
    """Runs an episode graph by graph."""
    query = network_image(case.arrays["query_image"], case.network_size)
    features = run("features", {"image": query[None]})["features"]
    shots, weights = _encode_supports(case, run)
    totals = weights.sum(axis=(0, 1))
    sums = (shots * weights[..., None]).sum(axis=(0, 1))
    prototypes = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1e-12)[:, None], 0)
    prototypes = prototypes.astype(np.float32)
    scores = run("decode", {"features": features, "prototypes": prototypes[None]})["logits"][
        0, :, 0
    ]
    return Outcome(features[0], shots, prototypes, scores, upsampled(scores, case.network_size))


def run_ensembles(case: Case, run: Runner, prototypes: Array) -> tuple[Array, Array]:
    """Runs the pair of ensembles on the first support and the query.

    Returns:
        Prototypes [1 + ways, C] of the support, and scores [1 + ways, h, w] under ``prototypes``.
    """
    support = network_image(case.arrays["support_images"][0, 0], case.network_size)
    query = network_image(case.arrays["query_image"], case.network_size)
    planes = annotation_planes(case, 0, 0)
    encoded = run("support_encoder", {"image": support[None], "planes": planes[None]})
    decoded = run("query_decoder", {"image": query[None], "prototypes": prototypes[None]})
    return encoded["prototypes"][0], decoded["logits"][0, :, 0]


def upsampled(scores: Array, size: tuple[int, int]) -> Array:
    """Resizes planes [P, h, w] bilinearly, half-pixel, to [P, H, W]."""
    planes = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None], size=size, mode="bilinear", align_corners=False
    )
    return planes[0].numpy()


def _encode_supports(case: Case, run: Runner) -> tuple[Array, Array]:
    """Returns prototypes [ways, shots, 1 + ways, C] and their weights [ways, shots, 1 + ways]."""
    prototypes, weights = [], []
    for way in range(case.ways):
        for shot in range(case.shots):
            image = network_image(case.arrays["support_images"][way, shot], case.network_size)
            features = run("features", {"image": image[None]})["features"]
            planes = annotation_planes(case, way, shot)
            guidance = run("guide", {"features": features, "planes": planes[None]})
            prototypes.append(guidance["prototypes"][0])
            weights.append(guidance["weights"][0])
    outer = (case.ways, case.shots)
    return (
        np.stack(prototypes).reshape(*outer, *prototypes[0].shape),
        np.stack(weights).reshape(*outer, -1),
    )
