# SPDX-License-Identifier: Apache-2.0
"""SCL's shots one by one, from which the paper's equations 15 to 17 are put together.

A cross-guided task decodes under each shot alone, and weighs and adds up the margins itself. So a
shot alone must have its own margins, whatever the graph that judges by the path of supports says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from export.verification.stored import TorchFamily
from export.verification.task import Episode, run_episode
from tests.congruence.exported_methods import exported

Array = np.ndarray[Any, Any]
SIDE = 65


def pictures(count: int, input_dtype: str) -> Array:
    """Smooth noise, so that networks of random weights tell one from another."""
    noise = np.random.default_rng(1).integers(0, 256, (count, 13, 13, 3))
    pixels = noise.repeat(5, axis=1).repeat(5, axis=2)
    if input_dtype == "uint8":
        return pixels.astype(np.uint8)
    return (pixels * 256).astype(np.uint16)


def margins(family: Any, shots: int, agreement: float) -> Array:
    """Logits of a query under shots whose every pair agrees so well."""
    torch_family = TorchFamily(family)

    def run(role: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = torch_family.run(role, inputs)
        if role == "merge":
            found["agreement"] = np.full_like(found["agreement"], agreement)
        return found

    planes = np.zeros((2, SIDE, SIDE), np.float32)
    planes[0], planes[:, 10:50, 10:50] = 1, np.array([[[0.0]], [[1.0]]])
    *supports, query = pictures(shots + 1, family.serving.input_dtype)
    return run_episode(Episode([(image, planes) for image in supports], query), family, run).logits


@pytest.mark.parametrize("method", ["scl-canet", "scl-pfenet"])
def test_a_shot_alone_is_not_weighed(method: str) -> None:
    family = exported(method)
    alone = margins(family, 1, agreement=1.0)
    assert np.ptp(alone) > 0
    np.testing.assert_array_equal(alone, margins(family, 1, agreement=0.25))
    together, doubted = (margins(family, 2, agreement=agreed) for agreed in (1.0, 0.25))
    assert np.abs(together - doubted).max() > 0.1 * np.abs(together).max()
