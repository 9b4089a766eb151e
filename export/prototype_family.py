# SPDX-License-Identifier: Apache-2.0
"""The families whose guidance is one prototype per class: PANet and `compact`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from export.errors import ExportError
from export.family import PLANES, Family, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.prototypes import PrototypeDecode, PrototypeFeatures, PrototypeGuide
from export.provenance import exporter_version

MIN_SIDE, MAX_SIDE = 32, 2048
"""Bounds of the network's input, in pixels."""

GUIDANCE = (
    {
        "name": "prototypes",
        "merge": "weighted_mean",
        "ways": "background_and_ways",
        "weight": "weights",
    },
)

POST_CHAIN = (
    {"op": "resize", "mode": "half_pixel", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


def prototype_family(
    *,
    method: str,
    alias: str,
    trunk: nn.Module,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    side_multiple: int = 1,
    max_batch: int = 8,
) -> Family:
    """Puts the prototype head on a trunk.

    Args:
        method: What `fewseg.method` says.
        alias: What tasks name.
        trunk: Normalised RGB float32 [batch, 3, H, W] to features [batch, C, h, w]; trained.
        size: Rows and columns of the network's input.
        provenance: For people.
        side_multiple: What both sides of the input must be multiples of.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the trunk's tensors and the settings.

    Raises:
        ExportError: The size is out of bounds, or the trunk does not take it.
    """
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        raise ExportError(
            f"An input of {size[0]}x{size[1]} cannot be exported: both sides must lie between "
            f"{MIN_SIDE} and {MAX_SIDE}."
        )
    if any(side % side_multiple for side in size):
        raise ExportError(
            f"An input of {size[0]}x{size[1]} cannot be exported: both sides must be multiples of "
            f"{side_multiple} for this network."
        )
    channels, *grid = _feature_shape(trunk.eval(), size)
    image = TensorSpec("image", (*size, 3), "uint8")
    features = TensorSpec("features", (channels, *grid))
    planes = TensorSpec("planes", (PLANES, *size))
    prototypes = TensorSpec("prototypes", (PLANES, channels))
    weights = TensorSpec("weights", (PLANES,))
    logits = TensorSpec("logits", (PLANES, 1, *grid))
    guide = PrototypeGuide(size, (grid[0], grid[1]))
    digest = digest_of_tensors(trunk.state_dict())
    return Family(
        alias=alias,
        serving=Serving(method, size, GUIDANCE, POST_CHAIN),
        graphs=(
            Graph("features", PrototypeFeatures(trunk), (image,), (features,)),
            Graph("guide", guide, (features, planes), (prototypes, weights)),
            Graph("decode", PrototypeDecode(), (features, prototypes), (logits,)),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        provenance={"exporter": exporter_version(), "weights_sha256": digest, **provenance},
    )


def _feature_shape(trunk: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
    """Asks the trunk for channels, rows and columns of its map."""
    try:
        with torch.no_grad():
            shape = trunk(torch.zeros(1, 3, *size)).shape
    except RuntimeError as error:
        raise ExportError(
            f"The trunk does not take an input of {size[0]}x{size[1]}; choose another --size "
            f"({error})."
        ) from error
    return shape[1], shape[2], shape[3]
