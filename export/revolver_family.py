# SPDX-License-Identifier: Apache-2.0
"""The family of a guided network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from export.errors import ExportError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.revolver import (
    STRIDE,
    AnnotatingDecode,
    AnnotatingGuide,
    GuidedDecode,
    GuidedFeatures,
    GuidedNetwork,
    GuidedQuery,
    SharedGuide,
    ShotMean,
    UnsharedGuide,
)
from export.methods.revolver_early import (
    CHANNELS,
    EarlyFeatures,
    EarlyGuide,
    EarlyNetwork,
    EarlyQuery,
)
from export.provenance import exporter_version
from export.revolver_source import model_name, trained_tensors

LATE_WAYS = (1, 2, 4, 8, 16, 32, 64)
EARLY_WAYS = (1, 2, 4)
"""Numbers of ways that are padded to; early fusion encodes the whole image once per way."""

_SIZE = (Free.HEIGHT, Free.WIDTH)
_GRID = (Free.ROWS, Free.COLUMNS)
_IMAGE = TensorSpec("image", (*_SIZE, 3), "uint8")
_PLANES = TensorSpec("planes", (Free.PLANES, *_SIZE))

_WEIGHTS_OF: Mapping[ShotMean, Mapping[str, str]] = {
    ShotMean.ALL: {"guidance": "weights"},
    ShotMean.ANNOTATING: {"objects": "object_weights", "backgrounds": "background_weights"},
}
_DECODES = {ShotMean.ALL: GuidedDecode, ShotMean.ANNOTATING: AnnotatingDecode}

POST_CHAIN = (
    {"op": "deconvolve", "factor": STRIDE},
    {"op": "crop", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


def revolver_family(
    *,
    alias: str,
    network: GuidedNetwork | EarlyNetwork,
    provenance: Mapping[str, str],
    max_pixels: int,
    mean: ShotMean = ShotMean.ALL,
    max_batch: int = 8,
) -> Family:
    """Splits a guided network into graphs.

    Args:
        alias: What tasks name.
        network: With its weights.
        provenance: For people.
        max_pixels: Most pixels of an image, which goes in at its own size.
        mean: Over which shots an unshared head's vectors are averaged.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: ANNOTATING is asked of another network than `cofeat-late-lite-unshared`, the
            only one that has the choice.
    """
    unshared = isinstance(network, GuidedNetwork) and not network.model.shared
    if mean is ShotMean.ANNOTATING and not unshared:
        raise ExportError(
            f"{model_name(network)} has no choice of the mean: leave out --mean annotating, "
            "which is for cofeat-late-lite-unshared."
        )
    digest = digest_of_tensors(trained_tensors(network))
    return Family(
        alias=alias,
        serving=_serving(network, max_pixels, mean),
        graphs=_graphs(network, mean),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"mean": mean.value} if unshared else {},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "model": model_name(network),
            **provenance,
        },
    )


def _graphs(network: GuidedNetwork | EarlyNetwork, mean: ShotMean) -> tuple[Graph, ...]:
    if isinstance(network, GuidedNetwork):
        return _late_graphs(network, mean)
    return _early_graphs(network)


def _late_graphs(network: GuidedNetwork, mean: ShotMean) -> tuple[Graph, ...]:
    model = network.model
    rows = Free.PLANES if model.shared else Free.WAYS
    features = TensorSpec("features", (model.channels, *_GRID))
    projected = TensorSpec("projected", (model.hidden, *_GRID))
    logits = TensorSpec("logits", (rows, 1, *_GRID))
    guidance = [TensorSpec(name, (rows, model.hidden)) for name in _WEIGHTS_OF[mean]]
    weights = [TensorSpec(name, (rows,)) for name in _WEIGHTS_OF[mean].values()]
    made = chain.from_iterable(zip(guidance, weights, strict=True))
    guide, decode = _guide(network, mean), _DECODES[mean](network.head)
    return (
        Graph("features", GuidedFeatures(network), (_IMAGE,), (features,)),
        Graph("query_features", GuidedQuery(network), (features,), (projected,)),
        Graph("guide", guide, (features, _PLANES), tuple(made)),
        Graph("decode", decode, (projected, *guidance), (logits,)),
    )


def _guide(network: GuidedNetwork, mean: ShotMean) -> SharedGuide | UnsharedGuide:
    if network.model.shared:
        return SharedGuide(network)
    return AnnotatingGuide(network) if mean is ShotMean.ANNOTATING else UnsharedGuide(network)


def _early_graphs(network: EarlyNetwork) -> tuple[Graph, ...]:
    features = TensorSpec("features", (3, *_SIZE))
    projected = TensorSpec("projected", (CHANNELS, *_GRID))
    guidance = TensorSpec("guidance", (Free.WAYS, CHANNELS))
    weights = TensorSpec("weights", (Free.WAYS,))
    logits = TensorSpec("logits", (Free.WAYS, 1, *_GRID))
    return (
        Graph("features", EarlyFeatures(), (_IMAGE,), (features,)),
        Graph("query_features", EarlyQuery(network), (features,), (projected,)),
        Graph("guide", EarlyGuide(network), (features, _PLANES), (guidance, weights)),
        Graph("decode", GuidedDecode(network.head), (projected, guidance), (logits,)),
    )


def _serving(network: GuidedNetwork | EarlyNetwork, max_pixels: int, mean: ShotMean) -> Serving:
    shared = isinstance(network, GuidedNetwork) and network.model.shared
    ways = "background_and_ways" if shared else "ways"
    guidance = tuple(
        {"name": name, "merge": "weighted_mean", "ways": ways, "weight": weight}
        for name, weight in _WEIGHTS_OF[mean].items()
    )
    return Serving(
        method="revolver",
        input_size=None,
        guidance=guidance,
        post_chain=POST_CHAIN,
        class_handling="multiway" if shared else "binary",
        # An annotation that is missing everywhere is nothing new: training has met it.
        needs_background=False,
        void="unknown",
        decision="argmax" if shared else "margin",
        score="softmax" if shared else "sigmoid",
        way_buckets=EARLY_WAYS if isinstance(network, EarlyNetwork) else LATE_WAYS,
        max_pixels=max_pixels,
    )
