# SPDX-License-Identifier: Apache-2.0
"""Triton's ``config.pbtxt``, read through Triton's own message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

# Brings in gRPC (0.1 s), which the gateway needs anyway; there is no lighter way to the message.
from tritonclient.grpc import model_config_pb2

from service.core.errors import RepositoryError

#: ``inference.ModelConfig``; tritonclient carries no types.
ModelConfig: TypeAlias = Any

CONFIG_FILE: Final = "config.pbtxt"
_DEFAULT_GRAPH_FILE: Final = "model.onnx"

#: NumPy's types by Triton's; others (strings, bfloat16) have no place in a family.
_DTYPES: Final = {
    model_config_pb2.TYPE_BOOL: np.dtype(np.bool_),
    model_config_pb2.TYPE_UINT8: np.dtype(np.uint8),
    model_config_pb2.TYPE_UINT16: np.dtype(np.uint16),
    model_config_pb2.TYPE_UINT32: np.dtype(np.uint32),
    model_config_pb2.TYPE_UINT64: np.dtype(np.uint64),
    model_config_pb2.TYPE_INT8: np.dtype(np.int8),
    model_config_pb2.TYPE_INT16: np.dtype(np.int16),
    model_config_pb2.TYPE_INT32: np.dtype(np.int32),
    model_config_pb2.TYPE_INT64: np.dtype(np.int64),
    model_config_pb2.TYPE_FP16: np.dtype(np.float16),
    model_config_pb2.TYPE_FP32: np.dtype(np.float32),
    model_config_pb2.TYPE_FP64: np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as a config declares it.

    Attributes:
        name: Its name.
        dtype: Element type.
        dims: Extents without the batch; -1 is any.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]

    def check(self, values: NDArray[Any]) -> None:
        """Raises ``ValueError`` unless the array, its batch first, is such a tensor."""
        if values.dtype != self.dtype:
            raise ValueError(f"tensor {self.name} must be {self.dtype}, not {values.dtype}")
        inner = values.shape[1:]
        if values.ndim != len(self.dims) + 1 or not compatible(self.dims, inner):
            wanted = ", ".join(map(str, ("batch", *self.dims)))
            raise ValueError(f"tensor {self.name} must be [{wanted}], not {list(values.shape)}")


def compatible(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two shapes can be the same, where -1 is any extent."""
    return len(first) == len(second) and all(
        a == b or -1 in (a, b) for a, b in zip(first, second, strict=True)
    )


def config_path(model: str) -> str:
    """Path of a model's config relative to the repository, for messages."""
    return f"{model}/{CONFIG_FILE}"


def model_folders(repository: Path) -> Iterator[Path]:
    """Yields the folders of models by name; those that start with a dot are being written."""
    for folder in sorted(repository.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder


def read_config(folder: Path) -> ModelConfig:
    """Reads a model's config.

    Raises:
        RepositoryError: It is missing or no ModelConfig text, or names another model.
    """
    where = config_path(folder.name)
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RepositoryError("CONFIG_MISSING", f"{where}: is missing.") from None
    except UnicodeDecodeError as error:
        raise RepositoryError("CONFIG_INVALID", f"{where}: is not UTF-8 text.") from error
    except OSError as error:
        # The error's own text holds the whole path.
        raise RepositoryError(
            "CONFIG_INVALID", f"{where}: cannot be read: {error.strerror}."
        ) from error
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(
            "CONFIG_INVALID", f"{where}: is not a Triton model configuration: {error}."
        ) from error
    if config.name != folder.name:
        raise RepositoryError(
            "CONFIG_INVALID", f"{where}: name is {config.name!r}; it must be the folder's."
        )
    return config


def version_folder(folder: Path, config: ModelConfig) -> Path:
    """The version that Triton would serve: the latest that the model's policy allows.

    Triton wants one of every model, even of an ensemble, which holds nothing there.

    Raises:
        RepositoryError: There is none.
    """
    versions = [int(entry.name) for entry in folder.iterdir() if _is_version(entry)]
    if config.version_policy.HasField("specific"):
        allowed = set(config.version_policy.specific.versions)
        versions = [version for version in versions if version in allowed]
    if not versions:
        raise RepositoryError(
            "VERSION_MISSING", f"{folder.name}/: holds no version folder such as 1/."
        )
    return folder / str(max(versions))


def graph_file(folder: Path, config: ModelConfig) -> Path:
    """Path of the graph that Triton would serve.

    Raises:
        RepositoryError: There is no such version or file.
    """
    path = version_folder(folder, config) / (config.default_model_filename or _DEFAULT_GRAPH_FILE)
    if not path.is_file():
        raise RepositoryError(
            "GRAPH_MISSING", f"{path.relative_to(folder.parent).as_posix()}: is missing."
        )
    return path


def _is_version(entry: Path) -> bool:
    # Triton ignores folders with leading zeros, and so does the round trip.
    return entry.is_dir() and entry.name.isdecimal() and entry.name == str(int(entry.name))


def tensor_specs(config: ModelConfig, tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    """Turns the ``input`` or ``output`` field of a config into specs, by name.

    Raises:
        RepositoryError: A tensor has no name, a type without a NumPy twin, or a reshape.
    """
    specs: dict[str, TensorSpec] = {}
    for tensor in tensors:
        where = f"{config_path(config.name)}: tensor {tensor.name!r}"
        dtype = _DTYPES.get(tensor.data_type)
        if not tensor.name or tensor.name in specs:
            raise RepositoryError("CONFIG_INVALID", f"{where} needs a name of its own.")
        if dtype is None:
            raise RepositoryError("CONFIG_INVALID", f"{where} has no numeric data_type.")
        if tensor.HasField("reshape"):
            raise RepositoryError("CONFIG_INVALID", f"{where} has a reshape; write plain dims.")
        specs[tensor.name] = TensorSpec(tensor.name, dtype, tuple(tensor.dims))
    return specs
