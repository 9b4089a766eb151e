# SPDX-License-Identifier: Apache-2.0
"""The family of MM-Former."""

from __future__ import annotations

from collections.abc import Mapping

from export.family import Family, Free, Graph, Serving, TensorSpec, digest_of_tensors
from export.letterboxed import position_buckets
from export.methods.mmformer.graphs import (
    AveragedVectors,
    Grids,
    MmformerDecode,
    MmformerFeatures,
    MmformerGuide,
    MmformerQuery,
    grids_of,
)
from export.methods.mmformer.mask_decoder import PROPOSALS
from export.methods.mmformer.matching import CELL_NUMBERS, source_grid
from export.methods.mmformer.network import LEVELS, MmformerNetwork
from export.methods.mmformer.parts import WIDTH
from export.provenance import exporter_version
from export.sizes import feature_shape

SIDE_MULTIPLE = 32
"""What the official code pads images to; an exported size needs no padding."""

WAY_BUCKETS = (1, 2, 4, 8)
MAX_BATCH = 4
SHOT_BUCKETS = (1, 2, 3, 5, 8, 10)
"""Each shot of each way is aligned with the query by itself: 40 of them take about a gigabyte."""

_POSITIONS = (Free.COARSE_POSITIONS, Free.MIDDLE_POSITIONS, Free.POSITIONS)

POST_CHAIN = (
    {"op": "resize", "mode": "half_pixel", "target": "input"},
    {"op": "resize", "mode": "half_pixel", "target": "output"},
)


def mmformer_family(
    *,
    alias: str,
    network: MmformerNetwork,
    size: tuple[int, int],
    provenance: Mapping[str, str],
    merge: AveragedVectors = AveragedVectors.BOTH,
    max_batch: int = MAX_BATCH,
) -> Family:
    """Splits MM-Former into graphs.

    Args:
        alias: What tasks name.
        network: With its weights, in evaluation mode.
        size: Rows and columns of the network's input.
        provenance: For people.
        merge: Of which vectors several shots come to a mean.
        max_batch: Most queries that run together.

    Returns:
        The family; its digest is that of the network's tensors and the settings.

    Raises:
        ExportError: The size is out of bounds.
    """
    feature_shape(lambda images: network.backbone(images)[0], size, SIDE_MULTIPLE)
    digest = digest_of_tensors(network.state_dict())
    grids = grids_of(network, size)
    return Family(
        alias=alias,
        serving=_serving(size, max(rows * columns for rows, columns in grids.matching)),
        graphs=_graphs(network, grids, merge),
        weights_digest=digest,
        max_batch=max_batch,
        settings={"variant": network.variant.value, "merge": merge.value},
        provenance={
            "exporter": exporter_version(),
            "tensors_sha256": digest,
            "code_licence": "none stated by its authors",
            "weights_licence": "not stated by their authors",
            **provenance,
        },
    )


def _graphs(network: MmformerNetwork, grids: Grids, merge: AveragedVectors) -> tuple[Graph, ...]:
    image = TensorSpec("image", (*grids.size, 3), "uint8")
    matching = _maps("matching", grids.matching)
    features = (
        *matching,
        *_maps("segmenting", grids.segmenting),
        TensorSpec("finest", (WIDTH, *grids.finest)),
    )
    tokens = tuple(
        TensorSpec(f"tokens_{level}", (rows * columns, WIDTH))
        for level, (rows, columns) in enumerate(grids.matching)
    )
    query = (*tokens, TensorSpec("proposals", (PROPOSALS, *grids.finest)))
    planes = TensorSpec("planes", (Free.PLANES, *grids.size))
    guidance = _guidance(grids)
    stacked = tuple(spec.stacked() for spec in guidance)
    validity = TensorSpec("validity", (Free.SHOTS,))
    logits = TensorSpec("logits", (Free.WAYS, 1, *grids.finest))
    decode = MmformerDecode(network, grids, merge)
    return (
        Graph("features", MmformerFeatures(network), (image,), features, traced=True),
        Graph(
            "query_features",
            MmformerQuery(network, grids),
            features,
            query,
            traced=True,
            # Its attention masks are comparisons with a threshold of logits.
            tolerance=1e-3,
        ),
        Graph("guide", MmformerGuide(grids), (*matching, planes), guidance, traced=True),
        Graph("decode", decode, (*query, *stacked, validity), (logits,), traced=True),
    )


def _maps(name: str, grids: tuple[tuple[int, int], ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"{name}_{level}", (WIDTH, *grid)) for level, grid in enumerate(grids))


def _guidance(grids: Grids) -> tuple[TensorSpec, ...]:
    """What `guide` returns, in order."""
    ways, half = Free.WAYS, "float16"
    cells, sources, masks = [], [], []
    for level, (rows, columns) in enumerate(grids.matching):
        small_rows, small_columns = source_grid((rows, columns))
        small = small_rows * small_columns
        cells.append(TensorSpec(f"cells_{level}", (ways, _POSITIONS[level], CELL_NUMBERS), half))
        sources.append(TensorSpec(f"sources_{level}", (ways, small, WIDTH), half))
        masks.append(TensorSpec(f"masks_{level}", (ways, rows, columns), half))
    return (*cells, *sources, *masks, TensorSpec("shown", (ways,)))


def _serving(size: tuple[int, int], most_cells: int) -> Serving:
    names = [f"{name}_{level}" for name in ("cells", "sources", "masks") for level in range(LEVELS)]
    rule = {"ways": "ways", "merge": "stack", "validity": "validity"}
    stored = {"positions": True}
    return Serving(
        method="mmformer",
        input_size=size,
        guidance=tuple(
            {"name": name, **rule, **(stored if name.startswith("cells") else {})}
            for name in (*names, "shown")
        ),
        post_chain=POST_CHAIN,
        mask_resize="torch_nearest",
        class_handling="binary",
        needs_background=False,
        decision="margin",
        score="linear",
        way_buckets=WAY_BUCKETS,
        shot_buckets=SHOT_BUCKETS,
        position_buckets=position_buckets(most_cells),
    )
