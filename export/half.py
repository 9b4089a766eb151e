# SPDX-License-Identifier: Apache-2.0
"""Families whose feature graphs compute in half precision, where that keeps their masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.derived import Derivation, RepositoryFamily, read_family, write_derived
from export.errors import ExportError
from export.graphs import OnnxGraph
from export.half_graph import emulated, is_weighted, to_half
from export.merging import merge_feeds
from export.repository import Written

Arrays = Mapping[str, NDArray[Any]]

#: `guide` adds up whole planes, whose sums float16 cannot hold, and `decode` compares what differs
#: little.
HALF_ROLES: Final = ("features", "query_features")

FEATURE_TOLERANCE: Final = 5e-3
"""Largest error of a feature map, relative to its largest value."""

LOGIT_TOLERANCE: Final = 1e-2
"""Largest error of a logit, relative to the largest one."""

DECISION_TOLERANCE: Final = 0.01
"""Largest share of the cells of `logits` where another class wins."""

EPISODES: Final = 2
"""Seeded episodes that are compared."""

_NATIVE_SIDE: Final = (224, 288)
"""Rows and columns of the images where the network takes any size."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near half precision comes to float32.

    Attributes:
        quantity: What was compared.
        error: The worst of all episodes; not finite if a number left float16's range.
        tolerance: What is allowed.
    """

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return bool(self.error <= self.tolerance)


@dataclass(frozen=True, slots=True)
class Halved:
    """A family in half precision.

    Attributes:
        written: What became of it.
        agreements: How near it is to the family that it was made from.
    """

    written: Written
    agreements: Sequence[Agreement]


class ParityError(ExportError):
    """Half precision changes more than is allowed."""


def halve(
    root: Path,
    name: str,
    *,
    out: Path | None = None,
    alias: str = "",
    force: bool = False,
    created: datetime | None = None,
    report: Callable[[list[Agreement]], object] = lambda agreements: None,
) -> Halved:
    """Makes a family whose `features` and `query_features` hold and compute float16.

    Their inputs and outputs stay float32, as do `guide` and `decode`. Nothing is written unless
    both families agree on seeded episodes, see `compare`.

    Args:
        root: The repository that holds the family.
        name: Of the family, or its alias.
        out: The repository to write to; the same if None.
        alias: What tasks call the new model; as before if empty.
        force: Whether to replace the new family if it is there already.
        created: When it is made; now if None.
        report: Hears how near they are, whatever follows from it.

    Raises:
        ParityError: They do not agree.
        ExportError: There is no such family, or it has no form in half precision.
        RepositoryWriteError: The file system refuses; the repository is as it was.
    """
    family = read_family(root, name)
    full = {role: family.graph(role) for role in HALF_ROLES if role in family.configs}
    halves = {role: to_half(graph) for role, graph in full.items() if is_weighted(graph)}
    if not halves:
        raise ExportError(f"{family.name} has no weights that half precision could halve.")
    agreements = compare(family, halves)
    report(agreements)
    failed = [one for one in agreements if not one.passed]
    if failed:
        raise ParityError(
            f"{family.name} is not written in half precision: "
            + ", ".join(
                f"{one.quantity} differs by {one.error:.1e} where {one.tolerance:.0e} is allowed"
                for one in failed
            )
            + "."
        )
    derivation = Derivation(
        settings={"precision": "float16 in " + ", ".join(halves)},
        file=lambda role: halves[role] if role in halves else family.graph(role),
    )
    written = write_derived(
        family, derivation, out or root, alias=alias, force=force, created=created
    )
    return Halved(written, agreements)


def compare(family: RepositoryFamily, halves: Mapping[str, bytes]) -> list[Agreement]:
    """Runs seeded episodes of one shot and one way through both, on the processor.

    ONNX Runtime has no half-precision kernels for processors: the half graphs run with each of
    their values rounded to float16, see `export.half_graph.emulated`.

    Args:
        family: In float32.
        halves: Graphs in half precision by role.

    Returns:
        The worst of all episodes, for features, logits and decisions.
    """
    full = {role: OnnxGraph(family.graph(role)) for role in family.graph_roles}
    half = {role: OnnxGraph(emulated(content), exact=True) for role, content in halves.items()}
    worst: dict[str, float] = {}
    for seed in range(EPISODES):
        support, planes = _annotated_image(family, seed)
        query, _ = _annotated_image(family, 1000 + seed)
        wanted = _episode(family, full, support, planes, query)
        given = _episode(family, {**full, **half}, support, planes, query)
        for quantity, error in _errors(family, wanted, given).items():
            # A maximum that keeps what is not a number.
            worst[quantity] = float(np.maximum(worst.get(quantity, 0.0), error))
    tolerances = {"logits": LOGIT_TOLERANCE, "decisions": DECISION_TOLERANCE}
    return [
        Agreement(quantity, error, tolerances.get(quantity, FEATURE_TOLERANCE))
        for quantity, error in worst.items()
    ]


def _annotated_image(
    family: RepositoryFamily, seed: int
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A seeded image [1, H, W, 3] with an object on it, and its planes [1, 2, H, W]."""
    image = family.configs["features"].input[0]
    height, width = (
        fixed if fixed > 0 else free
        for fixed, free in zip(image.dims[:2], _NATIVE_SIDE, strict=True)
    )
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack(
        [np.sin(random.uniform(2, 30) * rows + random.uniform(2, 30) * columns) for _ in range(3)],
        axis=-1,
    )
    center = random.uniform(0.3, 0.6, 2)
    inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < 0.04
    waves[inside] = -waves[inside] + random.uniform(-0.5, 0.5, 3)
    values = 128 + 80 * waves + random.normal(0, 12, waves.shape)
    if family.parameter("input_dtype") == "uint8":
        pixels: NDArray[Any] = values.clip(0, 255).astype(np.uint8)
    else:
        pixels = (values.clip(0, 255) * 256).astype(np.uint16)
    planes = np.stack([~inside, inside]).astype(np.float32)
    return pixels[None], planes[None]


def _episode(
    family: RepositoryFamily,
    graphs: Mapping[str, OnnxGraph],
    support: NDArray[Any],
    planes: NDArray[np.float32],
    query: NDArray[Any],
) -> dict[str, NDArray[Any]]:
    """All feature maps of the query, and its logits, by name."""
    shown = graphs["features"]({"image": support})
    # These images fill the network's input.
    told = {"extent": np.array([support.shape[1:3]], np.float32)}
    guidance = graphs["guide"](_taken(family, "guide", {**shown, "planes": planes, **told}))
    seen = graphs["features"]({"image": query})
    maps = dict(seen)
    if "query_features" in graphs:
        seen = graphs["query_features"](_taken(family, "query_features", {**seen, **told}))
        maps |= {f"query_features: {name}": values for name, values in seen.items()}
    task = _task_guidance(family, guidance)
    if "merge" in graphs:
        task |= _merged_by_graph(family, graphs["merge"], {**shown, **guidance, "planes": planes})
    decoded = graphs["decode"](_taken(family, "decode", {**seen, **task, **told}))
    return {**maps, "logits": decoded["logits"]}


def _taken(family: RepositoryFamily, role: str, tensors: Arrays) -> dict[str, NDArray[Any]]:
    return {tensor.name: tensors[tensor.name] for tensor in family.configs[role].input}


def _task_guidance(family: RepositoryFamily, shot: Arrays) -> dict[str, NDArray[Any]]:
    """Guidance of a task with one shot: its mean is itself, a stack has one more axis."""
    tensors: dict[str, NDArray[Any]] = {}
    for entry in json.loads(family.parameter("guidance")):
        if entry["merge"] == "graph":
            continue
        values = shot[entry["name"]]
        tensors[entry["name"]] = values[:, None] if entry["merge"] == "stack" else values
        if "validity" in entry:
            tensors[entry["validity"]] = np.ones((1, 1), np.float32)
    return tensors


def _merged_by_graph(
    family: RepositoryFamily, merge: OnnxGraph, shot: Arrays
) -> dict[str, NDArray[Any]]:
    """What `merge` makes of a task with one shot."""
    alone = {name: values[0] for name, values in shot.items()}
    judged = family.names("merge_judged")
    made = merge(merge_feeds(family.names("merge_inputs"), [alone], judged, alone))
    return {name: values[:, None] if judged else values for name, values in made.items()}


def _errors(family: RepositoryFamily, wanted: Arrays, given: Arrays) -> dict[str, float]:
    errors = {name: _relative(values, given[name]) for name, values in wanted.items()}
    pairs = [_decided(family, tensors["logits"]) for tensors in (wanted, given)]
    return {**errors, "decisions": float((pairs[0] != pairs[1]).mean())}


def _relative(wanted: NDArray[Any], given: NDArray[Any]) -> float:
    scale = max(float(np.abs(wanted).max()), 1e-12)
    return float(np.abs(wanted - given).max()) / scale


def _decided(family: RepositoryFamily, logits: NDArray[Any]) -> NDArray[Any]:
    """What logits [1, P, S, h, w] say of each cell."""
    if family.parameter("class_handling") == "multiway":
        return np.asarray(logits.argmax(axis=1))
    return np.asarray(logits > float(family.parameter("threshold")))
