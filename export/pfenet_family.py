# SPDX-License-Identifier: Apache-2.0
"""The family of PFENet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.errors import ExportError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import LETTERBOX, POST_CHAIN, letterbox_side, position_buckets
from export.methods.enrichment import CHANNELS, SCALES, scale_sides
from export.methods.pfenet import (
    Masking,
    PfenetDecode,
    PfenetFeatures,
    PfenetGuide,
    PfenetNetwork,
    PfenetQuery,
    PfenetWholeFeatures,
    PfenetWholeGuide,
)
from export.methods.trunks import backbone_of
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "a PFENet checkpoint"

BINS = (60.0, 30.0, 15.0, 8.0)
"""Of the published models for PASCAL-5i, at 473; those for COCO-20i, at 641, have `SHARES`."""

SHARES = (1.0, 0.5, 0.25, 0.125)

WAY_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Each way is enriched by itself."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 16, 32)
"""Each shot has a prior of its own."""

MAX_BATCH = 4


def pfenet_checkpoint(path: Path) -> PfenetNetwork:
    """Reads a checkpoint of the official training (`train_epoch_*.pth`); its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one.
    """
    tensors = read_checkpoint(path)
    backbone = backbone_of(tensors)
    return fill_network(lambda: PfenetNetwork(backbone), tensors, path=path, wanted=WANTED)


def parse_bins(text: str) -> tuple[float, ...]:
    """Reads the four scales of enrichment, comma-separated.

    Raises:
        ExportError: They are none.
    """
    try:
        bins = tuple(float(part) for part in text.split(","))
    except ValueError:
        bins = ()
    if len(bins) != SCALES or not all(0 < one <= 2048 for one in bins):
        raise ExportError(
            f"{text!r} is no list of scales: write --bins 60,30,15,8, or the shares of the grid "
            "1.0,0.5,0.25,0.125, as ppm_scales in the config that the network was trained with."
        )
    return bins


def pfenet_family(
    *,
    alias: str,
    network: PfenetNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    bins: Sequence[float] = BINS,
    masking: Masking = Masking.BOTH,
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits PFENet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input, which are equal.
        provenance: For people.
        bins: Scales of enrichment, see `scale_sides`.
        masking: What of a support is masked for the prior.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The network does not take the size.
    """
    side = letterbox_side(size)
    grid = network.grid(side)
    sides = scale_sides(grid, bins)
    if min(sides) < 1:
        raise ExportError(f"An input of {side}x{side} is too small for the scales {list(bins)}.")
    feature_shape(network.layer0, size)
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size, grid),
        graphs=_graphs(network, side, bins, masking),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"bins": ",".join(map(str, bins)), "masking": masking.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "backbone": str(network.backbone),
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _graphs(
    network: PfenetNetwork, side: int, bins: Sequence[float], masking: Masking
) -> tuple[Graph, ...]:
    grid = network.grid(side)
    sides = scale_sides(grid, bins)
    image = TensorSpec("image", (side, side, 3), "uint16")
    planes = TensorSpec("planes", (Free.PLANES, side, side))
    channels = network.channels
    features = TensorSpec("features", (channels.layer3 + 2 * CHANNELS, grid, grid))
    high = TensorSpec("high", (channels.layer4, grid, grid))
    query = TensorSpec("query", (CHANNELS, sum(one**2 for one in sides)))
    prototypes = TensorSpec("prototypes", (Free.WAYS, CHANNELS))
    positions = TensorSpec("positions", (Free.WAYS, Free.POSITIONS, channels.layer4), "float16")
    weights = TensorSpec("weights", (Free.WAYS,))
    stacked = tuple(spec.stacked() for spec in (positions, weights))
    validity = TensorSpec("validity", (Free.SHOTS,))
    logits = TensorSpec("logits", (Free.WAYS, 1, grid, grid))
    guidance = (prototypes, positions, weights)
    given = (high, query, prototypes, *stacked, validity)
    if masking is Masking.OUTPUT:
        support = TensorSpec("support", (CHANNELS, grid, grid))
        high = replace(high, dtype="float16")
        whole = PfenetWholeFeatures(network, side, bins)
        return (
            Graph("features", whole, (image,), (support, high, query)),
            Graph("guide", PfenetWholeGuide(network, side), (support, high, planes), guidance),
            Graph("decode", PfenetDecode(network, side, bins), (high, *given[1:]), (logits,)),
        )
    return (
        Graph("features", PfenetFeatures(network), (image,), (features,)),
        Graph("query_features", PfenetQuery(network, side, bins), (features,), (high, query)),
        Graph("guide", PfenetGuide(network, side), (features, planes), guidance),
        Graph("decode", PfenetDecode(network, side, bins), given, (logits,)),
    )


def _serving(size: tuple[int, int], grid: int) -> Serving:
    stack = {"merge": "stack", "ways": "ways", "validity": "validity"}
    mean = {"merge": "weighted_mean", "ways": "ways", "weight": "weights"}
    return Serving(
        method="pfenet",
        input_size=size,
        guidance=(
            {"name": "prototypes", **mean},
            {"name": "positions", **stack, "positions": True},
            {"name": "weights", **stack},
        ),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        position_buckets=position_buckets(grid**2),
        **LETTERBOX,
    )
