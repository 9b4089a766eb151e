# SPDX-License-Identifier: Apache-2.0
"""Reads published checkpoints without running what is in them, and says what a wrong one is."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from export.errors import CheckpointError

Network = TypeVar("Network", bound=nn.Module)

Tensors = Mapping[str, Tensor]
"""Tensors by key."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict beside epochs and optimisers."""

_PARALLEL_PREFIX = "module."

_FOREIGN_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"<", "a web page; the download link led to one, so download again"),
    (b"\x1f\x8b", "compressed; unpack it with gunzip or tar first"),
    (b"\x89HDF", "an HDF5 file, which no method here uses"),
    (b"\x93NUMPY", "a NumPy array, which no method here uses"),
)

_RESNET101 = "layer3.22.conv1.weight"
"""Ends a key that a ResNet-101 has and a ResNet-50 has not."""

#: What the keys of a network show, the most telling first: all patterns of a row must be found.
_SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a PANet checkpoint", (r"encoder\.backbone\.features\.\d+\.\d+\.weight",)),
    ("an HSNet checkpoint", (r"hpn_learner\.",)),
    ("a CyCTR checkpoint", (r"transformer\.(cross_layers|qry_self_layers)\.",)),
    ("an SCL checkpoint of PFENet", (r"supp_init_merge\.",)),
    ("an SCL checkpoint of CANet", (r"FPM_Decoder\.",)),
    ("a PFENet checkpoint", (r"init_merge\.", r"down_query\.")),
    ("an ASGNet checkpoint", (r"corr_conv\.", r"down_conv\.")),
    ("a RePRI checkpoint", (r"bottleneck\.", r"ppm\.")),
    ("an MM-Former checkpoint", (r"sem_seg_head\.",)),
    ("an SG-One checkpoint", (r"netB\.",)),
    ("a PMMs checkpoint", (r"model_(res|backbone)\.",)),
    ("a CANet checkpoint", (r"residule1\.", r"layer55\.")),
    ("a revolver checkpoint of early fusion", (r"supp_encoder\.(conv1_1|0)\.weight",)),
    (
        "a revolver checkpoint of a network without guidance",
        (r"encoder\.(conv1_1|0)\.weight", r"head\.weight", r"decoder\.weight"),
    ),
    ("a revolver checkpoint", (r"encoder\.conv1_1\.weight",)),
    ("a revolver checkpoint", (r"encoder\.0\.weight", r"anno_enc\.weight")),
    ("torchvision's VGG-16 with batch norm", (r"features\.1\.running_mean", r"classifier\.")),
    ("torchvision's VGG-16", (r"features\.28\.weight", r"classifier\.6\.weight")),
    ("torchvision's ResNet", (r"layer1\.0\.conv1\.weight", r"fc\.weight")),
    ("a `compact` checkpoint", (r"trunk\.fuse_semantic\.", r"decode\.relations")),
)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a file of torch (legacy or zip) or safetensors.

    Nothing in the file is executed: an object that is not a tensor or a plain container is refused.
    A wrapping dict is opened, and `module.` of data-parallel training is removed.

    Args:
        path: The file.

    Returns:
        Tensors by key, on the processor.

    Raises:
        CheckpointError: The file cannot be read; the message says what it is and what to do.
    """
    _check_start(path)
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    state = _unwrap(content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds no state dict but {_describe(content)}. Save the weights alone: "
            "torch.save(model.state_dict(), FILE)."
        )
    if all(key.startswith(_PARALLEL_PREFIX) for key in state):
        state = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}
    return state


def recognise(keys: Mapping[str, Any]) -> str | None:
    """Tells from its keys what a checkpoint is, or returns None."""
    text = "\n".join(keys)
    for name, patterns in _SIGNATURES:
        if all(re.search(rf"^{pattern}", text, re.MULTILINE) for pattern in patterns):
            return name
    return None


def require(tensors: Tensors, expected: Tensors, *, path: Path, wanted: str) -> dict[str, Tensor]:
    """Checks that tensors are those of a network: every key, no other, shapes, float32, finite.

    Args:
        tensors: What was read.
        expected: The network's own state dict.
        path: The file, for messages.
        wanted: What it should be, such as "a PANet checkpoint".

    Returns:
        The tensors in the order of `expected`.

    Raises:
        CheckpointError: They are not; the message names what they are instead.
    """
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected]
    if missing or extra:
        raise CheckpointError(_wrong_keys(tensors, missing, extra, path, wanted))
    for key, model in expected.items():
        if tensors[key].shape != model.shape:
            raise CheckpointError(
                f"{path} has the keys of {wanted}, but {key} has the shape "
                f"{tuple(tensors[key].shape)} where {tuple(model.shape)} belongs; it was made with "
                "another variant of the network, which cannot be exported."
            )
    for key, model in expected.items():
        _check_values(key, tensors[key], model, path)
    return {key: tensors[key] for key in expected}


def read_network(build: Callable[[], Network], path: Path, *, wanted: str) -> Network:
    """Reads a checkpoint into the network that it belongs to.

    Args:
        build: Makes the network; it is called where tensors take no room, and gets those of the
            file themselves.
        path: The file.
        wanted: What it should be, such as "a CANet checkpoint".

    Returns:
        The network in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    return fill_network(build, read_checkpoint(path), path=path, wanted=wanted)


def fill_network(
    build: Callable[[], Network], tensors: Tensors, *, path: Path, wanted: str
) -> Network:
    """Puts tensors that were read already into the network that they belong to.

    For methods with several backbones, whose keys tell which one it is; see `read_network`.
    """
    with torch.device("meta"):
        network = build()
    state = require(tensors, network.state_dict(), path=path, wanted=wanted)
    network.load_state_dict(state, assign=True)
    return network.eval()


def _check_start(path: Path) -> None:
    """Refuses what is no checkpoint by its first bytes."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; name the checkpoint file in it.")
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check the path after --checkpoint."
        ) from error
    if not start:
        raise CheckpointError(f"{path} is empty; download or copy it again.")
    for magic, meaning in _FOREIGN_STARTS:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {meaning}.")


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except Exception as error:
        # Damaged files fail in many ways: EOFError, RuntimeError, ValueError, KeyError, ...
        raise CheckpointError(
            f"{path} is damaged or truncated, or no file of torch.save "
            f"({_first_line(error)}). Compare its size with the original's and copy it again."
        ) from error


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({_first_line(error)}). "
            "Compare its size with the original's and copy it again."
        ) from error


def _refusal(path: Path, text: str) -> str:
    """Words an unpickling error: more than tensors in the file, or a broken file."""
    named = re.search(r"GLOBAL\s+(\S+)", text)
    if named:
        return (
            f"{path} holds more than tensors: it names {named.group(1)}, and reading it would run "
            "that code. It is refused. If you trust its author, save the weights alone where the "
            "file was made: torch.save(model.state_dict(), FILE)."
        )
    return (
        f"{path} is damaged, truncated or no file of torch.save. Compare its size with the "
        "original's and copy it again."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]


def _unwrap(content: Any) -> dict[str, Any]:
    """Opens one level of wrapping; returns nothing for what is no dict of string keys."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    for name in WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner):
            return dict(inner)
    return dict(content)


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with the keys {', '.join(map(str, list(content)[:5])) or '(none)'}"
    return f"an object of type {type(content).__name__}"


def _wrong_keys(
    tensors: Tensors, missing: list[str], extra: list[str], path: Path, wanted: str
) -> str:
    found = recognise(tensors)
    if found and found != wanted:
        hint = (
            " Pass --weights imagenet as well to start from it." if found.endswith("VGG-16") else ""
        )
        return f"{path} looks like {found}, not {wanted}.{hint}"
    if found and any(key.endswith(_RESNET101) for key in extra):
        return (
            f"{path} has the keys of {wanted}, but of a ResNet-101; of the ResNets, only the one "
            "on ResNet-50 was published, and only that can be exported."
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} keys are missing, the first is {missing[0]}")
    if extra:
        parts.append(f"{len(extra)} keys do not belong, the first is {extra[0]}")
    return (
        f"{path} is not {wanted}: {'; '.join(parts)}. Choose the checkpoint of the official code."
    )


def _check_values(key: str, tensor: Tensor, model: Tensor, path: Path) -> None:
    if tensor.dtype != model.dtype:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        meaning = "half precision, which has lost digits" if half else "another precision"
        found, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, model.dtype))
        raise CheckpointError(
            f"{path} is stored in {meaning} ({key} is {found} where {wanted} belongs). Use the "
            "original file, or convert this one with .float() and accept the loss."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{path} holds values in {key} that are not finite; its training diverged, so choose "
            "an earlier snapshot."
        )
