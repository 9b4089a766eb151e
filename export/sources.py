# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: published checkpoints, ImageNet, a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from export.checkpoints import read_checkpoint, recognise, require
from export.errors import CheckpointError
from export.goldens import seeded_checkpoint
from export.methods.compact import CompactModel
from export.methods.panet import PanetTrunk
from export.torchvision_compat import import_torchvision

VGG16_FILE = "vgg16-397923af.pth"
"""Name of torchvision's VGG-16 weights, `VGG16_Weights.IMAGENET1K_V1`."""

COMPACT_CHECKPOINT = Path(__file__).parents[1] / "training" / "weights" / "compact.safetensors"
"""Where training leaves the weights of the default model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A trunk with its weights.

    Attributes:
        trunk: Normalised RGB to features.
        provenance: For people: where the weights come from and under which terms.
    """

    trunk: nn.Module
    provenance: Mapping[str, str]


def panet_checkpoint(path: Path) -> Weights:
    """Reads a snapshot of the official PANet training.

    Raises:
        CheckpointError: The file is not one.
    """
    trunk = PanetTrunk()
    tensors = read_checkpoint(path)
    trunk.load_state_dict(
        require(tensors, trunk.state_dict(), path=path, wanted="a PANet checkpoint")
    )
    return Weights(trunk, {"weights": path.name, "weights_licence": "not stated by their authors"})


def panet_imagenet(path: Path | None) -> Weights:
    """Makes "PANet-init" of the paper: a trunk of ImageNet, with no training on episodes.

    Args:
        path: torchvision's VGG-16 weights; None takes them from torch's cache, or downloads them.

    Raises:
        CheckpointError: The file is not torchvision's VGG-16, or cannot be downloaded.
    """
    tensors = read_checkpoint(path) if path else _download_vgg16()
    origin = path or Path(VGG16_FILE)
    found = recognise(tensors)
    if found != "torchvision's VGG-16":
        raise CheckpointError(
            f"{origin} {'looks like ' + found if found else 'is something else'}, not "
            f"torchvision's VGG-16; --weights imagenet takes {VGG16_FILE}. For a trained PANet "
            "leave --weights out."
        )
    trunk = PanetTrunk()
    renamed = PanetTrunk.from_torchvision_keys(tensors)
    trunk.load_state_dict(
        require(renamed, trunk.state_dict(), path=origin, wanted="torchvision's VGG-16")
    )
    licence = "torchvision's weights, BSD-3-Clause; trained on ImageNet"
    return Weights(trunk, {"weights": f"ImageNet, {VGG16_FILE}", "weights_licence": licence})


def panet_seeded(seed: int = 0) -> Weights:
    """Makes a trunk of random weights, the same for a seed: for load tests, not for answers."""
    trunk = PanetTrunk()
    shapes = {key: tuple(tensor.shape) for key, tensor in trunk.state_dict().items()}
    trunk.load_state_dict(seeded_checkpoint(shapes, seed))
    return Weights(trunk, {"weights": f"random, seed {seed}", "weights_licence": "none needed"})


def compact_checkpoint(path: Path | None) -> tuple[CompactModel, dict[str, str]]:
    """Reads the default model; returns it and its provenance.

    Args:
        path: A state dict of `CompactModel`; None takes the one that training leaves.

    Raises:
        CheckpointError: The file is not one, or is not there.
    """
    origin = path or COMPACT_CHECKPOINT
    if path is None and not origin.exists():
        raise CheckpointError(
            f"{origin} is not there yet; train it as training/README.md says, or name a file with "
            "--checkpoint."
        )
    model = CompactModel()
    model.load_state_dict(
        require(
            read_checkpoint(origin),
            model.state_dict(),
            path=origin,
            wanted="a `compact` checkpoint",
        )
    )
    provenance = {"weights": origin.name}
    if path is None:
        provenance |= {
            "weights_licence": "see docs/models/compact.md: partly research-only data",
            "training": "by the recipe in training/ of this project",
        }
    return model, provenance


def _download_vgg16() -> Mapping[str, Tensor]:
    """Takes the weights from torch's cache (TORCH_HOME), or downloads them into it."""
    torchvision = import_torchvision()
    published = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    try:
        tensors: Mapping[str, Tensor] = published.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{VGG16_FILE} cannot be downloaded from {published.url} ({error}). Fetch it on a "
            "machine that can, and pass --weights imagenet --checkpoint FILE, or put it into "
            "$TORCH_HOME/hub/checkpoints/."
        ) from error
    return tensors
