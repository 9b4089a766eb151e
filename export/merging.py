# SPDX-License-Identifier: Apache-2.0
"""What a `merge` graph is given, by the rules of docs/repository.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

VALIDITY = "validity"
"""Its input that marks real shots among padded ones."""


def merge_feeds(
    inputs: Sequence[str], shots: Sequence[Arrays], judged_inputs: Sequence[str], judged: Arrays
) -> dict[str, NDArray[Any]]:
    """Stacks shots, none of them padded, for a run of `merge`.

    Args:
        inputs: What it takes of every shot, `fewseg.merge_inputs`.
        shots: Their tensors without batch dimension.
        judged_inputs: What it takes of the shot that it judges, `fewseg.merge_judged`.
        judged: That shot's tensors; not used where there is nothing to judge.

    Returns:
        Tensors with a batch dimension of length 1.
    """
    feeds: dict[str, NDArray[Any]] = {VALIDITY: np.ones((1, len(shots)), np.float32)}
    feeds |= {name: np.stack([shot[name] for shot in shots])[None] for name in inputs}
    return feeds | {name: judged[name][None] for name in judged_inputs}
