# SPDX-License-Identifier: Apache-2.0
"""The family of ASGNet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.errors import CheckpointError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import LETTERBOX, POST_CHAIN, letterbox_side
from export.methods.asgnet import (
    AsgnetDecode,
    AsgnetFeatures,
    AsgnetGuide,
    AsgnetNetwork,
    AsgnetQuery,
    Association,
)
from export.methods.enrichment import CHANNELS, scale_sides
from export.methods.seeding import MOST
from export.methods.trunks import backbone_of
from export.pfenet_family import BINS
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "an ASGNet checkpoint"

WAY_BUCKETS = (1, 2, 4, 8)
"""Each way is clustered and enriched by itself."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 16, 32)
"""Prototypes of all shots stay apart."""

MAX_BATCH = 4


def asgnet_checkpoint(path: Path) -> AsgnetNetwork:
    """Reads a checkpoint of the official training; its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one, or of the variant without the pyramid.
    """
    tensors = read_checkpoint(path)
    if "ASPP.layer7.0.weight" in tensors:
        raise CheckpointError(
            f"{path} is of ASGNet's variant with ASPP, of which no checkpoint was published; only "
            "the one with the pyramid (`pyramid: True`) can be exported."
        )
    backbone = backbone_of(tensors)
    return fill_network(lambda: AsgnetNetwork(backbone), tensors, path=path, wanted=WANTED)


def asgnet_family(
    *,
    alias: str,
    network: AsgnetNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    bins: Sequence[float] = BINS,
    association: Association = Association.DISTANCE,
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits ASGNet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input, which are equal.
        provenance: For people.
        bins: Scales of enrichment, see `scale_sides`.
        association: How points belong to clusters.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The network does not take the size.
    """
    side = letterbox_side(size)
    grid = network.grid(side)
    feature_shape(network.layer0, size)
    features = TensorSpec("features", (CHANNELS, grid, grid))
    units = TensorSpec("units", features.dims)
    cells = sum(length**2 for length in scale_sides(grid, bins))
    query = TensorSpec("query", (CHANNELS, cells))
    prototypes = TensorSpec("prototypes", (Free.WAYS, MOST, CHANNELS))
    real = TensorSpec("real", (Free.WAYS, MOST))
    stacked = [spec.stacked() for spec in (prototypes, real)]
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size),
        graphs=(
            Graph(
                "features",
                AsgnetFeatures(network),
                (TensorSpec("image", (*size, 3), "uint16"),),
                (features,),
            ),
            Graph("query_features", AsgnetQuery(network, side, bins), (features,), (units, query)),
            Graph(
                "guide",
                AsgnetGuide(network, side, association),
                (features, TensorSpec("planes", (Free.PLANES, *size))),
                (prototypes, real),
            ),
            Graph(
                "decode",
                AsgnetDecode(network, side, bins),
                (units, query, *stacked, TensorSpec("validity", (Free.SHOTS,))),
                (TensorSpec("logits", (Free.WAYS, 1, grid, grid)),),
            ),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"bins": ",".join(map(str, bins)), "association": association.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "backbone": str(network.backbone),
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _serving(size: tuple[int, int]) -> Serving:
    stack = {"merge": "stack", "ways": "ways", "validity": "validity"}
    return Serving(
        method="asgnet",
        input_size=size,
        guidance=({"name": "prototypes", **stack}, {"name": "real", **stack}),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        **LETTERBOX,
    )
