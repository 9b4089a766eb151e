# SPDX-License-Identifier: Apache-2.0
"""The family of SG-One, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from export.checkpoints import read_network
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.sgone import (
    EMBEDDING_CHANNELS,
    SIDE_CHANNELS,
    SgOneDecode,
    SgOneFeatures,
    SgOneGuide,
    SgOneNetwork,
    SgOneShotsDecode,
)
from export.provenance import exporter_version

WANTED = "an SG-One checkpoint"

SHOT_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Numbers of shots that `max` is padded to: it scores the query once per shot."""

POST_CHAIN = (
    {"op": "resize", "mode": "half_pixel", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


class ChannelOrder(StrEnum):
    """What the network sees first. Mean and deviation are those of red, green, blue either way."""

    #: The official training and multi-class scripts, which read images with OpenCV.
    BGR = "bgr"
    #: The official test scripts, which read them with Pillow.
    RGB = "rgb"


class ShotMerge(StrEnum):
    """What several shots come to."""

    #: The mean of their vectors: one pass per query.
    MEAN = "mean"
    #: A pass per shot, and the union of their masks: the official "max".
    ANY = "any"


def sgone_checkpoint(path: Path) -> SgOneNetwork:
    """Reads a snapshot of the official training (`step_<n>.pth.tar`).

    Raises:
        CheckpointError: The file is not one.
    """
    return read_network(SgOneNetwork, path, wanted=WANTED)


def sgone_family(
    *,
    alias: str,
    network: SgOneNetwork,
    provenance: Mapping[str, str],
    max_pixels: int,
    order: ChannelOrder = ChannelOrder.BGR,
    merge: ShotMerge = ShotMerge.MEAN,
    max_batch: int = 8,
) -> Family:
    """Splits SG-One into graphs.

    Args:
        alias: What tasks name.
        network: With its weights.
        provenance: For people.
        max_pixels: Most pixels of an image, which goes in at its own size.
        order: Of the colours that the network was trained with.
        merge: What several shots come to.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.
    """
    grid = (Free.ROWS, Free.COLUMNS)
    image = TensorSpec("image", (Free.HEIGHT, Free.WIDTH, 3), "uint8")
    features = TensorSpec("features", (EMBEDDING_CHANNELS + SIDE_CHANNELS, *grid))
    planes = TensorSpec("planes", (Free.PLANES, Free.HEIGHT, Free.WIDTH))
    vectors = TensorSpec("vectors", (Free.WAYS, EMBEDDING_CHANNELS))
    weights = TensorSpec("weights", (Free.WAYS,))
    features_graph = Graph(
        "features", SgOneFeatures(network, bgr=order is ChannelOrder.BGR), (image,), (features,)
    )
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(merge, max_pixels),
        graphs=(
            features_graph,
            Graph("guide", SgOneGuide(), (features, planes), (vectors, weights)),
            _decode(network, merge, features, vectors),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"channel_order": order.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _decode(
    network: SgOneNetwork, merge: ShotMerge, features: TensorSpec, vectors: TensorSpec
) -> Graph:
    grid = (Free.SCORE_ROWS, Free.SCORE_COLUMNS)
    if merge is ShotMerge.MEAN:
        logits = TensorSpec("logits", (Free.WAYS, 1, *grid))
        return Graph("decode", SgOneDecode(network), (features, vectors), (logits,))
    stacked = vectors.stacked()
    validity = TensorSpec("validity", (Free.SHOTS,))
    logits = TensorSpec("logits", (Free.WAYS, Free.SHOTS, *grid))
    return Graph("decode", SgOneShotsDecode(network), (features, stacked, validity), (logits,))


def _serving(merge: ShotMerge, max_pixels: int) -> Serving:
    mean = merge is ShotMerge.MEAN
    rule = {"merge": "weighted_mean", "weight": "weights"}
    if not mean:
        rule = {"merge": "stack", "validity": "validity"}
    return Serving(
        method="sgone",
        input_size=None,
        guidance=({"name": "vectors", "ways": "ways", **rule},),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        decision="margin" if mean else "any_shot",
        score="sigmoid",
        shot_buckets=(1,) if mean else SHOT_BUCKETS,
        max_pixels=max_pixels,
    )
