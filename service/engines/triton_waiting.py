# SPDX-License-Identifier: Apache-2.0
"""Patience with a Triton that starts after the gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from service.core.errors import UnavailableError

_T = TypeVar("_T")

_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 2.0

_log = logging.getLogger(__name__)


class FirstAnswer:
    """Waits for servers until one has answered, and never again afterwards.

    A gateway and its Triton are often started together, and Triton takes longer. Once it has
    answered, a failure is a failure, and callers hear of it at once.

    Args:
        seconds: How long to wait; 0 for not at all.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answered = False

    async def wait_for(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Asks again and again, with pauses that grow, while nobody answers.

        Raises:
            UnavailableError: Nobody answered in time, or nobody does after a first answer.
        """
        until = time.monotonic() + self._seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = await ask()
            except UnavailableError:
                left = until - time.monotonic()
                if self._answered or left <= 0:
                    raise
                if pause == _FIRST_PAUSE_SECONDS:
                    _log.warning("Triton does not answer; waiting at most %.0f s", self._seconds)
            else:
                self._answered = True
                return answer
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
