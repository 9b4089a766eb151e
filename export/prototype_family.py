# SPDX-License-Identifier: Apache-2.0
"""The family whose guidance is one prototype per class and no more: PANet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from export.family import PLANES, Family, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.prototypes import PrototypeDecode, PrototypeFeatures, PrototypeGuide
from export.provenance import exporter_version
from export.sizes import feature_shape

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
    max_batch: int = 8,
) -> Family:
    """Puts the prototype head on a trunk.

    Args:
        method: What `fewseg.method` says.
        alias: What tasks name.
        trunk: Normalised RGB float32 [batch, 3, H, W] to features [batch, C, h, w]; trained.
        size: Rows and columns of the network's input.
        provenance: For people.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the trunk's tensors and the settings.

    Raises:
        ExportError: The size is out of bounds, or the trunk does not take it.
    """
    channels, *grid = feature_shape(trunk.eval(), size)
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
        provenance={"exporter": exporter_version(), "tensors_sha256": digest, **provenance},
    )
