# SPDX-License-Identifier: Apache-2.0
"""The family of CyCTR, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.family import EXTENT, Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import LETTERBOX, POST_CHAIN, letterbox_side, position_buckets
from export.methods.cyctr.graphs import CyctrDecode, CyctrFeatures, CyctrGuide, CyctrMerge
from export.methods.cyctr.network import CyctrNetwork, grid_side
from export.methods.cyctr.sampling import TokenLabels
from export.methods.enrichment import CHANNELS
from export.methods.trunks import backbone_of
from export.provenance import exporter_version

WANTED = "a CyCTR checkpoint"

SAMPLE_SEED = 0
"""Of the order in which support cells are drawn."""

WAY_BUCKETS = (1, 2, 4, 8)
"""Each way attends by itself."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 10)
"""Tokens of all shots are attended to at once."""

MAX_BATCH = 4


def cyctr_checkpoint(path: Path) -> CyctrNetwork:
    """Reads a checkpoint of the training; its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one.
    """
    tensors = read_checkpoint(path)
    backbone = backbone_of(tensors, "backbone.body.")
    return fill_network(lambda: CyctrNetwork(backbone), tensors, path=path, wanted=WANTED)


def cyctr_family(
    *,
    alias: str,
    network: CyctrNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    sample_seed: int = SAMPLE_SEED,
    token_labels: TokenLabels = TokenLabels.BY_NUMBER,
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits CyCTR into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input, which are equal.
        provenance: For people.
        sample_seed: Of the order in which support cells are drawn.
        token_labels: What the check of cycles takes the drawn cells for.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The network does not take the size.
    """
    side = letterbox_side(size)
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size),
        graphs=_graphs(network, side, sample_seed, token_labels),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"sample_seed": str(sample_seed), "token_labels": token_labels.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "backbone": str(network.kind),
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _graphs(
    network: CyctrNetwork, size: int, sample_seed: int, token_labels: TokenLabels
) -> tuple[Graph, ...]:
    grid = grid_side(size)
    merge = CyctrMerge(network, size, max(SHOT_BUCKETS), sample_seed, token_labels)
    drawn = merge.sampling.tokens
    channels = network.channels.layer4
    support = TensorSpec("support", (CHANNELS, grid, grid))
    query = TensorSpec("query", support.dims)
    high = TensorSpec("high", (channels, grid, grid), "float16")
    prototypes = TensorSpec("prototypes", (Free.WAYS, CHANNELS))
    positions = TensorSpec("positions", (Free.WAYS, Free.POSITIONS, channels), "float16")
    weights = TensorSpec("weights", (Free.WAYS,))
    labels = TensorSpec("labels", (Free.WAYS, grid**2), "float16")
    valid = TensorSpec("valid", (grid**2,), "float16")
    tokens = TensorSpec("tokens", (Free.SHOTS, Free.WAYS, drawn, CHANNELS))
    marks = TensorSpec("marks", (Free.SHOTS, Free.WAYS, drawn, 3))
    validity = TensorSpec("validity", (Free.SHOTS,))
    planes = TensorSpec("planes", (Free.PLANES, size, size))
    return (
        Graph(
            "features",
            CyctrFeatures(network),
            (TensorSpec("image", (size, size, 3), "uint16"),),
            (support, query, high),
        ),
        Graph(
            "guide",
            CyctrGuide(size),
            (support, high, planes, EXTENT),
            (prototypes, positions, weights, labels, valid),
        ),
        Graph(
            "merge",
            merge,
            (*(spec.stacked() for spec in (support, prototypes, weights, labels, valid)), validity),
            (tokens, marks),
        ),
        Graph(
            "decode",
            CyctrDecode(network, size),
            (
                query,
                high,
                prototypes,
                positions.stacked(),
                weights.stacked(),
                tokens,
                marks,
                validity,
                EXTENT,
            ),
            (TensorSpec("logits", (Free.WAYS, 1, grid, grid)),),
        ),
    )


def _serving(size: tuple[int, int]) -> Serving:
    stack = {"merge": "stack", "ways": "ways", "validity": "validity"}
    mean = {"merge": "weighted_mean", "ways": "ways", "weight": "weights"}
    graph = {"merge": "graph", "ways": "ways", "validity": "validity"}
    return Serving(
        method="cyctr",
        input_size=size,
        guidance=(
            {"name": "prototypes", **mean},
            {"name": "positions", **stack, "positions": True},
            {"name": "weights", **stack},
            {"name": "tokens", **graph},
            {"name": "marks", **graph},
        ),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=False,
        void="unknown",
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        position_buckets=position_buckets(grid_side(size[0]) ** 2),
        merge_inputs=("support", "prototypes", "weights", "labels", "valid"),
        **LETTERBOX,
    )
