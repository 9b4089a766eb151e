"""From the guidance of shots to that of a task, and to the shapes that graphs take.

Shot guidance has no batch dimension; what goes to an engine has one of length 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.errors import OutOfLimitsError
from service.core.family import GuidanceTensor, MergeRule, ModelFamily, WayAxis

Guidance = Mapping[str, NDArray[Any]]


def merge_shots(family: ModelFamily, shots: Iterable[Guidance]) -> dict[str, NDArray[Any]]:
    """Merges shots by the rule of each tensor, but for those that ``merge`` makes.

    Sums are taken in float64, so that the order of the shots does not show and
    a thousand shots are as exact as one.

    Args:
        family: Whose tensors they are.
        shots: At least one.

    Returns:
        The task's tensors by name, in the dtype of the shots.
    """
    folds = [_FOLDS[tensor.merge](tensor) for tensor in family.guidance if tensor.merge in _FOLDS]
    for shot in shots:
        for fold in folds:
            fold.add(shot)
    return {fold.tensor.name: fold.result() for fold in folds}


class _Mean:
    """The plain mean over shots."""

    def __init__(self, tensor: GuidanceTensor) -> None:
        self.tensor = tensor
        self._shots: list[tuple[NDArray[Any], Any]] = []

    def add(self, shot: Guidance) -> None:
        values = shot[self.tensor.name]
        self._shots.append((values, self._weight_of(shot, values)))

    def _weight_of(self, shot: Guidance, values: NDArray[Any]) -> Any:
        return np.float64(1.0)

    def result(self) -> NDArray[Any]:
        if not self._shots:
            raise ValueError("no shots to merge")
        values, weight = self._shots[0]
        if len(self._shots) == 1:
            return np.where(weight > 0, values, np.zeros((), values.dtype))
        total = values.astype(np.float64) * weight
        for more, its_weight in self._shots[1:]:
            total += more.astype(np.float64) * its_weight
            weight = weight + its_weight
        merged: NDArray[Any] = np.divide(
            total, weight, out=np.zeros_like(total), where=weight > 0
        ).astype(values.dtype)
        return merged


class _WeightedMean(_Mean):
    """sum(weight * row) / sum(weight), zero where the weights add up to zero."""

    def _weight_of(self, shot: Guidance, values: NDArray[Any]) -> Any:
        weight = shot[self.tensor.weight or ""].astype(np.float64)
        return weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))


class _Stack:
    """Shots along a new first axis."""

    def __init__(self, tensor: GuidanceTensor) -> None:
        self.tensor = tensor
        self._shots: list[NDArray[Any]] = []

    def add(self, shot: Guidance) -> None:
        self._shots.append(shot[self.tensor.name])

    def result(self) -> NDArray[Any]:
        if not self.tensor.positions:
            return np.stack(self._shots)
        axis = self.tensor.positions_axis
        most = max(shot.shape[axis] for shot in self._shots)
        return np.stack([_lengthened(shot, axis, most) for shot in self._shots])


_FOLDS: dict[MergeRule, Any] = {
    MergeRule.MEAN: _Mean,
    MergeRule.WEIGHTED_MEAN: _WeightedMean,
    MergeRule.STACK: _Stack,
}


def bucket(length: int, buckets: Sequence[int], what: str) -> int:
    """The padded length of an inner axis.

    Raises:
        OutOfLimitsError: The family takes no axis of that length.
    """
    for candidate in buckets:
        if length <= candidate:
            return candidate
    raise OutOfLimitsError(
        f"TOO_MANY_{what.upper()}",
        f"This model takes at most {max(buckets)} {what}; the task has {length}.",
    )


def pad_ways(planes: NDArray[np.float32], ways: int, family: ModelFamily) -> NDArray[np.float32]:
    """Pads planes [1, 1 + ways, H, W] with zero planes to a bucket of ways."""
    extra = bucket(ways, family.way_buckets, "classes") - ways
    if extra == 0:
        return planes
    return np.pad(planes, ((0, 0), (0, extra), (0, 0), (0, 0)))


def cut_shot(family: ModelFamily, outputs: Guidance, ways: int) -> dict[str, NDArray[Any]]:
    """What is kept of the answer of ``guide``: no batch dimension, no padded ways.

    Args:
        family: Whose answer it is.
        outputs: Tensors with a batch dimension of length 1.
        ways: The task's real ways.
    """
    kept: dict[str, NDArray[Any]] = {}
    for tensor in family.guidance:
        if tensor.merge is MergeRule.GRAPH:
            continue
        rows = _rows(tensor, ways)
        for name in (tensor.name, tensor.weight):
            if name is not None:
                # A view would keep the padded ways alive.
                kept[name] = outputs[name][0][:rows].copy()
        if tensor.positions:
            kept[tensor.name] = _compact(kept[tensor.name], tensor.positions_axis)
    for name in (*family.merge_inputs, *family.merge_judged):
        if name in outputs and name not in kept:
            kept[name] = outputs[name][0].copy()
    return kept


def _compact(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Cuts off what is zero at the end of an axis: the shot may have been run with busier ones."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    stored = np.flatnonzero(values.any(axis=others))
    needed = int(stored[-1]) + 1 if stored.size else 1
    if needed == values.shape[axis]:
        return values
    return np.take(values, np.arange(needed), axis=axis)


def _lengthened(values: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """Adds zeros at the end of an axis."""
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, length - values.shape[axis])
    return np.pad(values, padding)


def validity(family: ModelFamily, shots: int) -> NDArray[np.float32]:
    """1 for each real shot, 0 for those that pad a bucket."""
    return (np.arange(bucket(shots, family.shot_buckets, "shots")) < shots).astype(np.float32)


def pad_guidance(family: ModelFamily, merged: Guidance, ways: int) -> dict[str, NDArray[Any]]:
    """What ``decode`` takes: a batch dimension; ways, shots and positions padded to buckets.

    What ``merge`` made is padded already.
    """
    extra_ways = bucket(ways, family.way_buckets, "classes") - ways
    padded: dict[str, NDArray[Any]] = {}
    for tensor in family.guidance:
        values = merged[tensor.name]
        if tensor.merge is MergeRule.GRAPH:
            made = (tensor.name, tensor.validity)
            padded |= {name: merged[name][None] for name in made if name is not None}
            continue
        stacked = tensor.merge is MergeRule.STACK
        padding = [(0, 0)] * values.ndim
        if tensor.ways is not WayAxis.NONE:
            padding[1 if stacked else 0] = (0, extra_ways)
        if stacked:
            real = validity(family, len(values))
            padding[0] = (0, len(real) - len(values))
            if tensor.validity is not None:
                padded[tensor.validity] = real[None]
        if tensor.positions:
            axis = 1 + tensor.positions_axis
            needed = values.shape[axis]
            padding[axis] = (0, bucket(needed, family.position_buckets, "positions") - needed)
        # Numpy takes a tenth of a millisecond to pad by nothing.
        filled = np.pad(values, padding) if any(map(sum, padding)) else values
        padded[tensor.name] = np.ascontiguousarray(filled[None])
    return padded


def _rows(tensor: GuidanceTensor, ways: int) -> int | None:
    match tensor.ways:
        case WayAxis.BACKGROUND_AND_WAYS:
            return 1 + ways
        case WayAxis.WAYS:
            return ways
        case WayAxis.NONE:
            return None
