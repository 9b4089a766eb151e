# SPDX-License-Identifier: Apache-2.0
"""The family of a guided network with late fusion."""

from __future__ import annotations

from collections.abc import Mapping

from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.revolver import (
    STRIDE,
    GuidedDecode,
    GuidedFeatures,
    GuidedModel,
    GuidedNetwork,
    GuidedQuery,
    SharedGuide,
    UnsharedGuide,
)
from export.provenance import exporter_version
from export.revolver_source import trained_tensors

MIN_SIDE = 33
"""Smaller images have no cell on the grid."""

POST_CHAIN = (
    {"op": "deconvolve", "factor": STRIDE},
    {"op": "crop", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


def revolver_family(
    *,
    alias: str,
    network: GuidedNetwork,
    provenance: Mapping[str, str],
    max_pixels: int,
    max_batch: int = 8,
) -> Family:
    """Splits a guided network into graphs.

    Args:
        alias: What tasks name.
        network: With its weights.
        provenance: For people.
        max_pixels: Most pixels of an image, which goes in at its own size.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.
    """
    model = network.model
    grid = (Free.ROWS, Free.COLUMNS)
    size = (Free.HEIGHT, Free.WIDTH)
    rows = Free.PLANES if model.shared else Free.WAYS
    image = TensorSpec("image", (*size, 3), "uint8")
    features = TensorSpec("features", (model.channels, *grid))
    projected = TensorSpec("projected", (model.hidden, *grid))
    planes = TensorSpec("planes", (Free.PLANES, *size))
    guidance = TensorSpec("guidance", (rows, model.hidden))
    weights = TensorSpec("weights", (rows,))
    logits = TensorSpec("logits", (rows, 1, *grid))
    guide = SharedGuide(network) if model.shared else UnsharedGuide(network)
    digest = digest_of_tensors(trained_tensors(network))
    return Family(
        alias=alias,
        serving=_serving(model, max_pixels),
        graphs=(
            Graph("features", GuidedFeatures(network), (image,), (features,)),
            Graph("query_features", GuidedQuery(network), (features,), (projected,)),
            Graph("guide", guide, (features, planes), (guidance, weights)),
            Graph("decode", GuidedDecode(network), (projected, guidance), (logits,)),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        provenance={
            "exporter": exporter_version(),
            "weights_sha256": digest,
            "model": model.name,
            **provenance,
        },
    )


def _serving(model: GuidedModel, max_pixels: int) -> Serving:
    guidance = {
        "name": "guidance",
        "merge": "weighted_mean",
        "ways": "background_and_ways" if model.shared else "ways",
        "weight": "weights",
    }
    return Serving(
        method="revolver",
        input_size=None,
        guidance=(guidance,),
        post_chain=POST_CHAIN,
        class_handling="multiway" if model.shared else "binary",
        # An annotation that is missing everywhere is the zero vector, which training has met.
        needs_background=False,
        void="unknown",
        decision="argmax" if model.shared else "margin",
        score="softmax" if model.shared else "sigmoid",
        min_side=MIN_SIDE,
        max_pixels=max_pixels,
    )
