# SPDX-License-Identifier: Apache-2.0
"""The family of SCL on CANet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.checkpoints import read_network
from export.errors import ExportError
from export.family import EXTENT, Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.refinement import CHANNELS, ComparedFeatures
from export.methods.scaled import PhiFeatures, ScaledQuery, scale_names
from export.methods.scl_canet import (
    SclCanetDecode,
    SclCanetGuide,
    SclCanetMerge,
    SclCanetNetwork,
    SclCanetRefiningDecode,
    SclCanetScaledDecode,
)
from export.provenance import exporter_version
from export.scaled_specs import (
    COMPARED,
    FEATURES,
    IMAGE,
    LOGITS,
    NORMALISED,
    PLANES,
    SCALED,
    SUMMED_LOGITS,
)

WANTED = "an SCL checkpoint of CANet"

PASSES = 5
"""Of the official evaluation: the first mask, and four that see the one before them."""

MAX_PASSES = 20

WAY_BUCKETS = (1, 2, 3, 4, 6, 8, 16)
"""Each way of each shot is refined by itself, in maps of 1280 channels."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 10, 16)

_VECTORS = TensorSpec("vectors", (Free.WAYS, 2 * CHANNELS))
_SHOWN = TensorSpec("shown", (Free.WAYS,))
_VALIDITY = TensorSpec("validity", (Free.SHOTS,))
_STACKED = _VECTORS.stacked()
_TASK = (
    _STACKED,
    _SHOWN.stacked(),
    TensorSpec("agreement", (Free.SHOTS, Free.SHOTS, Free.WAYS)),
    _VALIDITY,
)


def scl_canet_checkpoint(path: Path) -> SclCanetNetwork:
    """Reads a state dict as the official training saves it.

    Raises:
        CheckpointError: The file is not one, or of another trunk than ResNet-50.
    """
    return read_network(SclCanetNetwork, path, wanted=WANTED)


def scl_canet_family(
    *,
    alias: str,
    network: SclCanetNetwork,
    provenance: Mapping[str, str],
    max_pixels: int,
    passes: int = PASSES,
    multi_scale: bool = True,
    max_batch: int = 4,
) -> Family:
    """Splits SCL on CANet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        provenance: For people.
        max_pixels: Most pixels of an image, which goes in at its own size.
        passes: Over each query; the first one has no mask before it.
        multi_scale: Whether to add up the query at 0.7, 1 and 1.3 times its size.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The number of passes is out of bounds.
    """
    if not 1 <= passes <= MAX_PASSES:
        raise ExportError(f"SCL makes 1 to {MAX_PASSES} passes, not {passes}.")
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(max_pixels, multi_scale),
        graphs=_scaled(network, passes) if multi_scale else _plain(network, passes),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"passes": str(passes), "scales": scale_names(multi_scale=multi_scale)},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _plain(network: SclCanetNetwork, passes: int) -> tuple[Graph, ...]:
    decode = Graph("decode", SclCanetDecode(network), (COMPARED, *_TASK), (LOGITS,))
    if passes > 1:
        refining = SclCanetRefiningDecode(network, passes)
        decode = Graph("decode", refining, (COMPARED, *_TASK, EXTENT), (LOGITS,))
    return (
        Graph("features", PhiFeatures(network), (IMAGE,), (FEATURES,)),
        Graph("query_features", ComparedFeatures(network.comparing), (FEATURES,), (COMPARED,)),
        Graph("guide", SclCanetGuide(network), (FEATURES, PLANES), (_VECTORS, _SHOWN)),
        _merge(network),
        decode,
    )


def _scaled(network: SclCanetNetwork, passes: int) -> tuple[Graph, ...]:
    maps = (FEATURES, NORMALISED)
    decode = SclCanetScaledDecode(network, passes)
    return (
        Graph("features", PhiFeatures(network, image=True), (IMAGE,), maps),
        Graph("query_features", ScaledQuery(network, network.comparing), maps, SCALED),
        Graph("guide", SclCanetGuide(network), (FEATURES, PLANES), (_VECTORS, _SHOWN)),
        _merge(network),
        Graph("decode", decode, (*SCALED, *_TASK, EXTENT), (SUMMED_LOGITS,)),
    )


def _merge(network: SclCanetNetwork) -> Graph:
    taken = (_STACKED, FEATURES, PLANES, _VALIDITY)
    agreement = TensorSpec("agreement", (Free.SHOTS, Free.WAYS))
    return Graph("merge", SclCanetMerge(network), taken, (agreement,))


def _serving(max_pixels: int, multi_scale: bool) -> Serving:
    raised = {"op": "resize", "mode": "half_pixel", "target": "input"}
    last = {"op": "resize", "mode": "half_pixel", "target": "output"}
    stack = {"merge": "stack", "validity": "validity"}
    return Serving(
        method="scl-canet",
        input_size=None,
        guidance=(
            {"name": "vectors", "ways": "ways", **stack},
            {"name": "shown", "ways": "ways", **stack},
            {"name": "agreement", "ways": "ways", "merge": "graph", "validity": "validity"},
        ),
        # Scales are added up at the image's size.
        post_chain=(last,) if multi_scale else (raised, last),
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        max_pixels=max_pixels,
        merge_inputs=("vectors",),
        merge_judged=("features", "planes"),
    )
