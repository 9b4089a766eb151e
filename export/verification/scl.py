# SPDX-License-Identifier: Apache-2.0
"""Golden cases of SCL, whose two networks share a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from export.errors import GoldenError
from export.goldens import Key, case_names, overridden, seeded_checkpoint

_PARALLEL = "module."


def cases_of(goldens: Path, start: str, names: Sequence[str]) -> list[str]:
    """The cases of one network, by the start of their names.

    Args:
        goldens: Folder of golden vectors.
        start: Such as "sclca_".
        names: Which cases; none means all of that network.

    Raises:
        GoldenError: There is none.
    """
    found = [name for name in case_names(goldens, names) if name.startswith(start)]
    if not found:
        raise GoldenError(f"{goldens} has no such case whose name starts with {start}.")
    return found


def scl_checkpoint(keys: Mapping[str, Key], facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Rebuilds a case's tensors under their official keys, changed as the case says.

    Args:
        keys: Official keys, with `module.`.
        facts: Of the case.
    """
    shapes = {key.removeprefix(_PARALLEL): entry.shape for key, entry in keys.items()}
    tensors = seeded_checkpoint(shapes, facts["weight_seed"])
    tensors = overridden(tensors, facts["weight_overrides"])
    return {f"{_PARALLEL}{key}": tensor for key, tensor in tensors.items()}
