# SPDX-License-Identifier: Apache-2.0
"""The family of FewSeg's own default model."""

from __future__ import annotations

from collections.abc import Mapping

from export.family import PLANES, Family, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.compact import (
    FIRST_BOLDNESS,
    LARGEST_GIFT,
    LEANING,
    SECOND_BOLDNESS,
    CompactFeatures,
    CompactGuide,
    CompactModel,
)
from export.prototype_family import GUIDANCE, POST_CHAIN
from export.provenance import exporter_version
from export.sizes import feature_shape

SIDE_MULTIPLE = 16
"""What both sides of the network's input must be multiples of."""


def compact_family(
    *,
    alias: str,
    model: CompactModel,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    max_batch: int = 8,
) -> Family:
    """Puts the graphs of `compact` together.

    Args:
        alias: What tasks name.
        model: Trained.
        size: Rows and columns of the network's input.
        provenance: For people.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the model's tensors and the settings.

    Raises:
        ExportError: The size is out of bounds, or the trunk does not take it.
    """
    trunk = model.eval().trunk
    channels, *_ = feature_shape(lambda images: trunk(images)[0], size, SIDE_MULTIPLE)
    details = trunk.fine_channels
    image = TensorSpec("image", (*size, 3), "uint8")
    semantic = TensorSpec("semantic", (channels, size[0] // 8, size[1] // 8))
    fine = TensorSpec("fine", (details, size[0] // 4, size[1] // 4))
    planes = TensorSpec("planes", (PLANES, *size))
    prototypes = TensorSpec("prototypes", (PLANES, channels + details))
    weights = TensorSpec("weights", (PLANES,))
    logits = TensorSpec("logits", (PLANES, 1, size[0] // 4, size[1] // 4))
    digest = digest_of_tensors(model.state_dict())
    return Family(
        alias=alias,
        serving=Serving("compact", size, GUIDANCE, POST_CHAIN),
        graphs=(
            Graph("features", CompactFeatures(trunk), (image,), (semantic, fine)),
            Graph("guide", CompactGuide(size), (semantic, fine, planes), (prototypes, weights)),
            Graph("decode", model.decode, (semantic, fine, prototypes), (logits,)),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={
            "leaning": str(LEANING),
            "boldness": f"{FIRST_BOLDNESS} {SECOND_BOLDNESS} {LARGEST_GIFT}",
        },
        provenance={"exporter": exporter_version(), "tensors_sha256": digest, **provenance},
    )
