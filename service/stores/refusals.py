"""The refusals that stores alone make; those that others make too are in the core."""

from __future__ import annotations

from service.core.errors import NotFoundError, ResourceExhaustedError, UnavailableError

#: Seconds; room comes back when tasks expire or a person makes some.
_ROOM_RETRY = 30.0
#: Seconds; a store that failed once may answer the next call.
_FAILURE_RETRY = 5.0


def image_not_found(digest: str) -> NotFoundError:
    """The image was never put, or no task used it any more."""
    return NotFoundError(
        "IMAGE_NOT_FOUND",
        f"The image with digest {digest} is not kept here; send it again.",
        metadata={"digest": digest},
    )


def too_many_tasks(max_tasks: int) -> ResourceExhaustedError:
    """The store holds as many tasks as it may."""
    return ResourceExhaustedError(
        "TOO_MANY_TASKS",
        f"The server holds its maximum of {max_tasks} tasks; delete some first.",
        retry_after=_ROOM_RETRY,
        metadata={"max_tasks": str(max_tasks)},
    )


def store_full() -> ResourceExhaustedError:
    """There is no room on the disk."""
    return ResourceExhaustedError(
        "STORE_FULL",
        "The server has no room to keep this; try again once room has been made.",
        retry_after=_ROOM_RETRY,
    )


def store_unavailable(
    message: str = "The task store does not answer; try again later.",
) -> UnavailableError:
    """The store cannot do its work."""
    return UnavailableError("STORE_UNAVAILABLE", message, retry_after=_FAILURE_RETRY)
