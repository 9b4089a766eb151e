"""Seeds: what a command sends is its own, when it sends it is not."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass

_BASES = 1 << 31
#: Seeds of images that one base has: two bases share none, however close they are.
_DRAWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Draw:
    """The seeds of one run.

    Attributes:
        images: Of the photographs; no other draw has it.
        arrivals: Of the times of arrivals, and of the tasks that they are for. Every command has
            the same, so that two results differ by what the server does, not by how many requests
            happened to come.
    """

    images: int
    arrivals: int


class Seeds:
    """Seeds of a command, each given out once.

    Args:
        base: Sends the images of the command that had it again. None draws one: a server keeps
            what it computed for an image, and would look better on images that it knows.

    Attributes:
        base: To repeat the command with.
    """

    def __init__(self, base: int | None = None) -> None:
        self.base = secrets.randbelow(_BASES) if base is None else base
        self._numbers = itertools.count()

    def draw(self) -> Draw:
        """The seeds of the next run."""
        number = next(self._numbers)
        return Draw(images=_DRAWS * self.base + number, arrivals=number)
