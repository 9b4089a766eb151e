# SPDX-License-Identifier: Apache-2.0
"""The family of HSNet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from export.checkpoints import Tensors, fill_network, read_checkpoint
from export.errors import ExportError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import position_buckets
from export.methods.hsnet.graphs import (
    TRUNKS,
    HsnetDecode,
    HsnetFeatures,
    HsnetGuide,
    HsnetNetwork,
    Level,
)
from export.methods.hsnet.squeeze import STAGES, squeezed_size
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "an HSNet checkpoint"

WAY_BUCKETS = (1, 2, 3, 4, 5, 8)
"""Each way of each shot is a run of the whole head, padded ones included."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 10)

MAX_BATCH = 4
"""Queries run one after another inside the graph; together they share transfers alone."""

POST_CHAIN = (
    {"op": "resize", "mode": "align_corners", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)
"""The official code scores at the network's input size."""

_LEVELS = {
    "fine": Free.POSITIONS,
    "middle": Free.MIDDLE_POSITIONS,
    "coarse": Free.COARSE_POSITIONS,
}
"""The levels, and what counts the positions that are stored of each."""


def hsnet_checkpoint(path: Path) -> HsnetNetwork:
    """Reads a checkpoint of the official training (`best_model.pt`); its keys tell the trunk.

    Raises:
        CheckpointError: The file is not one.
    """
    tensors = read_checkpoint(path)
    trunk = TRUNKS[backbone_of(tensors)]
    return fill_network(lambda: HsnetNetwork(trunk()), tensors, path=path, wanted=WANTED)


def backbone_of(tensors: Tensors) -> str:
    """Tells the trunk from the keys of a checkpoint: "vgg16", "resnet101" or "resnet50"."""
    if "backbone.features.0.weight" in tensors:
        return "vgg16"
    return "resnet101" if "backbone.layer3.22.conv1.weight" in tensors else "resnet50"


def hsnet_family(
    *,
    alias: str,
    network: HsnetNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits HSNet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input, which are equal.
        provenance: For people.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The network does not take the size.
    """
    levels = grids(network, size)
    image = TensorSpec("image", (*size, 3), "uint8")
    planes = TensorSpec("planes", (Free.PLANES, *size))
    shown = TensorSpec("shown", (Free.WAYS,))
    features = tuple(
        TensorSpec(name, (level.cells, level.width + level.taps), "float16")
        for name, level in zip(_LEVELS, levels, strict=True)
    )
    positions = tuple(
        TensorSpec(f"{name}_positions", (Free.WAYS, length, level.width), "float16")
        for (name, length), level in zip(_LEVELS.items(), levels, strict=True)
    )
    places = tuple(
        TensorSpec(f"{name}_places", (Free.WAYS, level.cells))
        for name, level in zip(_LEVELS, levels, strict=True)
    )
    guidance = (*positions, *places, shown)
    stacked = tuple(spec.stacked() for spec in guidance)
    validity = TensorSpec("validity", (Free.SHOTS,))
    fine = levels[0]
    logits = TensorSpec("logits", (Free.WAYS, Free.SHOTS, 2 * fine.rows, 2 * fine.columns))
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size, guidance, levels[0].cells),
        graphs=(
            Graph("features", HsnetFeatures(network), (image,), features),
            Graph("guide", HsnetGuide(size, levels), (*features, planes), guidance),
            Graph(
                "decode",
                HsnetDecode(network, levels),
                (*features, *stacked, validity),
                (logits,),
            ),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def grids(network: HsnetNetwork, size: tuple[int, int]) -> tuple[Level, Level, Level]:
    """The fine, middle and coarse level of an input size.

    Raises:
        ExportError: The network does not take the size.
    """
    if size[0] != size[1]:
        raise ExportError(f"HSNet takes square inputs, not {size[0]}x{size[1]}.")
    found: list[Level] = []

    def deepest(images: Tensor) -> Tensor:
        taps = network.backbone(images)
        found.extend(Level(*level.shape[1:]) for level in taps)
        coarse: Tensor = taps[2].flatten(1, 2)
        return coarse

    feature_shape(deepest, size)
    fine, middle, coarse = found
    left = {squeezed_size(stage, level.rows) for stage, level in zip(STAGES, found, strict=True)}
    if len(left) > 1:
        raise ExportError(
            f"An input of {size[0]}x{size[1]} cannot be exported: the three levels of this trunk "
            "do not come to equal sizes there. 400 is what HSNet was trained with."
        )
    return fine, middle, coarse


def _serving(size: tuple[int, int], guidance: tuple[TensorSpec, ...], cells: int) -> Serving:
    rule = {"merge": "stack", "ways": "ways", "validity": "validity"}
    stored = {f"{name}_positions": {"positions": True} for name in _LEVELS}
    return Serving(
        method="hsnet",
        input_size=size,
        guidance=tuple(
            {"name": spec.name, **rule, **stored.get(spec.name, {})} for spec in guidance
        ),
        post_chain=POST_CHAIN,
        mask_resize="torch_nearest",
        class_handling="binary",
        needs_background=False,
        decision="vote",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        position_buckets=position_buckets(cells),
    )
