"""What every peer does with a photograph. Runs in the peers' own environments.

A task is fixed when the endpoint starts, because the peers keep no state between requests: that
spares them what registering costs here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.floor import Clock, StraightLine

#: Header of an answer over HTTP.
ENGINE_SECONDS = "x-engine-seconds"
#: Where the peer finds the model, its family and the task's guidance (a .npy file).
REPOSITORY, FAMILY, GUIDANCE = "PEER_REPOSITORY", "PEER_FAMILY", "PEER_GUIDANCE"


class Segmenter:
    """Decodes, runs the network, decides and encodes: the arithmetic of the floor.

    Attributes:
        line: The graphs.
    """

    def __init__(self) -> None:
        self.line = StraightLine(Path(os.environ[REPOSITORY]), os.environ[FAMILY])
        self._prototypes: Any = np.load(os.environ[GUIDANCE])

    def segment(self, jpeg: bytes, height: int = 375, width: int = 500) -> tuple[bytes, float]:
        """A photograph to its mask (PNG), and the seconds that the graphs took."""
        clock = Clock()
        found = self.line.segment(jpeg, self._prototypes, height, width, clock)
        return found.png, clock.of("features", "decode")
