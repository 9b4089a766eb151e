"""The guidance of a whole task, once the engine holds it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.core.ports import GuidanceHandle
from service.core.types import BackgroundEvidence


@dataclass(frozen=True, slots=True)
class TaskKey:
    """One revision of one task under one family."""

    family: str
    uid: str
    revision: int


class TaskGuidance:
    """The guidance of a task, held by the engine.

    The engine lets it go when nobody refers to this object any more: neither
    the cache, nor a query, nor a stream.

    Attributes:
        handles: The engine's: one of all shots merged, or one of each shot of a cross-guided task.
        weights: float32 [shots, ways] of a cross-guided task, see ``fusing.shot_weights``;
            None where shots are merged.
        background: Where the background evidence comes from.
        nbytes: Bytes that the engine holds.
    """

    def __init__(
        self,
        handles: Sequence[GuidanceHandle],
        weights: NDArray[np.float32] | None,
        background: BackgroundEvidence,
        release: Callable[[GuidanceHandle], None],
    ) -> None:
        self.handles = tuple(handles)
        self.weights = weights
        self.background = background
        self.nbytes = sum(handle.nbytes for handle in handles)
        for handle in handles:
            weakref.finalize(self, release, handle).atexit = False

    @property
    def family(self) -> str:
        """Whose networks made it."""
        return self.handles[0].family
