# SPDX-License-Identifier: Apache-2.0
"""Golden vectors: numbers that the authors' own code made with weights of a seed.

A folder holds `keys.json` (official keys, shapes and dtypes), `cases.json` (one object per case)
and one `.npz` per case. The weights are not stored: `seeded_tensor` rebuilds each from its key, its
shape and the seed.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import GoldenError

Array = NDArray[Any]

_PART = 1 << 20
"""Values that are drawn at a time."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden case, of whatever method.

    Attributes:
        name: Its name.
        facts: What `cases.json` says of it.
        arrays: By name: raw images and labels as uint8, and what the official code made of them.
    """

    name: str
    facts: Mapping[str, Any]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of an official state dict.

    Attributes:
        shape: Of the tensor.
        seeded: Whether its values come from the seed; else the network itself fixes them.
    """

    shape: tuple[int, ...]
    seeded: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One golden case.

    Attributes:
        name: Its name.
        weight_seed: Seed of the weights.
        ways, shots: Size of the episode.
        network_size: Rows and columns that the network works at.
        class_ids: Values of the ways in the label maps.
        arrays: By name: raw images and labels as uint8, and what the official code made of them.
    """

    name: str
    weight_seed: int
    ways: int
    shots: int
    network_size: tuple[int, int]
    class_ids: tuple[int, ...]
    arrays: Mapping[str, Array]


def read_keys(folder: Path) -> dict[str, tuple[int, ...]]:
    """Reads the official keys, without `module.`, and their shapes."""
    entries = _read_json(folder / "keys.json")
    return {
        key.removeprefix("module."): tuple(entry["shape"])
        for key, entry in entries.items()
        if isinstance(entry, dict) and "shape" in entry
    }


def read_model_keys(folder: Path, model: str) -> dict[str, Key]:
    """Reads the official keys of one model of a method that has several.

    Raises:
        GoldenError: The folder has no such model.
    """
    models = _read_json(folder / "keys.json")
    if model not in models:
        raise GoldenError(f"{folder / 'keys.json'} has no model {model}.")
    return {key: _key(entry) for key, entry in models[model].items()}


def _key(entry: Any) -> Key:
    """Reads an entry: an object, or just shape and dtype."""
    if isinstance(entry, list):
        return Key(tuple(entry[0]), seeded=True)
    return Key(tuple(entry["shape"]), entry["seeded"])


def read_notes(folder: Path) -> dict[str, Any]:
    """Reads what `cases.json` says of all cases together."""
    return {
        name: note for name, note in _read_json(folder / "cases.json").items() if name != "cases"
    }


def read_goldens(folder: Path, names: Sequence[str] = ()) -> list[Golden]:
    """Reads cases as they are; see `read_cases` for the arguments and errors."""
    return [
        Golden(entry["name"], entry, _read_arrays(folder / entry["file"]))
        for entry in _entries(folder, names)
    ]


def read_cases(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """Reads PANet's cases of a folder.

    Args:
        folder: Folder of golden vectors.
        names: Which of them; none means all.

    Returns:
        The cases, in the folder's order.

    Raises:
        GoldenError: The folder is not one of golden vectors, or lacks a case.
    """
    return [_case(folder, entry) for entry in _entries(folder, names)]


def case_names(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """Names of the cases of a folder; see `read_cases` for the arguments and errors."""
    return [entry["name"] for entry in _entries(folder, names)]


def seeded_tensor(key: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Rebuilds one tensor of the seeded weights.

    Args:
        key: Official key without `module.`.
        shape: Its shape.
        seed: Seed of the checkpoint.

    Returns:
        float32; int64 zero for `num_batches_tracked`.
    """
    last = key.rsplit(".", 1)[-1]
    random = np.random.default_rng([zlib.crc32(key.encode()), seed])
    if last == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    scale = 1.0
    if last == "running_mean" or last == "bias" or last.endswith("_bias"):
        scale = 0.05
    elif last == "running_var" or (_is_weight(last) and len(shape) < 2):
        return _drawn(lambda count: random.uniform(0.8, 1.2, count), shape)
    elif _is_weight(last):
        # He's initialisation of kernels.
        scale = float(np.sqrt(2.0 / max(int(np.prod(shape[1:])), 1)))
    return _drawn(random.standard_normal, shape, scale)


def _is_weight(last: str) -> bool:
    return last == "weight" or last.endswith("_weight")


def _drawn(draw: Callable[[int], Array], shape: Sequence[int], scale: float = 1.0) -> torch.Tensor:
    """Draws float32 values part by part: in doubles, a layer of VGG-16 takes 0.8 GB."""
    values = np.empty(int(np.prod(shape)), np.float32)
    for start in range(0, values.size, _PART):
        part = values[start : start + _PART]
        part[:] = draw(part.size) * scale
    return torch.from_numpy(values.reshape(tuple(shape)))


def seeded_checkpoint(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Rebuilds all tensors of the seeded weights, by key."""
    return {key: seeded_tensor(key, shape, seed) for key, shape in shapes.items()}


def overridden(
    tensors: Mapping[str, torch.Tensor], overrides: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """Multiplies or adds to some seeded weights, where plain ones would saturate the network.

    Args:
        tensors: By key.
        overrides: In order: a regular expression of keys (`match`), `op` ("multiply" or "add") and
            `value`, a number or one for each entry of the first axis.
    """
    changed = dict(tensors)
    for override in overrides:
        value = torch.tensor(override["value"], dtype=torch.float32)
        for key, tensor in changed.items():
            if re.search(override["match"], key):
                shaped = value.reshape(-1, *[1] * (tensor.ndim - 1)) if value.ndim else value
                changed[key] = tensor * shaped if override["op"] == "multiply" else tensor + shaped
    return changed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GoldenError(
            f"{path} cannot be read ({error}); --goldens wants a folder with cases.json, keys.json "
            "and the .npz files that they name."
        ) from error
    if not isinstance(content, dict):
        raise GoldenError(f"{path} holds no JSON object.")
    return content


def _entries(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Reads what `cases.json` says of the cases of these names, or of all."""
    entries = {entry["name"]: entry for entry in _read_json(folder / "cases.json").get("cases", [])}
    unknown = [name for name in names if name not in entries]
    if unknown:
        raise GoldenError(f"{folder} has no case {unknown[0]}; it has {', '.join(entries)}.")
    return [entry for name, entry in entries.items() if not names or name in names]


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise GoldenError(f"{path} cannot be read ({error}); copy it again.") from error


def _case(folder: Path, entry: Mapping[str, Any]) -> Case:
    height, width = entry["network_size"]
    return Case(
        name=entry["name"],
        weight_seed=entry["weight_seed"],
        ways=entry["ways"],
        shots=entry["shots"],
        network_size=(height, width),
        class_ids=tuple(entry["class_ids"]),
        arrays=_read_arrays(folder / entry["file"]),
    )
