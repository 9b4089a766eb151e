# SPDX-License-Identifier: Apache-2.0
"""The family of SCL on PFENet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.errors import ExportError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import LETTERBOX, POST_CHAIN, letterbox_side, position_buckets
from export.methods.enrichment import CHANNELS, scale_sides
from export.methods.pfenet import PfenetFeatures, PfenetQuery
from export.methods.scl_pfenet import (
    SclPfenetDecode,
    SclPfenetGuide,
    SclPfenetMerge,
    SclPfenetNetwork,
)
from export.methods.trunks import backbone_of
from export.pfenet_family import BINS, MAX_BATCH, WAY_BUCKETS
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "an SCL checkpoint of PFENet"

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 10, 16)
"""Each shot enriches the query by itself."""


def scl_pfenet_checkpoint(path: Path) -> SclPfenetNetwork:
    """Reads a checkpoint of the official training; its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one.
    """
    tensors = read_checkpoint(path)
    backbone = backbone_of(tensors)
    return fill_network(lambda: SclPfenetNetwork(backbone), tensors, path=path, wanted=WANTED)


def scl_pfenet_family(
    *,
    alias: str,
    network: SclPfenetNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    bins: Sequence[float] = BINS,
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits SCL on PFENet into graphs; arguments and errors are those of `pfenet_family`."""
    side = letterbox_side(size)
    grid = network.grid(side)
    sides = scale_sides(grid, bins)
    if min(sides) < 1:
        raise ExportError(f"An input of {side}x{side} is too small for the scales {list(bins)}.")
    feature_shape(network.layer0, size)
    channels = network.channels
    image = TensorSpec("image", (*size, 3), "uint16")
    planes = TensorSpec("planes", (Free.PLANES, *size))
    features = TensorSpec("features", (channels.layer3 + 2 * CHANNELS, grid, grid))
    high = TensorSpec("high", (channels.layer4, grid, grid))
    query = TensorSpec("query", (CHANNELS, sum(one**2 for one in sides)))
    vectors = TensorSpec("vectors", (Free.WAYS, 2 * CHANNELS))
    positions = TensorSpec("positions", (Free.WAYS, Free.POSITIONS, channels.layer4), "float16")
    weights = TensorSpec("weights", (Free.WAYS,))
    of_shots = tuple(spec.stacked() for spec in (vectors, positions, weights))
    validity = TensorSpec("validity", (Free.SHOTS,))
    judged = TensorSpec("agreement", (Free.SHOTS, Free.WAYS))
    agreement = TensorSpec("agreement", (Free.SHOTS, Free.SHOTS, Free.WAYS))
    logits = TensorSpec("logits", (Free.WAYS, 1, grid, grid))
    digest = digest_of_tensors(network.state_dict())
    guide = SclPfenetGuide(network, side, bins)
    merge = SclPfenetMerge(network, side, bins)
    decode = SclPfenetDecode(network, side, bins)
    return Family(
        alias=alias,
        serving=_serving(size, grid),
        graphs=(
            Graph("features", PfenetFeatures(network), (image,), (features,)),
            Graph("query_features", PfenetQuery(network, side, bins), (features,), (high, query)),
            Graph("guide", guide, (features, planes), (vectors, positions, weights)),
            Graph("merge", merge, (of_shots[0], features, planes, validity), (judged,)),
            Graph("decode", decode, (high, query, *of_shots, agreement, validity), (logits,)),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"bins": ",".join(map(str, bins))},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "backbone": str(network.backbone),
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _serving(size: tuple[int, int], grid: int) -> Serving:
    stack = {"merge": "stack", "ways": "ways", "validity": "validity"}
    return Serving(
        method="scl-pfenet",
        input_size=size,
        guidance=(
            {"name": "vectors", **stack},
            {"name": "positions", **stack, "positions": True},
            {"name": "weights", **stack},
            {"name": "agreement", "ways": "ways", "merge": "graph", "validity": "validity"},
        ),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        void="unknown",
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        position_buckets=position_buckets(grid**2),
        merge_inputs=("vectors",),
        merge_judged=("features", "planes"),
        **LETTERBOX,
    )
