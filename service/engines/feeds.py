# SPDX-License-Identifier: Apache-2.0
"""What every engine asks of a run: its tensors, its batch and its time."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.core.errors import DeadlineExceededError, UnavailableError
from service.core.ports import GuidanceHandle, Tensors
from service.engines.config_files import TensorSpec


class Signature(Protocol):
    """A graph or ensemble as its config declares it."""

    @property
    def model(self) -> str:
        """Name of its model."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What it takes."""
        ...

    @property
    def max_batch(self) -> int:
        """Largest batch."""
        ...


def taken(model: Signature, tensors: Tensors, features: Collection[str]) -> dict[str, NDArray[Any]]:
    """Leaves out those outputs of ``features`` that a model does not take."""
    return {
        name: values
        for name, values in tensors.items()
        if name in model.inputs or name not in features
    }


def check_feeds(model: Signature, feeds: Tensors) -> None:
    """Raises ``ValueError`` unless the tensors are exactly the model's inputs, of one batch."""
    if feeds.keys() != model.inputs.keys():
        wanted, given = sorted(model.inputs), sorted(feeds)
        raise ValueError(f"{model.model} takes {wanted}, not {given}")
    for name, spec in model.inputs.items():
        spec.check(feeds[name])
    batches = {len(values) for values in feeds.values()}
    if len(batches) != 1 or not 1 <= min(batches) <= model.max_batch:
        raise ValueError(
            f"{model.model} takes one batch of 1 to {model.max_batch}, not {sorted(batches)}"
        )


def check_guidance(decode: Signature, tensors: Tensors) -> None:
    """Raises ``ValueError`` unless the tensors are inputs of ``decode`` with a batch of one."""
    for name, values in tensors.items():
        if name not in decode.inputs:
            raise ValueError(f"{decode.model} takes no tensor {name}")
        decode.inputs[name].check(values)
        if len(values) != 1:
            raise ValueError(f"guidance {name} must have batch 1, not {len(values)}")


def check_handle(handle: GuidanceHandle, family: str) -> None:
    """Raises ``ValueError`` unless the guidance was put for that family."""
    if handle.family != family:
        raise ValueError(f"guidance {handle.key} is not of family {family}")


def batch_of(inputs: Tensors) -> int:
    """Length of the batch; 1 where there is no tensor to tell."""
    return next((len(values) for values in inputs.values() if values.ndim), 1)


def repeated(tensors: Tensors, batch: int) -> dict[str, NDArray[Any]]:
    """Guidance of batch 1, once per query of a batch."""
    if batch == 1:
        return dict(tensors)
    return {name: np.repeat(values, batch, axis=0) for name, values in tensors.items()}


def remaining_seconds(deadline: float | None) -> float | None:
    """Seconds to the deadline; raises ``DeadlineExceededError`` when there are none."""
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise deadline_exceeded()
    return remaining


def deadline_exceeded() -> DeadlineExceededError:
    """The error of a run whose time is over."""
    return DeadlineExceededError(
        "DEADLINE_EXCEEDED", "The deadline passed before the network had answered."
    )


def guidance_dropped() -> UnavailableError:
    """The error of a run whose guidance was let go."""
    return UnavailableError(
        "GUIDANCE_DROPPED", "The guidance was dropped; put it again.", retry_after=0.0
    )


def nbytes(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(values.nbytes for values in tensors.values())


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    """The values in an array that nobody writes to; a copy only where that is not so yet."""
    if values.flags.writeable or not values.flags.c_contiguous:
        values = np.array(values, order="C")
        values.setflags(write=False)
    return values
