"""Work in a thread that nobody waits for any more comes to its end.

A thread cannot be cancelled from outside. Loops whose length a request decides (marks
of an annotation, bands of a mask) therefore ask between two turns. What
they ask travels in the context, as a task's cancellation does: whoever starts the work
sets it, and nothing in between has to hand it on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from service.core.errors import DeadlineExceededError

_abandoned: ContextVar[Callable[[], bool] | None] = ContextVar("abandoned", default=None)


class StoppedError(DeadlineExceededError):
    """The work was given up half-way, because its caller has."""

    def __init__(self) -> None:
        super().__init__("DEADLINE_EXCEEDED", "Nobody waits for the answer any more.")


def stop_when(abandoned: Callable[[], bool]) -> None:
    """Lets work in the present context end at its next checkpoint once ``abandoned`` is true.

    To be called in a context made for the work, such as ``copy_context().run(stop_when, asked)``.
    """
    _abandoned.set(abandoned)


def checkpoint() -> None:
    """Raises ``StoppedError`` if the caller of this work has given up; costs next to nothing."""
    abandoned = _abandoned.get()
    if abandoned is not None and abandoned():
        raise StoppedError
