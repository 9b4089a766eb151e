# SPDX-License-Identifier: Apache-2.0
"""What a family is made of: its graphs, their tensors, and how they are to be served.

These are the exporter's own words for the contract of docs/repository.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import nn

from export.errors import ExportError

SCHEMA = "1"
"""Version of the contract, `fewseg.schema`."""

REVISION = 1
"""Raised whenever the same checkpoint and settings would give other graphs than before."""


class Free(IntEnum):
    """A length that is known at run time only. Equal ones are equal within a graph."""

    #: 1 + ways.
    PLANES = -1
    WAYS = -2
    #: Of the task, padded ones included.
    SHOTS = -3
    #: Of the image, where the network takes any size.
    HEIGHT = -4
    WIDTH = -5
    #: Of the feature maps of such an image.
    ROWS = -6
    COLUMNS = -7
    #: Of logits, where their grid is another one.
    SCORE_ROWS = -8
    SCORE_COLUMNS = -9
    #: Positions that guidance stores.
    POSITIONS = -10
    #: Likewise, of two coarser grids.
    MIDDLE_POSITIONS = -11
    COARSE_POSITIONS = -12
    #: Of the feature maps of the same image at smaller and larger scale.
    SMALLER_ROWS = -13
    SMALLER_COLUMNS = -14
    LARGER_ROWS = -15
    LARGER_COLUMNS = -16


MIN_NATIVE_SIDE = 33
"""Fewest rows and columns of images that go in at their own size: graphs are exported for these and
more, and the coarsest grid (revolver's, of stride 32) has no cell for fewer."""

NATIVE_PIXELS = 1024 * 1024
"""Most pixels of such images, unless said otherwise."""

PLANES = Free.PLANES
"""The length 1 + ways, which is free at run time."""

LengthOf = Mapping[Free, int]
"""What stands for free lengths in an example."""

_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: Its name in graph and config.
        dims: Lengths without the batch; members of `Free` where they are free.
        dtype: "float32", "float16", "uint8" or "uint16".
    """

    name: str
    dims: tuple[int, ...]
    dtype: str = "float32"

    def example_dims(self, lengths: LengthOf) -> tuple[int, ...]:
        """The dims with a number in place of each free length."""
        return tuple(lengths[Free(dim)] if dim < 0 else dim for dim in self.dims)

    def stacked(self) -> TensorSpec:
        """The same of every shot of a task, along a first inner axis."""
        return replace(self, dims=(Free.SHOTS, *self.dims))


EXTENT = TensorSpec("extent", (2,))
"""Rows and columns of the network's input that the image covers: an input that any graph may have
but `features`."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a family, still in torch.

    Attributes:
        role: `features`, `guide`, `decode`, ...
        module: Takes and returns the tensors in order, batch first.
        inputs: What it takes.
        outputs: What it returns.
        traced: Whether it is exported by recording one run. That is 20 times faster for thousands
            of small operators, and sees no control flow.
        tolerance: Largest difference between torch and ONNX Runtime that its float32 outputs may
            have on random inputs, relative to the largest value. More than the usual where a
            comparison with a threshold inside makes the graph discontinuous.
    """

    role: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    traced: bool = False
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Graphs run one after another; tensors keep their names, and only the last step's come out.

    A tensor that feeds a later step never is an output: Triton would wait for ever where a client
    does not ask for it.

    Attributes:
        role: `support_encoder` or `query_decoder`.
        steps: The graphs in order.
    """

    role: str
    steps: tuple[Graph, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What no step makes."""
        made: set[str] = set()
        found: dict[str, TensorSpec] = {}
        for step in self.steps:
            found |= {spec.name: spec for spec in step.inputs if spec.name not in made}
            made |= {spec.name for spec in step.outputs}
        return tuple(found.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the last step makes."""
        return self.steps[-1].outputs


@dataclass(frozen=True, slots=True)
class Serving:
    """What the gateway must know of a method; the fields are the `fewseg.*` keys of that name.

    Attributes:
        method: Such as "panet".
        input_size: Rows and columns of the network's input; None for the image's own size.
        guidance: One JSON object per guidance tensor.
        post_chain: One JSON object per linear step from logits to the output size.
        min_side: Fewest rows and columns of an image that goes in at its own size.
        max_pixels: Most pixels of such an image.
        position_buckets: Where a guidance tensor stores positions: numbers of them to pad to.
        merge_inputs: What a `merge` graph takes of every shot, stacked.
        merge_judged: What it takes of the one shot that a run judges.
    """

    method: str
    input_size: tuple[int, int] | None
    guidance: tuple[Mapping[str, Any], ...]
    post_chain: tuple[Mapping[str, Any], ...]
    input_dtype: str = "uint8"
    image_resize: str = "pil_bilinear"
    mask_resize: str = "pil_nearest"
    class_handling: str = "multiway"
    needs_background: bool = True
    void: str = "background"
    decision: str = "argmax"
    threshold: float = 0.0
    score: str = "softmax"
    way_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    shot_buckets: tuple[int, ...] = (1,)
    feature_reuse: str = "always"
    min_side: int = MIN_NATIVE_SIDE
    max_pixels: int = NATIVE_PIXELS
    position_buckets: tuple[int, ...] = ()
    merge_inputs: tuple[str, ...] = ()
    merge_judged: tuple[str, ...] = ()

    def parameters(self) -> dict[str, str]:
        """Returns the keys and values as docs/repository.md spells them."""
        values = {
            "method": self.method,
            "input_dtype": self.input_dtype,
            "class_handling": self.class_handling,
            "void": self.void,
            "decision": self.decision,
            "score": self.score,
            "feature_reuse": self.feature_reuse,
            "needs_background": "true" if self.needs_background else "false",
            "guidance": json.dumps(list(self.guidance)),
            "post_chain": json.dumps(list(self.post_chain)),
            "threshold": repr(self.threshold),
            "way_buckets": ",".join(map(str, self.way_buckets)),
            "shot_buckets": ",".join(map(str, self.shot_buckets)),
            **self._sizes(),
            **self._merge(),
        }
        if self.position_buckets:
            values["position_buckets"] = ",".join(map(str, self.position_buckets))
        return {f"fewseg.{name}": value for name, value in values.items()}

    def _merge(self) -> dict[str, str]:
        named = {"merge_inputs": self.merge_inputs, "merge_judged": self.merge_judged}
        return {key: json.dumps(list(names)) for key, names in named.items() if names}

    def _sizes(self) -> dict[str, str]:
        if self.input_size is None:
            return {
                "input_size": "native",
                "image_resize": "none",
                "mask_resize": "none",
                "min_side": str(self.min_side),
                "max_pixels": str(self.max_pixels),
            }
        height, width = self.input_size
        return {
            "input_size": f"{height}x{width}",
            "image_resize": self.image_resize,
            "mask_resize": self.mask_resize,
        }


@dataclass(frozen=True, slots=True)
class Family:
    """One checkpoint, ready to be exported.

    Attributes:
        alias: What tasks name: 1 to 40 lower-case letters, digits or "-", a letter first.
        serving: How it is served.
        graphs: Its graphs.
        weights_digest: Hexadecimal SHA-256 of the checkpoint's tensors, see `digest_of_tensors`.
        max_batch: Most queries that run together.
        provenance: For people: where the weights come from and under which terms.
        settings: What else the graphs were made by, such as a number of iterations.
        created: When it was exported, UTC.
    """

    alias: str
    serving: Serving
    graphs: tuple[Graph, ...]
    weights_digest: str
    max_batch: int = 8
    provenance: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if not _ALIAS.fullmatch(self.alias):
            raise ExportError(
                f"{self.alias!r} cannot name a model: use 1 to 40 lower-case letters, digits or "
                "'-', starting with a letter."
            )

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of checkpoint and export settings; the same ones give the same."""
        settings = self.serving.parameters() | {
            "weights": self.weights_digest,
            "max_batch": str(self.max_batch),
            "schema": SCHEMA,
            "revision": str(REVISION),
            **self.settings,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """`<alias>-<digest8>`."""
        return f"{self.alias}-{self.digest[:8]}"

    @property
    def ensembles(self) -> tuple[Ensemble, Ensemble]:
        """The pair that clients of the repository think in."""
        by_role = {graph.role: graph for graph in self.graphs}
        query = [
            by_role[role] for role in ("features", "query_features", "decode") if role in by_role
        ]
        return (
            Ensemble("support_encoder", (by_role["features"], by_role["guide"])),
            Ensemble("query_decoder", tuple(query)),
        )

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of graphs and ensembles, sorted."""
        parts: tuple[Graph | Ensemble, ...] = (*self.graphs, *self.ensembles)
        return tuple(sorted(part.role for part in parts))

    def model_name(self, role: str) -> str:
        """Name of the Triton model of a role."""
        return f"{self.name}_{role}"

    def parameters(self, role: str) -> dict[str, str]:
        """All `fewseg.*` keys of one model."""
        created = self.created.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return self.serving.parameters() | {
            "fewseg.schema": SCHEMA,
            "fewseg.family": self.name,
            "fewseg.alias": self.alias,
            "fewseg.role": role,
            "fewseg.graphs": ",".join(self.roles),
            "fewseg.digest": self.digest,
            "fewseg.created": created,
            "fewseg.provenance": json.dumps({**self.settings, **self.provenance}, sort_keys=True),
            **self._extent(),
        }

    def _extent(self) -> dict[str, str]:
        roles = sorted(graph.role for graph in self.graphs if EXTENT in graph.inputs)
        return {"fewseg.extent": ",".join(roles)} if roles else {}


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hashes names, shapes, dtypes and values, whatever file they came in.

    Args:
        tensors: By name; the order does not matter.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name].detach().cpu().numpy())
        digest.update(f"{name}:{values.dtype.str}:{values.shape};".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
