"""When to send a call again.

Not left to gRPC's own retry policy: on its second attempt of a client stream it was seen to lose
messages (grpcio 1.85), and a support that is missing would go unnoticed. So that channels have
retries off, and only calls of a single message are repeated, here.
"""

from __future__ import annotations

import math
import random
import time

from fewseg.errors import DeadlineExceeded, FewSegError, Unavailable

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Attempts:
    """The attempts of one call, which share its deadline.

    Args:
        retries: How often the call may be sent again.
        timeout: Seconds for all attempts together; None for the default, ``math.inf`` for no
            deadline.
        default: Seconds if the call says nothing; None for no deadline.
    """

    def __init__(self, retries: int, timeout: float | None, default: float | None = None) -> None:
        self._left = retries
        self._made = 0
        seconds = default if timeout is None else timeout
        self._deadline = (
            None if seconds is None or seconds == math.inf else time.monotonic() + seconds
        )

    def time_left(self) -> float | None:
        """Seconds until the deadline, or None.

        Raises:
            DeadlineExceeded: None is left. gRPC would send the call all the same, and at times
                bring its answer.
        """
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                "The time for the call was over before it was sent.", code="DEADLINE_EXCEEDED"
            )
        return left

    def pause_after(self, failure: FewSegError) -> float | None:
        """Seconds to wait before the next attempt, or None if there is none.

        The pause doubles from attempt to attempt, within a fifth of chance so that clients do not
        come back all at once, and is no shorter than the server asks for.
        """
        # A server that starts is there in a moment, however many attempts that takes.
        starting = failure.reason == "STARTING"
        if not isinstance(failure, Unavailable) or (self._left == 0 and not starting):
            return None
        doubled = min(_FIRST_PAUSE * 2.0**self._made, _LONGEST_PAUSE)
        pause = max(doubled * random.uniform(0.8, 1.2), failure.retry_after or 0.0)
        if self._deadline is not None and time.monotonic() + pause >= self._deadline:
            return None
        if not starting:
            self._left -= 1
        self._made += 1
        return pause
