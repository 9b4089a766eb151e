# SPDX-License-Identifier: Apache-2.0
"""The family of PMMs and RPMMs, and the checkpoints that it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path

from export.checkpoints import fill_network, read_checkpoint
from export.errors import CheckpointError
from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.methods.pmms import (
    PmmsDecode,
    PmmsFeatures,
    PmmsGuide,
    PmmsMerge,
    PmmsNetwork,
    PmmsQuery,
)
from export.provenance import exporter_version
from export.sizes import feature_shape

WANTED = "a PMMs checkpoint"

START_SEED = 1385
"""Of the directions that mixtures are searched from, which the checkpoints do not hold."""

WAY_BUCKETS = (1, 2, 4, 8, 16)
"""Each way is refined by itself, in maps of 1280 channels."""

SHOT_BUCKETS = (1, 2, 4, 8, 16)
"""Numbers of shots that a mixture is searched in together: 3.8 MB of features each at 481x481."""

POST_CHAIN = (
    {"op": "resize", "mode": "half_pixel", "target": "original"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


class Stages(StrEnum):
    """What the three stages of RPMMs come to."""

    #: The last one's margins: the official code for one shot.
    LAST = "last"
    #: The mean of their probabilities: the official code for five shots.
    MEAN = "mean"


def pmms_checkpoint(path: Path) -> PmmsNetwork:
    """Reads a checkpoint of the official training (`step_<n>.pth.tar`, `best.pth.tar`).

    Its keys tell whether it is PMMs or RPMMs.

    Raises:
        CheckpointError: The file is neither, or of another trunk than ResNet-50.
    """
    tensors = read_checkpoint(path)
    if any(key.startswith("model_backbone.") for key in tensors):
        raise CheckpointError(
            f"{path} is of PMMs on VGG-16; only PMMs and RPMMs on ResNet-50 can be exported."
        )
    build = partial(PmmsNetwork, recurrent="layer55.1.weight" not in tensors)
    return fill_network(build, tensors, path=path, wanted=WANTED)


def pmms_family(
    *,
    alias: str,
    network: PmmsNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    stages: Stages = Stages.LAST,
    start_seed: int = START_SEED,
    max_batch: int = 8,
) -> Family:
    """Splits PMMs or RPMMs into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input.
        provenance: For people.
        stages: Of RPMMs; PMMs has one stage.
        start_seed: Of the directions that mixtures are searched from.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The size is out of bounds.
    """
    channels, *grid = feature_shape(network.phi, size)
    rows, columns = grid
    features = TensorSpec("features", (channels, rows, columns))
    planes = TensorSpec("planes", (Free.PLANES, *size))
    cells = [TensorSpec(name, (Free.WAYS, rows, columns)) for name in ("foreground", "background")]
    directions = (Free.WAYS, sum(network.mixtures), channels)
    mixtures = [TensorSpec(f"{cell.name}_mixtures", directions) for cell in cells]
    query = (TensorSpec("query", features.dims), TensorSpec("compared", features.dims))
    summed = network.recurrent and stages is Stages.MEAN
    merge = PmmsMerge(network.mixtures, start_seed)
    decode = PmmsDecode(network, (rows, columns), summed=summed)
    digest = digest_of_tensors(network.state_dict())
    return Family(
        alias=alias,
        serving=_serving(size, summed=summed),
        graphs=(
            Graph(
                "features",
                PmmsFeatures(network),
                (TensorSpec("image", (*size, 3), "uint8"),),
                (features,),
            ),
            Graph("query_features", PmmsQuery(network), (features,), query),
            Graph("guide", PmmsGuide(size, (rows, columns)), (features, planes), tuple(cells)),
            Graph("merge", merge, _stacked(features, *cells), tuple(mixtures)),
            Graph(
                "decode",
                decode,
                (*query, *mixtures),
                (TensorSpec("logits", (Free.WAYS, 1, rows, columns)),),
            ),
        ),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"start_seed": str(start_seed), "stages": stages.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "network": "RPMMs" if network.recurrent else "PMMs",
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _stacked(*specs: TensorSpec) -> tuple[TensorSpec, ...]:
    """What `merge` takes of shots: their tensors along a first inner axis, and which are real."""
    shots = [spec.stacked() for spec in specs]
    return (*shots, TensorSpec("validity", (Free.SHOTS,)))


def _serving(size: tuple[int, int], *, summed: bool) -> Serving:
    return Serving(
        method="pmms",
        input_size=size,
        guidance=tuple(
            {"name": f"{cells}_mixtures", "ways": "ways", "merge": "graph"}
            for cells in ("foreground", "background")
        ),
        merge_inputs=("features", "foreground", "background"),
        post_chain=POST_CHAIN,
        class_handling="binary",
        needs_background=True,
        decision="margin",
        score="linear" if summed else "sigmoid",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
    )
