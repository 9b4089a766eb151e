# SPDX-License-Identifier: Apache-2.0
"""The family of SCL on CANet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.checkpoints import read_network
from export.errors import ExportError
from export.family import EXTENT, Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.refinement import CHANNELS
from export.methods.scl_canet import (
    SclCanetDecode,
    SclCanetFeatures,
    SclCanetGuide,
    SclCanetMerge,
    SclCanetNetwork,
    SclCanetQuery,
    SclCanetRefiningDecode,
    SclCanetScaledDecode,
    SclCanetScaledQuery,
)
from export.provenance import exporter_version

WANTED = "an SCL checkpoint of CANet"

PASSES = 5
"""Of the official evaluation: the first mask, and four that see the one before them."""

MAX_PASSES = 20

WAY_BUCKETS = (1, 2, 3, 4, 6, 8, 16)
"""Each way of each shot is refined by itself, in maps of 1280 channels."""

SHOT_BUCKETS = (1, 2, 3, 4, 5, 8, 10, 16)

_GRID = (Free.ROWS, Free.COLUMNS)
_FEATURES = TensorSpec("features", (CHANNELS, *_GRID))
_NORMALISED = TensorSpec("normalised", (3, Free.HEIGHT, Free.WIDTH))
_COMPARED = TensorSpec("compared", (CHANNELS, *_GRID))
_SCALED = (
    TensorSpec("smaller", (CHANNELS, Free.SMALLER_ROWS, Free.SMALLER_COLUMNS)),
    _COMPARED,
    TensorSpec("larger", (CHANNELS, Free.LARGER_ROWS, Free.LARGER_COLUMNS)),
    TensorSpec("rows", (Free.HEIGHT,)),
    TensorSpec("columns", (Free.WIDTH,)),
)
_PLANES = TensorSpec("planes", (Free.PLANES, Free.HEIGHT, Free.WIDTH))
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
        settings={"passes": str(passes), "scales": "0.7,1,1.3" if multi_scale else "1"},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _plain(network: SclCanetNetwork, passes: int) -> tuple[Graph, ...]:
    image = TensorSpec("image", (Free.HEIGHT, Free.WIDTH, 3), "uint8")
    logits = TensorSpec("logits", (Free.WAYS, 1, *_GRID))
    decode = Graph("decode", SclCanetDecode(network), (_COMPARED, *_TASK), (logits,))
    if passes > 1:
        refining = SclCanetRefiningDecode(network, passes)
        decode = Graph("decode", refining, (_COMPARED, *_TASK, EXTENT), (logits,))
    return (
        Graph("features", SclCanetFeatures(network, image=False), (image,), (_FEATURES,)),
        Graph("query_features", SclCanetQuery(network), (_FEATURES,), (_COMPARED,)),
        Graph("guide", SclCanetGuide(network), (_FEATURES, _PLANES), (_VECTORS, _SHOWN)),
        _merge(network),
        decode,
    )


def _scaled(network: SclCanetNetwork, passes: int) -> tuple[Graph, ...]:
    image = TensorSpec("image", (Free.HEIGHT, Free.WIDTH, 3), "uint8")
    maps = (_FEATURES, _NORMALISED)
    logits = TensorSpec("logits", (Free.WAYS, 1, Free.HEIGHT, Free.WIDTH))
    decode = SclCanetScaledDecode(network, passes)
    return (
        Graph("features", SclCanetFeatures(network, image=True), (image,), maps),
        Graph("query_features", SclCanetScaledQuery(network), maps, _SCALED),
        Graph("guide", SclCanetGuide(network), (_FEATURES, _PLANES), (_VECTORS, _SHOWN)),
        _merge(network),
        Graph("decode", decode, (*_SCALED, *_TASK, EXTENT), (logits,)),
    )


def _merge(network: SclCanetNetwork) -> Graph:
    taken = (_STACKED, _FEATURES, _PLANES, _VALIDITY)
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
