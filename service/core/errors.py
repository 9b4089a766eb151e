"""What can go wrong, in the words of the domain.

Every error that the core raises on purpose is one of the kinds below. The
transport maps kinds to its own codes in one table (``service.api.errors``).
"""

from collections.abc import Mapping
from typing import Self


class FewSegError(Exception):
    """An expected failure.

    Args:
        reason: UPPER_SNAKE identifier of at most 63 characters, stable across releases.
        message: One sentence for a person; never holds secrets or paths of the server.
        field: Path of the request field at fault, such as ``supports[2].annotation.marks[0].box``.
        metadata: Further facts for a program.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})

    def within(self, prefix: str) -> Self:
        """The error with its field path prefixed, as it travels outwards.

        A copy: callers that wait for one build share its error, and each has a
        path of its own.
        """
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.args = self.args
        if self.field is None:
            copy.field = prefix
        else:
            joint = "" if self.field.startswith("[") else "."
            copy.field = f"{prefix}{joint}{self.field}"
        return copy


class InvalidArgumentError(FewSegError):
    """The request is wrong whatever the state of the server."""


class OutOfLimitsError(InvalidArgumentError):
    """The request is larger than this server accepts."""


class NotFoundError(FewSegError):
    """The named thing does not exist."""


class AlreadyExistsError(FewSegError):
    """The name, or the request id, is taken by something else."""


class FailedPreconditionError(FewSegError):
    """The request is right, but the task's state does not allow it."""


class AbortedError(FewSegError):
    """Another change came first: read again and repeat."""


class RetryableError(FewSegError):
    """A failure that a later attempt may not meet; no field of the request is at fault.

    Args:
        retry_after: Seconds after which an attempt makes sense.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: float,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, field=field, metadata=metadata)
        self.retry_after = retry_after

    def within(self, prefix: str) -> Self:
        """The error as it is."""
        return self


class ResourceExhaustedError(RetryableError):
    """The server is full: too many requests or tasks, or no room in the store."""


class UnavailableError(RetryableError):
    """The engine or the store does not answer."""


class DeadlineExceededError(FewSegError):
    """The caller's deadline passed before the answer was ready."""

    def within(self, prefix: str) -> Self:
        """The error as it is: no field of the request is at fault."""
        return self


class RepositoryError(FewSegError):
    """A model repository cannot be served; the message names the file."""
