# SPDX-License-Identifier: Apache-2.0
"""Verifies guided networks from an official checkpoint to the mask that an application gets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.family import Family
from export.goldens import Golden, read_model_keys, seeded_tensor
from export.methods.revolver import (
    STRIDE,
    AnnotatedCells,
    GuidedFeatures,
    SharedGuide,
    UnsharedGuide,
    annotation_kernel,
    upsampling_kernel,
)
from export.revolver_family import revolver_family
from export.revolver_source import revolver_checkpoint
from export.verification.comparing import map_error, relative, worst
from export.verification.driver import (
    EMBEDDED,
    INPUT,
    UNKNOWN,
    Application,
    Gateway,
    Method,
    verify,
)
from export.verification.measures import Measure
from export.verification.scores import GoldenScores, decide
from export.verification.task import Episode, Outcome

Array = NDArray[Any]

INPUT_TOLERANCE = 1e-4
"""Of the input around zero, whose values lie within +-155."""

CELL_TOLERANCE = 1e-6
"""Of shrunk annotations, whose values lie within [0, 1]."""

TOLERANCE = 2e-4
"""Of features and z, relative to the largest one."""

MAX_PIXELS = 1024 * 1024


def verify_revolver(
    goldens: Path,
    *,
    names: Sequence[str] = (),
    gateway: Gateway | None = EMBEDDED,
    repository: Path | None = None,
) -> Iterator[Measure]:
    """Compares torch, exported graphs and gateway with golden cases; see `driver.verify`."""
    return verify(REVOLVER, goldens, names=names, gateway=gateway, repository=repository)


class _Revolver:
    """See `driver.Method`."""

    def export_key(self, golden: Golden) -> Hashable:
        return golden.facts["model"], golden.facts["weight_seed"]

    def export(self, golden: Golden, goldens: Path, folder: Path) -> Family:
        model, seed = golden.facts["model"], golden.facts["weight_seed"]
        checkpoint = folder / "snapshot-iter100000.pth"
        torch.save(official_checkpoint(goldens, model, seed), checkpoint)
        source = revolver_checkpoint(checkpoint)
        return revolver_family(
            alias="revolver",
            network=source.network,
            provenance=source.provenance,
            max_pixels=MAX_PIXELS,
        )

    def episode(self, golden: Golden) -> Episode:
        images, query = _given(golden)
        annotations = _annotations(golden).astype(np.float32)
        return Episode(list(zip(images, annotations, strict=True)), query)

    def application(self, golden: Golden) -> Application:
        images, query = _given(golden)
        return Application(list(images), list(_labels(golden)), query)

    def compare_input(self, golden: Golden, family: Family) -> Iterator[Measure]:
        network = _module(family, "features", GuidedFeatures)
        _, query = _given(golden)
        values = network.normalise(torch.tensor(query)[None])[0].numpy()
        name = "query_tensor" if "query_image" in golden.arrays else "image_tensor"
        error = map_error(values, golden.arrays, name)
        yield Measure(golden.name, INPUT, "query tensor", error, INPUT_TOLERANCE)
        cells = _cells(golden, shared=_is_shared(family))
        error = worst(cells, golden.arrays["anno_encoded_raw"])
        yield Measure(golden.name, INPUT, "annotation cells", error, CELL_TOLERANCE)

    def compare(
        self, golden: Golden, family: Family, outcome: Outcome, stage: str
    ) -> Iterator[Measure]:
        arrays, shared = golden.arrays, _is_shared(family)
        name = "query_features_ch0_8" if "query_image" in arrays else "features_ch0_8"
        error = relative(outcome.features["features"][:8], arrays[name][0])
        yield Measure(golden.name, stage, "query features", error, TOLERANCE)
        expected = _expected_guidance(arrays, family)
        if expected is not None:
            error = relative(outcome.guidance["guidance"], expected)
            yield Measure(golden.name, stage, "z, projected", error, TOLERANCE)
        scores, planes = _scores(golden), outcome.logits[:, 0]
        wanted = arrays["lowres_scores"]
        yield scores.measure_scores(stage, planes, wanted[:, 0] if shared else wanted[0])
        height, width = arrays["pred"].shape
        logits = upsampled(planes, (height, width))
        yield scores.measure_logits(stage, logits)
        yield scores.measure_mask(stage, decide(logits), arrays["pred"])

    def compare_served(
        self, golden: Golden, mask: Array, probabilities: Array, stage: str
    ) -> Iterator[Measure]:
        scores = _scores(golden)
        yield scores.measure_mask(stage, mask, golden.arrays["pred"])
        yield scores.measure_probabilities(stage, probabilities)


REVOLVER: Method = _Revolver()


def official_checkpoint(goldens: Path, model: str, seed: int) -> dict[str, Tensor]:
    """Rebuilds the state dict that the official code saves: fixed kernels, empty buffers."""
    state = {}
    for key, entry in read_model_keys(goldens, model).items():
        if entry.seeded:
            state[key] = seeded_tensor(key, entry.shape, seed)
        elif key == "anno_enc.weight":
            state[key] = annotation_kernel()
        elif key == "decoder.weight":
            state[key] = upsampling_kernel(entry.shape[0])
        else:
            state[key] = torch.zeros(entry.shape)
    return state


def upsampled(scores: Array, size: tuple[int, int]) -> Array:
    """Upsamples planes [P, h, w] as the official decoder does, and crops them to [P, H, W]."""
    raised = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(scores)[:, None], upsampling_kernel(1), stride=STRIDE
    )
    return raised[:, 0, : size[0], : size[1]].numpy()


def _given(golden: Golden) -> tuple[Array, Array]:
    """Support images and the query; interactive cases have one image for both."""
    arrays = golden.arrays
    if "query_image" in arrays:
        return arrays["support_images"], arrays["query_image"]
    return arrays["image"][None], arrays["image"]


def _labels(golden: Golden) -> Array:
    """What an application says: 1 and 0 where the annotation does, 255 for all that is unknown.

    The labels among the golden arrays are those that sparse annotations were drawn from.
    """
    annotations = _annotations(golden)
    labels = np.where(annotations[:, 1] > 0, 1, UNKNOWN)
    return np.where(annotations[:, 0] > 0, 0, labels).astype(np.uint8)


def _annotations(golden: Golden) -> Array:
    arrays = golden.arrays
    found: Array
    if "support_annotations" in arrays:
        found = arrays["support_annotations"]
    else:
        found = arrays["annotations"][None]
    return found


def _module(family: Family, role: str, kind: type[Any]) -> Any:
    (module,) = (graph.module for graph in family.graphs if graph.role == role)
    assert isinstance(module, kind)
    return module


def _is_shared(family: Family) -> bool:
    return family.serving.class_handling == "multiway"


def _cells(golden: Golden, *, shared: bool) -> Array:
    """Shrunk annotations in the order of the golden ones, [1, count, h, w]."""
    cells = []
    for annotation in _annotations(golden).astype(np.float32):
        height, width = (-(-side // STRIDE) - 1 for side in annotation.shape[1:])
        grid = torch.zeros(1, 1, height, width)
        shrunk = AnnotatedCells.shrink(grid, torch.from_numpy(annotation)[None])[0].numpy()
        # Shared models leave annotations alone that mark nothing.
        kept = [channel for channel in (0, 1) if not shared or annotation[channel].any()]
        cells.append(shrunk[kept])
    return np.concatenate(cells)[None]


def _expected_guidance(arrays: Mapping[str, Array], family: Family) -> Array | None:
    """The golden z under the head's first layer; None if the case does not hold z."""
    module = _module(family, "guide", (SharedGuide, UnsharedGuide))  # type: ignore[arg-type]
    with torch.no_grad():
        if "z" in arrays:
            return _numpy(torch.from_numpy(arrays["z"]) @ module.projection.T)
        if "guidance_annotation_channel1" not in arrays:
            return None
        background, objects = (
            torch.from_numpy(arrays[f"guidance_annotation_channel{channel}"]) for channel in (0, 1)
        )
        return _numpy(objects @ module.foreground.T + background @ module.background.T)


def _numpy(tensor: Tensor) -> Array:
    values: Array = tensor.numpy()
    return values


def _scores(golden: Golden) -> GoldenScores:
    stats = golden.facts["stats"]
    return GoldenScores(golden, largest=max(-stats["logit_min"], stats["logit_max"]))
