# SPDX-License-Identifier: Apache-2.0
"""The family of RePRI, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.errors import ExportError
from export.family import EXTENT, Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import LETTERBOX, letterbox_side
from export.methods.repri import (
    CHANNELS,
    UPDATES,
    RepriDecode,
    RepriFeatures,
    RepriGuide,
    RepriNetwork,
)
from export.methods.trunks import backbone_of
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "a RePRI checkpoint"

MAX_UPDATES = 1000

WAY_BUCKETS = (1, 2, 4, 8, 16)
"""Each way is fitted by itself; products with the vectors serve all ways of a task together."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 10, 16)
"""Every update goes over the vectors of all shots, padded ones included."""

POST_CHAIN = (
    {"op": "resize", "mode": "align_corners", "target": "input"},
    {"op": "crop", "target": "extent"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)
"""The official code scores on the canvas; what lies beyond the image is cut off."""


def repri_checkpoint(path: Path) -> RepriNetwork:
    """Reads a checkpoint of the official training (`best.pth`); its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one.
    """
    tensors = read_checkpoint(path)
    classifier = tensors.get("classifier.weight")
    classes = len(classifier) if classifier is not None and classifier.ndim else 0
    backbone = backbone_of(tensors)
    return fill_network(lambda: RepriNetwork(backbone, classes), tensors, path=path, wanted=WANTED)


def repri_family(
    *,
    alias: str,
    network: RepriNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    updates: int = UPDATES,
    max_batch: int = 8,
) -> Family:
    """Splits RePRI into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input, which are equal: one more than a multiple
            of 8.
        provenance: For people.
        updates: Steps of the fit to each query.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The network does not take the size, or the number of updates is out of bounds.
    """
    if not 1 <= updates <= MAX_UPDATES:
        raise ExportError(f"RePRI makes 1 to {MAX_UPDATES} updates, not {updates}.")
    side = letterbox_side(size)
    _, grid, _ = feature_shape(network.embed, size)
    cells = grid * grid
    image = TensorSpec("image", (*size, 3), "uint16")
    features = TensorSpec("features", (cells, CHANNELS), "float16")
    planes = TensorSpec("planes", (Free.PLANES, *size))
    vectors = TensorSpec("vectors", (cells, CHANNELS), "float16")
    labels = TensorSpec("labels", (Free.WAYS, cells))
    prototypes = TensorSpec("prototypes", (Free.WAYS, CHANNELS))
    areas = TensorSpec("areas", (Free.WAYS,))
    stacked = tuple(spec.stacked() for spec in (vectors, labels))
    validity = TensorSpec("validity", (Free.SHOTS,))
    logits = TensorSpec("logits", (Free.WAYS, 1, grid, grid))
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size),
        graphs=(
            Graph("features", RepriFeatures(network), (image,), (features,)),
            Graph(
                "guide",
                RepriGuide(side, grid),
                (features, planes),
                (vectors, labels, prototypes, areas),
            ),
            Graph(
                "decode",
                RepriDecode(side, grid, updates),
                (features, *stacked, prototypes, validity, EXTENT),
                (logits,),
            ),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"updates": str(updates)},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "MIT",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _serving(size: tuple[int, int]) -> Serving:
    stack = {"merge": "stack", "validity": "validity"}
    mean = {"merge": "weighted_mean", "weight": "areas"}
    return Serving(
        method="repri",
        input_size=size,
        guidance=(
            {"name": "vectors", "ways": "none", **stack},
            {"name": "labels", "ways": "ways", **stack},
            {"name": "prototypes", "ways": "ways", **mean},
        ),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=True,
        void="unknown",
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        **LETTERBOX,
    )
