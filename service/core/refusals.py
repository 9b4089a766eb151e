"""Refusals that several parts make, so that a caller hears the same words from all of them."""

from __future__ import annotations

from typing import Final

from service.core.errors import (
    AbortedError,
    AlreadyExistsError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from service.core.types import TaskName

#: Seconds after which a call that was told to come back makes sense.
#: Reason of the error that a full server answers with.
OVERLOADED: Final = "OVERLOADED"
COME_BACK_SECONDS = 1.0


def task_not_found(name: TaskName) -> NotFoundError:
    """There is no such task, or it has expired."""
    return NotFoundError(
        "TASK_NOT_FOUND", f"There is no task '{name}'.", metadata={"name": str(name)}
    )


def task_exists(name: TaskName) -> AlreadyExistsError:
    """The name is taken."""
    return AlreadyExistsError(
        "TASK_EXISTS",
        f"There is a task '{name}' already; choose another id, or delete it first.",
        field="task_id",
        metadata={"name": str(name)},
    )


def stale_etag(name: TaskName) -> AbortedError:
    """Another change came first."""
    return AbortedError(
        "STALE_ETAG",
        f"The task '{name}' has changed since that etag was given; read it again and repeat.",
        field="etag",
        metadata={"name": str(name)},
    )


def support_not_found(support_id: str) -> NotFoundError:
    """The task has no such support."""
    return NotFoundError(
        "SUPPORT_NOT_FOUND",
        f"The task has no support '{support_id}'.",
        field="support_id",
        metadata={"support_id": support_id},
    )


def request_id_reused(request_id: str) -> AlreadyExistsError:
    """The id was used for another request."""
    return AlreadyExistsError(
        "REQUEST_ID_REUSED",
        "This request id was used for a different request; choose a new one.",
        field="request_id",
        metadata={"request_id": request_id},
    )


def overloaded(retry_after: float = COME_BACK_SECONDS) -> ResourceExhaustedError:
    """The server has no room for the call now; ``retry_after`` in seconds."""
    return ResourceExhaustedError(
        OVERLOADED,
        "The server has as many calls as it can take; try again later.",
        retry_after=retry_after,
    )


def stopping() -> UnavailableError:
    """The server ends; another one may answer."""
    return UnavailableError("STOPPING", "The server is stopping.", retry_after=COME_BACK_SECONDS)
