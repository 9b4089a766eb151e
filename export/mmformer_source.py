# SPDX-License-Identifier: Apache-2.0
"""Reads the checkpoints of MM-Former (`model_best.pth` of the second training step)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoints import Tensors, read_checkpoint, recognise, require
from export.errors import CheckpointError
from export.methods.mmformer.network import MmformerNetwork, Variant

WANTED = "an MM-Former checkpoint"

_UNUSED = re.compile(r"criterion\.|crossat_3\.|sem_seg_head\.pixel_decoder\.crossat_")
"""Keys of layers that the official code makes and never runs."""

_SECOND_STEP = ("crossat_0.", "conv_0.", "fc1.")
"""What the second training step adds to the first."""

_TRUNK = "backbone."
_FACTORED_TRUNK = re.compile(r"layer[0-4]\.")
_RANK_STEP = 4


def mmformer_checkpoint(path: Path, variant: Variant | None = None) -> MmformerNetwork:
    """Reads a checkpoint.

    Args:
        path: The file.
        variant: Which network it belongs to; None takes v1 or v2, as the keys tell. Those of v2 and
            v2svf are the same.

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: The file is something else, a first step, or of another variant.
    """
    tensors = read_checkpoint(path)
    if recognise(tensors) != WANTED:
        with torch.device("meta"):
            expected = MmformerNetwork(Variant.V1).state_dict()
        # Says what it is instead.
        require(tensors, expected, path=path, wanted=WANTED)
    later = any(_FACTORED_TRUNK.match(key) for key in tensors)
    variant = variant or (Variant.V2 if later else Variant.V1)
    if later != (variant is not Variant.V1):
        found = "the later network, v2 or v2svf" if later else "the paper's network, v1"
        raise CheckpointError(f"{path} holds {found}, not {variant.value}; change --variant.")
    if not any(key.startswith(_SECOND_STEP) for key in tensors):
        raise CheckpointError(
            f"{path} is an MM-Former checkpoint of the first training step: it proposes masks and "
            "cannot match them with supports. Choose the file of the second step: it is complete."
        )
    with torch.device("meta"):
        network = MmformerNetwork(variant)
    used = {key: value for key, value in tensors.items() if not _UNUSED.match(key)}
    own = network.state_dict()
    expected = _factored_keys(own) if later else own
    read = require(used, expected, path=path, wanted=WANTED)
    network.load_state_dict(_folded(read) if later else read, assign=True)
    return network.eval()


def _factored_keys(own: Tensors) -> dict[str, Tensor]:
    """The keys and shapes of the official file: each convolution of the trunk is three tensors."""
    expected: dict[str, Tensor] = {}
    for key, value in own.items():
        if not key.startswith(_TRUNK):
            expected[key] = value
            continue
        name = key.removeprefix(_TRUNK)
        if value.dim() != 4:
            expected[name] = value
            continue
        outputs, inputs, rows, columns = value.shape
        rank = min(outputs, inputs * rows * columns) // _RANK_STEP * _RANK_STEP
        name = name.removesuffix("weight")
        expected[f"{name}vector_S"] = value.new_empty(1, rank, 1, 1)
        expected[f"{name}conv_U.weight"] = value.new_empty(outputs, rank, 1, 1)
        expected[f"{name}conv_V.weight"] = value.new_empty(rank, inputs, rows, columns)
    return expected


def _folded(tensors: Tensors) -> dict[str, Tensor]:
    """Multiplies the factors of each convolution, and puts the trunk where the network has it."""
    folded: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _TRUNK + key if _FACTORED_TRUNK.match(key) else key
        if key.endswith(".vector_S"):
            prefix = key.removesuffix("vector_S")
            left = tensors[f"{prefix}conv_U.weight"].flatten(1) * value.flatten()
            right = tensors[f"{prefix}conv_V.weight"]
            product = left.double() @ right.flatten(1).double()
            weight = torch.unflatten(product.float(), 1, right.shape[1:])
            folded[f"{_TRUNK}{prefix}weight"] = weight
        elif not key.endswith((".conv_U.weight", ".conv_V.weight")):
            folded[name] = value
    return folded
