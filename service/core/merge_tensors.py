"""What ``merge`` takes, and what ``decode`` takes of its answers (docs/repository.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.family import MergeRule, ModelFamily, WayAxis
from service.core.merging import Guidance, bucket, validity

#: The input of ``merge`` that marks real shots among padded ones, float32 [shots].
VALIDITY = "validity"


def pad_shot(family: ModelFamily, shot: Guidance, ways: int) -> dict[str, NDArray[Any]]:
    """The tensors of a shot with their ways padded again, as ``guide`` returned them."""
    extra_ways = bucket(ways, family.way_buckets, "classes") - ways
    padded = dict(shot)
    for tensor in family.guidance:
        if tensor.name in shot and tensor.ways is not WayAxis.NONE:
            values = shot[tensor.name]
            padded[tensor.name] = np.pad(values, [(0, extra_ways)] + [(0, 0)] * (values.ndim - 1))
    return padded


def merge_feeds(
    family: ModelFamily, shots: Sequence[Guidance], judged: Guidance | None = None
) -> dict[str, NDArray[Any]]:
    """What ``merge`` takes: shots stacked and padded to their bucket, and the one that is judged.

    Args:
        family: Whose graph it is.
        shots: What the family's ``merge_inputs`` names, of each shot, with padded ways.
        judged: What its ``merge_judged`` names.

    Returns:
        Tensors with a batch dimension of length 1; `validity` is 1 for real shots.
    """
    real = validity(family, len(shots))
    feeds: dict[str, NDArray[Any]] = {VALIDITY: real[None]}
    for name in family.merge_inputs:
        values = np.stack([shot[name] for shot in shots])
        padding = [(0, len(real) - len(shots))] + [(0, 0)] * (values.ndim - 1)
        feeds[name] = np.pad(values, padding)[None]
    for name in family.merge_judged:
        if judged is None:
            raise ValueError("no shot to judge")
        feeds[name] = judged[name][None]
    return feeds


def joint(family: ModelFamily, outputs: Guidance, shots: int) -> dict[str, NDArray[Any]]:
    """What ``merge`` made of a whole set of shots, as ``decode`` takes it but for its batch."""
    return {name: outputs[name][0] for name in _made(family)} | _validities(family, shots)


def pair_of(family: ModelFamily, outputs: Guidance, guiding: int) -> dict[str, NDArray[Any]]:
    """What ``merge`` says of the judged shot under one of those that it was given."""
    # A view would keep the other shots alive.
    return {name: outputs[name][0, guiding].copy() for name in _made(family)}


def paired(family: ModelFamily, pairs: Sequence[Sequence[Guidance]]) -> dict[str, NDArray[Any]]:
    """What ``merge`` said of each shot under each, as ``decode`` takes it but for its batch.

    Args:
        family: Whose graph said so.
        pairs: By judged shot and by guiding shot, in this order.

    Returns:
        Tensors [shots, shots, ...], both axes padded with zeros to a bucket.
    """
    extra = bucket(len(pairs), family.shot_buckets, "shots") - len(pairs)
    tensors = {}
    for name in _made(family):
        values = np.stack([np.stack([pair[name] for pair in row]) for row in pairs])
        tensors[name] = np.pad(values, [(0, extra)] * 2 + [(0, 0)] * (values.ndim - 2))
    return tensors | _validities(family, len(pairs))


def _made(family: ModelFamily) -> list[str]:
    """The tensors that ``merge`` makes."""
    return [tensor.name for tensor in family.guidance if tensor.merge is MergeRule.GRAPH]


def _validities(family: ModelFamily, shots: int) -> dict[str, NDArray[Any]]:
    """The inputs of ``decode`` that go with tensors of ``merge``."""
    return {
        tensor.validity: validity(family, shots)
        for tensor in family.guidance
        if tensor.merge is MergeRule.GRAPH and tensor.validity is not None
    }
