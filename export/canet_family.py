# SPDX-License-Identifier: Apache-2.0
"""The family of CANet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from export.checkpoints import read_network
from export.errors import ExportError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.canet import (
    CanetDecode,
    CanetFeatures,
    CanetGuide,
    CanetNetwork,
    CanetQuery,
    CanetShotsDecode,
)
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "a CANet checkpoint"

ITERATIONS = 5
"""Passes: the first one and the paper's four refinements; the most that the official code runs."""

MAX_ITERATIONS = 20

WAY_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Each way is refined by itself, in maps of 1280 channels."""

SHOT_BUCKETS = (1, 2, 4, 8, 16)
"""Numbers of shots that averaged probabilities are padded to: each shot is refined by itself."""

POST_CHAIN = (
    {"op": "resize", "mode": "align_corners", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


class ShotMerge(StrEnum):
    """What several shots come to; the released network was trained for one."""

    #: The mean of their vectors: one pass per query.
    MEAN = "mean"
    #: A run per shot, and the mean of their probabilities ("mask average" in the paper).
    PROBABILITY = "probability"


def canet_checkpoint(path: Path) -> CanetNetwork:
    """Reads a checkpoint of the official training (`best.pth`).

    Raises:
        CheckpointError: The file is not one, or of another trunk than ResNet-50.
    """
    return read_network(CanetNetwork, path, wanted=WANTED)


def canet_family(
    *,
    alias: str,
    network: CanetNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    iterations: int = ITERATIONS,
    merge: ShotMerge = ShotMerge.MEAN,
    max_batch: int = 8,
) -> Family:
    """Splits CANet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input.
        provenance: For people.
        iterations: Passes over each query.
        merge: What several shots come to.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: Size or number of iterations is out of bounds.
    """
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ExportError(f"CANet makes 1 to {MAX_ITERATIONS} iterations, not {iterations}.")
    channels, *grid = feature_shape(network.phi, size)
    image = TensorSpec("image", (*size, 3), "uint8")
    features = TensorSpec("features", (channels, *grid))
    compared = TensorSpec("compared", (channels, *grid))
    planes = TensorSpec("planes", (Free.PLANES, *size))
    vectors = TensorSpec("vectors", (Free.WAYS, channels))
    weights = TensorSpec("weights", (Free.WAYS,))
    guide = CanetGuide(size, (grid[0], grid[1]))
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size, merge),
        graphs=(
            Graph("features", CanetFeatures(network), (image,), (features,)),
            Graph("query_features", CanetQuery(network), (features,), (compared,)),
            Graph("guide", guide, (features, planes), (vectors, weights)),
            _decode(network, merge, iterations, compared, vectors),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"iterations": str(iterations)},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _decode(
    network: CanetNetwork,
    merge: ShotMerge,
    iterations: int,
    compared: TensorSpec,
    vectors: TensorSpec,
) -> Graph:
    _, rows, columns = compared.dims
    logits = TensorSpec("logits", (Free.WAYS, 1, rows, columns))
    if merge is ShotMerge.MEAN:
        alone = CanetDecode(network, (rows, columns), iterations)
        return Graph("decode", alone, (compared, vectors), (logits,))
    stacked = vectors.stacked()
    validity = TensorSpec("validity", (Free.SHOTS,))
    together = CanetShotsDecode(network, (rows, columns), iterations)
    return Graph("decode", together, (compared, stacked, validity), (logits,))


def _serving(size: tuple[int, int], merge: ShotMerge) -> Serving:
    mean = merge is ShotMerge.MEAN
    rule = {"merge": "weighted_mean", "weight": "weights"}
    if not mean:
        rule = {"merge": "stack", "validity": "validity"}
    return Serving(
        method="canet",
        input_size=size,
        guidance=({"name": "vectors", "ways": "ways", **rule},),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="sigmoid" if mean else "linear",
        way_buckets=WAY_BUCKETS,
        shot_buckets=(1,) if mean else SHOT_BUCKETS,
    )
