# SPDX-License-Identifier: Apache-2.0
"""Imports torchvision beside a torch that its compiled operators were not built for.

The published torchvision wheels are built against torch with CUDA. Beside the CPU-only build their
operators do not load, and `import torchvision` then fails while it registers the shapes of two
operators that nobody declared. Declaring them is enough: networks and weights work, and the
operators themselves (non-maximum suppression) are never called here.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from export.errors import ExportError

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def import_torchvision() -> ModuleType:
    """Returns the torchvision package.

    Raises:
        ExportError: It is not installed, or another version than torch needs.
    """
    try:
        return _import()
    except ModuleNotFoundError as error:
        raise ExportError(
            'torchvision is not installed; run pip install "fewseg[export]".'
        ) from error
    except RuntimeError as first:
        if "torchvision::" not in str(first):
            raise ExportError(
                f"torchvision does not import beside torch {torch.__version__} ({first}); "
                'run pip install "fewseg[export]".'
            ) from first
    # The declarations live as long as the library object.
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + _NMS)  # type: ignore[no-untyped-call]
    _DECLARED.append(library)
    return _import()


_DECLARED: list[torch.library.Library] = []


def _import() -> ModuleType:
    import torchvision

    module: ModuleType = torchvision
    return module
