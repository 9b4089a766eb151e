# SPDX-License-Identifier: Apache-2.0
"""The shapes that a TensorRT plan is built for: only batch, shots and ways may vary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.check.parameters import parameters_of
from export.errors import ExportError
from export.merging import VALIDITY

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Least, usual and greatest shape of an input, the batch first."""

    least: Shape
    usual: Shape
    most: Shape


@dataclass(frozen=True, slots=True)
class Range:
    """Of a length that varies.

    Attributes:
        least, usual, most: With `least <= usual <= most`.
    """

    least: int
    usual: int
    most: int


def within(wanted: int, buckets: Sequence[int], what: str) -> tuple[int, ...]:
    """The buckets that hold up to a number of ways or shots.

    The gateway pads to buckets, so the bucket above the number belongs to them.

    Args:
        wanted: The most ways or shots that tasks will have.
        buckets: Of the family, ascending.
        what: What is counted, for the message.

    Raises:
        ExportError: The family takes no more than its last bucket.
    """
    kept = [*(one for one in buckets if one < wanted)]
    above = [one for one in buckets if one >= wanted]
    if not above:
        raise ExportError(f"The family takes at most {buckets[-1]} {what}; give --{what} so.")
    return (*kept, above[0])


def profiles(
    config: Any, guidance: str, ways: Sequence[int], shots: Sequence[int]
) -> dict[str, Profile]:
    """The profile of each input of a graph.

    The usual batch is the greatest: kernels are chosen for a GPU that is busy.

    Args:
        config: `ModelConfig` of the graph.
        guidance: The family's ``fewseg.guidance``.
        ways: Its buckets of ways.
        shots: Its buckets of shots.

    Raises:
        ExportError: An input's rows and columns vary, for which TensorRT would need a profile each.
    """
    axes = _named_axes(config, guidance)
    counts = {
        "ways": Range(ways[0], ways[0], ways[-1]),
        "planes": Range(1 + ways[0], 1 + ways[0], 1 + ways[-1]),
        "shots": Range(shots[0], shots[0], shots[-1]),
    }
    found = {}
    for tensor in config.input:
        names = iter(axes.get(tensor.name, ()))
        ranges = [Range(1, config.max_batch_size, config.max_batch_size)]
        for extent in tensor.dims:
            if extent != -1:
                ranges.append(Range(extent, extent, extent))
                continue
            name = next(names, None)
            if name is None:
                raise ExportError(
                    f"{config.name} takes images of any size, or {tensor.name!r} has an open axis "
                    "that fewseg.guidance does not name; a TensorRT plan needs a fixed one. "
                    "Leave this family to ONNX Runtime on CUDA."
                )
            ranges.append(counts[name])
        found[tensor.name] = Profile(
            tuple(one.least for one in ranges),
            tuple(one.usual for one in ranges),
            tuple(one.most for one in ranges),
        )
    return found


def _named_axes(config: Any, guidance: str) -> Mapping[str, tuple[str, ...]]:
    """What the open axes of a graph's inputs count, by input, in their order."""
    values = parameters_of(config)
    merging = values.get("role") == "merge"
    of_every_shot = json.loads(values["merge_inputs"]) if merging else []
    axes: dict[str, tuple[str, ...]] = {"planes": ("planes",)}
    scopes = {"background_and_ways": ("planes",), "ways": ("ways",), "none": ()}
    for entry in json.loads(guidance):
        inner = scopes[entry["ways"]]
        by_shot = entry["merge"] == "stack" and not merging
        if entry["merge"] == "graph" and "validity" in entry:
            inner = ("shots", "shots", *inner) if "merge_judged" in values else ("shots", *inner)
        axes[entry["name"]] = ("shots", *inner) if by_shot else inner
        if "validity" in entry:
            axes[entry["validity"]] = ("shots",)
    axes |= {name: ("shots", *axes.get(name, ())) for name in of_every_shot}
    return {**axes, VALIDITY: ("shots",)} if merging else axes
