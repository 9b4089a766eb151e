# SPDX-License-Identifier: Apache-2.0
"""The one place where Triton's errors are read.

tritonclient hands over a status and a sentence; some things that a gateway must tell apart differ
in the sentence alone. The sentences are those of Triton 2.51 (release 24.10).
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

from service.core.errors import FewSegError, ResourceExhaustedError, UnavailableError
from service.engines.feeds import deadline_exceeded

_RETRY_SECONDS: Final = 1.0
_FULL_RETRY_SECONDS: Final = 0.1


class Trouble(Enum):
    """What an answer of Triton means to the gateway."""

    #: Nobody answers at the address.
    UNREACHABLE = auto()
    #: No answer within the time given.
    TIMED_OUT = auto()
    #: It waits longer in Triton's queue than its deadline allows.
    EXPIRED_IN_QUEUE = auto()
    QUEUE_FULL = auto()
    MODEL_MISSING = auto()
    REGION_MISSING = auto()
    #: The region's name is registered already.
    REGION_KNOWN = auto()
    #: Triton was started without ``--model-control-mode=explicit``.
    CONTROL_REFUSED = auto()
    #: The request is wrong.
    INVALID = auto()
    #: The model, or the server, failed.
    FAILED = auto()


#: Sentences that decide whatever the status; ensembles put words before those of their graphs.
_SENTENCES: Final = (
    ("shared memory region", "already in manager", Trouble.REGION_KNOWN),
    ("Unable to find shared memory region", "", Trouble.REGION_MISSING),
    ("unknown model", "", Trouble.MODEL_MISSING),
    ("no available versions", "", Trouble.MODEL_MISSING),
    ("stopped accepting new inference requests", "", Trouble.MODEL_MISSING),
    ("is not ready", "", Trouble.MODEL_MISSING),
    ("Request timeout expired", "", Trouble.EXPIRED_IN_QUEUE),
    ("Exceeds maximum queue size", "", Trouble.QUEUE_FULL),
    ("model load / unload is not allowed", "", Trouble.CONTROL_REFUSED),
)
_STATUSES: Final = {
    "StatusCode.UNAVAILABLE": Trouble.UNREACHABLE,
    "StatusCode.DEADLINE_EXCEEDED": Trouble.TIMED_OUT,
    "StatusCode.RESOURCE_EXHAUSTED": Trouble.QUEUE_FULL,
    "StatusCode.NOT_FOUND": Trouble.MODEL_MISSING,
    "StatusCode.INVALID_ARGUMENT": Trouble.INVALID,
}


class TritonError(Exception):
    """An answer of Triton that is no result.

    Args:
        trouble: What it means.
        message: Triton's sentence. It may hold paths of the server: it is for logs.
    """

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message


def read_error(error: Any) -> TritonError:
    """Reads tritonclient's ``InferenceServerException``."""
    message = str(error.message() or "")
    for first, second, trouble in _SENTENCES:
        if first in message and second in message:
            return TritonError(trouble, message)
    return TritonError(_STATUSES.get(error.status(), Trouble.FAILED), message)


def as_domain_error(error: TritonError, model: str, *, timed: bool) -> FewSegError:
    """What a caller of ``run`` is told.

    Args:
        error: Triton's answer.
        model: What was to run.
        timed: Whether the caller set a deadline, rather than the engine a bound.
    """
    trouble = error.trouble
    if trouble in (Trouble.TIMED_OUT, Trouble.EXPIRED_IN_QUEUE):
        if timed:
            return deadline_exceeded()
        return _unavailable("ENGINE_SLOW", f"Triton does not answer {model} in time.")
    if trouble is Trouble.QUEUE_FULL:
        return ResourceExhaustedError(
            "ENGINE_QUEUE_FULL",
            "Triton's queue is full; try again soon.",
            retry_after=_FULL_RETRY_SECONDS,
        )
    if trouble is Trouble.UNREACHABLE:
        return unreachable(_RETRY_SECONDS)
    if trouble is Trouble.MODEL_MISSING:
        return model_missing(model, _RETRY_SECONDS)
    return _unavailable("ENGINE_FAILED", f"Triton failed to run {model}.")


def unreachable(retry_after: float) -> UnavailableError:
    """The error of a call that no address can answer."""
    return UnavailableError(
        "ENGINE_UNREACHABLE", "Triton cannot be reached; try again soon.", retry_after=retry_after
    )


def model_missing(model: str, retry_after: float) -> UnavailableError:
    """The error of a run whose model no address has."""
    return UnavailableError(
        "MODEL_NOT_LOADED", f"Triton has not loaded {model}.", retry_after=retry_after
    )


def _unavailable(reason: str, message: str) -> UnavailableError:
    return UnavailableError(reason, message, retry_after=_RETRY_SECONDS)
