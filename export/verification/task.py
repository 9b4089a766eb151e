# SPDX-License-Identifier: Apache-2.0
"""One episode of any method, graph by graph: shots, their merged guidance, logits of the query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.family import EXTENT, Ensemble, Family, Graph
from export.merging import merge_feeds
from export.verification.comparing import worst
from export.verification.stored import Arrays

Array = NDArray[Any]

Runner = Callable[[str, Arrays], dict[str, Array]]
"""Runs a graph by role on tensors by name, batch first."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What goes in.

    Attributes:
        supports: Image [H, W, 3] and planes [1 + ways, H, W] of each shot, at the network's size.
        query: Image [H, W, 3].
        extent: Rows and columns from the top left that each image covers; None for all.
    """

    supports: Sequence[tuple[Array, Array]]
    query: Array
    extent: tuple[int, int] | None = None

    def told(self, family: Family, role: str) -> Arrays:
        """The tensor `extent` for a graph or ensemble that takes it."""
        parts: tuple[Graph | Ensemble, ...] = (*family.graphs, *family.ensembles)
        if not any(part.role == role and EXTENT in part.inputs for part in parts):
            return {}
        return {EXTENT.name: np.array([self.extent or self.query.shape[:2]], np.float32)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it came to; no tensor has a batch dimension.

    Attributes:
        features: What `features` made of the query.
        maps: What `decode` took of the query.
        shots: What `guide` made of each shot.
        guidance: Of the task.
        logits: float32 [P, S, h, w].
    """

    features: Arrays
    maps: Arrays
    shots: Sequence[Arrays]
    guidance: Arrays
    logits: Array


def run_episode(episode: Episode, family: Family, run: Runner) -> Outcome:
    """Runs the graphs one by one."""
    told = episode.told(family, "guide")
    shown = [_encode(image, planes, told, run) for image, planes in episode.supports]
    shots = [guided for _, guided in shown]
    guidance = merged(shots, family) | _merged_by_graph(shown, family, run)
    features = run("features", {"image": episode.query[None]})
    maps: Arrays = features
    if "query_features" in family.roles:
        maps = run("query_features", {**features, **episode.told(family, "query_features")})
    told = episode.told(family, "decode")
    logits = run("decode", {**maps, **_batched(guidance), **told})["logits"]
    return Outcome(_unbatched(features), _unbatched(maps), shots, guidance, logits[0])


def compare_ensembles(
    episode: Episode, family: Family, run: Runner, outcome: Outcome
) -> Iterator[tuple[str, float]]:
    """Runs the pair of ensembles on the first shot and on the query.

    Yields:
        What was compared, and its largest difference from the graphs run one by one.
    """
    image, planes = episode.supports[0]
    told = episode.told(family, "support_encoder")
    encoded = run("support_encoder", {"image": image[None], "planes": planes[None], **told})
    for name, values in encoded.items():
        yield f"support_encoder, {name}", worst(values[0], outcome.shots[0][name])
    told = episode.told(family, "query_decoder")
    query = {"image": episode.query[None], **_batched(outcome.guidance), **told}
    yield "query_decoder, logits", worst(run("query_decoder", query)["logits"][0], outcome.logits)


def merged(shots: Sequence[Arrays], family: Family) -> dict[str, Array]:
    """Merges shots by the rule of each guidance tensor (docs/repository.md, "Merge rules").

    What the `merge` graph makes is left out.
    """
    guidance = {}
    for tensor in family.serving.guidance:
        if tensor["merge"] == "graph":
            continue
        values = _stacked([shot[tensor["name"]] for shot in shots])
        if tensor["merge"] == "stack":
            guidance[tensor["validity"]] = np.ones(len(shots), np.float32)
        elif tensor["merge"] == "mean":
            values = values.mean(axis=0)
        else:
            values = _weighted_mean(values, np.stack([shot[tensor["weight"]] for shot in shots]))
        guidance[tensor["name"]] = values
    return guidance


def _stacked(values: Sequence[Array]) -> Array:
    """Shots along a new axis; those with fewer stored positions end in zeros."""
    shape = np.max([value.shape for value in values], axis=0)
    rooms = [np.subtract(shape, value.shape) for value in values]
    padded = [
        np.pad(value, [(0, extra) for extra in room])
        for value, room in zip(values, rooms, strict=True)
    ]
    return np.stack(padded)


def _weighted_mean(values: Array, weights: Array) -> Array:
    """sum(weight * row) / sum(weight) over axis 0, zero where the weights add up to zero."""
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    total = weights.sum(axis=0)
    mean: Array = (values * weights).sum(axis=0) / np.where(total > 0, total, 1)
    return mean.astype(np.float32)


def _merged_by_graph(
    shown: Sequence[tuple[Arrays, Arrays]], family: Family, run: Runner
) -> dict[str, Array]:
    """What the `merge` graph makes of the shots, if there is one; see `_encode`."""
    serving = family.serving
    if "merge" not in family.roles:
        return {}
    shots = [{**taken, **guided} for taken, guided in shown]
    feeds = partial(merge_feeds, serving.merge_inputs, shots, serving.merge_judged)
    if serving.merge_judged:
        rows = [_unbatched(run("merge", feeds(shot))) for shot in shots]
        made = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    else:
        made = _unbatched(run("merge", feeds({})))
    for tensor in serving.guidance:
        if tensor["merge"] == "graph" and "validity" in tensor:
            made[tensor["validity"]] = np.ones(len(shots), np.float32)
    return made


def _encode(image: Array, planes: Array, told: Arrays, run: Runner) -> tuple[Arrays, Arrays]:
    """What `guide` takes of a shot, and what it makes of it."""
    taken = {**run("features", {"image": image[None]}), "planes": planes[None], **told}
    return _unbatched(taken), _unbatched(run("guide", taken))


def _batched(tensors: Arrays) -> dict[str, Array]:
    return {name: values[None] for name, values in tensors.items()}


def _unbatched(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: values[0] for name, values in tensors.items()}
