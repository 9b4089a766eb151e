# SPDX-License-Identifier: Apache-2.0
"""The family of CANet, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from torch import nn

from export.checkpoints import read_network
from export.errors import ExportError
from export.family import (
    EXTENT,
    NATIVE_PIXELS,
    Family,
    Free,
    Graph,
    Serving,
    TensorSpec,
    digest_of_tensors,
)
from export.methods.canet import (
    CanetDecode,
    CanetGuide,
    CanetNetwork,
    CanetQuery,
    CanetScaledDecode,
    CanetShotsDecode,
)
from export.methods.refinement import CHANNELS, convolution_at
from export.methods.scaled import PhiFeatures, ScaledQuery, scale_names
from export.provenance import exporter_version
from export.scaled_specs import NORMALISED, SCALED, SUMMED_LOGITS, image_specs
from export.sizes import feature_shape

WANTED = "a CANet checkpoint"

ITERATIONS = 5
"""Passes: the first one and the paper's four refinements; the most that the official code runs."""

MAX_ITERATIONS = 20

WAY_BUCKETS = (1, 2, 4, 8, 16, 32)
"""Each way is refined by itself, in maps of 1280 channels."""

SHOT_BUCKETS = (1, 2, 4, 8, 16)
"""Numbers of shots that averaged probabilities are padded to: each shot is refined by itself."""

MAX_BATCH = 8

NATIVE_WAY_BUCKETS = (1, 2, 3, 4, 6, 8)
"""Fewer for images of their own size: at a million pixels the pyramid's maps of a single way take
84 MB, and 142 MB at scale 1.3; at 321x321 they take 9 MB."""

NATIVE_SHOT_BUCKETS = (1, 2, 3, 4, 5)

NATIVE_MAX_BATCH = 2

_RAISED = {"op": "resize", "mode": "align_corners", "target": "input"}
_LAST = {"op": "resize", "mode": "half_pixel", "target": "output"}

_VECTORS = TensorSpec("vectors", (Free.WAYS, CHANNELS))
_WEIGHTS = TensorSpec("weights", (Free.WAYS,))
_VALIDITY = TensorSpec("validity", (Free.SHOTS,))


class ShotMerge(StrEnum):
    """What several shots come to; the released network was trained for one."""

    #: The mean of their vectors: one pass per query.
    MEAN = "mean"
    #: A run per shot, and the mean of their probabilities ("mask average" in the paper).
    PROBABILITY = "probability"


def canet_checkpoint(path: Path) -> CanetNetwork:
    """Reads a checkpoint of the official training (`best.pth`).

    Raises:
        CheckpointError: The file is not one, or of another trunk than ResNet-50.
    """
    return read_network(CanetNetwork, path, wanted=WANTED)


def canet_family(
    *,
    alias: str,
    network: CanetNetwork,
    size: tuple[int, int] | None,
    provenance: Mapping[str, str],
    iterations: int = ITERATIONS,
    merge: ShotMerge = ShotMerge.MEAN,
    multi_scale: bool = False,
    max_pixels: int = NATIVE_PIXELS,
    max_batch: int | None = None,
) -> Family:
    """Splits CANet into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input; None for the image's own size.
        provenance: For people.
        iterations: Passes over each query.
        merge: What several shots come to.
        multi_scale: Whether to average the query at 0.7, 1 and 1.3 times its own size.
        max_pixels: Most pixels of an image that goes in at its own size.
        max_batch: Most queries that run together; None for `MAX_BATCH`, or `NATIVE_MAX_BATCH` for
            images of their own size.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: Size or number of iterations is out of bounds, or several scales are asked of
            an input of fixed size.
    """
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ExportError(f"CANet makes 1 to {MAX_ITERATIONS} iterations, not {iterations}.")
    if multi_scale and size is not None:
        raise ExportError("Several scales are those of an image's own size: give --size native.")
    settings = _Settings(iterations, merge, multi_scale)
    digest = digest_of_tensors(network.state_dict())
    usual_batch = NATIVE_MAX_BATCH if size is None else MAX_BATCH
    return Family(
        alias=alias,
        serving=_serving(size, settings, max_pixels),
        graphs=_graphs(network, size, settings),
        weights_digest=digest,
        max_batch=usual_batch if max_batch is None else max_batch,
        settings={"iterations": str(iterations), "scales": scale_names(multi_scale=multi_scale)},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """See `canet_family`."""

    iterations: int
    merge: ShotMerge
    multi_scale: bool


def _graphs(
    network: CanetNetwork, size: tuple[int, int] | None, settings: _Settings
) -> tuple[Graph, ...]:
    fixed = None
    if size is not None:
        rows, columns = feature_shape(network.phi, size)[1:]
        fixed = (size, (rows, columns))
    image, planes, features, compared = image_specs(*(fixed or (None, None)))
    maps: tuple[TensorSpec, ...] = (features,)
    seen: tuple[TensorSpec, ...] = (compared,)
    query: nn.Module = CanetQuery(network)
    if settings.multi_scale:
        maps, seen = (features, NORMALISED), SCALED
        query = ScaledQuery(network, convolution_at(network.layer55))
    return (
        Graph("features", PhiFeatures(network, image=settings.multi_scale), (image,), maps),
        Graph("query_features", query, maps, seen),
        Graph("guide", CanetGuide(fixed), (features, planes), (_VECTORS, _WEIGHTS)),
        _decode(network, settings, fixed[1] if fixed else None, seen),
    )


def _decode(
    network: CanetNetwork,
    settings: _Settings,
    grid: tuple[int, int] | None,
    seen: tuple[TensorSpec, ...],
) -> Graph:
    mean, iterations = settings.merge is ShotMerge.MEAN, settings.iterations
    vectors = _VECTORS if mean else _VECTORS.stacked()
    validity = () if mean else (_VALIDITY,)
    if settings.multi_scale:
        scaled = CanetScaledDecode(network, iterations)
        return Graph("decode", scaled, (*seen, vectors, EXTENT, *validity), (SUMMED_LOGITS,))
    plain = CanetDecode if mean else CanetShotsDecode
    logits = TensorSpec("logits", (Free.WAYS, 1, *seen[0].dims[1:]))
    return Graph("decode", plain(network, grid, iterations), (*seen, vectors, *validity), (logits,))


def _serving(size: tuple[int, int] | None, settings: _Settings, max_pixels: int) -> Serving:
    mean = settings.merge is ShotMerge.MEAN
    rule = {"merge": "weighted_mean", "weight": "weights"}
    if not mean:
        rule = {"merge": "stack", "validity": "validity"}
    ways, shots = (WAY_BUCKETS, SHOT_BUCKETS)
    if size is None:
        ways, shots = (NATIVE_WAY_BUCKETS, NATIVE_SHOT_BUCKETS)
    return Serving(
        method="canet",
        input_size=size,
        guidance=({"name": "vectors", "ways": "ways", **rule},),
        # Scales are averaged at the image's size.
        post_chain=(_LAST,) if settings.multi_scale else (_RAISED, _LAST),
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="sigmoid" if mean else "linear",
        way_buckets=ways,
        shot_buckets=(1,) if mean else shots,
        max_pixels=max_pixels,
    )
