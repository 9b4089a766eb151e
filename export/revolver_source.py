# SPDX-License-Identifier: Apache-2.0
"""Which guided network a checkpoint of the official code "revolver" holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.checkpoints import Tensors, read_checkpoint, recognise, require
from export.errors import CheckpointError
from export.methods.revolver import GuidedModel, GuidedNetwork, annotation_kernel
from export.methods.revolver_early import EarlyNetwork

WANTED = "a revolver checkpoint"

MODELS = (
    GuidedModel("cofeat-late-lite-unshared", channels=256, shared=False, buffers=False),
    GuidedModel("cofeat-late-lite", channels=256, shared=True, buffers=True),
    GuidedModel("cofeat-late", channels=4096, shared=True, buffers=True),
    GuidedModel("interactive-late-glob-lite", channels=256, shared=True, buffers=False),
    GuidedModel("interactive-late-glob", channels=4096, shared=True, buffers=False),
)
"""The published models with late fusion. The last two were trained with the support image as the
query, and differ from the two before them in nothing else."""

EARLY_MODEL = "cofeat-early"
"""The published model with early fusion of support and query."""

_EARLY = "a revolver checkpoint of early fusion"

_UNUSED = ("anno_enc.weight", "decoder.weight", "z", "num_z")

_KERNEL_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class GuidedWeights:
    """A guided network with its weights.

    Attributes:
        network: The network.
        provenance: For people: where the weights come from and under which terms.
    """

    network: GuidedNetwork | EarlyNetwork
    provenance: Mapping[str, str]


def revolver_checkpoint(path: Path) -> GuidedWeights:
    """Reads a snapshot of the official training; what it holds tells which model it is.

    `z` and `num_z` are what training saw last: their values are left alone, as the official code
    zeroes them before use. `decoder.weight` is fixed, and the official code replaces it, too.

    Raises:
        CheckpointError: The file is not one, or of a model that cannot be served.
    """
    tensors = _named_as_then(read_checkpoint(path))
    provenance = {
        "weights": path.name,
        "weights_licence": "not stated; ask who trained them",
        "code_licence": "BSD-2-Clause (revolver)",
    }
    if recognise(tensors) == _EARLY:
        blank = EarlyNetwork.blank().state_dict()
        early = EarlyNetwork.load(require(tensors, blank, path=path, wanted=_EARLY))
        return GuidedWeights(early, provenance)
    model = _model_of(tensors, path)
    expected = GuidedNetwork.blank(model).state_dict()
    network = GuidedNetwork.load(model, require(tensors, expected, path=path, wanted=WANTED))
    _check_kernel(network, path)
    return GuidedWeights(network, provenance)


def model_name(network: GuidedNetwork | EarlyNetwork) -> str:
    """What the official command line calls a network."""
    return network.model.name if isinstance(network, GuidedNetwork) else EARLY_MODEL


def trained_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that decide what a network computes: all but fixed kernels and buffers."""
    return {key: value for key, value in network.state_dict().items() if key not in _UNUSED}


def _model_of(tensors: Tensors, path: Path) -> GuidedModel:
    """Finds the model by its shapes."""
    found = recognise(tensors)
    shown = (
        _rows(tensors, "encoder.fc6.weight"),
        _rows(tensors, "head.fc7.weight"),
        "z" in tensors,
    )
    for model in MODELS:
        if shown == (model.channels, model.hidden, model.buffers):
            return model
    if found is not None and found.startswith(f"{WANTED} of"):
        raise CheckpointError(
            f"{path} looks like {found}; what can be exported is {EARLY_MODEL}, "
            f"{', '.join(model.name for model in MODELS)}."
        )
    # Nothing fits: the nearest one says what is missing.
    return next(model for model in MODELS if model.buffers == ("z" in tensors))


def _rows(tensors: Tensors, key: str) -> int:
    """Length of a tensor's first axis; 0 if there is none."""
    shape = tensors[key].shape if key in tensors else ()
    return shape[0] if shape else 0


def _named_as_then(tensors: Tensors) -> Tensors:
    """Undoes the numbers that later versions of torch put in place of the encoder's layer names.

    The official code removes VGG's last layers from a `Sequential` by a slice, which now numbers
    the layers that stay; with the torch of its time they kept their names.
    """
    with torch.device("meta"):
        names = [name for name, _ in GuidedNetwork(MODELS[0]).encoder.named_children()]
    renamed = {}
    for key, value in tensors.items():
        numbered = re.fullmatch(r"((?:supp_|qry_)?encoder)\.(\d+)\.(weight|bias)", key)
        if numbered and int(numbered[2]) < len(names):
            key = f"{numbered[1]}.{names[int(numbered[2])]}.{numbered[3]}"
        renamed[key] = value
    return renamed


def _check_kernel(network: GuidedNetwork, path: Path) -> None:
    """Sees that annotations are shrunk by the kernel that the graphs are built on."""
    difference = (network.anno_enc.weight - annotation_kernel()).abs().max()
    if difference > _KERNEL_TOLERANCE:
        raise CheckpointError(
            f"{path} has another anno_enc.weight than the fixed bilinear kernel of the official "
            "code; it was made by a changed network, which cannot be exported."
        )
